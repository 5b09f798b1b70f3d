import importlib
import sys

import pytest

from regraft.errors import MissingExtraError


@pytest.mark.parametrize(
    ("module", "library", "line"),
    [
        ("hugging_face", "transformers", r"pip install 'regraft\[hub\]'"),
        ("lightning", "lightning", r"pip install 'regraft\[lightning\]'"),
        ("timm_task", "timm.task", r"pip install 'regraft\[vision\]'"),
    ],
)
def test_without_the_library_the_install_line_is_named(module, library, line, monkeypatch):
    name = f"regraft.integrations.{module}"
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingExtraError, match=line):
        importlib.import_module(name)
