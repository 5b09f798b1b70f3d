import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

MADE = shlex.split(
    "--image-size 8 --epochs 4 --batch-size 8 --threads 1 --accelerator cpu --width 0.25 "
    "--lr 0.05 --method plain"
)


@pytest.fixture
def result(regraft, fine_tuned, capfd):
    folder = fine_tuned(*MADE)
    capfd.readouterr()
    return folder


def test_it_counts_what_predict_says(answer, result, image_folder):
    predicted = answer("predict", result, image_folder)["images"]
    right = sum(Path(f["image"]).parent.name == f["top"][0]["class"] for f in predicted)
    found = answer("evaluate", result, "--data", image_folder, "--all-images")
    assert (found["data"], found["split"], found["images"]) == ("photos", "all", 24)
    assert found["accuracy"] == pytest.approx(100 * right / 24)
    assert sum(map(sum, found["confusion"])) == 24
    assert [row["class"] for row in found["per_class"]] == ["ant", "bee", "cat"]


def test_the_test_images_of_the_run_give_its_figures_again(answer, result, image_folder, tmp_path):
    for row in csv.DictReader((result / "split.csv").read_text().splitlines()):
        if row["split"] == "test":
            (tmp_path / "held" / row["class"]).mkdir(parents=True, exist_ok=True)
            shutil.copy(image_folder / row["image"], tmp_path / "held" / row["image"])
    found = answer("evaluate", result, "--data", tmp_path / "held", "--out", "all.json")
    wanted = json.loads((result / "evaluation.json").read_text())["test"]
    assert found["confusion"] == wanted["confusion"]
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert json.loads(Path("all.json").read_text())["confusion"] == wanted["confusion"]


def test_images_that_the_model_was_made_with_are_left_out(answer, regraft, result, image_folder):
    words = ("evaluate", result, "--data", image_folder)
    wanted = json.loads((result / "evaluation.json").read_text())
    found = answer(*words)
    assert (found["split"], found["images"]) == ("test", 5)
    assert found["confusion"] == wanted["test"]["confusion"]
    assert found["loss"] == pytest.approx(wanted["test"]["loss"], rel=1e-5)
    assert found["note"] == (
        "measured on the 5 test images of photos; left out 14 training and 5 validation images by "
        "result/split.csv (--all-images takes all)"
    ).replace("photos", str(image_folder))
    code, out, _ = regraft(*words)
    assert code == 0
    assert found["note"] in " ".join(out.split())
    assert "of 5 test images" in out
    # New images of the folder are measured on as well, wherever it lies now.
    image_folder.rename("moved")
    for name in ("ant", "cat"):
        Image.new("RGB", (9, 9)).save(f"moved/{name}/new.png")
    found = answer("evaluate", result, "--data", "moved")
    assert (found["split"], found["images"]) == ("unseen", 7)
    assert "the 5 test images and 2 new ones of moved" in found["note"]


def test_without_test_images_the_validation_images_stand_in_and_it_is_said(
    regraft, answer, refused, image_folder
):
    words = ("finetune", "--data", image_folder, *MADE, "--out", "none", "--test", 0)
    assert regraft(*words)[0] == 0
    found = answer("evaluate", "none", "--data", image_folder)
    wanted = json.loads(Path("none/evaluation.json").read_text())["validation"]
    assert (found["split"], found["confusion"]) == ("validation", wanted["confusion"])
    assert "which also chose the model, so new ones will do worse" in found["note"]
    for row in csv.DictReader(Path("none/split.csv").read_text().splitlines()):
        if row["split"] == "validation":
            (image_folder / row["image"]).unlink()
    assert "holds only images that none/split.csv lists for training" in refused(
        "evaluate", "none", "--data", image_folder
    )


