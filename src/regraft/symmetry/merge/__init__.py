"""Networks of one frame made into one: merge methods, classifiers, statistics, barriers."""

from .connectivity import Curve, Measured, Plane, interpolation, measure, plane
from .heads import Ensemble, find_head, separate_heads, union_classes, union_heads, widen_heads
from .merge import MergeMethod, merge, merge_method, merge_tensors
from .repair import Repaired, repair, repair_, reset_batch_norm_

__all__ = [
    "Curve",
    "Ensemble",
    "Measured",
    "MergeMethod",
    "Plane",
    "Repaired",
    "find_head",
    "interpolation",
    "measure",
    "merge",
    "merge_method",
    "merge_tensors",
    "plane",
    "repair",
    "repair_",
    "reset_batch_norm_",
    "separate_heads",
    "union_classes",
    "union_heads",
    "widen_heads",
]
