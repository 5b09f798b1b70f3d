from pathlib import Path

import pytest
import torch

from regraft.config import DataConfig, SetConfig, SourceConfig
from regraft.data import (
    FileSet,
    FolderLoader,
    ImageSet,
    Splits,
    TensorLoader,
    batches,
    load,
    memory,
)
from regraft.data.memory import in_memory, moments, placed, refuse_too_many
from regraft.errors import InputError
from regraft.generators.sources import load_source
from regraft.jobs.fewshot.images import class_images
from regraft.jobs.generate.sets import load_set
from regraft.jobs.merge.job import load_all

OPTIONS = {
    "batch_size": 4,
    "mean": (0.5,) * 3,
    "std": (0.25,) * 3,
    "shuffle": True,
    "augment": "none",
    "seed": 0,
}
SENTENCE = (
    "needs images in memory, and these take more than 2 GiB there: take fewer of them, or smaller"
)


@pytest.fixture
def files(tmp_path, make_images):
    for name in ("ant", "bee"):
        make_images(tmp_path / "pictures" / name, 6)
    paths = sorted((tmp_path / "pictures").rglob("*.png"))
    return FileSet(tuple(paths), torch.arange(12) // 6, 2, 8)


@pytest.fixture
def lazily(files, monkeypatch):
    """Return a folder whose images do not fit into memory."""
    monkeypatch.setattr(memory, "MOST_BYTES", files.nbytes - 1)
    folder = files.paths[0].parent.parent
    config = DataConfig(name=str(folder), image_size=8, validation=0.0)
    assert isinstance(load(config).train, FileSet)
    return config


def test_parts_are_decoded_where_all_together_fit_and_else_none(files, monkeypatch):
    one, two = files.subset(torch.arange(8)), files.subset(torch.arange(8, 12))
    monkeypatch.setattr(memory, "MOST_BYTES", files.nbytes)
    train, nothing, test = placed(one, None, two)
    assert isinstance(train, ImageSet)
    assert isinstance(test, ImageSet)
    assert nothing is None
    assert train.images.equal(one.decoded())
    assert test.labels.equal(two.labels)
    monkeypatch.setattr(memory, "MOST_BYTES", files.nbytes - 1)
    assert placed(one, None, two) == (one, None, two)


def test_batches_are_the_same_wherever_the_images_lie(files):
    (there,) = placed(files)
    kept = batches(there, **OPTIONS)
    read = batches(files, **OPTIONS)
    assert isinstance(kept, TensorLoader)
    assert isinstance(read, FolderLoader)
    read.workers = 0
    for (x, y, n), (a, b, m) in zip(kept.batches(1), read.batches(1), strict=True):
        assert x.equal(a)
        assert y.equal(b)
        assert n == m


def test_moments_of_many_files_are_those_of_some(files, monkeypatch):
    (there,) = placed(files)
    assert moments(files) == moments(there)
    monkeypatch.setattr(memory, "_SAMPLE", 6)
    some = torch.arange(0, 12, 2)
    assert moments(files) == moments(there.subset(some)) != moments(there)


def test_who_needs_images_in_memory_says_so_in_one_sentence(files, lazily):
    with pytest.raises(InputError, match=f"^a thing {SENTENCE}"):
        in_memory(files, "a thing")
    with pytest.raises(InputError, match=f"^a thing {SENTENCE}"):
        refuse_too_many(12, (3, 8, 8), "a thing")
    refuse_too_many(11, (3, 8, 8), "a thing")
    folder = Path(lazily.name)
    for what, needs in (
        (f"data '{folder}': a generator", lambda: load_set(SetConfig(data=lazily), seed=0)),
        (f"data '{folder}': merging", lambda: load_all([lazily])),
        (f"{folder} as a source", lambda: load_source(SourceConfig(name=str(folder)))),
        ("pictures turned", lambda: load(DataConfig(name=str(folder), image_size=8, rotate=30))),
    ):
        with pytest.raises(InputError, match=SENTENCE) as refused:
            needs()
        assert what in str(refused.value)


def test_episodes_are_drawn_of_images_in_memory_all_the_same(files, lazily):
    drawn = class_images(lazily)
    assert drawn.images.images.equal(files.decoded())
    assert isinstance(load(lazily), Splits)
