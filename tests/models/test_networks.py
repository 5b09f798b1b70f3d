"""What every built-in network must do, whatever its kind."""

import copy

import pytest
import torch
from torch import nn

from regraft.config import ModelConfig
from regraft.models import Network, build, model_names

CASES = [(name, channels, size) for name in model_names() for channels, size in ((1, 28), (3, 32))]


def made(name, channels=1, size=28, width=0.25, **options):
    torch.manual_seed(0)
    config = ModelConfig(name=name, width=width, options=options)
    return build(config, num_classes=7, channels=channels, image_size=size)


@pytest.mark.parametrize(("name", "channels", "size"), CASES)
def test_a_batch_of_any_size_gives_logits(name, channels, size):
    model = made(name, channels, size).eval()
    x = torch.randn(3, channels, size, size)
    together = model(x)
    assert together.shape == (3, 7)
    alone = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", model_names())
def test_timm_protocol(name):
    model = made(name).eval()
    assert isinstance(model, Network)
    x = torch.randn(2, 1, 28, 28)
    features = model.forward_features(x)
    vectors = model.forward_head(features, pre_logits=True)
    assert vectors.shape == (2, model.num_features)
    assert model.head_hidden_size == model.num_features
    assert torch.equal(model.forward_head(features), model(x))
    assert torch.equal(model.get_classifier()(vectors), model(x))


@pytest.mark.parametrize("name", model_names())
def test_a_new_classifier_has_the_classes_asked_and_nothing_else_changes(name):
    model = made(name).double()
    assert isinstance(model, Network)
    before = copy.deepcopy(model.features.state_dict())
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model.eval()(torch.randn(2, 1, 28, 28).double()).shape == (2, 3)
    for name_, value in model.features.state_dict().items():
        assert torch.equal(value, before[name_])


@pytest.mark.parametrize("name", model_names())
def test_every_parameter_gets_a_gradient(name):
    model = made(name)
    nn.functional.cross_entropy(model(torch.randn(4, 1, 28, 28)), torch.arange(4)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", model_names())
def test_initial_weights_follow_the_law(name):
    for layer in made(name, width=1.0).modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.weight.numel() > 5000:
            expected = (2 / layer.weight[0].numel()) ** 0.5
            assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.05)
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            assert not bool(layer.bias.any())


@pytest.mark.parametrize("name", model_names())
def test_width_changes_hidden_layers_and_never_the_outputs(name):
    narrow, wide = made(name, width=0.25), made(name, width=0.5)
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in wide.parameters())
    assert isinstance(wide, Network)
    assert wide.head.out_features == 7


@pytest.mark.parametrize("name", model_names())
def test_a_tiny_width_keeps_one_channel(name):
    assert made(name, width=1e-6).eval()(torch.randn(1, 1, 28, 28)).shape == (1, 7)
