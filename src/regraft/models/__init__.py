"""The papers' small networks, and how a configuration becomes a network of any kind."""

from .base import Network, init_weights_
from .build import build, model_names
from .conv import ConvN, ConvSmall
from .mlp import MLP
from .resnet import BasicBlock, ResNet

__all__ = [
    "MLP",
    "BasicBlock",
    "ConvN",
    "ConvSmall",
    "Network",
    "ResNet",
    "build",
    "init_weights_",
    "model_names",
]
