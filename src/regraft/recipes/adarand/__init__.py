"""The recipe `adarand`: arms, scales and claims."""

from .recipe import recipe

__all__ = ["recipe"]
