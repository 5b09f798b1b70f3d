"""Trained weights reused: permutation symmetry, matching, merging, connectivity."""

from regraft.checkpoints.read import (
    Checkpoint,
    check_alike,
    check_finite,
    fit_names,
    read_checkpoint,
)

from .match.activations import Activations
from .match.cycle_consistent import cycle_consistent
from .match.many import ManyMatch, align_many, between
from .match.match import Match, match
from .match.solver.assignment import assign
from .match.straight_through import StraightThrough, StraightThroughConfig, straight_through
from .merge.connectivity import Curve, Measured, Plane, interpolation, measure, plane
from .merge.heads import (
    Ensemble,
    find_head,
    separate_heads,
    union_classes,
    union_heads,
    widen_heads,
)
from .merge.merge import MergeMethod, merge, merge_method, merge_tensors
from .merge.repair import Repaired, repair, repair_, reset_batch_norm_
from .spec.group import Group, Pin, Site
from .spec.permutation import Permutation, compose, inverse
from .spec.permuted import Permuted
from .spec.spec import PermutationSpec
from .trace.check import SymmetryError, check
from .trace.trace import trace
from .transfer import (
    Agreement,
    Gradients,
    Trajectory,
    TrajectoryRecorder,
    Transferred,
    agreement,
    transfer,
)
from .transfer.mode_connectivity import Connection, connect

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
