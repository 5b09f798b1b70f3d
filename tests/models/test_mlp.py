import pytest
import torch
from torch import nn

from regraft.errors import InputError
from regraft.models import MLP


def test_layers_have_the_sizes_asked():
    model = MLP(12, (5, 4), 3)
    assert [(m.in_features, m.out_features) for m in model.modules() if type(m) is nn.Linear] == [
        (12, 5),
        (5, 4),
        (4, 3),
    ]


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)])
def test_every_hidden_layer_is_normalised(norm, kind):
    model = MLP(12, (5, 4), 3, norm=norm, affine=False, bias=False)
    assert sum(type(m) is kind for m in model.modules()) == 2
    assert [n for n, _ in model.named_parameters()] == [
        "features.1.weight",
        "features.4.weight",
        "head.weight",
    ]


def test_images_are_flattened():
    x = torch.randn(2, 3, 2, 2)
    model = MLP(12, (5,), 3)
    assert torch.equal(model(x), model(x.flatten(1)))


@pytest.mark.parametrize("widths", [(), (4, 0)])
def test_no_or_empty_layers_are_refused(widths):
    with pytest.raises(InputError, match=r"widths=.*at least 1"):
        MLP(4, widths, 2)


def test_an_unknown_norm_is_refused():
    with pytest.raises(InputError, match="norm='group': expected 'none', 'batch' or 'layer'"):
        MLP(4, (3,), 2, norm="group")  # type: ignore[arg-type]


def test_weights_can_start_as_pytorch_makes_them():
    torch.manual_seed(0)
    own = MLP(100, (50,), 10, init="torch")
    torch.manual_seed(0)
    assert own.features[1].weight.equal(nn.Linear(100, 50).weight)
    assert own.features[1].bias.abs().max() > 0
    scale = MLP(100, (50,), 10).features[1].weight.std() / own.features[1].weight.std()
    assert scale.item() == pytest.approx(6**0.5, rel=0.03)
    with pytest.raises(InputError, match="init='zeros': expected 'kaiming' or 'torch'"):
        MLP(100, (50,), 10, init="zeros")
