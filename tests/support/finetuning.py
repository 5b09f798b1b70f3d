"""What the tests of `regraft finetune` share."""

import shlex

import torch

from regraft.config import ModelConfig
from regraft.models import build

QUICK = shlex.split(
    "--image-size 10 --epochs 2 --batch-size 8 --threads 1 --accelerator cpu --width 0.5 --folds 0"
)
GIVEN = (*QUICK, "--lr", "0.05", "--weight", "0.3")


def folder_of(out):
    """Return the names of what lies in a folder."""
    return {p.name for p in out.iterdir()}


def source(classes, size=10):
    """Return the state of a network that other images would have trained."""
    torch.manual_seed(0)
    config = ModelConfig(name="conv_small", width=0.5)
    return build(config, num_classes=classes, channels=3, image_size=size).state_dict()
