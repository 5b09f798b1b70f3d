from pathlib import Path

import pytest
import torch
from training import Points

from checkpoints import digits
from regraft.config import DataConfig
from regraft.errors import InputError
from regraft.jobs.merge.config import AlignConfig
from regraft.jobs.merge.data import Data, prepared
from regraft.jobs.merge.labels import Labels, label_rows
from regraft.jobs.merge.union import Together
from regraft.protocols import BatchSource


def config(**options):
    paths = (Path("a"), Path("b"))
    return AlignConfig(checkpoints=paths, data=(DataConfig(name="digits"),), **options)


SIZES = ((23, 11, 3), (40, 40), (100, 1), (1, 1, 1), (7,))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("batch", [1, 4, 50])
def test_a_batch_of_the_union_has_images_of_all_sources_in_proportion(sizes, batch):
    parts = [Points(n, batch, seed) for seed, n in enumerate(sizes)]
    both = Together(parts, sizes, batch)
    assert isinstance(both, BatchSource)
    owner = {tuple(row.tolist()): i for i, part in enumerate(parts) for row in part.x}
    label = {tuple(r.tolist()): y for part in parts for r, y in zip(part.x, part.y, strict=True)}
    for epoch in (0, 2):
        whole = list(both.batches(epoch))
        assert len(whole) == len(both) == -(-sum(sizes) // batch)
        assert all(len(x) == len(y) == n > 0 for x, y, n in whole)
        # Each image once an epoch, in the order of its source and with its label.
        seen = [tuple(row.tolist()) for x, _, _ in whole for row in x]
        for i, part in enumerate(parts):
            own = torch.tensor([row for row in seen if owner[row] == i])
            assert torch.equal(own, torch.cat([x for x, _, _ in part.batches(epoch)]))
        labels = torch.cat([y for _, y, _ in whole])
        assert torch.equal(labels, torch.stack([label[row] for row in seen]))
        if len(sizes) > 1:
            assert max(n for _, _, n in whole) - min(n for _, _, n in whole) <= 1
            for x, _, n in whole:
                for i, size in enumerate(sizes):
                    found = sum(owner[tuple(row.tolist())] == i for row in x)
                    assert abs(found - n * size / sum(sizes)) < 2
        for start in range(len(both) + 1):
            rest = list(both.batches(epoch, start=start))
            assert len(rest) == len(both) - start
            assert all(torch.equal(a[0], b[0]) for a, b in zip(rest, whole[start:], strict=True))
        shares = zip(*(both.batches(epoch, rank=r, world=2) for r in range(2)), strict=True)
        for (one, two), (x, _, n) in zip(shares, whole, strict=True):
            assert torch.equal(one[0], x[::2])
            assert torch.equal(two[0], x[1::2])
            assert one[2] == two[2] == n


def test_statistics_over_the_union_have_the_variance_between_the_sets():
    from regraft.symmetry.merge.repair import reset_batch_norm_

    low, high = Points(60, 20, 0), Points(60, 20, 1)
    high.x += 10
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(6))
    reset_batch_norm_(net, Together([low, high], [60, 60], 20))
    expected = torch.cat([low.x, high.x])
    torch.testing.assert_close(net[0].running_mean, expected.mean(0))
    torch.testing.assert_close(net[0].running_var, expected.var(0), rtol=0.1, atol=0.1)


def test_labels_are_rows_and_a_limit_draws_the_same_images_again():
    splits = digits()
    rows = tuple(reversed(range(10)))
    data = Data(splits, splits.mean, splits.std, rows)
    _, y, _ = next(iter(data.batches(data.test, "cpu", size=50).batches(0)))
    assert torch.equal(y, 9 - splits.test.labels[:50])
    few = [data.batches(data.test, "cpu", limit=30, seed=s) for s in (1, 1, 2)]
    x, z, other = (next(iter(f.batches(0)))[0] for f in few)
    assert len(x) == 30
    assert torch.equal(x, z)
    assert not torch.equal(x, other)


def of(names=None, classes=None, count=10, about=None, **options):
    return prepared(config(**options), [digits()], [about or {}], names, classes, count)[0]


def test_classes_go_by_name_where_all_are_known_and_else_by_number():
    turned = [str(i) for i in reversed(range(10))]
    assert of([turned]).rows == tuple(reversed(range(10)))
    assert of([["x", *turned]], count=11).rows == tuple(reversed(range(1, 11)))
    assert of([[f"digit {i}" for i in range(10)]]).rows == tuple(range(10))
    assert of(None, classes=["cat", *turned], count=11).rows == tuple(reversed(range(1, 11)))
    with pytest.raises(InputError, match="class '9', which no model knows: they know 0, 1, 2"):
        of(None, classes=[str(i) for i in range(9)], count=9)
    with pytest.raises(InputError, match="10 classes and the classifier 9 rows"):
        of(None, count=9)


def test_fewer_classes_than_rows_are_rows_only_where_their_names_say_so():
    assert label_rows("d", ["7", "8", "9"], [], 10) == (7, 8, 9)
    assert label_rows("d", ["7", "08"], [], 10) == (7, 8)
    assert label_rows("d", ["b", "c"], list("abc"), 3) == (1, 2)
    assert label_rows("d", ["x", "y", "z"], list("abc"), 3) == (0, 1, 2)
    assert label_rows("d", ["x", "y"], [], 3, labels=Labels(by_number=True)) == (0, 1)
    for names in (["x", "y"], ["1", "x"], ["1", "3"], ["1", "01"], ["-1", "0"]):
        with pytest.raises(InputError, match=r"whose classes are not known: .* --class-names"):
            label_rows("d", names, [], 3)
    with pytest.raises(
        InputError, match=r"d has 2 classes \(1, 2\) and .* which stand for a, b, c"
    ):
        label_rows("d", ["1", "2"], list("abc"), 3)
    with pytest.raises(InputError, match="with --labels by-number"):
        label_rows("d", ["x"], [], 3, labels=Labels(cure="--labels by-number"))
    with pytest.raises(InputError, match="4 classes and the classifier 3 rows"):
        label_rows("d", list("abcd"), [], 3, labels=Labels(by_number=True))


def test_images_are_normalised_as_said_else_as_the_model_was_else_by_their_own():
    own = digits()
    assert (of().mean, of().std) == (own.mean, own.std)
    about = {"mean": [0.5], "std": [0.25]}
    assert (of(about=about).mean, of(about=about).std) == ((0.5,), (0.25,))
    said = of(about=about, mean=(0.0,), std=(1.0,))
    assert (said.mean, said.std) == ((0.0,), (1.0,))
    odd = {"mean": [0.5, 0.5], "std": "x"}
    assert of(about=odd).mean == own.mean
