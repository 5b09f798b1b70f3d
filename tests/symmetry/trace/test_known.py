"""Values that do not depend on features do not stop a trace."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from regraft.errors import InputError
from regraft.symmetry.trace.trace import trace

X = torch.randn(3, 4)


def shapes(spec):
    return sorted(group.shape for group in spec)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.encoder, self.out = nn.TransformerEncoder(layer, 1), nn.Linear(8, 3)

    def forward(self, x, mask=None):
        if mask is None:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.out(self.encoder(x, mask=mask))


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Transformer(8, 2, 1, 1, 16, batch_first=True, dropout=0.0)
        self.out = nn.Linear(8, 3)

    def forward(self, x, y):
        mask = nn.Transformer.generate_square_subsequent_mask(y.shape[1])
        return self.out(self.inner(x, y, tgt_mask=mask))


@pytest.mark.parametrize("mask", [(), (nn.Transformer.generate_square_subsequent_mask(5),)])
def test_a_transformer_with_a_causal_mask(mask):
    spec = trace(Encoder(), (torch.randn(2, 5, 8), *mask))
    # Heads, dimensions of Q/K and of V within each; the hidden layer. The stream stays as padded.
    assert shapes(spec) == [(2,), (2, 4), (2, 4), (16,)]


def test_a_whole_transformer_with_a_causal_mask():
    spec = trace(Both(), (torch.randn(2, 5, 8), torch.randn(2, 4, 8)))
    assert shapes(spec) == [*[(2,)] * 3, *[(2, 4)] * 6, (16,), (16,)]


class Branches(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("scale", torch.tensor(3.0))
        self.register_buffer("mask", torch.tensor([1, 0, 1, 1, 0, 1]))
        self.use = use

    def forward(self, x, *more):
        return self.b(self.use(self, self.a(x), *more))


@pytest.mark.parametrize(
    ("use", "free"),
    [
        (lambda m, h: h * m.scale.item() * m.mask, True),
        (lambda m, h: h * 2 if m.scale > 2 else h, True),
        (lambda m, h: h * 2 if (m.scale * 2 + 1).sum() > 2 else h, True),
        # A value that was read out of a mask decides what the units compute: the mask stays.
        (lambda m, h: h * m.mask * 2 if m.mask[0] else h, False),
        (lambda m, h: h * m.mask * m.mask.tolist()[0], False),
        (lambda m, h: h + h[:, m.mask.bool()].sum(1, keepdim=True), False),
    ],
)
@pytest.mark.parametrize("check_it", [True, False])
def test_numbers_read_from_buffers(use, free, check_it):
    model = Branches(use)
    assert (shapes(trace(model, X, check_it=check_it)) == [(6,)]) == free


def test_whole_numbers_among_the_inputs_are_those_of_the_example():
    def use(_model, h, lengths):
        present = torch.arange(3)[None] < lengths[:, None]
        return h[present.any(0)][: int(lengths.max())]

    assert shapes(trace(Branches(use), (X, torch.tensor([1, 2])))) == [(6,)]


def test_features_are_not_known():
    for use in (
        lambda _m, h: h if h.sum() > 0 else -h,
        lambda m, h: h if m.a.weight.sum() > 0 else -h,
    ):
        with pytest.raises(InputError, match="cannot be traced"):
            trace(Branches(use), X)


def test_what_is_overwritten_with_features_is_not_known_any_longer():
    def use(_model, h):
        counts = torch.zeros(3)
        view = counts[:2]
        counts += h.sum(1)
        return h if view.sum() > 0 else -h

    with pytest.raises(InputError, match="cannot be traced"):
        trace(Branches(use), X)


class Packed(nn.Module):
    def __init__(self, layer, batch_first, *, ordered):
        super().__init__()
        self.first, self.layer = nn.Linear(4, 5), layer(5, 6, 2, batch_first=batch_first)
        self.out, self.also = nn.Linear(6, 2), nn.Linear(6, 2)
        self.batch_first, self.ordered = batch_first, ordered

    def forward(self, x, lengths):
        packed = pack_padded_sequence(
            self.first(x), lengths, batch_first=self.batch_first, enforce_sorted=self.ordered
        )
        y, state = self.layer(packed)
        rows, _ = pad_packed_sequence(y, batch_first=self.batch_first)
        last = state[0] if isinstance(state, tuple) else state
        return self.out(rows), self.also(last[-1])


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_packed_sequences(layer, batch_first, ordered):
    lengths = torch.tensor([5, 3, 2] if ordered else [2, 5, 3])
    x = torch.randn((3, 5, 4) if batch_first else (5, 3, 4))
    spec = trace(Packed(layer, batch_first, ordered=ordered), (x, lengths))
    assert shapes(spec) == [(5,), (6,), (6,)]


def test_the_network_keeps_its_hooks_and_its_buffers():
    model = Branches(lambda m, h: h * m.scale.item())
    trace(model, X)
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert model.scale.item() == 3
