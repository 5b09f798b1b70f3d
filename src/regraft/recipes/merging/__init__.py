"""The recipe `merging`: arms, scales and claims."""

from .recipe import recipe

__all__ = ["recipe"]
