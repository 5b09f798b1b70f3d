"""Pseudo pre-training and pseudo semi-supervised learning from a generator."""

from .conditional import CONDITIONS, Conditions, ImagePool, PseudoSamples, Unlabelled, conditions
from .distil import Distillation
from .losses import SSL_LOSSES, Confidence, SslLoss, ssl_loss
from .pretrain import Pretraining, pretrain
from .term import PseudoTerm, unrecorded

__all__ = [
    "CONDITIONS",
    "SSL_LOSSES",
    "Conditions",
    "Confidence",
    "Distillation",
    "ImagePool",
    "Pretraining",
    "PseudoSamples",
    "PseudoTerm",
    "SslLoss",
    "Unlabelled",
    "conditions",
    "pretrain",
    "ssl_loss",
    "unrecorded",
]
