import numpy as np
import pytest

from regraft.data import load_known
from regraft.errors import InputError


def write(root, **arrays):
    folder = root / "omniglot"
    folder.mkdir(parents=True)
    np.savez(folder / "images_background.npz", **arrays)


def test_ink_is_bright_and_the_last_hands_are_the_test(tmp_path):
    paper = np.ones((3, 6, 5, 5), dtype=bool)
    for character in range(3):
        for drawing in range(6):
            paper[character, drawing, character, : drawing % 5 + 1] = False
    write(tmp_path, images=paper)
    known = load_known("omniglot", str(tmp_path))
    assert (len(known.train), len(known.test)) == (3 * 2, 3 * 4)
    assert known.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert known.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert known.train.images.shape == (6, 1, 5, 5)
    for split, first in ((known.train, 0), (known.test, 2)):
        for image, label, place in zip(split.images, split.labels, range(12), strict=False):
            drawing = first + place % (2 if first == 0 else 4)
            assert (image[0] == 255).numpy().tolist() == (~paper[int(label), drawing]).tolist()
    assert len(known.classes) == 3


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": np.ones((3, 4, 5, 5), dtype=bool)},
        {"images": np.ones((3, 6, 5, 5), dtype=np.uint8)},
        {"images": np.ones((6, 5, 5), dtype=bool)},
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays):
    write(tmp_path, **arrays)
    with pytest.raises(InputError, match="expected booleans"):
        load_known("omniglot", str(tmp_path))


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path, labels=np.zeros(3))
    with pytest.raises(InputError, match=r"images_background.npz is damaged"):
        load_known("omniglot", str(tmp_path))
    (tmp_path / "omniglot/images_background.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match=r"images_background.npz is damaged"):
        load_known("omniglot", str(tmp_path))
