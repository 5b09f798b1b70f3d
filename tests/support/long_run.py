"""A job in a module that worker processes can import: it says that it runs, and then runs for an hour."""

import time
from dataclasses import dataclass

from regraft.jobs.base import Job


@dataclass(frozen=True, kw_only=True)
class LongRun(Job):
    """Writes ROOT/ARM and sleeps; the arm `short` returns at once."""

    def run(self, root, *, progress=None):
        if self.arm == "short":
            while not (root / "long").exists():
                time.sleep(0.05)
            return {"metrics": {}, "seconds": 0.0}
        (root / "long").touch()
        time.sleep(3600)
        raise AssertionError("nobody interrupted it")
