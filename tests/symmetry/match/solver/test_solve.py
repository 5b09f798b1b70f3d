import threading

import pytest
import torch
from symmetry_specs import Group, Site, mlp, plain, random_state, spec_of, zoo
from torch import nn

from regraft.symmetry.match.match import match
from regraft.symmetry.match.solver import solve
from regraft.symmetry.match.solver.blocks import make_blocks
from regraft.symmetry.match.solver.pairs import Pairs
from regraft.symmetry.match.solver.solve import Descent

ZOO = zoo()


def descent(name, workers=1, seed=0):
    model, spec, _ = ZOO[name]
    pairs = Pairs(spec)
    pairs.add(random_state(model, 0), random_state(model, 1))
    return Descent(pairs, dict(spec.identity()), seed=seed, workers=workers)


@pytest.mark.parametrize("name", ZOO)
def test_only_what_may_have_changed_is_solved_again(name):
    run = descent(name)
    run.run(100)
    assert run.settled
    assert run.visits <= run.sweeps * len(run.blocks)
    before = run.visits
    run.run(100)
    assert run.visits == before  # nothing is left to do
    for block in run.blocks:  # and indeed nothing is to be gained anywhere
        other = descent(name)
        other.now = dict(run.now)
        other.run(100)
        assert all(torch.equal(other.now[k], p) for k, p in run.now.items()), block.root


def test_a_chain_of_one_layer_takes_one_visit():
    model, spec = mlp([5, 6, 3])
    pairs = Pairs(spec)
    pairs.add(random_state(model, 0), random_state(model, 1))
    run = Descent(pairs, dict(spec.identity()))
    run.run(100)
    assert (run.sweeps, run.visits, run.settled) == (1, 1, True)


def test_blocks_that_share_a_tensor_are_never_solved_together(monkeypatch):
    run = descent("residual", workers=4)
    active: list[str] = []
    clashes, lock = [], threading.Lock()
    near = {b.root: {run.blocks[j].root for j in run._near[i]} for i, b in enumerate(run.blocks)}
    plainly = Descent._visit

    def watched(self, i):
        root = self.blocks[i].root
        with lock:
            clashes.extend(other for other in active if other in near[root])
            active.append(root)
        plainly(self, i)
        with lock:
            active.remove(root)

    monkeypatch.setattr(Descent, "_visit", watched)
    run.run(100)
    assert not clashes
    assert near["stem.weight"] == {"first.0.weight", "first.1.weight"}
    assert near["first.0.weight"] == {"stem.weight"}


def test_without_room_the_gains_are_computed_anew(monkeypatch):
    wanted = descent("grouped query")
    wanted.run(100)
    monkeypatch.setattr(solve, "CACHED_BYTES", 0)
    run = descent("grouped query")
    run.run(100)
    assert all(not gains.matrices for gains in run._gains)
    assert run.objective == pytest.approx(wanted.objective)
    assert all(torch.equal(run.now[k], p) for k, p in wanted.now.items())


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    def broken(*args, **kwargs):
        raise ArithmeticError("in a thread")

    monkeypatch.setattr(solve, "solve_nested", broken)
    with pytest.raises(ArithmeticError, match="in a thread"):
        descent("residual", workers=3).run(5)


def test_ties_do_not_make_it_run_in_circles():
    """Equal units everywhere: every permutation is as good as any other, and none is taken."""
    model, spec = mlp([4, 6, 6, 3])
    a = {k: torch.ones_like(v) for k, v in model.state_dict().items()}
    found = match(spec, a, a, max_sweeps=50)
    assert found.sweeps == 1
    assert found.converged
    assert found.moved == 0


def test_a_group_on_both_axes_of_a_tensor_never_gets_worse():
    """A weight whose linearisation leads astray: gains must be of the objective itself."""

    class Square(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(n, n))

        def forward(self, x):
            return x @ self.w

    n = 6
    model = Square(n)
    spec = spec_of(model, [Group("w", n, (Site("w", 0, plain(n)), Site("w", 1, plain(n))))])
    assert make_blocks(spec)[0].quadratic
    rose = 0
    for seed in range(30):
        g = torch.Generator().manual_seed(seed)
        a, b = ({"w": torch.randn(n, n, generator=g, dtype=torch.float64)} for _ in range(2))
        found = match(spec, a, b)
        assert found.objective == sorted(found.objective)
        assert found.converged
        rose += found.objective[-1] > found.objective[0] + 1e-9
    assert rose >= 20  # the others start where no linearisation leads upwards
