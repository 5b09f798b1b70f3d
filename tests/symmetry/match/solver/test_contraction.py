import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from symmetry_specs import random_state, zoo

from regraft.symmetry.match.solver import contraction
from regraft.symmetry.match.solver.contraction import Gains, arrangement
from regraft.symmetry.match.solver.pairs import Pairs
from regraft.symmetry.spec.permutation import compose

ZOO = zoo()


def swapped(spec, now, seed, few):
    """Another permutation: of everything, or of two units of one group."""
    if not few:
        return dict(spec.random(seed))
    group = list(spec)[seed % len(spec)]
    change = {g.name: p for g, p in zip(spec, spec.identity().values(), strict=True)}
    row = change[group.name].reshape(-1, group.size)[seed % group.copies]
    row[[0, 1]] = row[[1, 0]]
    return dict(compose(spec, now, change))


@pytest.mark.parametrize("name", ZOO)
@given(seed=st.integers(0, 10**6), few=st.lists(st.booleans(), min_size=1, max_size=4))
@settings(max_examples=8)
def test_gains_by_differences_are_the_gains(name, seed, few):
    model, spec, _ = ZOO[name]
    pairs = Pairs(spec)
    for i in range(2):
        pairs.add(random_state(model, i), random_state(model, i + 5))
    for block in pairs.blocks:
        kept = Gains(block, pairs)
        now = dict(spec.identity())
        kept.update(now, arrangement(block, now))
        for i, one in enumerate(few):
            now = swapped(spec, now, seed + i, one)
            got = kept.update(now, arrangement(block, now))
        fresh = Gains(block, pairs).update(now, arrangement(block, now))
        for group, matrix in fresh.items():
            torch.testing.assert_close(got[group], matrix, rtol=1e-9, atol=1e-9)
        kept.forget()
        again = kept.update(now, arrangement(block, now))
        assert all(torch.equal(again[k], m) for k, m in fresh.items())


def test_half_precision_is_contracted_in_float32():
    model, spec, _ = ZOO["residual"]
    states = [random_state(model, i, dtype=torch.bfloat16) for i in range(2)]
    pairs = Pairs(spec)
    pairs.add(*states)
    for block in pairs.blocks:
        now = dict(spec.identity())
        for matrix in Gains(block, pairs).update(now, {}).values():
            assert matrix.dtype == torch.float32


def test_many_pairs_are_contracted_in_pieces(monkeypatch):
    model, spec, _ = ZOO["residual"]
    pairs = Pairs(spec)
    for i in range(4):
        pairs.add(random_state(model, i), random_state(model, i + 5))
    now = dict(spec.random(0))
    block = pairs.blocks[0]
    whole = Gains(block, pairs).update(now, {})
    monkeypatch.setattr(contraction, "_CHUNK", 1)
    pieces = Gains(block, pairs).update(now, {})
    for name, matrix in whole.items():
        torch.testing.assert_close(pieces[name], matrix)
