import gzip
import importlib
import io
import math
import os
import pickle
import re
import shutil
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from graphs import LABELLED, LARGE, write_ogb, write_planetoid

from regraft.config import DataConfig
from regraft.data import (
    available,
    get,
    graph_fingerprint,
    graph_names,
    load,
    load_graph,
    load_known,
)
from regraft.data.graph_files import PLANETOID
from regraft.errors import InputError

pytest.importorskip("torch_geometric")


def loaded(root, **more):
    return load_graph(DataConfig(name="cora", root=str(root), download=False, **more))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    return root, *write_planetoid(root)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    root = tmp_path_factory.mktemp("large")
    write_planetoid(root, **LARGE)
    return root


def csr(rows, columns, *, column=0, start=(0, 1), value=1.0):
    """Return a matrix with one value in its first row, or with the given damage."""
    matrix = sp.csr_matrix((rows, columns), dtype=np.float32)
    matrix.data = np.array([value], np.float32)
    matrix.indices = np.array([column], np.int32)
    matrix.indptr = np.ones(rows + 1, np.int32)
    matrix.indptr[: len(start)] = start
    return matrix


class TestPlanetoid:
    def test_every_node_gets_its_own_features_class_and_edges(self, small):
        root, x, y, edges = small
        graph = loaded(root)
        # The rows of the test nodes are stored in another order than their numbers.
        assert torch.equal(graph.x, torch.from_numpy(x))
        assert torch.equal(graph.y, torch.from_numpy(y).long())
        assert {tuple(pair) for pair in graph.edge_index.t().tolist()} == edges
        assert graph.edge_index.shape[1] == len(edges)
        assert graph.classes == ("0", "1", "2")

    def test_the_public_split_is_the_published_one(self, small):
        graph = loaded(small[0])
        assert torch.equal(graph.train, torch.arange(LABELLED))
        assert torch.equal(graph.validation, torch.arange(LABELLED, LABELLED + 500))
        assert torch.equal(graph.test, torch.arange(560, 600))

    def test_the_full_split_trains_on_all_the_rest(self, small):
        graph = loaded(small[0], graph_split="full")
        everything = torch.cat([graph.train, graph.validation, graph.test])
        assert torch.equal(everything.sort().values, torch.arange(600))
        assert len(graph.train) == 60

    def test_a_pickle_that_asks_for_more_than_data_is_refused_unopened(self, tmp_path):
        write_planetoid(tmp_path)
        marker = tmp_path / "ran"

        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(marker),)

        file = tmp_path / "Planetoid/Cora/raw/ind.cora.ally"
        file.write_bytes(pickle.dumps(Evil(), protocol=2))
        with pytest.raises(InputError, match=r"cora in .*asks for posix.mkdir, which is no data"):
            loaded(tmp_path)
        assert not marker.exists()

    @pytest.mark.parametrize("part", ["x", "graph", "test.index"])
    def test_a_damaged_file_names_folder_and_command(self, tmp_path, part):
        write_planetoid(tmp_path)
        file = tmp_path / f"Planetoid/Cora/raw/ind.cora.{part}"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 3] + b"?")
        message = r"files of cora in .*raw are damaged.*data get cora --data-root (.*)`"
        with pytest.raises(InputError, match=message) as refusal:
            loaded(tmp_path)
        assert re.search(message, str(refusal.value))[1] == str(tmp_path)

    @pytest.mark.parametrize(
        ("part", "content", "reason"),
        [
            ("allx", csr(560, 30, column=1 << 30), "points outside itself"),
            ("allx", csr(560, 30, column=-1), "points outside itself"),
            ("allx", csr(560, 30, start=(0, 1 << 30)), "points outside itself"),
            ("allx", csr(560, 30, start=(0, -1)), "points outside itself"),
            ("allx", csr(560, 30, start=(1, 1)), "do not follow each other"),
            ("allx", csr(560, 30, start=(0, 1, 0)), "do not follow each other"),
            ("allx", csr(560, 31), "different numbers of features"),
            ("allx", csr(559, 30), "different numbers of nodes"),
            ("allx", csr(560, 1 << 39), "a sparse matrix has shape"),
            ("allx", csr(560, 30, value=math.nan), "not finite"),
            ("ally", np.ones((560, 3), np.int32), "one class a node"),
            ("ally", np.zeros((560, 3), "S4"), "is of type 'S4', which is no number"),
            ("ally", np.full((560, 3), None), "an array is not described as arrays are"),
            ("ally", [[1, 0, 0]] * 560, "no array where one should be"),
            ("y", np.eye(3)[np.zeros(100, int)], "different numbers of nodes"),
            ("graph", {0: [600]}, "other nodes than 0 to 599"),
            ("graph", {-1: [0]}, "other nodes than 0 to 599"),
            ("graph", {0: [True]}, "other nodes than 0 to 599"),
            ("graph", {0: 1 << 30}, "no lists of neighbours"),
            ("graph", {0: 1 << 80}, "an integer of more than 40 bits"),
            ("graph", dict.fromkeys(range(600), [1] * 4000), "more than 2097152 edges"),
            ("graph", [[1], [0]], "no lists of neighbours"),
        ],
    )
    def test_contents_that_do_not_fit_are_refused(self, tmp_path, part, content, reason):
        write_planetoid(tmp_path)
        file = tmp_path / f"Planetoid/Cora/raw/ind.cora.{part}"
        file.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(InputError, match=f"files of cora in .*damaged .*{reason}"):
            loaded(tmp_path)

    @pytest.mark.parametrize(
        ("lines", "reason"),
        [
            (range(559, 599), "other than the 40 from 560 on"),
            (range(561, 601), "other than the 40 from 560 on"),
            ([*range(560, 599), 560], "lists 39 nodes and tx holds 40"),
            ([*range(560, 599), 1 << 70], "other than the 40 from 560 on"),
            ([*range(560, 599), "x"], "invalid literal"),
        ],
    )
    def test_a_list_of_test_nodes_that_does_not_fit_is_refused(self, tmp_path, lines, reason):
        write_planetoid(tmp_path)
        file = tmp_path / "Planetoid/Cora/raw/ind.cora.test.index"
        file.write_text("\n".join(map(str, lines)))
        with pytest.raises(InputError, match=f"files of cora in .*damaged .*{reason}"):
            loaded(tmp_path)

    def test_every_file_is_opened_once(self, small, monkeypatch):
        opened = []
        inner = io.open

        def watched(file, *rest, **more):
            opened.append(str(file))
            return inner(file, *rest, **more)

        monkeypatch.setattr(io, "open", watched)
        loaded(small[0])
        files = [name for name in opened if "ind.cora." in name]
        assert len(files) == len(set(files)) == 8

    def test_reading_leaves_the_folder_as_it_was(self, small):
        before = sorted(p.name for p in small[0].rglob("*"))
        loaded(small[0])
        assert sorted(p.name for p in small[0].rglob("*")) == before

    def test_it_is_what_pytorch_geometric_makes_of_it(self, small):
        theirs = importlib.import_module("torch_geometric.io").read_planetoid_data(
            str(small[0] / "Planetoid/Cora/raw"), "cora"
        )
        graph = loaded(small[0])
        for part in ("x", "edge_index", "y"):
            assert torch.equal(getattr(graph, part), getattr(theirs, part))


