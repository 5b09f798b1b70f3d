import re
import shlex
from pathlib import Path

import pytest

from regraft.cli import _command

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page):
    """Return the commands of a page's shell blocks, continued lines joined and comments left out."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.M)
    for language, block in blocks:
        if language not in ("", "sh", "bash", "console"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("regraft "):
                yield shlex.split(line, comments=True)[1:]


def refusal(words, capsys):
    """Return what the real parser says against a command, or nothing."""
    try:
        _command(words)
    except SystemExit as stop:
        return "" if not stop.code else capsys.readouterr().err or "refused"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_documentation_are_understood(page, capsys):
    refused = {" ".join(words): refusal(words, capsys) for words in commands(page)}
    assert not {command: said for command, said in refused.items() if said}


def test_there_are_commands_in_the_readme():
    assert len(list(commands(ROOT / "README.md"))) > 5
