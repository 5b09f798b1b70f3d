"""Coordinate descent over groups of units, with exact assignments: what every matching shares."""

from .assignment import assign
from .pairs import Pairs
from .solve import Descent, Seconds

__all__ = ["Descent", "Pairs", "Seconds", "assign"]
