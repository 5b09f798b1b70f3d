import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from symmetry_specs import mlp, random_state, zoo

from regraft.symmetry.match.solver.objective import MatchingObjective
from regraft.symmetry.transfer.gradient_pairs import GradientPairs, Solver


@given(
    name=st.sampled_from(["mlp", "residual", "grouped", "grouped query", "recurrent"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15)
def test_gains_kept_from_pair_to_pair_are_those_of_all_pairs(name, seed):
    model, spec, _ = zoo()[name]
    pairs = GradientPairs(spec, spec.identity(), Solver(seed=seed, workers=1))
    for i in range(4):
        a, b = (random_state(model, seed + 10 * i + j) for j in range(2))
        pairs.add(a, b, ("a", "b"))
        pairs.solve(spec.random(seed) if i == 2 else None)
        assert pairs.value == pytest.approx(MatchingObjective(pairs.pairs)(pairs.now), rel=1e-9)
        for gains in pairs._gains:
            kept = {k: v.clone() for k, v in gains.matrices.items()}
            frames = dict(gains.frames)
            gains.forget()
            for k, v in _contracted(gains, frames).items():
                torch.testing.assert_close(kept[k].double(), v.double(), rtol=1e-6, atol=1e-6)
            gains.matrices, gains.frames = kept, frames
    assert pairs.identity == pytest.approx(
        MatchingObjective(pairs.pairs)(spec.identity()), rel=1e-9
    )


def _contracted(gains, frames):
    """The gains of all pairs in given frames, term by term."""
    from regraft.symmetry.match.solver.rows import rows

    found = {}
    for i, term in enumerate(gains.block.terms):
        for a, b in gains.pairs.of(term.tensor) if term.tensor in gains.pairs.stacked else ():
            total = rows(a, term, {}) @ frames[i].rows(b, term).T
            found[term.group] = found.get(term.group, 0) + total
    for name in gains.block.free:
        if name in gains.pairs.sums:
            found[name] = found.get(name, 0) + gains.pairs.sums[name]
    return found


def test_one_hidden_layer_keeps_no_gradients():
    model, spec = mlp([6, 10, 3])
    pairs = GradientPairs(spec, spec.identity(), Solver())
    states = [random_state(model, i) for i in range(2)]
    pairs.add(*states, ("a", "b"))
    assert pairs.pairs.stacked == {}
    model, spec = mlp([6, 10, 9, 3])
    pairs = GradientPairs(spec, spec.identity(), Solver(), store=torch.bfloat16)
    pairs.add(*(random_state(model, i) for i in range(2)), ("a", "b"))
    assert list(pairs.pairs.stacked) == ["2.weight"]
    for state in pairs.pairs.stacked["2.weight"][0]:  # nothing else is kept along
        assert {k: v.dtype for k, v in state.items()} == {"2.weight": torch.bfloat16}
