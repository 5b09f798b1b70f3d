"""The recipe `metaticket`: arms, scales and claims."""

from .recipe import recipe

__all__ = ["recipe"]
