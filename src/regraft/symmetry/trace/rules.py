"""Every rule: the table, and the files that fill it by being imported."""

from . import (
    rules_elementwise,
    rules_index,
    rules_linear,
    rules_norm,
    rules_recurrent,
    rules_shape,
    rules_windows,
)
from .rule import RULES

__all__ = [
    "RULES",
    "rules_elementwise",
    "rules_index",
    "rules_linear",
    "rules_norm",
    "rules_recurrent",
    "rules_shape",
    "rules_windows",
]
