"""The recipe `frozen`: arms, scales and claims."""

from .recipe import recipe

__all__ = ["recipe"]
