from dataclasses import replace

import pytest
import torch
from graphs import cycle
from hypothesis import given
from hypothesis import strategies as st

from regraft.data import (
    NodeBatches,
    graph_fingerprint,
)
from regraft.errors import InputError
from regraft.protocols import BatchSource


class TestGraph:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": torch.zeros(12)}, r"x of shape \(12,\)"),
            ({"x": torch.zeros(12, 2).double()}, r"dtype torch.float64: expected float32"),
            ({"y": torch.zeros(5).long()}, r"y of shape \(5,\): expected int64 \[12\]"),
            ({"y": torch.full((12,), 3)}, r"y holds values from 3 to 3: expected -1 to 2"),
            ({"edge_index": torch.zeros(3, 4).long()}, r"edge_index of shape \(3, 4\)"),
            ({"edge_index": torch.full((2, 1), 12)}, r"edge_index holds .* expected 0 to 11"),
            ({"train": torch.tensor([-1, 2])}, r"train holds values from -1 to 2"),
            ({"test": torch.tensor([1.0])}, r"test has dtype torch.float32: expected int64"),
        ],
    )
    def test_parts_that_do_not_fit_are_refused(self, change, message):
        with pytest.raises(InputError, match=message):
            replace(cycle(), **change)

    @pytest.mark.parametrize("part", ["x", "edge_index", "y", "train", "validation", "test"])
    def test_the_fingerprint_sees_every_part(self, part):
        graph = cycle()
        value = getattr(graph, part).clone()
        value[..., 0] = (value[..., 0] + 1) % 3
        other = graph_fingerprint(replace(graph, **{part: value}))
        assert graph_fingerprint(graph) == graph_fingerprint(cycle())
        assert graph_fingerprint(graph)["digest"] != other["digest"]


class TestNodeBatches:
    @given(world=st.integers(1, 5), epoch=st.integers(0, 9))
    def test_the_shares_together_are_the_split(self, world, epoch):
        graph = cycle()
        source = NodeBatches(graph, "train")
        assert isinstance(source, BatchSource)
        shares = [next(source.batches(epoch, rank=rank, world=world)) for rank in range(world)]
        nodes = torch.cat([share[0] for share in shares])
        assert torch.equal(nodes.sort().values, graph.train)
        assert torch.equal(torch.cat([share[1] for share in shares]), graph.y[nodes])
        assert {share[2] for share in shares} == {len(graph.train)}

    def test_an_epoch_is_one_batch(self):
        source = NodeBatches(cycle(), "test")
        assert len(source) == len(list(source.batches(3))) == 1
        assert list(source.batches(3, start=1)) == []

    def test_a_split_without_nodes_is_refused(self):
        with pytest.raises(InputError, match="cycle has no test nodes"):
            NodeBatches(replace(cycle(), test=torch.empty(0, dtype=torch.int64)), "test")
