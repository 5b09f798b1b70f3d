"""Every rule, by importing the files that hold them."""

from . import rules_elementwise, rules_linear, rules_norm, rules_shape

__all__ = ["rules_elementwise", "rules_linear", "rules_norm", "rules_shape"]
