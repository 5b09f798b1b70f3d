import subprocess
import sys

import regraft


def test_the_public_surface_is_importable_and_sorted():
    assert list(regraft.__all__) == sorted(regraft.__all__)
    for name in regraft.__all__:
        assert getattr(regraft, name) is not None


def test_importing_the_package_imports_no_torch():
    code = "import sys, regraft; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_subpackage_lists_its_surface_and_documents_it():
    for name in (
        "data", "features", "generators", "models", "recipes", "report", "symmetry", "tickets", "train",
    ):  # fmt: skip
        module = __import__(f"regraft.{name}", fromlist=["*"])
        assert module.__doc__
        for symbol in module.__all__:
            value = getattr(module, symbol)
            if callable(value) and getattr(value, "__module__", "").startswith("regraft"):
                assert value.__doc__, f"{name}.{symbol} has no docstring"
