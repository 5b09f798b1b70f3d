import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.symmetry.match.solver.blocks import Block
from regraft.symmetry.match.solver.nested import solve_nested, total_gain, unit_maps
from regraft.symmetry.spec.group import Group
from regraft.symmetry.spec.spec import PermutationSpec


def tree(*sizes):
    """A chain of groups, each within the units of the one before."""
    groups, copies, parent = {}, 1, None
    for i, n in enumerate(sizes):
        groups[f"g{i}"] = Group(f"g{i}", n, (), parent, copies)
        parent, copies = f"g{i}", copies * n
    return Block(tuple(groups), PermutationSpec(groups, {}), (), False)


def gains_of(block, seed):
    g = torch.Generator().manual_seed(seed)
    return {
        x.name: torch.randn(x.copies * x.size, x.copies * x.size, generator=g, dtype=torch.float64)
        for x in block.tree
    }


def every(block):
    choices = []
    for group in block.tree:
        own = [torch.tensor(p) for p in itertools.permutations(range(group.size))]
        if group.parent is None:
            choices.append(own)
        else:
            choices.append([torch.stack(c) for c in itertools.product(own, repeat=group.copies)])
    for chosen in itertools.product(*choices):
        yield dict(zip(block.free, chosen, strict=True))


@pytest.mark.parametrize("sizes", [(4,), (2, 3), (3, 2), (2, 2, 2)])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=5)
def test_is_the_best_of_all_nested_permutations(sizes, seed):
    block = tree(*sizes)
    gains = gains_of(block, seed)
    best = max(total_gain(block, gains, p) for p in every(block))
    found = solve_nested(block, gains)
    assert total_gain(block, gains, found) == pytest.approx(best)


def test_two_children_are_chosen_each_on_its_own():
    groups = {
        "root": Group("root", 3, ()),
        "left": Group("left", 2, (), "root", 3),
        "right": Group("right", 2, (), "root", 3),
    }
    block = Block(tuple(groups), PermutationSpec(groups, {}), (), False)
    gains = gains_of(block, 1)
    best = max(total_gain(block, gains, p) for p in every(block))
    assert total_gain(block, gains, solve_nested(block, gains)) == pytest.approx(best)


def test_unit_maps_follow_the_parents():
    block = tree(2, 3)
    p = {"g0": torch.tensor([1, 0]), "g1": torch.tensor([[0, 2, 1], [1, 0, 2]])}
    assert unit_maps(block, p)["g1"].tolist() == [3, 5, 4, 1, 0, 2]
