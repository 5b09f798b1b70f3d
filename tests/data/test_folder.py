import os

import pytest

from regraft.data import scan_folder
from regraft.errors import InputError


def test_classes_and_images_are_sorted(tmp_path, make_images):
    for name, count in (("dog", 2), ("ant", 3)):
        make_images(tmp_path / name, count)
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    found = scan_folder(tmp_path)
    assert found.classes == ("ant", "dog")
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert [p.name for p in found.train.paths[:3]] == ["000.png", "001.png", "002.png"]
    assert found.train.image_size == 224
    assert found.validation is None
    assert found.test is None


def test_images_below_a_class_belong_to_it(tmp_path, make_images):
    make_images(tmp_path / "a" / "deep" / "deeper", 2)
    make_images(tmp_path / "b", 1)
    assert scan_folder(tmp_path).train.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_parts_are_found(tmp_path, make_images, name):
    for part, count in (("train", 3), (name, 2), ("test", 1)):
        for cls in ("a", "b"):
            make_images(tmp_path / part / cls, count)
    found = scan_folder(tmp_path, image_size=8)
    assert found.validation is not None
    assert found.test is not None
    assert (len(found.train), len(found.validation), len(found.test)) == (6, 4, 2)
    assert found.classes == ("a", "b")


def test_classes_called_train_and_other_are_classes(tmp_path, make_images):
    make_images(tmp_path / "train", 2)
    make_images(tmp_path / "bus", 2)
    assert scan_folder(tmp_path).classes == ("bus", "train")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        scan_folder(tmp_path / "nowhere")


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file: expected a folder"):
        scan_folder(tmp_path / "file")


def test_a_folder_without_class_folders_is_refused(tmp_path, make_images):
    make_images(tmp_path, 2)
    with pytest.raises(InputError, match="has no class folders"):
        scan_folder(tmp_path)


def test_a_single_class_is_refused(tmp_path, make_images):
    make_images(tmp_path / "only", 2)
    with pytest.raises(InputError, match="has a single class, 'only'"):
        scan_folder(tmp_path)


def test_a_class_without_images_is_named(tmp_path, make_images):
    make_images(tmp_path / "a", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"class folder .*empty has no images"):
        scan_folder(tmp_path)


def test_a_class_that_training_does_not_have_is_named(tmp_path, make_images):
    for cls in ("a", "b"):
        make_images(tmp_path / "train" / cls, 1)
    make_images(tmp_path / "test" / "c", 1)
    with pytest.raises(InputError, match=r"test has the class 'c'.*expected only a, b"):
        scan_folder(tmp_path)


def test_a_size_below_one_pixel_is_refused(tmp_path, make_images):
    make_images(tmp_path / "a", 1)
    with pytest.raises(InputError, match="image_size=0"):
        scan_folder(tmp_path, image_size=0)


def test_unreadable_images_are_left_out_with_a_warning(tmp_path, make_images):
    for cls in ("a", "b"):
        make_images(tmp_path / cls, 3)
    (tmp_path / "a" / "001.png").write_bytes(b"?")
    with pytest.warns(UserWarning, match=r"left out 1 unreadable image\(s\): .*001.png"):
        found = scan_folder(tmp_path, unreadable="skip")
    assert found.train.labels.tolist() == [0, 0, 1, 1, 1]


def test_a_class_of_which_nothing_can_be_read_is_refused(tmp_path, make_images):
    make_images(tmp_path / "a", 1)
    make_images(tmp_path / "b", 1)
    (tmp_path / "b" / "000.png").write_bytes(b"?")
    with pytest.raises(InputError, match="no image of class 'b'"):
        scan_folder(tmp_path, unreadable="skip")


def test_classes_that_differ_in_case_only_are_refused(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("Cat", "cat", "dog"):
        (tmp_path / name).mkdir()
        image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system does not tell them apart")
    with pytest.raises(InputError, match=r"'Cat' and 'cat'.*only differ in case.*rename"):
        scan_folder(tmp_path)


@pytest.mark.parametrize(
    "names",
    [("Train", "Val", "Test"), ("TRAINING", "Valid", "testing"), ("train", "Validation", "TEST")],
)
def test_parts_are_found_in_any_case_and_by_their_other_names(tmp_path, make_images, names):
    for part, count in zip(names, (3, 2, 1), strict=True):
        for cls in ("a", "b"):
            make_images(tmp_path / part / cls, count)
    (tmp_path / "annotations").mkdir()
    found = scan_folder(tmp_path, image_size=8)
    assert found.classes == ("a", "b")
    assert [len(p) for p in (found.train, found.validation, found.test)] == [6, 4, 2]


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train/a", "train/b", "Training/a", "Training/b"), "both may be the part train"),
        (("Train/a", "Train/b", "val/a", "valid/a"), "both may be the part val"),
        (("Train", "Test"), r"Train has no class folders: .*rename the folders if"),
        (("Test/a", "Test/b", "val/a"), r"folder 'Test' .*no training images beside it"),
        (("train/front", "train/back", "bus"), r"folder 'train' .* beside 'bus' with images"),
    ],
)
def test_folders_that_may_be_parts_or_classes_are_refused(tmp_path, make_images, folders, said):
    for name in folders:
        make_images(tmp_path / name, 2)
    if len({p.name.casefold() for p in tmp_path.iterdir()}) < len(list(tmp_path.iterdir())):
        pytest.skip("this file system does not tell them apart")
    with pytest.raises(InputError, match=said):
        scan_folder(tmp_path)