class TestFeatures:
    def test_rows_sum_to_one(self, small):
        raw, row = loaded(small[0]).x, loaded(small[0], features="row").x
        torch.testing.assert_close(row.sum(1), torch.ones(len(row)))
        torch.testing.assert_close(row * raw.sum(1, keepdim=True), raw)

    def test_lengths_are_those_of_the_pilots(self, small):
        raw, x = loaded(small[0]).x, loaded(small[0], features="l2").x
        length = math.sqrt(30 / 2) / 3
        torch.testing.assert_close(x.norm(dim=1), torch.full((600,), length))
        torch.testing.assert_close(x / length * raw.norm(dim=1, keepdim=True), raw)

    @pytest.mark.parametrize("features", ["row", "l2"])
    def test_a_row_of_zeros_stays_zero(self, tmp_path, features):
        write_ogb(tmp_path)
        text = b"0,0\n1,2\n3,4\n0,0.25\n"
        (tmp_path / "ogbn_arxiv/raw/node-feat.csv.gz").write_bytes(gzip.compress(text))
        graph = load_graph(DataConfig(name="ogbn-arxiv", root=str(tmp_path), features=features))
        assert graph.x[0].tolist() == [0, 0]
        assert bool(torch.isfinite(graph.x).all())


class TestSplits:
    def test_a_random_split_has_shots_a_class_and_fixed_sizes(self, large):
        graph = loaded(large, graph_split="random", shots=7)
        assert torch.bincount(graph.y[graph.train]).tolist() == [7, 7, 7]
        assert (len(graph.validation), len(graph.test)) == (500, 1000)
        together = torch.cat([graph.train, graph.validation, graph.test])
        assert len(together.unique()) == len(together)
        for part in (graph.train, graph.validation, graph.test):
            assert torch.equal(part, part.sort().values)

    def test_twenty_shots_are_the_default(self, large):
        assert len(loaded(large, graph_split="random").train) == 60

    def test_the_seed_decides_a_random_split(self, large):
        splits = [loaded(large, graph_split="random", split_seed=seed) for seed in (1, 1, 2)]
        prints = [graph_fingerprint(graph) for graph in splits]
        assert prints[0] == prints[1] != prints[2]

    @pytest.mark.parametrize("split", ["public", "full"])
    def test_shots_and_train_size_keep_some_of_the_training_nodes(self, small, split):
        whole = loaded(small[0], graph_split=split)
        few = loaded(small[0], graph_split=split, shots=4)
        assert torch.bincount(whole.y[few.train]).tolist() == [4, 4, 4]
        assert bool(torch.isin(few.train, whole.train).all())
        assert len(loaded(small[0], graph_split=split, train_size=11).train) == 11
        assert torch.equal(few.validation, whole.validation)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"graph_split": "half"}, r"graph_split='half': expected one of public, full, random"),
        ({"features": "unit"}, r"features='unit': expected one of raw, row, l2"),
        ({"augment": "flip"}, r"augment='flip' is for images and cora is a graph"),
        ({"image_size": 8}, r"image_size=8 is for images and cora is a graph"),
        ({"shots": 11}, r"shots=11: expected between 1 and 10, all .* class 0 of cora"),
        ({"shots": 0}, r"shots=0: expected between 1 and 10"),
        ({"train_size": 2}, r"train_size=2: expected between 3 .* and 30"),
        ({"train_size": 31}, r"train_size=31: expected between 3 .* and 30"),
        ({"shots": 1, "train_size": 9}, r"train_size=9 and shots=1 exclude each other"),
        ({"graph_split": "random"}, r"leaves 540 nodes of cora and takes 500 .* and 1000"),
    ],
)
def test_options_that_cannot_be_met_are_refused_in_a_sentence(small, more, message):
    with pytest.raises(InputError, match=message):
        loaded(small[0], **more)


