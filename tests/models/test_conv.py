import pytest
import torch
from torch import nn

from regraft.errors import InputError
from regraft.models import ConvN, ConvSmall

STAGES = {2: [64], 4: [64, 128], 6: [64, 128, 256], 8: [64, 128, 256, 512]}


@pytest.mark.parametrize("depth", STAGES)
@pytest.mark.parametrize("width", [0.5, 1, 2])
def test_channels_are_the_papers_times_the_width(depth, width):
    model = ConvN(depth, 10, width=width)
    convs = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert convs == [int(c * width) for c in STAGES[depth] for _ in range(2)]
    hidden = int(256 * width)
    last = int(STAGES[depth][-1] * width) * (32 >> len(STAGES[depth])) ** 2
    assert [(m.in_features, m.out_features) for m in model.modules() if type(m) is nn.Linear] == [
        (last, hidden),
        (hidden, hidden),
        (hidden, 10),
    ]


def test_conv6_has_the_papers_parameters():
    assert sum(p.numel() for p in ConvN(6, 10).parameters()) == 2_262_602


def test_biases_can_be_left_out():
    names = [n for n, _ in ConvN(4, 10, bias=False).named_parameters()]
    assert all(n.endswith("weight") for n in names)


def test_conv_small_has_one_bias_and_affine_norms_on_demand():
    plain = [n for n, _ in ConvSmall(10, affine=False).named_parameters()]
    assert plain == [
        "features.0.weight",
        "features.3.weight",
        "features.6.weight",
        "head.weight",
        "head.bias",
    ]
    affine = {n for n, _ in ConvSmall(10).named_parameters()} - set(plain)
    assert affine == {f"features.{i}.{p}" for i in (1, 4, 7) for p in ("weight", "bias")}


def test_another_depth_is_refused():
    with pytest.raises(InputError, match="depth=5: expected 2, 4, 6 or 8"):
        ConvN(5, 10)


@pytest.mark.parametrize("size", [1, 7, 9, 28])
def test_conv_small_takes_images_of_any_size(size):
    assert ConvSmall(10, image_size=size).eval()(torch.randn(1, 1, size, size)).shape == (1, 10)


def test_images_too_small_are_refused():
    ConvN(8, 10, image_size=16)
    with pytest.raises(InputError, match=r"image_size=15: conv8.*at least 16"):
        ConvN(8, 10, image_size=15)


def test_conv_small_can_average_its_last_map():
    model = ConvSmall(10, average=True, image_size=28).eval()
    x = torch.randn(2, 1, 28, 28)
    last = model.forward_features(x)
    assert last.shape == (2, 64, 4, 4)
    vectors = torch.stack([last[:, :, i, j] for i in range(4) for j in range(4)]).mean(0)
    assert model.forward_head(last, pre_logits=True).allclose(vectors, atol=1e-6)
    assert model(x).allclose(model.head(vectors), atol=1e-6)


def test_a_head_of_pytorch_is_smaller_and_leaves_the_convolutions_as_they_were():
    heads, convolutions = {}, {}
    for init in ("kaiming", "torch"):
        torch.manual_seed(0)
        model = ConvSmall(10, head_init=init)
        heads[init], convolutions[init] = model.head, model.features[0].weight
    assert convolutions["torch"].equal(convolutions["kaiming"])
    bound = 1 / heads["torch"].in_features ** 0.5
    assert heads["torch"].weight.abs().max() <= bound
    assert heads["kaiming"].weight.abs().max() > 2 * bound
    with pytest.raises(InputError, match="head_init='other': expected 'kaiming' or 'torch'"):
        ConvSmall(10, head_init="other")
