"""Graphs with nodes of no class, and those of the Open Graph Benchmark."""

import gzip
import importlib
import pickle
import sys
from dataclasses import replace

import pytest
import torch
from graphs import LARGE, cycle, write_ogb, write_planetoid

from regraft.config import DataConfig
from regraft.data import (
    load_graph,
)
from regraft.errors import InputError, MissingExtraError

pytest.importorskip("torch_geometric")

GONE = (1610, 1650, 1651)


@pytest.fixture(scope="module")
def gaps(tmp_path_factory):
    root = tmp_path_factory.mktemp("gaps")
    write_planetoid(root, name="CiteSeer", **LARGE)
    raw = root / "Planetoid/CiteSeer/raw"
    index = raw / "ind.citeseer.test.index"
    lines = [int(line) for line in index.read_text().split()]
    keep = [i for i, node in enumerate(lines) if node not in GONE]
    index.write_text("".join(f"{lines[i]}\n" for i in keep))
    for part in ("tx", "ty"):
        file = raw / f"ind.citeseer.{part}"
        file.write_bytes(pickle.dumps(pickle.loads(file.read_bytes())[keep], protocol=2))
    return root


class TestNodesOfNoClass:
    """As the fifteen isolated ones of CiteSeer, which its test.index leaves out."""

    def citeseer(self, gaps, **more):
        return load_graph(DataConfig(name="citeseer", root=str(gaps), download=False, **more))

    def test_they_have_neither_features_nor_class(self, gaps):
        graph = self.citeseer(gaps)
        assert (~graph.has_label).nonzero().reshape(-1).tolist() == list(GONE)
        assert graph.y[list(GONE)].tolist() == [-1, -1, -1]
        assert not graph.x[list(GONE)].any()
        assert graph.num_nodes == 1700
        assert graph.num_classes == 3

    def test_the_others_are_what_pytorch_geometric_makes_of_them(self, gaps):
        theirs = importlib.import_module("torch_geometric.io").read_planetoid_data(
            str(gaps / "Planetoid/CiteSeer/raw"), "citeseer"
        )
        graph = self.citeseer(gaps)
        assert torch.equal(graph.x, theirs.x)
        assert torch.equal(graph.edge_index, theirs.edge_index)
        assert torch.equal(graph.y[graph.has_label], theirs.y[graph.has_label])
        assert torch.equal(graph.test, theirs.test_mask.nonzero().reshape(-1))

    @pytest.mark.parametrize("split", ["public", "full", "random"])
    def test_they_are_in_no_split(self, gaps, split):
        # 1600 + 97 nodes are labelled: 197 to train on leave just enough for a random split.
        more = {"train_size": 197} if split == "random" else {}
        graph = self.citeseer(gaps, graph_split=split, **more)
        everything = torch.cat([graph.train, graph.validation, graph.test])
        assert not torch.isin(torch.tensor(GONE), everything).any()
        if split != "public":
            assert torch.equal(everything.sort().values, graph.has_label.nonzero().reshape(-1))

    def test_no_split_may_hold_one(self):
        y = cycle().y.clone()
        y[5] = -1
        with pytest.raises(InputError, match="validation holds node 5, which has no known class"):
            replace(cycle(), y=y)


class TestOgb:
    def test_without_pytorch_geometric_the_extra_is_named(self, tmp_path, monkeypatch):
        write_ogb(tmp_path)
        monkeypatch.setitem(sys.modules, "torch_geometric.utils", None)
        with pytest.raises(MissingExtraError, match=r"set ogbn-arxiv needs .*'regraft\[graph\]'"):
            load_graph(DataConfig(name="ogbn-arxiv", root=str(tmp_path)))

    def test_the_tables_become_a_symmetric_graph(self, tmp_path):
        write_ogb(tmp_path)
        graph = load_graph(DataConfig(name="ogbn-arxiv", root=str(tmp_path)))
        pairs = {tuple(pair) for pair in graph.edge_index.t().tolist()}
        assert pairs == {(0, 1), (1, 0), (1, 2), (2, 1), (0, 3), (3, 0)}
        assert graph.edge_index.shape[1] == 6
        assert graph.x.tolist() == [[0.5, -1], [1, 2], [3, 4], [0, 0.25]]
        assert graph.y.tolist() == [3, 0, 39, 7]
        assert [s.tolist() for s in (graph.train, graph.validation, graph.test)] == [
            [0, 2],
            [1],
            [3],
        ]
        assert graph.num_classes == 40

    def test_a_damaged_table_is_refused(self, tmp_path):
        write_ogb(tmp_path)
        (tmp_path / "ogbn_arxiv/raw/edge.csv.gz").write_bytes(gzip.compress(b"0,1\n2,x\n"))
        with pytest.raises(InputError, match=r"files of ogbn-arxiv in .*damaged.* --data-root /"):
            load_graph(DataConfig(name="ogbn-arxiv", root=str(tmp_path)))

    def test_rows_of_signed_features_cannot_sum_to_one(self, tmp_path):
        write_ogb(tmp_path)
        with pytest.raises(InputError, match=r"features='row' needs .*ogbn-arxiv .*'l2'"):
            load_graph(DataConfig(name="ogbn-arxiv", root=str(tmp_path), features="row"))