@pytest.mark.parametrize("method", ["edge_popup", "dense"])
def test_a_search_lists_its_images_too(answer, refused, image_folder, method):
    words = ("--image-size", 8, "--model", "mlp", "--epochs", 2, "--shots", 3)
    out = answer("ticket", "find", "--data", image_folder, *words, "--method", method)["out"]
    rows = rows_of(out)
    parts = [row["split"] for row in rows]
    assert parts.count("train") == 9
    verb = ("evaluate",) if method == "dense" else ("ticket", "run")
    words = (*verb, out, "--data", image_folder)
    # Of the images that --shots leaves out nothing was learnt.
    found = answer(*words)
    assert found["split"] == "new"
    assert found["images" if method == "dense" else "n"] == 24 - len(rows)
    assert f"left out 9 training and {parts.count('validation')} validation images" in found["note"]
    assert answer(*words, "--all-images")["split"] == "all"
    (Path(out) / "split.csv").write_text("image,class,split\n")
    assert "split.csv is not as Regraft wrote it" in refused(*words)


def test_what_is_made_of_models_lists_their_images_and_its_own(answer, image_folder):
    words = (
        "--image-size",
        8,
        "--model",
        "mlp",
        "--model-options",
        '{"widths": [8]}',
        "--epochs",
        2,
    )
    made = [
        answer(
            "ticket", "find", "--data", image_folder, *words, "--method", "dense", "--shots", 2,
            "--seed", seed, "--record", "--out", f"run{seed}",
        )["out"]
        for seed in (1, 2)
    ]  # fmt: skip
    of_one = {tuple(row.values()) for row in rows_of(made[0])}
    assert len([row for row in of_one if row[2] == "train"]) == 6
    plain = answer("merge", *made, "--match", "none", "--out", "averaged")
    assert "split.csv" in plain["files"]
    assert {tuple(row.values()) for row in rows_of("averaged")} == of_one
    answer("merge", *made, "--data", image_folder, "--out", "merged")
    later = {row["image"]: row["split"] for row in rows_of("merged")}
    assert len(later) == 24
    assert all(later[name] == "train" for name, _, part in of_one if part == "train")
    found = answer("evaluate", "merged", "--data", image_folder)
    assert found["split"] == "validation"
    assert found["images"] == [*later.values()].count("validation")
    start = "run2/trajectory/initial.safetensors"
    answer("transfer", "run1", "--to", start, "--match", "initial_weights", "--out", "moved")
    assert {tuple(row.values()) for row in rows_of("moved")} == of_one


def test_a_file_of_that_name_that_is_no_list_is_somebody_elses(
    answer, regraft, refused, result, image_folder
):
    Path("own").mkdir()
    for name in ("a", "b"):
        shutil.copy(result / "model.safetensors", f"own/{name}.safetensors")
    Path("own/split.csv").write_text("file;fold\nx;1\n")
    Path("own/result.json").write_text('{"accuracy": 0.9}')
    words = ("merge", "own/a.safetensors", "own/b.safetensors", "--match", "none", "--out")
    assert "split.csv" not in answer(*words, "averaged")["files"]
    found = answer("evaluate", "own/a.safetensors", "--data", image_folder)
    assert (found["split"], found["images"]) == ("all", 24)
    # That of a result of ours must be as it was written, and is looked at before the work.
    (result / "split.csv").write_text("file;fold\nx;1\n")
    code, _, said = regraft(
        "merge", result, "own/b.safetensors", "--match", "none", "--out", "other"
    )
    assert code == 2
    assert "split.csv is not as Regraft wrote it" in said
    assert not Path("other").exists()
    assert "split.csv is not as Regraft wrote it" in refused(
        "evaluate", result, "--data", image_folder
    )


def rows_of(folder):
    return list(csv.DictReader(Path(folder, "split.csv").read_text().splitlines()))


def test_parts_of_the_folder_and_a_list_that_cuts_across_them(answer, regraft, image_folder):
    for part, first in (("Train", 2), ("Test", 0)):
        for path in sorted(image_folder.glob("[abc]*/*.png")):
            if (int(path.stem) < 2) == (first == 0):
                Path("parts", part, path.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, Path("parts", part, path.parent.name, path.name))
    made = ("finetune", "--data", "parts", *MADE)
    assert regraft(*made, "--out", "a")[0] == 0
    found = answer("evaluate", "a", "--data", "parts")
    assert (found["split"], found["images"], found["note"]) == ("test", 6, "")
    swapped = {"test": "train", "train": "test"}
    lines = [r.rsplit(",", 1) for r in Path("a/split.csv").read_text().splitlines()]
    Path("own.csv").write_text("".join(f"{a},{swapped.get(b, b)}\n" for a, b in lines))
    assert regraft(*made, "--out", "b", "--split", "own.csv")[0] == 0
    found = answer("evaluate", "b", "--data", "parts")
    wanted = json.loads(Path("b/evaluation.json").read_text())["test"]
    assert (found["split"], found["confusion"]) == ("test", wanted["confusion"])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_known_set_is_brought_to_the_channels_of_training(answer, regraft, channels):
    pytest.importorskip("sklearn")
    made = ("finetune", "--data", "digits", *MADE, "--shots", 3, "--channels", channels)
    code, _, err = regraft(*made, "--out", "digits-run")
    assert code == 0, err
    wanted = json.loads(Path("digits-run/evaluation.json").read_text())["test"]
    found = answer("evaluate", "digits-run", "--data", "digits")
    assert found["confusion"] == wanted["confusion"]
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)


