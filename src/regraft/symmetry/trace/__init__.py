"""From a network to its specification: exported graph, labelled axes, groups of units, proof."""

from .check import SymmetryError, check
from .trace import trace

__all__ = ["SymmetryError", "check", "trace"]
