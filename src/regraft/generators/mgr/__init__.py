"""MGR: generated images as a regulariser of features, chosen by meta-learning."""

from regraft.config.mgr import MGRConfig

from .batches import PseudoBatch, SeededViews
from .finder import Finder
from .folds import Folds
from .hypergradient import directional, exact, finite_difference
from .losses import ImageLosses, consistency
from .mgr import MGR

__all__ = [
    "MGR",
    "Finder",
    "Folds",
    "ImageLosses",
    "MGRConfig",
    "PseudoBatch",
    "SeededViews",
    "consistency",
    "directional",
    "exact",
    "finite_difference",
]
