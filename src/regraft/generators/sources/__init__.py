"""Generators as a source of labelled images: the contract, adapters, and two small ones to train."""

from .bank import CachedBank, write_bank
from .images import ImageSource
from .load import load_source
from .module import ModuleSource
from .networks import GENERATORS, ConditionalVAE, RectifiedFlow, make_generator
from .own import read_generator
from .pipeline import PipelineSource
from .quality import GeneratorQuality, measure
from .shards import read_shards
from .source import Source, draw_labels
from .training import GeneratorTraining

__all__ = [
    "GENERATORS",
    "CachedBank",
    "ConditionalVAE",
    "GeneratorQuality",
    "GeneratorTraining",
    "ImageSource",
    "ModuleSource",
    "PipelineSource",
    "RectifiedFlow",
    "Source",
    "draw_labels",
    "load_source",
    "make_generator",
    "measure",
    "read_generator",
    "read_shards",
    "write_bank",
]
