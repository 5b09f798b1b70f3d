"""Run commands one after another, each stopped once while it holds its folder.

A command is a JSON list of words, one a line of standard input. The first time that it looks whether its
folder is still there, `held` is printed and the next line waited for; its exit code comes at the end.
"""

import json
import sys

from regraft.cli import main
from regraft.train import RunFolder

real = RunFolder.check_there


def waiting(folder):
    """Stop once, then look."""
    RunFolder.check_there = real
    print("held", flush=True)
    sys.stdin.readline()
    real(folder)


for line in iter(sys.stdin.readline, ""):
    RunFolder.check_there = waiting
    try:
        code = main(json.loads(line))
    except SystemExit as error:
        code = error.code
    print(f"left {code}", flush=True)
