from functools import partial
from itertools import pairwise

import pytest
import torch
from symmetry_specs import attention, mlp, random_state, zoo

from regraft.errors import InputError
from regraft.symmetry.match.cycle_consistent import _Relaxation, cycle_consistent
from regraft.symmetry.match.many import agreement, align_many, between
from regraft.symmetry.match.match import match
from regraft.symmetry.match.solver.nested import unit_maps
from regraft.symmetry.spec.permutation import compose, inverse

ZOO = zoo()


def family(spec, model, n=3, noise=0.3, seed=0):
    """Networks that are one network, permuted, plus noise each."""
    base = random_state(model, seed)
    found, permutations = [], []
    for i in range(n):
        own = random_state(model, seed + 10 + i)
        near = {
            k: v + noise * own[k] if v.is_floating_point() and "running" not in k else v
            for k, v in base.items()
        }
        permutations.append(spec.random(seed + i))
        found.append(spec.apply(near, permutations[-1]))
    return found, permutations


def same(p, q):
    return all(torch.equal(p[k], q[k]) for k in q)


CLEAR = {
    "mlp": lambda: mlp([40, 12, 10, 20]),
    "residual": lambda: ZOO["residual"][:2],
    "heads": lambda: ZOO["heads"][:2],
}


@pytest.mark.parametrize("method", [align_many, cycle_consistent])
@pytest.mark.parametrize("name", CLEAR)
def test_permuted_copies_come_together(method, name):
    model, spec = CLEAR[name]()
    states, permutations = family(spec, model, noise=0.02)
    found = method(spec, states)
    assert same(found.permutations[0], spec.identity())
    for got, hidden in zip(found.permutations, permutations, strict=True):
        # Undo what was done to this one, then do what was done to the first.
        assert same(got, compose(spec, inverse(spec, hidden), permutations[0]))


@pytest.mark.parametrize("method", [align_many, cycle_consistent])
@pytest.mark.parametrize("name", ZOO)
def test_the_agreement_rises_and_is_what_it_says(method, name):
    model, spec, _ = ZOO[name]
    states = [random_state(model, i) for i in range(3)]
    method = partial(method, max_iterations=30) if method is cycle_consistent else method
    found = method(spec, states, seed=4)
    assert found.objective[0] == pytest.approx(agreement(spec, states))
    assert all(y >= x - 1e-9 * abs(x) for x, y in pairwise(found.objective))
    moved = [spec.apply(s, p) for s, p in zip(states, found.permutations, strict=True)]
    assert found.objective[-1] == pytest.approx(agreement(spec, moved))
    assert found.objective[-1] > found.objective[0]
    again = method(spec, states, seed=4)
    assert all(same(p, q) for p, q in zip(again.permutations, found.permutations, strict=True))


@pytest.mark.parametrize("name", ["heads", "grouped query"])
def test_cycles_close(name):
    model, spec, _ = ZOO[name]
    states = [random_state(model, i) for i in range(3)]
    a, b, c = cycle_consistent(spec, states, reference=None).permutations
    # C to B, then B to A, is C to A.
    moved = spec.apply(states[2], between(spec, b, c))
    moved = spec.apply(moved, between(spec, a, b))
    wanted = spec.apply(states[2], between(spec, a, c))
    assert all(torch.equal(moved[k], wanted[k]) for k in wanted)


def test_two_networks_are_weight_matching():
    model, spec = mlp([12, 8, 5])
    states = [random_state(model, i) for i in range(2)]
    found = align_many(spec, states)
    pair = match(spec, *states)
    assert same(found.permutations[1], pair.permutation)
    assert found.objective[-1] - found.objective[0] == pytest.approx(
        pair.objective[-1] - pair.objective[0]
    )


@pytest.mark.parametrize("name", ["residual", "heads", "grouped", "recurrent"])
def test_a_relaxed_vertex_is_the_permutation(name):
    model, spec, _ = ZOO[name]
    states = [random_state(model, i) for i in range(3)]
    relaxation = _Relaxation(spec, states, [spec.identity()] * 3)
    eye = [
        {n: torch.eye(u, dtype=torch.float64) for n, u in relaxation.units.items()} for _ in states
    ]
    assert relaxation.value(eye) == pytest.approx(agreement(spec, states))
    vertex, moved = [], []
    for i, state in enumerate(states):
        free = [n for b in relaxation.blocks for n in b.free]
        p = spec.random(i, free)
        matrices = {}
        for block in relaxation.blocks:
            for n, units in unit_maps(block, p).items():
                matrices[n] = torch.eye(len(units), dtype=torch.float64)[units]
        vertex.append(matrices)
        moved.append(spec.apply(state, p))
    assert relaxation.value(vertex) == pytest.approx(agreement(spec, moved))
    # The line search sees the agreement exactly.
    step, best = relaxation._line_search(eye, vertex)
    grid = [
        relaxation.value(
            [{n: x[n] + t * (y[n] - x[n]) for n in x} for x, y in zip(eye, vertex, strict=True)]
        )
        for t in torch.linspace(0, 1, 51).tolist()
    ]
    assert best >= max(grid) - 1e-9 * abs(best)
    assert 0.0 <= step <= 1.0


def test_frank_wolfe_alone_does_what_it_says():
    model, spec = attention(kv=3)[:2]
    states = family(spec, model, noise=0.1)[0]
    seen = []
    found = cycle_consistent(
        spec, states, polish=False, progress=lambda i, value: seen.append(value)
    )
    assert seen == sorted(seen)
    assert found.objective[-1] > found.objective[0]


def test_wrong_arguments_are_named():
    model, spec, _ = ZOO["mlp"]
    a = random_state(model, 0)
    with pytest.raises(InputError, match="got 1, expected at least two"):
        align_many(spec, [a])
    with pytest.raises(InputError, match="reference=2"):
        align_many(spec, [a, a], reference=2)
    bad = {**a, "0.bias": torch.full_like(a["0.bias"], float("nan"))}
    with pytest.raises(InputError, match=r"states\[1\]: 0\.bias has 7 of 7"):
        cycle_consistent(spec, [a, bad])
    with pytest.raises(InputError, match="patience=0"):
        cycle_consistent(spec, [a, a], patience=0)
