"""The recipe `mgr`: arms, scales and claims."""

from .recipe import recipe

__all__ = ["recipe"]
