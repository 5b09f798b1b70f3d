"""Trained weights reused: permutation symmetry, matching, merging, connectivity."""

from .trace import trace

__all__ = ["trace"]
