"""Shape and type annotations are checked in the tests, and only there."""

import os

from hypothesis import settings
from jaxtyping import install_import_hook

# Not where torch.compile and torch.export trace through: they cannot see past the checks.
CHECKED = [
    "regraft.streams",
    "regraft.config",
    "regraft.data",
    "regraft.models",
    "regraft.recipes",
    "regraft.report",
    "regraft.train",
    "regraft.tickets.artifact",
    "regraft.tickets.controls",
    "regraft.tickets.iterand",
    "regraft.tickets.schedule",
    "regraft.tickets.source",
]
install_import_hook(CHECKED, "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)

# Deadlines measure the machine, not the code.
settings.register_profile("regraft", deadline=None, print_blob=True)
settings.load_profile("regraft")

# What a test starts as a process of its own must not take the cores from the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