class TestWhereTheyLie:
    def test_the_list_shows_the_graphs(self, small):
        listed = {entry.name: entry for entry in available(str(small[0]))}
        assert set(graph_names()) <= set(listed)
        assert listed["cora"].present
        assert not listed["citeseer"].present
        assert listed["cora"].folder == small[0] / "Planetoid" / "Cora"
        assert listed["ogbn-arxiv"].folder == small[0] / "ogbn_arxiv"

    def test_a_missing_graph_names_folder_and_command(self, tmp_path):
        with pytest.raises(InputError, match=r"cora is not in .*Cora .*regraft data get cora"):
            loaded(tmp_path)

    def test_an_unknown_graph_is_refused(self):
        with pytest.raises(InputError, match=r"'corra' is no known graph: .*cora"):
            load_graph(DataConfig(name="corra"))

    @pytest.mark.parametrize(
        "call", [lambda: load(DataConfig(name="cora")), lambda: load_known("cora")]
    )
    def test_what_wants_images_points_to_load_graph(self, call):
        with pytest.raises(InputError, match=r"cora'? is a graph and no set of images.*load_graph"):
            call()

    def test_the_planetoid_files_are_fetched_one_by_one(self, small, tmp_path, monkeypatch):
        asked = []

        def urlopen(url, timeout):
            asked.append(url)
            return (small[0] / "Planetoid/Cora/raw" / url.rpartition("/")[2]).open("rb")

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        get("cora", str(tmp_path))
        assert len(asked) == 8
        assert all(url.startswith(f"{PLANETOID}/ind.cora.") for url in asked)
        assert graph_fingerprint(loaded(tmp_path)) == graph_fingerprint(loaded(small[0]))
        assert [p.name for p in tmp_path.iterdir()] == ["Planetoid"]

    def test_an_archive_is_laid_out_as_its_readers_expect(self, tmp_path, monkeypatch):
        write_ogb(tmp_path / "from", "arxiv")
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for file in (tmp_path / "from").rglob("*.gz"):
                archive.write(file, file.relative_to(tmp_path / "from"))
        packed.seek(0)
        monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: packed)
        root = tmp_path / "to"
        assert load_graph(DataConfig(name="ogbn-arxiv", root=str(root))).num_nodes == 4
        assert [p.name for p in root.iterdir()] == ["ogbn_arxiv"]

    def test_a_failed_download_leaves_nothing_and_says_why(self, tmp_path, monkeypatch):
        def urlopen(url, timeout):
            raise urllib.error.URLError("no network")

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        with pytest.raises(InputError, match=r"cora is not in .*no network.*regraft data get cora"):
            load_graph(DataConfig(name="cora", root=str(tmp_path)))
        assert list(tmp_path.iterdir()) == []


@pytest.mark.data
def test_cora_is_what_pytorch_geometric_makes_of_it(benchmark_root, tmp_path):
    from torch_geometric.datasets import Planetoid

    if not next(e for e in available(benchmark_root) if e.name == "cora").present:
        pytest.skip("cora is not at REGRAFT_DATA")
    raw = tmp_path / "Cora" / "raw"
    shutil.copytree(os.path.join(benchmark_root, "Planetoid", "Cora", "raw"), raw)  # noqa: PTH118
    for split in ("public", "full"):
        data = Planetoid(str(tmp_path), "Cora", split=split)[0]
        graph = loaded(benchmark_root, graph_split=split)
        assert torch.equal(graph.x, data.x)
        assert torch.equal(graph.edge_index, data.edge_index)
        assert torch.equal(graph.y, data.y)
        for part, mask in (
            ("train", "train_mask"),
            ("validation", "val_mask"),
            ("test", "test_mask"),
        ):
            assert torch.equal(getattr(graph, part), data[mask].nonzero().reshape(-1))
    assert len(graph.train) == 1208
    assert torch.equal(loaded(benchmark_root, features="raw").x.unique(), torch.tensor([0.0, 1.0]))
