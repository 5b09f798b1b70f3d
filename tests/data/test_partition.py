import csv
import io

import pytest
import torch

from regraft.config import DataConfig
from regraft.data import load_partition
from regraft.data.load import as_list
from regraft.errors import InputError
from regraft.jobs.predict.used_images import write_used

Image = pytest.importorskip("PIL.Image")


def folder(root, counts, where=""):
    for label, (name, n) in enumerate(counts.items()):
        (root / where / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (4, 4), (label * 60, i * 9, 7)).save(root / where / name / f"{i}.png")
    return root


def config(root, **more):
    return DataConfig(name=str(root), image_size=4, **{"validation": 0.2, **more})


def listed(parted):
    return list(csv.reader(io.StringIO(as_list(parted.rows))))[1:]


def part(parted, name):
    return {row[0] for row in listed(parted) if row[2] == name}


def test_one_folder_is_parted_in_proportion_and_no_image_is_twice(tmp_path):
    found = load_partition(config(folder(tmp_path / "x", {"a": 10, "b": 20})))
    sizes = [torch.bincount(s.labels).tolist() for s in (found.train, found.validation, found.test)]
    assert sizes == [[6, 12], [2, 4], [2, 4]]
    names = [row[0] for row in listed(found)]
    assert len(set(names)) == len(names) == 30
    for row, split in (("train", found.train), ("validation", found.validation)):
        assert len(part(found, row)) == len(split)


def test_a_list_gives_the_same_parts_again_whatever_else_is_asked(tmp_path):
    root = folder(tmp_path / "x", {"a": 10, "b": 20})
    first = load_partition(config(root))
    file = tmp_path / "split.csv"
    file.write_text(as_list(first.rows))
    again = load_partition(config(root, split_seed=5, validation=0.5), test=0.0, listed=file)
    assert again.rows == first.rows
    for name in ("train", "validation", "test"):
        left, right = getattr(first, name), getattr(again, name)
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.labels, right.labels)
    assert load_partition(config(root, split_seed=5)).rows != first.rows


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_a_list_that_a_spreadsheet_saved_is_read(tmp_path, separator):
    root = folder(tmp_path / "x", {"a": 10, "b": 20})
    first = load_partition(config(root))
    file = tmp_path / "split.csv"
    text = as_list(first.rows).replace(",", separator).replace("\n", "\r\n")
    lines = text.split("\r\n")
    lines.insert(3, separator * 2)
    file.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    assert load_partition(config(root), listed=file).rows == first.rows


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("image,class,split\n", "\n\nImage, Class ,SPLIT\n"),
        ("image,class,split\n", 'sep=,\nimage,"class",split\n'),
        (",validation\n", ",Val\n"),
        (",train\n", ", training \n"),
        ("\na/", "\n./a/"),
        ("\na/", "\na\\"),
        ("\n", "\r"),
        ("\n", ",remark\n"),
    ],
)
def test_a_list_is_read_by_its_columns_whatever_wrote_it(tmp_path, old, new):
    root = folder(tmp_path / "x", {"a": 10, "b": 20})
    first = load_partition(config(root))
    file = tmp_path / "split.csv"
    file.write_text(as_list(first.rows).replace(old, new), newline="")
    assert load_partition(config(root), listed=file).rows == first.rows
    rows = [f"{part},{image},{label}" for image, label, part in first.rows]
    file.write_text("\n".join(["split,image,class", *rows]))
    assert load_partition(config(root), listed=file).rows == first.rows


@pytest.mark.parametrize(
    "odd", ["a\rb", "a\nb", "a\r\nb", 'a"b,c;d', "\udce9", "\\udce9", " a", "\u2028"], ids=ascii
)
def test_a_list_holds_names_of_any_bytes(tmp_path, odd):
    root = folder(tmp_path / "x", {"a": 10, f"b{odd}": 20})
    for path in sorted(root.rglob("*.png")):
        path.rename(path.with_stem(path.stem + odd))
    first = load_partition(config(root))
    used = tmp_path / "split.csv"
    assert write_used(tmp_path, [first]) == [used.name]
    assert load_partition(config(root, split_seed=5), listed=used).rows == first.rows


def test_a_folders_own_parts_are_used_as_they_are(tmp_path):
    root = tmp_path / "x"
    for where, n in (("train", 8), ("val", 3), ("test", 2)):
        folder(root, {"a": n, "b": n}, where)
    found = load_partition(config(root))
    assert {len(part(found, n)) for n in ("train",)} == {16}
    assert part(found, "validation") == {f"val/{c}/{i}.png" for c in "ab" for i in range(3)}
    assert part(found, "test") == {f"test/{c}/{i}.png" for c in "ab" for i in range(2)}


