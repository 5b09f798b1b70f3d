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
def result(regraft, image_folder):
    code, _, err = regraft("finetune", "--data", image_folder, "--out", "result", *MADE)
    assert code == 0, err
    return Path("result")


def test_it_counts_what_predict_says(answer, result, image_folder):
    predicted = answer("predict", result, image_folder)["images"]
    right = sum(Path(f["image"]).parent.name == f["top"][0]["class"] for f in predicted)
    found = answer("evaluate", result, "--data", image_folder)
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
        (("--data", "photos", "--threads", 0), "threads=0"),
    ],
)
def test_data_that_cannot_be_used(refused, result, words, said):
    for name in ("ant", "dog"):
        Path("strange", name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(Path("strange", name, "0.png"))
    assert said in refused("evaluate", result, *words)
