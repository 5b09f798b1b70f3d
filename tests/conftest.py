"""Shape and type annotations are checked in the tests, and only there."""

import gc
import os
import sys

from hypothesis import settings
from jaxtyping import install_import_hook

# Not where torch.compile and torch.export trace through (they cannot see past the checks), nor where
# a test passes a wrong value on purpose to see our own message.
CHECKED = [
    "regraft.streams",
    "regraft.data.folder",
    "regraft.data.images",
    "regraft.data.known",
    "regraft.data.lazy",
    "regraft.data.load",
    "regraft.data.split",
    "regraft.features.prior",
    "regraft.models.base",
    "regraft.models.build",
    "regraft.models.conv",
    "regraft.models.resnet",
    "regraft.recipes",
    "regraft.report.plots",
    "regraft.report.results",
    "regraft.report.runs",
    "regraft.report.stats",
    "regraft.report.table",
    "regraft.train",
    "regraft.tickets.file.coder",
    "regraft.tickets.controls",
    "regraft.tickets.file.events",
    "regraft.tickets.gather",
    "regraft.tickets.file.header",
    "regraft.tickets.iterand",
    "regraft.tickets.file.packed",
    "regraft.tickets.schedule",
    "regraft.tickets.source",
    "regraft.tickets.ticket",
]
install_import_hook(CHECKED, "checking.typechecked")

import torch  # noqa: E402

torch.set_num_threads(1)

# Deadlines measure the machine, not the code. `make test` tries the same examples every time, so that
# a change that it refuses is at fault; `make fuzz` looks for new ones.
settings.register_profile("regraft", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, print_blob=True, max_examples=300)
settings.load_profile("fuzz" if os.environ.get("REGRAFT_FUZZ") else "regraft")

# What a test starts as a process of its own must not take the cores from the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Nothing pulls the plug between two lines of a test. Whoever tests that bytes reach the disk puts its
# own `fsync` in this place; processes that tests start keep the real one.
os.fsync = lambda _: None

# What collection imports stays: looking through it again and again takes a quarter of the time.
gc.disable()


def pytest_collection_finish():
    """Collect garbage from here on."""
    gc.enable()


_frozen = {"modules": 0}


def pytest_runtest_setup():
    """Keep what imports left out of garbage collections: every run begins with one."""
    if len(sys.modules) > _frozen["modules"] + 20:
        gc.collect()
        gc.freeze()
        _frozen["modules"] = len(sys.modules)


def pytest_sessionfinish():
    """Give back what was kept out, so that it is taken down with the process."""
    gc.unfreeze()
