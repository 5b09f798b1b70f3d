import pytest
import torch
from torch import nn

from regraft.errors import InputError
from regraft.models import BasicBlock, ResNet


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_173_962), (34, 21_282_122)])
def test_parameters_are_those_of_the_small_image_resnet(depth, parameters):
    assert sum(p.numel() for p in ResNet(depth, 10).parameters()) == parameters


@pytest.mark.parametrize("width", [0.25, 1, 2])
def test_the_stem_keeps_its_channels(width):
    convs = [m for m in ResNet(18, 10, width=width).modules() if isinstance(m, nn.Conv2d)]
    assert convs[0].out_channels == 64
    assert convs[-2].out_channels == int(512 * width)
    assert {c.bias for c in convs} == {None}


def test_norms_can_go_without_scale_and_shift():
    names = [n for n, _ in ResNet(18, 10, affine=False).named_parameters()]
    assert [n for n in names if n.endswith("bias")] == ["head.bias"]


@pytest.mark.parametrize(
    ("incoming", "stride", "plain"), [(4, 1, True), (4, 2, False), (2, 1, False)]
)
def test_the_shortcut_is_a_convolution_only_where_the_shape_changes(incoming, stride, plain):
    block = BasicBlock(incoming, 4, stride, affine=True)
    assert (len(block.shortcut) == 0) is plain
    assert block(torch.randn(2, incoming, 8, 8)).shape == (2, 4, 8 // stride, 8 // stride)


def test_another_depth_is_refused():
    with pytest.raises(InputError, match="depth=50: expected one of 18, 34"):
        ResNet(50, 10)
