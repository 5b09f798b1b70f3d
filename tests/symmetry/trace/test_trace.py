"""Which symmetries are found, held against what theory allows, and proved."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from tracing import IMAGE, Block, linear, pinned, shapes

from regraft.symmetry.spec.printing import describe
from regraft.symmetry.trace.trace import trace


def test_mlp_frees_hidden_units_alone():
    model = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    spec = trace(model, torch.randn(2, 4))
    assert [(g.name, g.size) for g in spec] == [("0", 7), ("2", 5)]
    assert pinned(spec) == {("0.weight", 1), ("4.weight", 0), ("4.bias", 0)}
    assert spec.checked is not None
    assert spec.checked < 1e-10


def test_resnet50_is_free_in_all_but_input_and_output():
    models = pytest.importorskip("torchvision.models", reason="needs torchvision")
    spec = trace(models.resnet50(), IMAGE)
    # One group for the stem, one for each stage's residual stream, two within each of 16 blocks.
    assert len(spec) == 1 + 4 + 2 * 16
    assert pinned(spec) == {("conv1.weight", 1), ("fc.weight", 0), ("fc.bias", 0)}
    streams = [g for g in spec if any(s.tensor.endswith("downsample.0.weight") for s in g.sites)]
    assert sorted(g.size for g in streams) == [64, 256, 512, 1024, 2048]
    for group in spec:
        assert all(s.index.shape[2] == 1 for s in group.sites)


class Conv(nn.Module):
    """A convolution with a norm, so that every kind of channel can be strung together."""

    def __init__(self, *layers, head=None):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.head = head

    def forward(self, x):
        out = self.layers(x)
        return self.head(out.mean((2, 3))) if self.head is not None else out.mean((2, 3))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # depthwise: the channel follows
        ((nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8)), {(8,): 1}),
        # a multiplier: each channel holds its own two
        ((nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4)), {(4,): 1, (4, 2): 1}),
        # grouped: groups move, channels within them, on both sides
        (
            (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4)),
            {(4,): 1, (4, 2): 1, (4, 3): 1},
        ),
        # normalised in blocks: blocks move, channels within them
        ((nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)), {(2,): 1, (2, 4): 1}),
        ((nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.PReLU(8)), {(8,): 1}),
        ((nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8, affine=True)), {(8,): 1}),
        ((nn.Conv2d(3, 8, 1), nn.LocalResponseNorm(2)), {}),
        ((nn.ConvTranspose2d(3, 8, 2), nn.ReLU(), nn.Conv2d(8, 8, 1)), {(8,): 2}),
        ((nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2, groups=2)), {(2,): 1, (2, 4): 2}),
        # four channels of a block become the positions of one: blocks move whole
        ((nn.Conv2d(3, 16, 1), nn.PixelShuffle(2)), {(4,): 1}),
        ((nn.Conv2d(3, 4, 1), nn.PixelUnshuffle(2), nn.Conv2d(16, 8, 1)), {(4,): 1, (8,): 1}),
        # shuffled between halves: the halves move, channels within them
        (
            (nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 8, 1)),
            {(2,): 1, (2, 4): 1, (8,): 1},
        ),
        (
            (nn.Conv2d(3, 8, 1), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
             nn.Unflatten(1, (32, 1, 1))),
            {(8,): 1},
        ),
    ],
)  # fmt: skip
def test_convolutions(layers, expected):
    with torch.no_grad():
        width = Conv(*layers)(IMAGE).shape[1]
    spec = trace(Conv(*layers, head=nn.Linear(width, 3)), IMAGE)
    assert shapes(spec) == expected


def test_a_flattened_map_moves_by_channels():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.Flatten(), nn.Linear(64, 2))
    spec = trace(model, IMAGE)
    (group,) = spec
    site = next(s for s in group.sites if s.tensor == "2.weight")
    assert torch.equal(site.index[0], torch.arange(64).reshape(4, 16))


@pytest.mark.parametrize(
    ("forward", "layers", "expected"),
    [
        # a residual stream is one group
        (
            lambda m, x: m.out(m.stem(x) + m.b(F.relu(m.a(m.stem(x))))),
            {"stem": (4, 6), "a": (6, 5), "b": (5, 6), "out": (6, 2)},
            {(6,): 1, (5,): 1},
        ),
        # concatenated: each part moves within its segment
        (
            lambda m, x: m.out(torch.cat([m.a(x), m.b(x)], 1)),
            {"a": (4, 6), "b": (4, 5), "out": (11, 2)},
            {(6,): 1, (5,): 1},
        ),
        # gated: both halves move alike
        (lambda m, x: m.out(F.glu(m.a(x))), {"a": (4, 12), "out": (6, 2)}, {(6,): 1}),
        # split in two: halves do not mix
        (
            lambda m, x: m.out(m.a(x).chunk(2, 1)[0]) + m.two(m.a(x).chunk(2, 1)[1]),
            {"a": (4, 12), "out": (6, 2), "two": (6, 2)},
            {(6,): 2},
        ),
        # one position read out stays
        (lambda m, x: m.out(m.a(x) * m.a(x)[:, :1]), {"a": (4, 6), "out": (6, 2)}, {(5,): 1}),
        # a layer used twice ties its ends
        (lambda m, x: m.out(m.b(m.b(m.a(x)))), {"a": (4, 6), "b": (6, 6), "out": (6, 2)}, {(6,): 1}),
        # softmax and normalisation over the units permute with them
        (
            lambda m, x: m.out(F.layer_norm(m.a(x), (6,)).softmax(1)),
            {"a": (4, 6), "out": (6, 2)},
            {(6,): 1},
        ),
        # what depends on an order pins that, and nothing else
        (lambda m, x: m.out(m.a(x).cumsum(0)), {"a": (4, 6), "out": (6, 2)}, {(6,): 1}),
        (lambda m, x: m.out(m.a(x).topk(2, 0).values), {"a": (4, 6), "out": (6, 2)}, {(6,): 1}),
        (lambda m, x: m.out(m.a(x).max(0).values), {"a": (4, 6), "out": (6, 2)}, {(6,): 1}),
        (lambda m, x: m.out(m.a(x) * torch.ones(6).cumsum(0)), {"a": (4, 6), "out": (6, 2)}, {}),
        # borders of different values do not mix
        (
            lambda m, x: m.out(F.pad(F.pad(m.a(x), (2, 2)), (2, 2), value=1.0)),
            {"a": (4, 6), "out": (14, 2)},
            {(6,): 1, (2,): 4},
        ),
        # read for its dtype alone
        (
            lambda m, x: m.out(m.a(x) * torch.arange(3.0)[:, None].type_as(m.a(x))),
            {"a": (4, 6), "out": (6, 2)},
            {(6,): 1},
        ),
        (lambda m, x: m.out(torch.view_as_real(torch.view_as_complex(m.a(x).reshape(3, 3, 2))).flatten(1)),
         {"a": (4, 6), "out": (6, 2)}, {(3,): 1}),
        # what depends on the order of the units pins them
        (lambda m, x: m.out(m.a(x).cumsum(1)), {"a": (4, 6), "out": (6, 2)}, {}),
        (lambda m, x: m.out(m.a(x).sort(1).values), {"a": (4, 6), "out": (6, 2)}, {}),
        (lambda m, x: m.out(m.a(x) * torch.arange(6)), {"a": (4, 6), "out": (6, 2)}, {}),
        # a constant border may go anywhere, beside it the units move
        (lambda m, x: m.out(F.pad(m.a(x), (1, 1))), {"a": (4, 6), "out": (8, 2)}, {(6,): 1}),
        # summed over, in any order
        (lambda m, x: m.out(m.a(x).sum(1, keepdim=True)), {"a": (4, 6), "out": (1, 2)}, {(6,): 1}),
        (
            lambda m, x: m.out(torch.einsum("...i,oi->...o", m.a(x), m.b.weight)),
            {"a": (4, 6), "b": (6, 5, False), "out": (5, 2)},
            {(6,): 1, (5,): 1},
        ),
    ],
)  # fmt: skip
def test_dense_structures(forward, layers, expected):
    model = Block(forward, **{name: linear(*sizes) for name, sizes in layers.items()})
    assert shapes(trace(model, torch.randn(3, 4))) == expected


class SharedNorm(nn.Module):
    """Attention whose queries and keys are normalised by one vector for all heads."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(12, 2)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(self.norm(q), self.norm(k), v)
        return self.head(self.proj(y.transpose(1, 2).reshape(b, t, 12)).mean(1))


