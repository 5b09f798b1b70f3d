import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, **arguments):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(**arguments)


def test_a_ticket_in_your_loop_learns(capsys):
    assert run("ticket_in_your_loop", epochs=12) > 0.85
    assert "none trained" in capsys.readouterr().out
