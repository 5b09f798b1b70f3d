"""How the symmetries of a network are found: from an exported graph to groups of units."""

from .classes import classes
from .export import export
from .groups import groups, pins
from .walk import Walk, walk

__all__ = ["Walk", "classes", "export", "groups", "pins", "walk"]
