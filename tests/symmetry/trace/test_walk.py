"""What stored buffers and dead operations do to the symmetries that are found."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regraft.symmetry.match.match import match
from regraft.symmetry.merge.merge import merge
from regraft.symmetry.trace.trace import trace

X = torch.randn(3, 4)


class Stored(nn.Module):
    """Two linear layers between which a function uses a stored buffer."""

    def __init__(self, forward, buffer, hidden=6):
        super().__init__()
        self.a, self.b = nn.Linear(4, hidden), nn.Linear(6, 2)
        self.register_buffer("kept", buffer)
        self.use = forward

    def forward(self, x):
        return self.b(self.use(self.a(x), self.kept))


def sites(spec):
    return {(site.tensor, site.axis) for group in spec for site in group.sites}


def alike(model, spec, x=X):
    """Whether every random permutation leaves a network's outputs alone."""
    before = model(x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for seed in range(5):
        model.load_state_dict(spec.apply(state, spec.random(seed)))
        if not torch.allclose(model(x), before, atol=1e-5):
            return False
    model.load_state_dict(state)
    return True


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
@pytest.mark.parametrize("fresh", [torch.ones, torch.zeros])
@pytest.mark.parametrize(
    "use",
    [
        lambda h, mask: h * mask,
        lambda h, mask: torch.where(mask != 0, h, 0.5),
        lambda h, mask: h.masked_fill(mask.bool(), 0.0),
    ],
)
def test_a_mask_moves_with_its_units_whatever_a_fresh_network_holds(dtype, fresh, use):
    model = Stored(use, fresh(6).to(dtype))
    spec = trace(model, X)
    assert ("kept", 0) in sites(spec)
    model.kept.copy_(torch.tensor([1, 0, 0, 1, 1, 0]))
    assert alike(model, spec)


def test_a_mask_of_connections_moves_with_both_sides():
    class Pruned(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
            self.register_buffer("mask", torch.ones(5, 6, dtype=torch.bool))

        def forward(self, x):
            h = F.relu(self.a(x))
            return self.c(F.relu(F.linear(h, self.b.weight * self.mask, self.b.bias)))

    model = Pruned()
    spec = trace(model, X)
    assert {("mask", 0), ("mask", 1)} <= sites(spec)
    model.mask.copy_(torch.rand(5, 6) > 0.5)
    assert alike(model, spec)


@pytest.mark.parametrize(
    ("use", "table"),
    [
        (lambda h, at: h[:, at], torch.arange(6)),
        (lambda h, at: h.index_select(1, at), torch.zeros(6, dtype=torch.int64)),
        (lambda h, at: h.gather(1, at.expand(3, 6)), torch.zeros(6, dtype=torch.int64)),
        (lambda h, at: h + F.one_hot(at, 6).sum(0), torch.arange(6)),
    ],
)
def test_a_table_of_indices_stays_and_holds_what_it_points_into(use, table):
    spec = trace(Stored(use, table), X)
    assert not {s for s in sites(spec) if s[0] in ("kept", "a.weight", "a.bias")} - {
        ("a.weight", 1)
    }


def test_a_causal_mask_stays_and_so_does_what_the_example_does_not_reach():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)
            self.places = nn.Parameter(torch.randn(16, 6))
            self.register_buffer("causal", torch.ones(16, 16).tril().bool())
            self.register_buffer("position_ids", torch.arange(16)[None])

        def forward(self, ids):
            n = ids.shape[1]
            h = self.embed(ids) + self.places[:n] + self.places[self.position_ids[:, :n]]
            scores = (h @ h.transpose(1, 2)).masked_fill(~self.causal[:n, :n], float("-inf"))
            return self.head(scores.softmax(-1) @ h)

    model, ids = Attention(), torch.randint(0, 9, (2, 5))
    spec = trace(model, ids)
    assert {s[0] for s in sites(spec)} == {"embed.weight", "places", "head.weight"}
    assert alike(model, spec, torch.randint(0, 9, (2, 16)))


def test_rows_behind_the_length_of_the_example_stay():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.places = nn.Parameter(torch.randn(1, 16, 6))

        def forward(self, x):
            return self.b(F.relu(self.a(x) + self.places[:, : x.shape[1]]))

    model = Positions()
    spec = trace(model, torch.randn(2, 5, 4))
    assert ("places", 1) not in sites(spec)
    assert ("places", 2) in sites(spec)
    reasons = {p.reason for p in spec.pins if (p.tensor, p.axis) == ("places", 1)}
    assert any("nothing reads it at these example inputs" in reason for reason in reasons)
    assert alike(model, spec, torch.randn(2, 16, 4))


def test_a_group_of_which_one_half_is_cut_moves_in_both_halves():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.c = nn.Linear(4, 2)

        def forward(self, x):
            h = F.relu(self.a(x))
            return self.b(h) + self.c(h[:, :4])

    spec = trace(Halves(), X)
    assert sorted(group.size for group in spec) == [2, 4]


def test_a_mask_is_moved_not_matched_and_not_averaged():
    torch.manual_seed(0)
    model = Stored(lambda h, mask: F.relu(h) * mask, torch.ones(6, dtype=torch.bool))
    spec = trace(model, X)
    a = {k: v.clone() for k, v in model.state_dict().items()}
    a["kept"] = torch.tensor([1, 1, 0, 0, 1, 0]).bool()
    pi = spec.random(1)
    b = spec.apply(a, pi)
    assert not torch.equal(a["kept"], b["kept"])
    found = match(spec, a, b)
    aligned = spec.apply(b, found.permutation)
    for name, tensor in aligned.items():
        assert torch.equal(tensor, a[name]), name
    other = {**a, "kept": ~a["kept"]}
    assert match(spec, other, b).objective == found.objective
    merged = merge([a, aligned])
    assert merged["kept"].dtype == torch.bool
    assert torch.equal(merged["kept"], a["kept"])


@pytest.mark.parametrize(
    "dead",
    [
        lambda h: h[:, -1],
        lambda h: h.sort(1),
        torch.fft.rfft,
        lambda h: h.max(1)[1].float(),
    ],
)
def test_what_nobody_reads_holds_nothing(dead):
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            h = F.relu(self.a(x))
            dead(h)
            return self.b(h)

    assert [group.size for group in trace(Dead(), X)] == [6]


def test_what_is_written_and_read_later_is_no_dead_operation():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            h = self.a(x).clone()
            h[:, 0].mul_(2)
            return self.b(h)

    assert [group.size for group in trace(Writes(), X)] == [5]


def test_what_is_written_under_another_mode_is_no_dead_operation():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            h = self.a(x).clone()
            with torch.enable_grad():
                h[:, 0].mul_(2)
                h.sort(1)
            return self.b(h)

    # A wrong group would be a warning of a failed proof, which is an error here.
    assert [group.size for group in trace(Writes(), X)] == [5]
