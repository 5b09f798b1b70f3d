import itertools
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import InputError, MissingExtraError
from regraft.symmetry.match.solver.assignment import _solver, assign, assigned


def brute(gains):
    n = len(gains)
    return max(
        sum(gains[i, p[i]].item() for i in range(n)) for p in itertools.permutations(range(n))
    )


@pytest.mark.parametrize("solver", ["scipy", "lapx"])
@given(
    n=st.integers(1, 6), seed=st.integers(0, 10**6), kind=st.sampled_from(["noise", "ties", "zero"])
)
def test_is_the_best_of_all_permutations(solver, n, seed, kind):
    if solver == "lapx":
        pytest.importorskip("lap")
    g = torch.Generator().manual_seed(seed)
    gains = torch.randn(n, n, generator=g, dtype=torch.float64)
    gains = {"noise": gains, "ties": gains.round(), "zero": torch.zeros_like(gains)}[kind]
    found = assign(gains, solver=solver)
    assert sorted(found.tolist()) == list(range(n))
    assert assigned(gains, found).item() == pytest.approx(brute(gains), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [2, 300])
def test_solvers_agree_on_larger_matrices(dtype, rank):
    pytest.importorskip("lap")
    g = torch.Generator().manual_seed(0)
    left, right = (torch.randn(200, rank, generator=g, dtype=dtype) for _ in range(2))
    gains = left @ right.T
    values = [assigned(gains.double(), assign(gains, solver=s)).item() for s in ("scipy", "lapx")]
    assert values[1] == pytest.approx(values[0], rel=1e-9)


def test_a_stack_is_solved_one_by_one():
    gains = torch.randn(5, 7, 7, generator=torch.Generator().manual_seed(0))
    found = assign(gains, threads=2)
    assert torch.equal(found, torch.stack([assign(x) for x in gains]))
    assert assign(torch.zeros(3, 1, 1)).shape == (3, 1)


def test_half_precision_and_gradients_are_taken():
    gains = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.equal(assign(gains.bfloat16()), assign(gains.bfloat16().float()))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_gains_that_are_not_finite_are_refused(value):
    gains = torch.zeros(3, 3)
    gains[1, 2] = value
    with pytest.raises(InputError, match="not a finite number"):
        assign(gains)


def test_wrong_arguments_are_named():
    with pytest.raises(InputError, match=r"gains: got shape \(2, 3\)"):
        assign(torch.zeros(2, 3))
    with pytest.raises(InputError, match="solver='fast'"):
        assign(torch.zeros(2, 2), solver="fast")


def test_without_lapx_scipy_is_used_and_asking_for_it_names_the_extra(monkeypatch):
    _solver.cache_clear()
    monkeypatch.setitem(sys.modules, "lap", None)
    gains = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    try:
        assert torch.equal(assign(gains), assign(gains, solver="scipy"))
        with pytest.raises(MissingExtraError, match=r"regraft\[match\]"):
            assign(gains, solver="lapx")
    finally:
        _solver.cache_clear()
