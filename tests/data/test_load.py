import pytest
import torch

from regraft.config import DataConfig
from regraft.data import FileSet, ImageSet, channel_moments, load
from regraft.errors import InputError


@pytest.fixture
def folder(tmp_path, make_images):
    for name in ("ant", "bee"):
        make_images(tmp_path / name, 10)
    return tmp_path


class TestDigits:
    @pytest.fixture(autouse=True)
    def needs_scikit_learn(self):
        pytest.importorskip("sklearn")

    def test_splits_are_disjoint_and_described(self):
        splits = load(DataConfig())
        assert splits.validation is not None
        assert splits.test is not None
        assert len(splits.train) + len(splits.validation) + len(splits.test) == 1797
        assert (splits.num_classes, splits.channels, splits.image_size) == (10, 1, 8)
        assert isinstance(splits.train, ImageSet)
        assert (splits.mean, splits.std) == channel_moments(splits.train.images)
        assert splits.name == "digits"

    def test_shots_keep_so_many_of_each_class_and_leave_the_rest_alone(self):
        whole, few = load(DataConfig()), load(DataConfig(shots=3))
        assert torch.bincount(few.train.labels).tolist() == [3] * 10
        assert few.validation is not None
        assert whole.validation is not None
        assert torch.equal(few.validation.images, whole.validation.images)

    def test_train_size_keeps_so_many(self):
        assert len(load(DataConfig(train_size=57)).train) == 57

    def test_no_validation_share_holds_out_nothing(self):
        splits = load(DataConfig(validation=0))
        assert splits.validation is None
        assert len(splits.train) == 1797 - 359

    def test_image_size_resizes_every_split(self):
        splits = load(DataConfig(image_size=12))
        for part in (splits.train, splits.validation, splits.test):
            assert isinstance(part, ImageSet)
            assert part.images.shape[1:] == (1, 12, 12)

    def test_the_split_seed_chooses(self):
        one, other = load(DataConfig(split_seed=1)), load(DataConfig(split_seed=2))
        assert not torch.equal(one.train.images, other.train.images)

    def test_too_many_shots_name_class_and_cause(self):
        with pytest.raises(InputError, match=r"--shots, .*--validation 0.1: k=500: class 0 has"):
            load(DataConfig(shots=500))

    def test_too_large_a_train_size_is_refused(self):
        with pytest.raises(InputError, match=r"--train-size, of the 1294 .*size=5000: expected"):
            load(DataConfig(train_size=5000))

    @pytest.mark.parametrize("share", [-0.1, 1.0])
    def test_a_validation_share_outside_its_range_is_refused(self, share):
        with pytest.raises(InputError, match=r"--validation .*: expected a number in \[0, 1\)"):
            load(DataConfig(validation=share))


def test_a_folder_is_split_and_described(folder):
    splits = load(DataConfig(name=str(folder), image_size=8, validation=0.2))
    assert isinstance(splits.train, ImageSet)
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation), splits.test) == (16, 4, None)
    assert splits.classes == ("ant", "bee")
    assert (splits.channels, splits.image_size) == (3, 8)
    assert splits.name == folder.name


def test_images_of_a_folder_keep_their_size_unless_told(folder):
    assert load(DataConfig(name=str(folder))).image_size == 10
    assert load(DataConfig(name=str(folder), image_size=8)).image_size == 8


def test_a_folder_beside_the_work_needs_no_separator(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert load(DataConfig(name=folder.name, image_size=8)).classes == ("ant", "bee")


def test_a_folder_of_its_own_validation_is_used_as_it_is(tmp_path, make_images):
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        for name in ("a", "b"):
            make_images(tmp_path / part / name, count)
    splits = load(DataConfig(name=str(tmp_path), image_size=8, validation=0.5, shots=3))
    assert splits.validation is not None
    assert splits.test is not None
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6, 4, 6)


def test_a_large_folder_stays_in_its_files(folder, monkeypatch):
    config = DataConfig(name=str(folder), image_size=8)
    eager = load(config)
    monkeypatch.setattr("regraft.data.memory.MOST_BYTES", 100)
    lazy = load(config)
    assert isinstance(eager.train, ImageSet)
    assert isinstance(lazy.train, FileSet)
    assert isinstance(lazy.validation, FileSet)
    assert torch.equal(lazy.train.decoded(), eager.train.images)
    assert torch.equal(lazy.train.labels, eager.train.labels)
    assert (lazy.mean, lazy.std) == (eager.mean, eager.std)


def test_an_unreadable_image_is_refused_or_left_out(folder):
    (folder / "bee" / "003.png").write_bytes(b"?")
    with pytest.raises(InputError, match=r"003.png cannot be decoded"):
        load(DataConfig(name=str(folder), image_size=8))
    with pytest.warns(UserWarning, match=r"003.png"):
        splits = load(DataConfig(name=str(folder), image_size=8, unreadable="skip", validation=0))
    assert len(splits.train) == 19


def test_an_unknown_name_comes_with_a_suggestion():
    with pytest.raises(InputError, match=r"'fashon_mnist'.*did you mean 'fashion_mnist'.*digits"):
        load(DataConfig(name="fashon_mnist"))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load(DataConfig(name=str(tmp_path / "photos")))


def test_shots_and_train_size_exclude_each_other():
    with pytest.raises(InputError, match="--train-size 5 and --shots 1 exclude each other"):
        load(DataConfig(train_size=5, shots=1))


def test_an_image_size_below_one_is_refused():
    with pytest.raises(InputError, match="--image-size 0: expected at least 1"):
        load(DataConfig(image_size=0))
