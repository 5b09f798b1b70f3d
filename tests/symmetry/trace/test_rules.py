"""Operations beyond plain layers: what they leave free, proved on every one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from tracing import Block, linear

from regraft.errors import InputError
from regraft.symmetry.trace.trace import trace

X, IMAGE = torch.randn(3, 4), torch.randn(2, 3, 8, 8)


def shapes(spec):
    return sorted(group.shape for group in spec)


def standardised(weight):
    variance, mean = torch.var_mean(weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
    return (weight - mean) / torch.sqrt(variance + 1e-10)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: m.out((h := m.a(x)) - torch.var_mean(h, 1, keepdim=True)[1]), [(6,)]),
        (lambda m, x: m.out((h := m.a(x)) / torch.std_mean(h, 1, keepdim=True)[0]), [(6,)]),
        (
            lambda m, x: m.out((h := m.a(x)) / (1 + torch.aminmax(h, dim=1, keepdim=True)[1])),
            [(6,)],
        ),
        (lambda m, x: m.out((h := m.a(x)) - h.median(1, keepdim=True)[0]), [(6,)]),
        (lambda m, x: m.out((h := m.a(x)) * F.cosine_similarity(h, h + 1)[:, None]), [(6,)]),
        (lambda m, x: m.out((h := m.a(x)) * F.pairwise_distance(h, h + 1, keepdim=True)), [(6,)]),
        (lambda m, x: m.out(torch.hstack([m.a(x)])), [(6,)]),
        (lambda m, x: m.out(torch.vstack([m.a(x), m.a(x + 1)])), [(6,)]),
        (lambda m, x: m.out(m.a(x).unfold(0, 2, 1).mean(-1)), [(6,)]),
        (lambda m, x: torch.exp(-torch.cdist(m.a(x), m.out.weight)), [(6,)]),
        (lambda m, x: m.out(torch.diff(m.a(x), dim=0, prepend=m.a(x)[:1])), [(6,)]),
        (lambda m, x: m.out(torch.diff(m.a(x), dim=0, prepend=torch.arange(6.0)[None])), []),
        (lambda m, x: m.out(m.a(x)) + m.a(x).median(1, keepdim=True)[1], []),
    ],
)
def test_reductions_and_joins(forward, expected):
    assert shapes(trace(Block(forward, a=linear(4, 6), out=linear(6, 2)), X)) == expected


def test_tensors_side_by_side_move_each_for_itself():
    model = Block(
        lambda m, x: m.out(torch.hstack([m.a(x), m.b(x)]).relu()),
        a=linear(4, 6), b=linear(4, 5), out=linear(11, 2),
    )  # fmt: skip
    assert shapes(trace(model, X)) == [(5,), (6,)]


def test_weight_standardisation():
    def forward(m, x):
        x = F.relu(F.group_norm(F.conv2d(x, standardised(m.a.weight), m.a.bias), 4))
        return m.out(F.conv2d(x, standardised(m.b.weight), m.b.bias).mean((2, 3)))

    model = Block(forward, a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 6, 3), out=linear(6, 2))
    assert shapes(trace(model, IMAGE)) == [(4,), (4, 4), (6,)]


@pytest.mark.parametrize("standard", [standardised, lambda w: w - w.mean((1, 2, 3), keepdim=True)])
def test_a_standardised_grouped_convolution_is_as_free_as_a_plain_one(standard):
    def forward(m, x):
        return m.out(F.conv2d(m.a(x), standard(m.b.weight), groups=4).mean((2, 3)))

    model = Block(
        forward,
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(8, 12, 3, groups=4, bias=False),
        out=linear(12, 2),
    )
    assert shapes(trace(model, IMAGE)) == [(4,), (4, 2), (4, 3)]


def test_a_pruned_grouped_convolution_moves_its_mask():
    class Pruned(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4, bias=False)
            self.out = nn.Linear(12, 2)
            self.register_buffer("mask", torch.ones(12, 2, 3, 3, dtype=torch.bool))

        def forward(self, x):
            h = F.conv2d(self.a(x), self.b.weight * self.mask, groups=4)
            return self.out(h.mean((2, 3)))

    spec = trace(Pruned(), IMAGE)
    assert {group.shape for group in spec} >= {(4,), (4, 3)}


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm])
def test_spectral_norm(norm):
    model = nn.Sequential(
        norm(nn.Conv2d(3, 6, 3)), nn.ReLU(), norm(nn.Conv2d(6, 5, 3)), nn.ReLU(), nn.Flatten(),
        nn.Linear(5 * 16, 2),
    )  # fmt: skip
    assert shapes(trace(model, IMAGE)) == [(5,), (6,)]


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("steps", [1, 3])
def test_recurrent_cells(cell, steps):
    def forward(m, x):
        state = None
        for _ in range(steps):
            state = m.c(m.a(x), state)
        return m.out(state[0] if isinstance(state, tuple) else state)

    model = Block(forward, a=linear(4, 5), c=cell(5, 6), out=linear(6, 2))
    assert shapes(trace(model, X)) == [(5,), (6,)]


@pytest.mark.parametrize(("layers", "both"), [(2, False), (1, True), (2, True)])
def test_a_learnt_initial_state_moves_by_units_and_not_by_layers(layers, both):
    class Learnt(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(4, 6, layers, batch_first=True, bidirectional=both)
            self.start = nn.Parameter(torch.randn(layers * (1 + both), 1, 6))
            self.out = nn.Linear(6 * (1 + both), 2)

        def forward(self, x):
            start = self.start.expand(-1, x.shape[0], -1).contiguous()
            return self.out(self.gru(x, start)[0].mean(1))

    spec = trace(Learnt(), torch.randn(3, 5, 4))  # a warning of a failed proof is an error here
    assert shapes(spec) == [(6,)]
    assert {site.axis for group in spec for site in group.sites if site.tensor == "start"} == {2}


def test_a_decoder_that_starts_where_an_encoder_ended_is_free_layer_by_layer():
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.LSTM(4, 6, 2, batch_first=True)
            self.decoder = nn.LSTM(4, 6, 2, batch_first=True)
            self.out = nn.Linear(6, 2)

        def forward(self, x):
            return self.out(self.decoder(x, self.encoder(x)[1])[0].mean(1))

    assert shapes(trace(Translator(), torch.randn(3, 5, 4))) == [(6,), (6,)]


def test_windows_keep_their_positions():
    def forward(m, x):
        patches = F.unfold(m.a(x), 2, stride=2)
        return m.out(F.fold(patches.relu(), (8, 8), 2, stride=2).mean((2, 3)))

    model = Block(forward, a=nn.Conv2d(3, 6, 1), out=linear(6, 2))
    assert shapes(trace(model, IMAGE)) == [(6,)]
    model = Block(
        lambda m, x: m.out(F.unfold(m.a(x), 2).mean(2)), a=nn.Conv2d(3, 6, 1), out=linear(24, 2)
    )
    assert shapes(trace(model, IMAGE)) == [(6,)]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings(mode):
    model = Block(
        lambda m, x: m.out(torch.relu(m.e(x))), e=nn.EmbeddingBag(9, 6, mode=mode), out=linear(6, 2)
    )
    assert shapes(trace(model, torch.randint(0, 9, (2, 4)))) == [(6,)]


@pytest.mark.parametrize(
    ("forward", "operation"),
    [
        (lambda m, x: m.out(torch.linalg.pinv(m.a(x)).mT), "linalg_pinv"),
        (lambda m, x: m.out(torch.tensordot(m.a(x), torch.eye(1), dims=0).flatten(1)), "tensordot"),
    ],
)
def test_what_no_rule_covers_is_named(forward, operation):
    spec = trace(Block(forward, a=linear(4, 6), out=linear(6, 2)), X)
    assert not len(spec)
    assert any(f"operation {operation}, which no rule covers" in pin.reason for pin in spec.pins)


def attended(h, k):
    return (h @ k.transpose(-1, -2)).softmax(-1) @ h


def heads(x, n=2):
    return x.unflatten(-1, (n, -1))


@pytest.mark.parametrize("check_it", [True, False])
@pytest.mark.parametrize(
    ("forward", "sizes", "expected"),
    [
        # What mixes heads, position by position, ties the dimensions of all heads.
        (lambda m, x: m.out(heads(m.a(x)).softmax(-2).flatten(-2)), (6, 6), [(2,), (3,)]),
        (lambda m, x: m.out(heads(m.a(x)).log_softmax(-2).flatten(-2)), (6, 6), [(2,), (3,)]),
        (lambda m, x: m.out(heads(m.a(x)).cumsum(-2).flatten(-2)), (6, 6), [(3,)]),
        (
            lambda m, x: m.out(F.layer_norm(heads(m.a(x)).mT, (2,)).mT.flatten(-2)),
            (6, 6), [(2,), (3,)],
        ),
        (lambda m, x: m.out(F.instance_norm(heads(m.a(x)).mT).mT.flatten(-2)), (6, 6), [(2,), (3,)]),
        (lambda m, x: m.out(F.avg_pool1d(heads(m.a(x), 4).mT, 2).flatten(-2)), (12, 6), [(3,)]),
        # The rows and columns of h h^T are units of one group in two dimensions.
        (lambda m, x: m.out(attended(heads(m.a(x)), heads(m.a(x))).flatten(-2)), (6, 6), [(2,), (3,)]),
        (
            lambda m, x: m.out(attended(heads(m.a(x)), heads(m.a(x)).relu()).flatten(-2)),
            (6, 6), [(2,), (3,)],
        ),
        (lambda m, x: m.out((h := heads(m.a(x))) @ h.mT.relu()).mean(1), (6, 2), [(2,), (3,)]),
        (lambda m, x: m.out(((h := heads(m.a(x))) @ h.mT.relu()).flatten(-2)), (6, 4), [(3,)]),
        (lambda m, x: m.out(((h := heads(m.a(x))).mT @ h.relu()).flatten(-2)), (6, 9), [(2,)]),
        (
            lambda m, x: m.out(
                ((h := heads(m.a(x)))[:, :, None] * h[:, None].relu()).sum(-1).flatten(-2)
            ),
            (6, 4), [(3,)],
        ),
        (lambda m, x: m.out((m.a(x)[:, :, None] * m.a(x)[:, None].relu()).flatten(1)), (4, 16), []),
        (
            lambda m, x: m.out((m.a(x)[:, :2, None] * m.a(x)[:, None].relu()).flatten(1)),
            (4, 8), [(2,)],
        ),
        (lambda m, x: m.out((m.a(x)[:, :, None] * m.a(x)[:, None]).softmax(-1).sum(1)), (6, 6), [(6,)]),
    ],
)  # fmt: skip
def test_what_mixes_or_repeats_units_is_right_without_the_proof(forward, sizes, expected, check_it):
    model = Block(forward, a=linear(4, sizes[0]), out=linear(sizes[1], 2))
    assert shapes(trace(model, X, check_it=check_it)) == expected


@pytest.mark.parametrize("check_it", [True, False])
def test_convolutions_over_heads_tie_what_lies_in_them(check_it):
    def forward(m, x):
        return m.out(m.talk(heads(m.a(x))[..., None]).flatten(1))

    model = Block(forward, a=linear(4, 6), talk=nn.Conv2d(2, 4, 1), out=linear(12, 2))
    spec = trace(model, X, check_it=check_it)
    assert shapes(spec) == [(2,), (3,), (4,)]


NODES = torch.tensor([0, 1, 0])


@pytest.mark.parametrize("check_it", [True, False])
@pytest.mark.parametrize(
    ("forward", "sizes", "expected"),
    [
        # Another order that the network holds is one like any other.
        (lambda m, x: m.out(m.a(x).flip(-1)), (6, 6), [(6,)]),
        (lambda m, x: m.out(m.a(x).roll(2, -1)), (6, 6), [(6,)]),
        (lambda m, x: m.out(m.a(x)[:, [0, 2, 1, 3, 5, 4]]), (6, 6), [(6,)]),
        (lambda m, x: m.out(m.a(x).index_select(1, torch.arange(5, -1, -1))), (6, 6), [(6,)]),
        (lambda m, x: m.out(m.a(x)[:, [0, 0, 1, 1, 2, 2]]), (3, 6), [(3,)]),
        (lambda m, x: m.out(m.a(x)[:, [0, 2, 1, 3, 5, 4, 0, 2]]), (6, 8), [(2,), (4,)]),
        (lambda m, x: m.out(m.a(x)[:, :3] * m.a(x)[:, 3:][:, [1, 2, 0]].relu()), (6, 3), [(3,)]),
        (lambda m, x: m.out(m.a(x)[:, ::2] * m.a(x)[:, 1::2][:, [1, 2, 0]].relu()), (6, 3), [(3,)]),
        # Units that are tied to each other stay.
        (lambda m, x: m.out(m.a(x) * m.a(x)[:, [1, 2, 0, 4, 5, 3]].relu()), (6, 6), []),
        (lambda m, x: m.out(m.a(x) + m.a(x).flip(-1)), (6, 6), []),
        # Rows are chosen, units go along.
        (lambda m, x: m.out(torch.zeros(2, 6).scatter_add(0, spread(6), m.a(x))), (6, 6), [(6,)]),
        (
            lambda m, x: m.out(torch.zeros(2, 6).scatter_reduce(0, spread(6), m.a(x), "amax")),
            (6, 6), [(6,)],
        ),
        (lambda m, x: m.out(torch.zeros(2, 6).index_add(0, NODES, m.a(x))), (6, 6), [(6,)]),
        (lambda m, x: m.out(m.a(x).gather(0, spread(6))), (6, 6), [(6,)]),
        (lambda m, x: m.out(m.a(x).gather(1, torch.arange(6).expand(3, 6))), (6, 6), []),
        (
            lambda m, x: m.out(x.new_zeros(3, 6).scatter(1, torch.arange(6).expand(3, 6), m.a(x))),
            (6, 6), [],
        ),
        (lambda m, x: m.out(heads(m.a(x)).gather(-1, NODES.expand(3, 2, 3)).flatten(1)), (6, 6), [(2,)]),
        # Heads pooled or padded.
        (lambda m, x: m.out(F.adaptive_avg_pool1d(heads(m.a(x)), 1).flatten(1)), (6, 2), [(2,), (2, 3)]),
        (lambda m, x: m.out(F.avg_pool1d(heads(m.a(x)), 3).flatten(1)), (6, 2), [(2,), (2, 3)]),
        (
            lambda m, x: m.out(F.max_pool2d(heads(m.a(x))[None], (3, 1), 1, (1, 0)).flatten(2)[0]),
            (6, 6), [(3,)],
        ),
        (lambda m, x: m.out(F.pad(heads(m.a(x)), (0, 0, 0, 1)).flatten(1)), (6, 9), [(2,), (2, 3), (3,)]),
        (lambda m, x: m.out(F.pad(heads(m.a(x)), (1, 1)).flatten(1)), (6, 10), [(2,), (2, 3)]),
        # Either part of the network.
        (lambda m, x: m.out(either(x, torch.relu, torch.tanh, m.a(x))), (6, 6), [(6,)]),
        (lambda m, x: m.out(either(x, torch.relu, lambda h: h.cumsum(-1), m.a(x))), (6, 6), []),
    ],
)  # fmt: skip
def test_fixed_orders_and_choices_leave_the_rest_free(forward, sizes, expected, check_it):
    model = Block(forward, a=linear(4, sizes[0]), out=linear(sizes[1], 2))
    assert shapes(trace(model, X, check_it=check_it)) == expected


def spread(size):
    return NODES[:, None].expand(-1, size)


def either(x, yes, no, h):
    return torch.cond(x.sum() > 0, lambda h: yes(h) + 0, lambda h: no(h) + 0, (h,))


def test_branches_with_layers_of_their_own():
    model = Block(
        lambda m, x: m.out(
            torch.cond(x.sum() > 0, lambda h: m.b(h) + 0, lambda h: m.c(h) + 0, (m.a(x),))
        ),
        a=linear(4, 6), b=linear(6, 5), c=linear(6, 5), out=linear(5, 2),
    )  # fmt: skip
    spec = trace(model, X)
    assert shapes(spec) == [(5,), (6,)]
    assert {s.tensor for g in spec if g.size == 5 for s in g.sites} >= {
        "inner.b.weight",
        "inner.c.weight",
    }


@pytest.mark.parametrize("check_it", [True, False])
def test_images_read_along_a_grid_keep_their_channels_free(check_it):
    def forward(m, x):
        grid = m.g(x.mean((2, 3))).view(2, 2, 2, 2).tanh()
        return m.out(F.grid_sample(m.a(x), grid, align_corners=False).mean((2, 3)))

    model = Block(forward, a=nn.Conv2d(3, 6, 1), g=linear(3, 8), out=linear(6, 2))
    assert shapes(trace(model, IMAGE, check_it=check_it)) == [(6,)]


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_an_lstm_with_a_projection(both, bias):
    def forward(m, x):
        rows, (hidden, cell) = m.r(x)
        return m.out(rows.mean(1)), m.h(hidden[-1]), m.c(cell[-1])

    layer = nn.LSTM(4, 6, 2, proj_size=3, batch_first=True, bidirectional=both, bias=bias)
    model = Block(forward, r=layer, out=linear(6 if both else 3, 2), h=linear(3, 2), c=linear(6, 2))
    expected = [(3,), (3,), (6,), (6,)]
    assert shapes(trace(model, torch.randn(2, 5, 4))) == sorted(expected * (1 + both))


def experts(up, down, x):
    offsets = torch.tensor([1, 3], dtype=torch.int32)
    return F.grouped_mm(F.grouped_mm(x, up, offs=offsets).relu(), down, offs=offsets)


@pytest.mark.parametrize("check_it", [True, False])
def test_matrix_products_of_experts(check_it):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = nn.Linear(4, 8), nn.Linear(8, 2)
            self.up, self.down = (nn.Parameter(torch.randn(2, i, o)) for i, o in ((8, 16), (16, 8)))

        def forward(self, x):
            return self.out(experts(self.up, self.down, self.a(x)))

    spec = trace(Experts(), X, check_it=check_it)
    assert shapes(spec) == [(8,), (8,), (16,)]


def test_what_fails_in_float64_is_refused_in_words():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

        def forward(self, x):
            if x.dtype == torch.float64:
                raise RuntimeError("no kernel for doubles")
            return self.b(self.norm(self.a(x)))

    with pytest.raises(InputError, match=r"does not run in float64 .* no kernel for doubles"):
        trace(Single(), X)


@pytest.mark.parametrize("check_it", [True, False])
def test_transforms_of_maps_keep_channels_free(check_it):
    def forward(m, x):
        h = m.a(x)
        waves = torch.fft.rfft2(h, norm="ortho") * torch.view_as_complex(m.b.weight)
        return m.out(torch.fft.irfft2(waves, s=h.shape[-2:], norm="ortho").mean((2, 3)))

    table = nn.Embedding(1, 1)
    table.weight = nn.Parameter(torch.randn(6, 8, 5, 2))
    model = Block(forward, a=nn.Conv2d(3, 6, 1), b=table, out=linear(6, 2))
    assert shapes(trace(model, IMAGE, check_it=check_it)) == [(6,)]


def test_volumes_pooled_to_their_largest_keep_channels_free():
    model = Block(
        lambda m, x: m.out(F.adaptive_max_pool3d(m.a(x), 1).flatten(1)),
        a=nn.Conv3d(2, 6, 3), out=linear(6, 2),
    )  # fmt: skip
    assert shapes(trace(model, torch.randn(2, 2, 4, 4, 4))) == [(6,)]