def test_a_vector_shared_by_heads_moves_their_dimensions_together():
    spec = trace(SharedNorm(), torch.randn(2, 5, 12))
    # Heads; dimensions of Q and K for all heads at once; of V within each; the projection.
    assert shapes(spec) == {(3,): 1, (4,): 1, (3, 4): 1, (12,): 1}


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.join, self.norm = nn.Conv2d(16, 8, 3, padding=1), nn.GroupNorm(2, 16)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = F.relu(self.down1(x))
        b = F.relu(self.middle(self.norm(F.relu(self.down2(F.max_pool2d(a, 2))))))
        up = torch.cat([a, F.interpolate(self.up(b), size=a.shape[2:])], 1)
        return self.out(F.relu(self.join(up)))


def test_skip_connections_of_a_unet():
    spec = trace(Unet(), IMAGE)
    assert shapes(spec) == {(8,): 3, (2,): 1, (2, 8): 1, (16,): 1}
    assert pinned(spec) == {("down1.weight", 1), ("out.weight", 0), ("out.bias", 0)}


@torch.library.custom_op("regraft_test::strange", mutates_args=())
def strange(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@strange.register_fake
def _(x):
    return torch.empty_like(x)


def test_an_unknown_operation_pins_and_is_named():
    model = Block(
        lambda m, x: m.out(torch.ops.regraft_test.strange(m.a(x))), a=linear(4, 6), out=linear(6, 2)
    )
    spec = trace(model, torch.randn(2, 4))
    assert len(spec) == 0
    for name, axis in (("inner.a.weight", 0), ("inner.out.weight", 1)):  # before and after it
        (reason,) = {p.reason for p in spec.pins if (p.tensor, p.axis) == (name, axis)}
        assert "regraft_test.strange, which no rule covers" in reason


def test_writing_into_a_part_of_a_constant_pins_what_is_written():
    def forward(m, x):
        out = torch.zeros(x.shape[0], 8)
        out[:, 1:7] = m.a(x)
        return m.out(out)

    spec = trace(Block(forward, a=linear(4, 6), out=linear(8, 2)), torch.randn(2, 4))
    assert len(spec) == 0


def test_sites_with_slices_say_so():
    spec = trace(
        Conv(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), head=nn.Linear(8, 2)), IMAGE
    )
    sites = [s for g in spec for s in g.sites if s.over is not None]
    assert [s.slices.shape for s in sites] == [(4, 2)]
    assert "layers.1.weight axis 1, over axis 0" in describe(spec, most=99)


