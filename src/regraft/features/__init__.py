"""Pretrained features: fine-tune a network on few images without losing what it knows."""

from .adarand import AdaRand
from .find import find_classifier
from .method import Context, Method, Plain
from .prior import prior_gradient
from .registry import METHODS, build
from .statistics import Statistics, class_statistics
from .tap import Captured, Tap, tap

__all__ = [
    "METHODS",
    "AdaRand",
    "Captured",
    "Context",
    "Method",
    "Plain",
    "Statistics",
    "Tap",
    "build",
    "class_statistics",
    "find_classifier",
    "prior_gradient",
    "tap",
]
