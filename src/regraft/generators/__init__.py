"""Generators as a source of training images, and sets condensed from real ones."""

from .condense import Condenser, condense
from .condensed_set import CondensedSet
from .settings import CondenseConfig

__all__ = ["CondenseConfig", "CondensedSet", "Condenser", "condense"]