def test_shots_cut_training_and_validation_and_leave_the_test_images(tmp_path):
    root = folder(tmp_path / "x", {"a": 20, "b": 30})
    found = load_partition(config(root, shots=3))
    assert torch.bincount(found.train.labels).tolist() == [3, 3]
    assert torch.bincount(found.validation.labels).tolist() == [3, 3]
    assert len(found.test) == 10


def test_shots_cut_a_folders_own_validation_images_too(tmp_path):
    root = tmp_path / "x"
    for where, n in (("train", 8), ("val", 5), ("test", 4)):
        folder(root, {"a": n, "b": n - 3}, where)
    found = load_partition(config(root, shots=3))
    assert torch.bincount(found.train.labels).tolist() == [3, 3]
    assert torch.bincount(found.validation.labels).tolist() == [3, 2]
    assert len(found.test) == 5
    assert len(part(found, "validation")) == 5


def test_a_known_set_lists_what_was_chosen_from_its_training_images(tmp_path):
    pytest.importorskip("sklearn")
    found = load_partition(DataConfig(name="digits", shots=2, validation=0.2))
    assert len(part(found, "train")) == 20
    assert part(found, "test") == set()
    assert len(found.test) == 359
    file = tmp_path / "split.csv"
    file.write_text(as_list(found.rows))
    again = load_partition(DataConfig(name="digits"), listed=file)
    assert torch.equal(again.train.images, found.train.images)


def test_a_class_of_one_image_keeps_it_for_training(tmp_path):
    found = load_partition(config(folder(tmp_path / "x", {"a": 10, "b": 1, "c": 10})))
    assert torch.bincount(found.train.labels).tolist()[1] == 1


@pytest.mark.parametrize(
    ("counts", "more", "said"),
    [
        ({"a": 10, "b": 10}, {"validation": 0.01}, "--validation 0.01 of .*holds out none"),
        ({"a": 10, "b": 10}, {"validation": 0.0}, "--validation 0 and the data have no"),
        ({"a": 1, "b": 9}, {"validation": 0.75}, "--validation 0.75: class '[ab]' has"),
        ({"a": 10, "b": 10}, {"validation": 0.8}, "--validation 0.8 and --test 0.2 leave nothing"),
        ({"a": 10, "b": 9}, {"shots": 9}, "shots, .*class 'a' has 6 image"),
        ({"a": 10, "b": 9}, {"shots": 3, "train_size": 4}, "exclude each other"),
    ],
)
def test_parts_that_cannot_be_are_refused_by_class_name(tmp_path, counts, more, said):
    with pytest.raises(InputError, match=said):
        load_partition(config(folder(tmp_path / "x", counts), **more))


@pytest.mark.parametrize("test", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(tmp_path, test):
    with pytest.raises(InputError, match="--test "):
        load_partition(config(tmp_path), test=test)


HEAD = "image,class,split\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a CSV file with the columns"),
        ("name,class\n", "expected a CSV file with the columns"),
        (HEAD + "a/0.png,a\n", "line 2: 2 columns"),
        (HEAD + "a/0.png,a,learn\n", "line 2: split 'learn'"),
        (HEAD + "a/77.png,a,train\n", "'a/77.png' is not among"),
        (HEAD + "a/0.png,b,train\n", "of class 'b' there and of 'a'"),
        (HEAD + "a/0.png,a,train\na/0.png,a,train\n", "line 3: .*twice"),
        (HEAD + "a/0.png,a,train\nb/0.png,b,validation\n", "no training image of class 'b'"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path, text, said):
    root = folder(tmp_path / "x", {"a": 3, "b": 3})
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        load_partition(config(root), listed=tmp_path / "split.csv")


def test_images_that_a_list_leaves_out_are_counted(tmp_path):
    root = folder(tmp_path / "x", {"a": 3, "b": 3})
    rows = "a/0.png,a,train\nb/0.png,b,train\nb/1.png,b,validation\n"
    (tmp_path / "split.csv").write_text(HEAD + rows)
    with pytest.warns(UserWarning, match="left out 3 image"):
        found = load_partition(config(root), listed=tmp_path / "split.csv")
    assert found.test is None


def test_a_list_may_hold_no_validation_images(tmp_path):
    """Whoever chooses by folds needs none."""
    photos, listed = folder(tmp_path / "photos", {"a": 3, "b": 3}), tmp_path / "split.csv"
    listed.write_text(HEAD + "a/0.png,a,train\nb/0.png,b,train\n")
    with pytest.warns(UserWarning, match="does not list"):
        parted = load_partition(DataConfig(name=str(photos), image_size=8), listed=listed)
    assert len(parted.train) == 2
    assert parted.validation is None
