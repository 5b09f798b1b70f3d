"""The loop behind the recipes and the command line; nobody has to adopt it to use a method."""

from .average import Average
from .calibration import Bin, calibration_error, fit_temperature, reliability
from .checkpoint import load_state, save_state
from .environment import command_line, environment
from .evaluation import confused, evaluation
from .fabric import make_fabric
from .layerwise import layers_of, layerwise_groups
from .loop import Batches, finished_state, fit
from .measure import evaluate, outputs
from .memory import keep_freed_memory, peak_bytes, reset_peak
from .optim import lr_factor, make_optimizer, make_scheduler
from .result_folder import RunFolder, read_json

__all__ = [
    "Average",
    "Batches",
    "Bin",
    "RunFolder",
    "calibration_error",
    "command_line",
    "confused",
    "environment",
    "evaluate",
    "evaluation",
    "finished_state",
    "fit",
    "fit_temperature",
    "keep_freed_memory",
    "layers_of",
    "layerwise_groups",
    "load_state",
    "lr_factor",
    "make_fabric",
    "make_optimizer",
    "make_scheduler",
    "outputs",
    "peak_bytes",
    "read_json",
    "reliability",
    "reset_peak",
    "save_state",
]
