"""Generators as a source of labelled images: the contract, adapters, and two small ones to train."""

from .images import ImageSource
from .module import ModuleSource
from .networks import GENERATORS, ConditionalVAE, RectifiedFlow, make_generator
from .source import Source, draw_labels
from .training import GeneratorTraining

__all__ = [
    "GENERATORS",
    "ConditionalVAE",
    "GeneratorTraining",
    "ImageSource",
    "ModuleSource",
    "RectifiedFlow",
    "Source",
    "draw_labels",
    "make_generator",
]
