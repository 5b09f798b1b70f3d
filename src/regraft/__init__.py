"""Inherit more, train less: good networks out of what already exists."""

from ._version import __version__

__all__ = ["__version__"]
