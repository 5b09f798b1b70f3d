"""The papers' small networks, for images and graphs, and how a configuration becomes any network."""

from .base import Network, init_weights_
from .build import build, model_names
from .conv import ConvN, ConvSmall
from .graph import GAT, GCN, GIN, GraphNetwork
from .mlp import MLP
from .resnet import BasicBlock, ResNet, ThinResNet
from .transductive import Transductive

__all__ = [
    "GAT",
    "GCN",
    "GIN",
    "MLP",
    "BasicBlock",
    "ConvN",
    "ConvSmall",
    "GraphNetwork",
    "Network",
    "ResNet",
    "ThinResNet",
    "Transductive",
    "build",
    "init_weights_",
    "model_names",
]