def uniform_then_written(m, x):
    scale = torch.ones(6) * 1
    scale[0] = 3.0
    return m.out(m.a(x) * scale)


def under_other_modes(m, x):
    with torch.no_grad():
        hidden = m.a(x)
    with torch.autocast("cpu", enabled=False):
        hidden = m.b(hidden)
    return m.out(hidden)


def test_what_is_written_into_a_constant_is_not_uniform():
    spec = trace(Block(uniform_then_written, a=linear(4, 6), out=linear(6, 2)), torch.randn(3, 4))
    assert len(spec) == 0


def test_parts_under_other_modes_are_followed():
    layers = {"a": linear(4, 6), "b": linear(6, 5), "out": linear(5, 2)}
    assert shapes(trace(Block(under_other_modes, **layers), torch.randn(3, 4))) == {
        (6,): 1,
        (5,): 1,
    }


@pytest.mark.parametrize(
    ("layer", "width", "expected"),
    [
        (nn.LSTM(4, 6, 2, batch_first=True), 6, {(6,): 2}),
        (nn.LSTM(4, 6, bidirectional=True, batch_first=True), 12, {(6,): 2}),
        (nn.GRU(4, 6, bias=False), 6, {(6,): 1}),
        (nn.RNN(4, 6, 2), 6, {(6,): 2}),
    ],
)
def test_recurrent_layers(layer, width, expected):
    model = Block(lambda m, x: m.out(m.r(x)[0].mean(1)), r=layer, out=linear(width, 2))
    assert shapes(trace(model, torch.randn(2, 5, 4))) == expected


class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("scale", torch.ones(6))
        self.register_buffer("fixed", torch.ones(6), persistent=False)

    def forward(self, x):
        return self.b(self.a(x) * self.scale * self.fixed)


def test_stored_buffers_move_with_the_units_whatever_they_hold():
    model, x = Buffers(), torch.randn(3, 4)
    spec = trace(model, x)
    assert any(site.tensor == "scale" for group in spec for site in group.sites)
    model.scale.copy_(torch.rand(6))
    before = model(x)
    model.load_state_dict(spec.apply(model.state_dict(), spec.random(1)))
    torch.testing.assert_close(model(x), before)


def test_outputs_beside_the_logits_stay_and_hidden_states_do_not_count():
    def forward(m, x):
        hidden = F.relu(m.a(x))
        return {"logits": m.c(hidden), "boxes": m.b(hidden), "hidden_states": (hidden,)}

    model = Block(forward, a=linear(4, 6), b=linear(6, 4), c=linear(6, 3))
    assert shapes(trace(model, torch.randn(3, 4))) == {(6,): 1}


def test_tensors_tied_by_their_memory_are_seen():
    model = Block(
        lambda m, x: m.out(m.c(m.b(m.a(x)))),
        a=linear(4, 6), b=linear(6, 6), c=linear(6, 6), out=linear(6, 2),
    )  # fmt: skip
    model.inner.c.weight.data = model.inner.b.weight.data
    spec = trace(model, torch.randn(3, 4))
    assert spec.aliases == {"inner.c.weight": "inner.b.weight"}
    model.inner.b.weight.data = model.inner.a.weight.data.new_zeros(6, 6)
    model.inner.c.weight.data = model.inner.b.weight.data.t()
    spec = trace(model, torch.randn(3, 4))
    assert {"inner.b.weight", "inner.c.weight"} <= {p.tensor for p in spec.pins}


def test_unused_layers_are_listed():
    model = Block(lambda m, x: m.out(m.a(x)), a=linear(4, 6), out=linear(6, 2), idle=linear(5, 5))
    spec = trace(model, torch.randn(3, 4))
    assert {p.reason for p in spec.pins if p.tensor == "inner.idle.weight"} == {
        "it is not used in forward"
    }