def test_a_folder_is_decoded_batch_by_batch(answer, result, image_folder, monkeypatch):
    from regraft.data import FileSet

    sizes, whole = [], FileSet.decoded
    words = ("evaluate", result, "--data", image_folder, "--all-images")
    first = answer(*words)

    def decoded(files):
        sizes.append(len(files))
        return whole(files)

    monkeypatch.setattr(FileSet, "decoded", decoded)
    monkeypatch.setattr("regraft.cli.evaluate._BATCH", 7)
    assert answer(*words)["confusion"] == first["confusion"]
    assert sizes == [7, 7, 7, 3]


@pytest.mark.filterwarnings("default")
def test_corrupt_images_are_named_or_left_out(answer, refused, regraft, result, image_folder):
    (image_folder / "ant" / "bad.png").write_bytes(b"no image")
    words = ("evaluate", result, "--data", image_folder)
    assert "bad.png cannot be decoded" in refused(*words)
    code, out, err = regraft(*words, "--unreadable", "skip")
    assert code == 0
    assert "left out 1 unreadable image" in err
    assert "of 5 test images" in out


def test_a_folder_with_some_of_the_classes_and_a_test_part(answer, regraft, result, image_folder):
    for name in ("bee", "cat"):
        for part in ("train", "test"):
            Path(f"some/{part}/{name}").mkdir(parents=True)
            Image.open(image_folder / name / "0.png").save(f"some/{part}/{name}/0.png")
    found = answer("evaluate", result, "--data", "some")
    assert (found["split"], found["images"]) == ("test", 2)
    assert found["per_class"][0]["recall"] is None
    code, out, _ = regraft("evaluate", result, "--data", "some")
    assert code == 0
    assert f"accuracy on some: {found['accuracy']:.2f}% of 2 test images" in out
    assert "calibration error" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "none"), "neither a known set nor a folder"),
        (("--data", "cora"), "is a graph"),
        (("--data", "strange"), "has the class 'dog'"),
        (("--data", "photos", "--threads", 0), "--threads 0: expected at least 1"),
    ],
)
def test_data_that_cannot_be_used(refused, result, words, said):
    for name in ("ant", "dog"):
        Path("strange", name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(Path("strange", name, "0.png"))
    assert said in refused("evaluate", result, *words)


@pytest.mark.parametrize("classes", [("cat",), ("ant", "cat")])
@pytest.mark.parametrize("empty", [False, True])
def test_a_folder_with_some_of_the_classes_is_measured(
    answer, result, image_folder, classes, empty
):
    whole = answer("evaluate", result, "--data", image_folder, "--all-images")
    for name in ("ant", "bee", "cat"):
        if name not in classes:
            shutil.rmtree(image_folder / name)
            if empty:
                (image_folder / name).mkdir()
    found = answer("evaluate", result, "--data", image_folder, "--all-images")
    rows = {row["class"]: row for row in found["per_class"]}
    assert [rows[name]["images"] for name in ("ant", "bee", "cat")] == [
        8 * (name in classes) for name in ("ant", "bee", "cat")
    ]
    for name, one, other in zip(rows, found["confusion"], whole["confusion"], strict=True):
        assert one == (other if name in classes else [0, 0, 0])
    recalls = [rows[name]["recall"] for name in classes]
    assert found["balanced_accuracy"] == pytest.approx(sum(recalls) / len(recalls))
