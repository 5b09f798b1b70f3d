"""Files of weights: anybody's, read one way for every command, and ours."""

from .read import Checkpoint, check_alike, check_finite, fit_names, read_checkpoint

__all__ = ["Checkpoint", "check_alike", "check_finite", "fit_names", "read_checkpoint"]
