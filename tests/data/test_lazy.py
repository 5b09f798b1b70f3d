import warnings

import pytest
import torch

from regraft.data import FileSet
from regraft.errors import InputError

Image = pytest.importorskip("PIL.Image")


def save(tmp_path, image, name="one.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_decoding_all_equals_decoding_each(tmp_path):
    paths = [
        save(tmp_path, Image.new("RGB", (5, 5), (i, 2 * i, 3 * i)), f"{i}.png") for i in range(7)
    ]
    files = FileSet(tuple(paths), torch.arange(7), 7, 4)
    assert torch.equal(files.decoded(), torch.stack([files[i] for i in range(7)]))
    part = files.subset(torch.tensor([5, 2]))
    assert part.labels.tolist() == [5, 2]
    assert torch.equal(part[0], files[5])
    assert files.nbytes == files.decoded().numel()


def test_decoding_leaves_the_warning_filters_alone(tmp_path):
    path = save(tmp_path, Image.new("RGB", (5, 5)))
    files = FileSet((path,) * 200, torch.zeros(200, dtype=torch.int64), 1, 4)
    before = list(warnings.filters)
    files.decoded()
    assert warnings.filters == before


def test_decoding_all_lists_the_unreadable_ones(tmp_path):
    paths = []
    for i in range(7):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(b"?")
    files = FileSet(tuple(paths), torch.zeros(7, dtype=torch.int64), 1, 4)
    with pytest.raises(InputError, match=r"0.png cannot.*4.png cannot.*and 2 more.*'skip'"):
        files.decoded()
    assert sorted(files.unreadable()) == list(range(7))
