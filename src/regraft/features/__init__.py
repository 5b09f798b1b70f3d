"""Pretrained features: fine-tune a network on few images without losing what it knows."""

from regraft.models.classifier import find_classifier

from .adarand import AdaRand
from .bitfit import BitFit
from .bss import BSS
from .co_tuning import CoTuning
from .contrastive import SupCon, contrastive_loss
from .core_tuning import CoreTuning
from .delta import Delta
from .dr_tune import DRTune
from .feature_norm import FeatureNorm
from .l2sp import L2SP
from .lp_ft import LPFT, LinearProbe
from .method import Context, Method, Plain
from .norm import freeze_batchnorm_
from .objective import Objective
from .prior import prior_gradient
from .probe import fit_probe
from .randreg import RandReg
from .registry import METHODS, build
from .statistics import Statistics, class_statistics
from .tap import Captured, Tap, tap

__all__ = [
    "BSS",
    "L2SP",
    "LPFT",
    "METHODS",
    "AdaRand",
    "BitFit",
    "Captured",
    "CoTuning",
    "Context",
    "CoreTuning",
    "DRTune",
    "Delta",
    "FeatureNorm",
    "LinearProbe",
    "Method",
    "Objective",
    "Plain",
    "RandReg",
    "Statistics",
    "SupCon",
    "Tap",
    "build",
    "class_statistics",
    "contrastive_loss",
    "find_classifier",
    "fit_probe",
    "freeze_batchnorm_",
    "prior_gradient",
    "tap",
]
