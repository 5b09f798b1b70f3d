import pytest
import torch
from torch import nn

from regraft.config import ModelConfig
from regraft.errors import InputError
from regraft.models import bounded as module
from regraft.models import build
from regraft.models.bounded import bounded


def test_a_network_of_very_many_layers_is_refused_while_it_is_built(monkeypatch):
    monkeypatch.setattr(module, "MOST_LAYERS", 50)
    config = ModelConfig(name="mlp", options={"widths": [2] * 100})
    shape = {"num_classes": 2, "channels": 1, "image_size": 4}
    with pytest.raises(InputError, match="more than 50 layers"), torch.device("meta"), bounded():
        build(config, **shape)
    build(config, **shape)  # the limit is gone with the file


def test_a_network_of_far_more_weights_than_its_file_is_refused():
    with pytest.raises(InputError, match="far more than its file"), bounded(10):
        nn.Linear(5000, 5000)
    with bounded(10):
        nn.Linear(5, 5)
