"""The loop behind the recipes and the command line; nobody has to adopt it to use a method."""

from .checkpoint import load_state, save_state
from .environment import command_line, environment
from .fabric import make_fabric
from .loop import Batches, finished_state, fit
from .measure import evaluate
from .memory import keep_freed_memory, peak_bytes, reset_peak
from .optim import lr_factor, make_optimizer, make_scheduler
from .run import RunFolder, read_json

__all__ = [
    "Batches",
    "RunFolder",
    "command_line",
    "environment",
    "evaluate",
    "finished_state",
    "fit",
    "keep_freed_memory",
    "load_state",
    "lr_factor",
    "make_fabric",
    "make_optimizer",
    "make_scheduler",
    "peak_bytes",
    "read_json",
    "reset_peak",
    "save_state",
]
