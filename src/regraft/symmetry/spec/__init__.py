"""What may be permuted, in which tensors and where; permutations and their algebra."""

from .group import Group, Pin, Site
from .permutation import Permutation, compose, inverse
from .permuted import Permuted
from .spec import PermutationSpec

__all__ = [
    "Group",
    "Permutation",
    "PermutationSpec",
    "Permuted",
    "Pin",
    "Site",
    "compose",
    "inverse",
]
