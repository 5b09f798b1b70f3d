"""Trained weights reused: permutation symmetry, matching, merging, connectivity."""

from .activations import Activations
from .check import SymmetryError, check
from .checkpoint import Checkpoint, check_alike, check_finite, fit_names, read_checkpoint
from .connectivity import Curve, Measured, Plane, interpolation, measure, plane
from .cycle_consistent import cycle_consistent
from .heads import Ensemble, find_head, separate_heads, union_classes, union_heads, widen_heads
from .lazy import Permuted
from .learning_transfer import (
    Agreement,
    Gradients,
    Trajectory,
    TrajectoryRecorder,
    Transferred,
    agreement,
    transfer,
)
from .many import ManyMatch, align_many, between
from .match import Match, match
from .merge import MergeMethod, merge, merge_method, merge_tensors
from .mode_connectivity import Connection, connect
from .permutation import Permutation, compose, inverse
from .repair import Repaired, repair, repair_, reset_batch_norm_
from .solver.assignment import assign
from .spec import Group, PermutationSpec, Pin, Site
from .straight_through import StraightThrough, StraightThroughConfig, straight_through
from .trace import trace

__all__ = [
    "Activations",
    "Agreement",
    "Checkpoint",
    "Connection",
    "Curve",
    "Ensemble",
    "Gradients",
    "Group",
    "ManyMatch",
    "Match",
    "Measured",
    "MergeMethod",
    "Permutation",
    "PermutationSpec",
    "Permuted",
    "Pin",
    "Plane",
    "Repaired",
    "Site",
    "StraightThrough",
    "StraightThroughConfig",
    "SymmetryError",
    "Trajectory",
    "TrajectoryRecorder",
    "Transferred",
    "agreement",
    "align_many",
    "assign",
    "between",
    "check",
    "check_alike",
    "check_finite",
    "compose",
    "connect",
    "cycle_consistent",
    "find_head",
    "fit_names",
    "interpolation",
    "inverse",
    "match",
    "measure",
    "merge",
    "merge_method",
    "merge_tensors",
    "plane",
    "read_checkpoint",
    "repair",
    "repair_",
    "reset_batch_norm_",
    "separate_heads",
    "straight_through",
    "trace",
    "transfer",
    "union_classes",
    "union_heads",
    "widen_heads",
]
