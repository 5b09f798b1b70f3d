import pytest
import torch
from torch import nn

from regraft.errors import InputError
from regraft.models import BasicBlock, ResNet, ThinResNet


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


@pytest.mark.parametrize(("depth", "parameters"), [(8, 78_042), (20, 272_474)])
def test_parameters_are_those_of_the_thin_resnet(depth, parameters):
    assert sum(p.numel() for p in ThinResNet(depth, 10).parameters()) == parameters


def test_the_width_factor_of_a_thin_resnet_scales_every_layer():
    sizes = [
        [m.out_channels for m in ThinResNet(8, 10, width=w).modules() if isinstance(m, nn.Conv2d)]
        for w in (1, 2)
    ]
    assert sizes[0] == [16, 16, 16, 32, 32, 32, 64, 64, 64]
    assert sizes[1] == [2 * size for size in sizes[0]]
    with pytest.raises(InputError, match="depth=18: expected one of 8, 20"):
        ThinResNet(18, 10)


def test_units_of_a_thin_resnet_are_free_stage_by_stage_and_block_by_block():
    from regraft.symmetry.trace.trace import trace

    spec = trace(ThinResNet(20, 10, width=0.25), torch.randn(2, 3, 8, 8))
    # One residual stream a stage, one inner group a block.
    assert sorted(group.size for group in spec) == sorted([4, 8, 16] + 3 * [4] + 3 * [8] + 3 * [16])
    assert {pin.tensor for pin in spec.pins} == {"features.0.weight", "head.weight", "head.bias"}
