"""`regraft fewshot`: from a folder of classes to a classifier of new ones."""

import json

import pytest
import torch

from regraft.checkpoints.read import read_checkpoint
from regraft.files import load_json
from regraft.report.picture import png

SIZE = 8


def write(folder, classes, count, first=0):
    """Write noisy pictures: a class is a bright square at a place of its own."""
    for name in classes:
        place = divmod(int(name[1:]), 3)
        (folder / name).mkdir(parents=True)
        for i in range(first, first + count):
            noise = torch.Generator().manual_seed(1000 * int(name[1:]) + i)
            pixels = torch.randint(0, 90, (SIZE, SIZE, 1), generator=noise, dtype=torch.uint8)
            pixels[2 * place[0] : 2 * place[0] + 3, 2 * place[1] : 2 * place[1] + 3] += 150
            (folder / name / f"{i}.png").write_bytes(png(pixels))


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "classes", [f"k{i}" for i in range(6)], 6)
    write(tmp_path / "support", ["k6", "k7", "k8"], 4)
    write(tmp_path / "rest", ["k6", "k7", "k8"], 5, first=4)
    return tmp_path


def train(data, method, *words):
    options = json.dumps({"widths": [32, 16], "norm": "batch"})
    return (
        "fewshot", "train", "--data", data / "classes", "--method", method, "--model", "mlp",
        "--model-options", options, "--channels", 1, "--image-size", SIZE, "--ways", 3, "--shots", 2,
        "--steps", 30, "--test-tasks", 10, "--accelerator", "cpu", "--out", data / method, *words,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["meta-ticket", "meta-sgd", "mgaug", "logistic"])
def test_new_classes_are_learned_and_predicted(data, regraft, method):
    code, text, _ = regraft(*train(data, method))
    assert code == 0
    assert "3-way 2-shot on held-out classes" in text
    name = "model.ticket" if method == "meta-ticket" else "model.safetensors"
    assert (data / method / name).is_file()
    assert (data / method / "report.html").is_file()
    model = data / "model"
    code, text, _ = regraft(
        "fewshot", "adapt", data / method, data / "support", "--test", data / "rest",
        "--out", model, "--json",
    )  # fmt: skip
    assert code == 0
    card = json.loads(text)
    assert card["test"]["images"] == 15
    about = read_checkpoint(model).about
    assert about["classes"] == ["k6", "k7", "k8"]
    assert card == {"out": str(model), **load_json(model / "card.json", ours=True)}
    code, text, _ = regraft("evaluate", model, "--data", data / "rest", "--json")
    assert code == 0
    assert json.loads(text)["accuracy"] == pytest.approx(card["test"]["accuracy"])
    assert card["test"]["accuracy"] > 60
    code, text, _ = regraft("predict", model, data / "rest" / "k7", "--json")
    assert code == 0
    assert json.loads(text)["images"][0]["top"][0]["class"] in about["classes"]


def test_a_finished_folder_is_only_read(data, regraft):
    assert regraft(*train(data, "untrained"))[0] == 0
    before = (data / "untrained" / "card.json").read_bytes()
    code, text, _ = regraft(*train(data, "untrained"))
    assert code == 0
    assert "is finished already; remove it to meta-train again" in text
    assert (data / "untrained" / "card.json").read_bytes() == before


def test_wrong_input_is_named(data, refused, regraft):
    assert "6 classes and an episode takes 7" in refused(*train(data, "maml", "--ways", 7))
    assert not (data / "maml").exists()
    said = refused(*train(data, "maml", "--shots", 5))
    assert "class 'k" in said
    assert "has 6 images and an episode takes 5 for support and 5 as queries" in said
    assert "--inner-lr 0.0" in refused(*train(data, "maml", "--inner-lr", 0))
    assert regraft(*train(data, "maml"))[0] == 0
    adapt = ("fewshot", "adapt", data / "maml")
    assert "has 6 classes and the learner was trained for episodes of 3" in refused(
        *adapt, data / "classes", "--out", data / "x"
    )
    said = refused(*adapt, data / "support", "--test", data / "classes", "--out", data / "x")
    assert "the test images have the class 'k0'" in said
    assert not (data / "x").exists()
    assert "is there already" in refused(*adapt, data / "support", "--out", data / "rest")


def test_an_exploding_inner_loop_fails_with_its_step(data, regraft):
    code, _, said = regraft(*train(data, "maml", "--inner-lr", 1e30, "--inner-steps", 3))
    assert code == 1
    assert "outer step 1: the inner loop exploded" in said
    assert "inner step" in said


def test_other_files_are_refused(data, refused):
    write(data / "empty", ["k1", "k2"], 1)
    assert "holds no model.ticket or model.safetensors" in refused(
        "fewshot", "adapt", data / "empty", data / "support"
    )
