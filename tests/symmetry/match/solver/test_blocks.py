import pytest
import torch
from symmetry_specs import zoo

from regraft.symmetry.match.solver.blocks import make_blocks

ZOO = zoo()


@pytest.mark.parametrize("name", ZOO)
def test_every_group_is_solved_and_parents_come_along(name):
    _, spec, _ = ZOO[name]
    blocks = make_blocks(spec)
    assert {g for b in blocks for g in b.free} == set(spec.groups)
    for block in blocks:
        for group in block.free:
            parent = spec.groups[group].parent
            assert parent is None or parent in block.free


@pytest.mark.parametrize("name", [n for n in ZOO if n != "recurrent"])
def test_every_element_that_moves_is_looked_at_once(name):
    _, spec, _ = ZOO[name]
    for block in make_blocks(spec):
        seen: dict[str, torch.Tensor] = {}
        for term in block.terms:
            count = seen.setdefault(
                term.tensor, torch.zeros(spec.shapes[term.tensor], dtype=torch.int64)
            )
            mask = torch.zeros_like(count, dtype=torch.bool)
            shape = [1] * count.dim()
            if term.over is None:
                part = torch.zeros(count.shape[term.axis], dtype=torch.bool)
                part[term.index.flatten()] = True
                shape[term.axis] = -1
                mask |= part.view(shape)
                if term.keep is not None:
                    kept = torch.zeros(count.shape[term.keep[0]], dtype=torch.bool)
                    kept[term.keep[1]] = True
                    wide = [1] * count.dim()
                    wide[term.keep[0]] = -1
                    mask &= kept.view(wide)
            else:
                rows = torch.zeros(count.shape[term.over], dtype=torch.bool)
                rows[term.slices.flatten()] = True
                columns = torch.zeros(count.shape[term.axis], dtype=torch.bool)
                columns[term.index.flatten()] = True
                shape[term.over] = -1
                wide = [1] * count.dim()
                wide[term.axis] = -1
                mask |= rows.view(shape) & columns.view(wide)
            count += mask
        for tensor, count in seen.items():
            assert count.max() <= 1, (block.free, tensor)


def test_groups_that_meet_are_apart_and_only_those():
    free = {name: [b.free for b in make_blocks(spec)] for name, (_, spec, _) in ZOO.items()}
    assert free["grouped"] == [("b.weight", "a.weight"), ("b.weight", "b.bias")]
    assert ("wk.weight", "wq.weight", "wv.weight") in free["heads"]
    assert ("wk.weight", "wo.weight") in free["grouped query"]


def test_segments_of_one_axis_do_not_wait_for_each_other():
    _, spec, _ = ZOO["concat"]
    reads = {b.root: b.reads for b in make_blocks(spec)}
    assert reads == {
        "left.weight": {"joint.weight"},
        "right.weight": {"joint.weight"},
        "joint.weight": {"left.weight", "right.weight"},
    }


def test_given_gains_need_no_tensors_and_no_separation():
    _, spec, _ = ZOO["grouped query"]
    blocks = make_blocks(spec, joint=True)
    assert [b.terms for b in blocks] == [()] * len(blocks)
    assert [len(b.fixed) for b in blocks] == [0] * len(blocks)


def test_a_term_is_constant_if_nothing_else_moves_its_tensor():
    _, spec, _ = ZOO["residual"]
    first = next(b for b in make_blocks(spec) if b.root == "stem.weight")
    moving = {t.tensor: t.moving for t in first.terms}
    assert not moving["stem.weight"]
    assert not moving["head.weight"]
    assert moving["first.0.weight"] == {"first.0.weight"}
    assert "norm.running_mean" not in moving
