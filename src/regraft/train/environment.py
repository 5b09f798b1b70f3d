"""What a run ran on, and by which command."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from regraft._version import __version__


def environment() -> dict[str, Any]:
    """Return versions, machine and commit, as far as they can be told."""
    import torch

    device = "cpu"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name(0)
    return {
        "regraft": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": device,
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "command": command_line(),
    }


def command_line() -> str:
    """Return the command that started this process, as one would type it."""
    program = Path(sys.argv[0]).name
    return shlex.join(["regraft" if program == "__main__.py" else program, *sys.argv[1:]])


@functools.cache
def commit() -> str | None:
    """Return the commit of the source tree this process was started from, or None outside one."""
    git = shutil.which("git")
    if git is None:
        return None
    here = Path(__file__).resolve().parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ask = [git, "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=False)
        where = [git, "-C", str(here), "rev-parse", "--show-prefix"]
        prefix = subprocess.run(where, capture_output=True, text=True, timeout=10, check=False)
        # Installed inside somebody else's repository, it must not report that one's commit.
        if prefix.stdout.strip() == "src/regraft/train/":
            return answer.stdout.strip() or None
    return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
