import sys

import numpy as np
import pytest
import torch

from regraft.data import available, data_root, get, known, known_names, load_known
from regraft.errors import InputError, MissingExtraError

COUNTS = {
    "mnist": (60_000, 10_000, 10),
    "fashion_mnist": (60_000, 10_000, 10),
    "emnist": (124_800, 20_800, 26),
}


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_letters(root):
    raw = root / "EMNIST" / "raw"
    for part in ("train", "test"):
        images = np.zeros((26, 28, 28))
        images[:, 3, 5] = 200
        write_idx(raw / f"emnist-letters-{part}-images-idx3-ubyte", images)
        write_idx(raw / f"emnist-letters-{part}-labels-idx1-ubyte", np.arange(1, 27))


def write_cifar10_jpeg(root, count=2):
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for label, cls in enumerate(CLASSES):
            folder = root / "cifar10" / part / cls
            folder.mkdir(parents=True)
            for i in range(count):
                image.new("RGB", (32, 32), (label * 20,) * 3).save(folder / f"{i:04d}.jpg")


CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class TestDigits:
    @pytest.fixture(autouse=True)
    def needs_scikit_learn(self):
        pytest.importorskip("sklearn")

    def test_form_and_range(self):
        digits = load_known("digits")
        assert len(digits.train) + len(digits.test) == 1797
        assert len(digits.test) == round(0.2 * 1797)
        assert digits.train.images.shape[1:] == (1, 8, 8)
        assert int(digits.train.images.min()) == 0
        assert int(digits.train.images.max()) == 255
        assert digits.classes == tuple("0123456789")

    def test_levels_are_scaled_exactly(self):
        from sklearn.datasets import load_digits

        digits = load_known("digits")
        stored = torch.cat([digits.train.images, digits.test.images]).flatten(1)
        back = (stored.double() / 255 * 16).round().sort(dim=0).values
        original = torch.from_numpy(load_digits().data).sort(dim=0).values
        assert torch.equal(back, original)

    def test_both_parts_hold_the_classes_in_proportion(self):
        digits = load_known("digits")
        ratio = torch.bincount(digits.test.labels) / torch.bincount(digits.train.labels)
        assert float((ratio - 0.25).abs().max()) < 0.02

    def test_there_is_nothing_to_fetch(self):
        get("digits")

    def test_without_scikit_learn_the_extra_is_named(self, monkeypatch):
        monkeypatch.setattr(known.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"pip install 'regraft\[digits\]'"):
            load_known("digits")


def test_letters_are_turned_upright_and_numbered_from_zero(tmp_path):
    pytest.importorskip("torchvision")
    write_letters(tmp_path)
    letters = load_known("emnist", str(tmp_path))
    assert letters.train.labels.tolist() == list(range(26))
    assert letters.classes == tuple("abcdefghijklmnopqrstuvwxyz")
    assert bool((letters.train.images[:, 0, 5, 3] == 200).all())
    assert bool((letters.train.images[:, 0, 3, 5] == 0).all())


