"""Every rule, by importing the files that hold them."""

from . import (
    rules_elementwise,
    rules_linear,
    rules_norm,
    rules_recurrent,
    rules_shape,
    rules_windows,
)

__all__ = [
    "rules_elementwise",
    "rules_linear",
    "rules_norm",
    "rules_recurrent",
    "rules_shape",
    "rules_windows",
]
