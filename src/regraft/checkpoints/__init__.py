"""Files of weights: anybody's, read one way for every command, and ours."""

from .checkpoint import Checkpoint
from .model_card import ModelCard, header, read_header
from .names import unwrapped
from .read import check_alike, check_finite, fit_names, read_checkpoint

__all__ = [
    "Checkpoint",
    "ModelCard",
    "check_alike",
    "check_finite",
    "fit_names",
    "header",
    "read_checkpoint",
    "read_header",
    "unwrapped",
]