def test_a_part_other_than_train_may_lack_classes(tmp_path, make_images):
    for cls in ("a", "b", "c"):
        make_images(tmp_path / "train" / cls, 2)
    make_images(tmp_path / "val" / "b", 2)
    (tmp_path / "val" / "a").mkdir()
    make_images(tmp_path / "test" / "c", 1)
    folder = scan_folder(tmp_path)
    assert folder.classes == ("a", "b", "c")
    assert folder.validation.labels.tolist() == [1, 1]
    assert folder.test.labels.tolist() == [2]


def test_a_part_without_any_image_is_refused(tmp_path, make_images):
    for cls in ("a", "b"):
        make_images(tmp_path / "train" / cls, 2)
        (tmp_path / "val" / cls).mkdir(parents=True)
    with pytest.raises(InputError, match="val has no images"):
        scan_folder(tmp_path)


def test_one_class_can_be_measured(tmp_path, make_images):
    make_images(tmp_path / "a", 2)
    assert scan_folder(tmp_path, fewest=1).classes == ("a",)


@pytest.mark.parametrize("name", ["Dev", "eval"])
def test_dev_and_eval_are_validation_images(tmp_path, make_images, name):
    for part in ("train", name):
        for cls in ("a", "b"):
            make_images(tmp_path / part / cls, 2)
    assert len(scan_folder(tmp_path).validation) == 4


def test_a_folder_of_classes_beside_train_is_named(tmp_path, make_images):
    for part in ("train", "extra"):
        for cls in ("a", "b"):
            make_images(tmp_path / part / cls, 2)
    with pytest.warns(UserWarning, match="left out the folder.*'extra' beside 'train'"):
        assert len(scan_folder(tmp_path).train) == 4


def test_folders_of_thumbnails_are_no_images_and_no_classes(tmp_path, make_images):
    for name in ("a", "b", "@eaDir", "__MACOSX", "a/@eaDir", "b/.thumbs"):
        make_images(tmp_path / name, 2)
    folder = scan_folder(tmp_path)
    assert folder.classes == ("a", "b")
    assert len(folder.train) == 4


def test_images_behind_links_to_folders_are_found_once(tmp_path, make_images):
    make_images(tmp_path / "elsewhere" / "deep", 2)
    make_images(tmp_path / "data" / "b", 1)
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "elsewhere")
    folder = scan_folder(tmp_path / "data")
    assert folder.train.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".tga", ".JPG"])
def test_less_common_endings_are_taken(tmp_path, make_images, ending):
    make_images(tmp_path / "a", 1)
    make_images(tmp_path / "b", 1)
    kind = "TGA" if ending == ".tga" else "JPEG"
    image = pytest.importorskip("PIL.Image").new("RGB", (8, 8), (1, 2, 3))
    image.save(tmp_path / "a" / f"x{ending}", kind)
    folder = scan_folder(tmp_path, image_size=8)
    assert folder.train.labels.tolist() == [0, 0, 1]
    assert folder.train.decoded().shape == (3, 3, 8, 8)


def test_pictures_that_cannot_be_opened_are_named_and_counted(tmp_path, make_images):
    for cls in ("a", "b"):
        make_images(tmp_path / cls, 1)
    for name in ("x.svg", "y.CR2"):
        (tmp_path / "a" / name).write_bytes(b"?")
    with pytest.warns(UserWarning, match=r"left out 2 picture\(s\).*x.svg, y.CR2"):
        assert len(scan_folder(tmp_path).train) == 2


def test_links_to_nowhere_and_pictures_outside_of_classes_are_named_and_counted(
    tmp_path, make_images
):
    for cls in ("a", "b"):
        make_images(tmp_path / cls, 1)
    (tmp_path / "a" / "annexed.png").symlink_to(tmp_path / "gone.png")
    with pytest.warns(UserWarning, match=r"left out 1 picture\(s\) that are links.*annexed.png"):
        assert len(scan_folder(tmp_path).train) == 2
    (tmp_path / "a" / "annexed.png").unlink()
    make_images(tmp_path, 2)
    (tmp_path / ".hidden.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left out 2 picture\(s\) beside.*000.png, 001.png"):
        assert len(scan_folder(tmp_path).train) == 2


def test_a_folder_below_a_class_that_may_not_be_read_is_named(tmp_path, make_images, monkeypatch):
    for cls in ("a", "b/closed", "b/open"):
        make_images(tmp_path / cls, 1)
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", closed)
    with pytest.raises(InputError, match=r"b/closed cannot be read \(Permission denied\)"):
        scan_folder(tmp_path)


def test_a_class_is_one_however_its_accents_are_written(tmp_path, make_images):
    composed, apart = "\u00e9t\u00e9", "e\u0301te\u0301"
    for part, name in (("train", composed), ("val", apart)):
        make_images(tmp_path / "two" / part / name, 2)
        make_images(tmp_path / "two" / part / "hiver", 2)
    folder = scan_folder(tmp_path / "two")
    assert folder.classes == ("hiver", composed)
    assert folder.validation.labels.tolist() == [0, 0, 1, 1]
    for name in (composed, apart):
        make_images(tmp_path / "one" / name, 1)
    with pytest.raises(InputError, match="only differ in case or in how accents are written"):
        scan_folder(tmp_path / "one")


def test_results_inside_of_the_data_are_no_classes(tmp_path, make_images):
    for cls in ("a", "b", "runs/finetune-plain", "result"):
        make_images(tmp_path / cls, 1)
    for place in ("runs/finetune-plain", "result"):
        (tmp_path / place / "regraft.json").write_text("{}")
    assert scan_folder(tmp_path).classes == ("a", "b")
    (tmp_path / "runs/finetune-plain/regraft.json").unlink()
    assert scan_folder(tmp_path).classes == ("a", "b", "runs")
