"""Which outputs count, and what the share of free positions says."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from regraft.errors import InputError
from regraft.symmetry.spec.printing import describe
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.symmetry.trace.check import SymmetryError, check
from regraft.symmetry.trace.trace import trace

X = torch.randn(3, 4)
Pair = namedtuple("Pair", ["stream", "pooled"])


class Encoder(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.out, self.kind = nn.Linear(4, 6), nn.Linear(6, 2), kind

    def forward(self, x):
        h = self.a(x).relu()
        return self.kind(h, self.out(h))


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        (lambda h, y: {"stream": h, "pooled": y}, "pooled"),
        (lambda h, y: {"stream": h, "pooled": y}, ["pooled"]),
        (lambda h, y: (h, y), 1),
        (lambda h, y: [h, y], [-1]),
        (Pair, "pooled"),
    ],
)
def test_an_encoder_of_which_one_output_counts(kind, outputs):
    model = Encoder(kind)
    assert not len(trace(model, X))
    spec = trace(model, X, outputs=outputs)
    assert [group.shape for group in spec] == [(6,)]
    assert check(spec, model, X, outputs=outputs) < 1e-10
    with pytest.raises(SymmetryError):
        check(spec, model, X)


@pytest.mark.parametrize(
    ("kind", "outputs", "named"),
    [
        (lambda h, y: {"stream": h, "pooled": y}, "logits", "stream, pooled"),
        (lambda h, y: (h, y), 2, "0, 1"),
        (lambda _h, y: y, "logits", "0"),
        (Pair, ["pooled", "x"], "stream, pooled"),
    ],
)
def test_an_output_that_is_not_there_is_refused(kind, outputs, named):
    with pytest.raises(InputError, match=f"outputs=.*the network gives {named}"):
        trace(Encoder(kind), X, outputs=outputs)


def test_dimensions_of_pinned_heads_are_not_free():
    class Heads(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.a, self.out = nn.Linear(4, 6), nn.Linear(6, 2)
            self.scale = torch.tensor(scale)[:, None]

        def forward(self, x):
            return self.out((self.a(x).unflatten(1, (2, 3)).relu() * self.scale).flatten(1))

    free, held = (trace(Heads(scale), X) for scale in ([1.0, 1.0], [1.0, 2.0]))
    assert [group.shape for group in free] == [(2,), (2, 3)]
    assert [group.shape for group in held] == [(3,), (3,)]
    assert free.free_share == 12 / 18
    assert held.free_share == 0
    assert "a.weight axis 0: 0 of 6, 6 only within blocks that stay: mul" in describe(held)
    assert PermutationSpec.from_json(held.to_json()).free_share == 0
