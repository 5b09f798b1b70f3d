import pytest
import torch
from torch import nn
from training import network, train

from regraft.config import ModelConfig, OptimConfig
from regraft.errors import InputError
from regraft.features import find_classifier
from regraft.models import build
from regraft.train import layers_of, layerwise_groups


def made(name, **options):
    shape = {"num_classes": 4, "channels": 3, "image_size": 32}
    model = build(ModelConfig(name=name, width=options.pop("width", 1.0), options=options), **shape)
    return model, find_classifier(model)[0]


def test_a_residual_network_counts_its_stem_and_blocks():
    model, head = made("timm/resnet18")
    layers = layers_of(model, head)
    assert [names[0].rsplit(".", 2)[0] for names in layers[1:-1]] == [
        f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)
    ]
    assert layers[0] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert layers[-1] == ["fc.weight", "fc.bias"]


def test_a_transformer_counts_its_blocks():
    pytest.importorskip("timm")
    small = {"img_size": 32, "embed_dim": 12, "depth": 3, "num_heads": 2, "patch_size": 16}
    model, head = made("timm/vit_tiny_patch16_224", **small)
    layers = layers_of(model, head)
    assert len(layers) == 1 + 3 + 1 + 1  # patches, blocks, norm, classifier
    assert {name.split(".")[0] for name in layers[0]} == {"cls_token", "pos_embed", "patch_embed"}
    assert layers[-2] == ["norm.weight", "norm.bias"]


@pytest.mark.parametrize("name", ["conv_small", "conv4", "mlp", "resnet18", "timm/resnet18"])
def test_every_parameter_is_in_one_layer_and_rates_fall_towards_the_input(name):
    model, head = made(name)
    layers = layers_of(model, head)
    flat = [n for names in layers for n in names]
    assert sorted(flat) == sorted(n for n, _ in model.named_parameters())
    groups = layerwise_groups(model, head, lr=0.1, decay=0.5, head_factor=10)
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    parameters = dict(model.named_parameters())
    for i, names in enumerate(layers[:-1]):
        wanted = 0.1 * 0.5 ** (len(layers) - 2 - i)
        assert all(rate[id(parameters[n])] == pytest.approx(wanted) for n in names)
    assert all(rate[id(parameters[n])] == 1.0 for n in layers[-1])
    assert len(rate) == len(parameters)


def test_frozen_parameters_are_left_out():
    model, head = made("conv_small")
    model.features.requires_grad_(False)
    groups = layerwise_groups(model, head, lr=0.1, decay=0.5)
    assert [len(g["params"]) for g in groups] == [2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decay": 0}, "layer_decay=0"),
        ({"decay": 1.5}, "layer_decay"),
        ({"head_factor": 0}, "head_factor=0"),
    ],
)
def test_factors_out_of_range_are_refused(options, said):
    model, head = made("conv_small")
    with pytest.raises(InputError, match=said):
        layerwise_groups(model, head, lr=0.1, **options)


def test_the_loop_trains_with_the_rates_of_the_groups(tmp_path):
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, last = model[0], model[-1]
    groups = [{"params": list(last.parameters()), "lr": 0.1}, {"params": [first.weight], "lr": 0.0}]
    train(tmp_path, model, optim=OptimConfig(lr=0.7, epochs=1, schedule="cosine"), groups=groups)
    assert torch.equal(first.weight, before["0.weight"])
    assert torch.equal(first.bias, before["0.bias"])
    assert not torch.equal(last.weight, before["3.weight"])
    twin = network()
    groups = [{"params": list(twin[-1].parameters()), "lr": 0.1}]
    for p in [*twin[0].parameters(), *twin[1].parameters()]:
        p.requires_grad_(False)
    train(tmp_path / "twin", twin, optim=OptimConfig(lr=0.1, epochs=1, schedule="cosine"))
    assert torch.equal(twin[-1].weight, last.weight)
    assert isinstance(last, nn.Linear)