def test_cifar10_jpeg_is_decoded_once(tmp_path, monkeypatch):
    write_cifar10_jpeg(tmp_path)
    first = load_known("cifar10_jpeg", str(tmp_path))
    assert first.classes == tuple(CLASSES)
    assert first.train.labels.tolist() == [i // 2 for i in range(20)]
    assert first.train.images[:, 0, 0, 0].tolist() == [i // 2 * 20 for i in range(20)]
    assert [p.name for p in (tmp_path / "cifar10").glob("*.*")] == ["decoded.safetensors"]

    monkeypatch.setattr("regraft.data.lazy.decode", None)
    again = load_known("cifar10_jpeg", str(tmp_path))
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.test.labels, again.test.labels)


def test_other_files_make_the_cache_stale(tmp_path):
    write_cifar10_jpeg(tmp_path)
    load_known("cifar10_jpeg", str(tmp_path))
    (tmp_path / "cifar10" / "train" / "cat" / "0001.jpg").unlink()
    assert len(load_known("cifar10_jpeg", str(tmp_path)).train.images) == 19


def test_a_damaged_cache_is_replaced(tmp_path):
    write_cifar10_jpeg(tmp_path)
    cache = tmp_path / "cifar10" / "decoded.safetensors"
    cache.write_bytes(b"damaged")
    first = load_known("cifar10_jpeg", str(tmp_path))
    assert cache.stat().st_size > first.train.images.numel()


def test_a_cache_that_cannot_be_written_goes_to_the_user(tmp_path, monkeypatch):
    write_cifar10_jpeg(tmp_path)
    (tmp_path / "cifar10" / "decoded.safetensors").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_known("cifar10_jpeg", str(tmp_path))
    assert len(list((tmp_path / "home").rglob("*.safetensors"))) == 1


def test_the_root_is_argument_then_environment_then_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("REGRAFT_DATA", str(tmp_path))
    assert data_root("elsewhere").name == "elsewhere"
    assert data_root() == tmp_path
    monkeypatch.delenv("REGRAFT_DATA")
    assert data_root().parts[-3:] == (".cache", "regraft", "data")


def test_the_listing_tells_what_is_present(tmp_path):
    write_letters(tmp_path)
    listing = {entry.name: entry for entry in available(str(tmp_path))}
    assert tuple(listing) == known_names()
    assert listing["emnist"].present
    assert not listing["emnist_digits"].present
    assert not listing["mnist"].present
    assert listing["mnist"].folder == tmp_path / "MNIST"
    assert listing["digits"].folder is None


def test_a_missing_set_names_folder_and_command(tmp_path):
    with pytest.raises(InputError) as caught:
        load_known("mnist", str(tmp_path), download=False)
    assert str(tmp_path / "MNIST") in str(caught.value)
    assert f"regraft data get mnist --data-root {tmp_path}" in str(caught.value)


class Offline:
    def __init__(self, root, **options):
        (root_file := known.Path(root) / "MNIST" / "raw").mkdir(parents=True)
        (root_file / "train-images-idx3-ubyte").write_text("half")
        raise RuntimeError("no network\nhere")


class Online:
    def __init__(self, root, **options):
        for entry in known._KNOWN["mnist"].files:
            file = known.Path(root) / entry
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("whole")


def test_a_failed_download_leaves_nothing_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(known, "_torchvision_class", lambda source: (Offline, {}))
    with pytest.raises(InputError, match=r"no network here.*regraft data get mnist"):
        load_known("mnist", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_download_moves_whole_files_in(tmp_path, monkeypatch):
    monkeypatch.setattr(known, "_torchvision_class", lambda source: (Online, {}))
    get("mnist", str(tmp_path))
    assert next(e for e in available(str(tmp_path)) if e.name == "mnist").present
    assert [p.name for p in tmp_path.iterdir()] == ["MNIST"]


def test_a_damaged_set_is_reported(tmp_path):
    pytest.importorskip("torchvision")
    write_letters(tmp_path)
    (tmp_path / "EMNIST/raw/emnist-letters-train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01ab")
    with pytest.raises(InputError, match=r"files of emnist in .* are damaged"):
        load_known("emnist", str(tmp_path))


def test_cifar10_jpeg_has_no_download(tmp_path):
    with pytest.raises(InputError, match="has no download: put its files"):
        get("cifar10_jpeg", str(tmp_path))
    with pytest.raises(InputError, match=r"is not in .*cifar10 and has no download"):
        load_known("cifar10_jpeg", str(tmp_path))


def test_without_torchvision_the_extra_is_named(tmp_path, monkeypatch):
    write_letters(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'regraft\[vision\]'"):
        load_known("emnist", str(tmp_path))


@pytest.mark.parametrize("call", [get, load_known])
def test_an_unknown_name_is_refused(call):
    with pytest.raises(InputError, match=r"'imagenet' is no known data set.*mnist"):
        call("imagenet")


@pytest.mark.data
@pytest.mark.parametrize("name", COUNTS)
def test_the_real_sets_are_whole(benchmark_root, name):
    if not next(e for e in available(benchmark_root) if e.name == name).present:
        pytest.skip(f"{name} is not at REGRAFT_DATA")
    data = load_known(name, benchmark_root, download=False)
    assert (len(data.train), len(data.test), len(data.classes)) == COUNTS[name]
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert len(data.train.labels.unique()) == COUNTS[name][2]
