"""Generators as a source of labelled images: the contract, and adapters to what users have."""

from .module import ModuleSource
from .source import Source, draw_labels

__all__ = ["ModuleSource", "Source", "draw_labels"]
