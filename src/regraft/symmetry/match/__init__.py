"""Which units of two networks belong together, by weights, activations, gradients or data."""

from .activations import Activations
from .cycle_consistent import cycle_consistent
from .many import ManyMatch, align_many, between
from .match import Match, match
from .solver.assignment import assign
from .straight_through import StraightThrough, StraightThroughConfig, straight_through

__all__ = [
    "Activations",
    "ManyMatch",
    "Match",
    "StraightThrough",
    "StraightThroughConfig",
    "align_many",
    "assign",
    "between",
    "cycle_consistent",
    "match",
    "straight_through",
]
