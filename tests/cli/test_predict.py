import csv
import io
import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft.config import ModelConfig
from regraft.files import write_json, write_tensors
from regraft.models import build

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

MADE = shlex.split(
    "--image-size 8 --epochs 1 --batch-size 8 --threads 1 --accelerator cpu --width 0.25 "
    "--lr 0.01 --method plain"
)


@pytest.fixture
def result(regraft, fine_tuned, capfd):
    folder = fine_tuned(*MADE)
    capfd.readouterr()
    return folder


def about(result):
    from safetensors import safe_open

    with safe_open(result / "model.safetensors", framework="pt") as file:
        return json.loads(file.metadata()["regraft.model"])


def test_probabilities_are_those_of_the_network_over_its_temperature(answer, result, image_folder):
    from regraft.data import decode

    rewrite(result, {"temperature": 2.5})
    facts = about(result)
    network = build(ModelConfig(width=0.25), num_classes=3, channels=3, image_size=8).eval()
    network.load_state_dict(load_file(result / "model.safetensors"))
    found = answer("predict", result, image_folder / "bee", "--top", 3)["images"]
    assert [f["image"] for f in found] == [str(image_folder / "bee" / f"{i}.png") for i in range(8)]
    for each in found:
        x = decode(Path(each["image"]), 8)[None].float() / 255
        mean, std = (torch.tensor(facts[k])[:, None, None] for k in ("mean", "std"))
        wanted = (network((x - mean) / std) / 2.5).softmax(1)[0]
        got = {t["class"]: t["probability"] for t in each["top"]}
        assert sum(got.values()) == pytest.approx(1)
        for name, p in zip(facts["classes"], wanted.tolist(), strict=True):
            assert got[name] == pytest.approx(p, abs=1e-5)
        assert list(got.values()) == sorted(got.values(), reverse=True)


def test_table_csv_and_file_tell_the_same(regraft, answer, result, image_folder):
    image = image_folder / "cat" / "3.png"
    found = answer("predict", result, image, "--top", 2)["images"][0]["top"]
    code, out, _ = regraft("predict", result, image, "--top", 2, "--csv", "--out", "p.csv")
    assert code == 0
    assert Path("p.csv").read_text() == out
    (row,) = csv.DictReader(io.StringIO(out))
    assert row["class"] == found[0]["class"]
    assert float(row["probability_2"]) == pytest.approx(found[1]["probability"], abs=1e-6)
    code, out, _ = regraft("predict", result, image, "--top", 1)
    assert f"{found[0]['class']} {found[0]['probability']:.1%}" in out


def test_pictures_of_all_kinds_are_taken(answer, result, tmp_path):
    Image.new("L", (5, 9), 99).save("grey.png")
    Image.new("RGBA", (5, 9), (9, 8, 7, 6)).save("alpha.png")
    Image.new("I;16", (5, 9), 30000).save("deep.png")
    Image.new("P", (5, 9), 3).save("moving.gif")
    Image.new("CMYK", (5, 9)).save("print.jpg")
    found = answer(
        "predict", result, "grey.png", "alpha.png", "deep.png", "moving.gif", "print.jpg"
    )
    assert len(found["images"]) == 5
    Image.new("RGB", (5, 9), (99, 99, 99)).save("colour.png")
    alone = answer("predict", result, "colour.png")["images"][0]["top"]
    # Batches of another size add up in another order.
    for one, other in zip(alone, found["images"][0]["top"], strict=True):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_the_file_of_a_dense_run_predicts_too(regraft, answer, image_folder):
    pytest.importorskip("sklearn")
    words = "ticket find --data digits --model mlp --method dense --epochs 1 --train-size 40"
    assert regraft(*shlex.split(words), "--out", "dense")[0] == 0
    found = answer("predict", "dense", image_folder / "ant", "--top", 1)
    assert all(f["top"][0]["class"] in "0123456789" for f in found["images"])


def broken(result):
    (result / "model.safetensors").write_bytes(b"no tensors")


def gone(result):
    (result / "model.safetensors").unlink()


def foreign(result):
    save_file({"a": torch.zeros(2)}, result / "model.safetensors")


def elsewhere(result):
    rewrite(result, {"model": {"name": "os:system", "width": 1.0, "options": {}}})


def hot(result):
    rewrite(result, {"temperature": -1})


def deeper(result):
    rewrite(result, {"model": {"name": "conv4", "width": 1.0, "options": {}}})


def rewrite(result, change):
    header = {"regraft.model": json.dumps(about(result) | change)}
    write_tensors(result / "model.safetensors", load_file(result / "model.safetensors"), header)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (broken, "cannot be read"),
        (gone, "has no model.safetensors: it holds figures and no network"),
        (foreign, "does not say which model it is of"),
        (elsewhere, "code outside the file: pass --model os:system if you trust it"),
        (hot, "temperature=-1: expected a number above 0"),
        (deeper, "does not fit the network conv4"),
    ],
)
def test_results_that_cannot_be_used(refused, result, image_folder, change, said):
    change(result)
    assert said in refused("predict", result, image_folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("none.jpg",), "none.jpg: no such image or folder"),
        (("empty",), "empty holds no images"),
        (("bad.jpg",), "bad.jpg cannot be decoded"),
        (("photos", "--top", 0), "--top 0: expected at least 1"),
        (("photos", "--threads", 0), "--threads 0: expected at least 1"),
        (("photos", "--csv", "--json"), "exclude each other"),
    ],
)
def test_arguments_that_cannot_be_used(refused, result, words, said):
    Path("empty").mkdir()
    Path("bad.jpg").write_text("no image")
    assert said in refused("predict", result, *words)


def test_a_folder_that_is_no_result(refused, image_folder):
    assert "give the folder that `regraft finetune` made" in refused(
        "predict", image_folder, image_folder
    )


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["a/regraft.json"], "holds several runs"),
        (["a/b/regraft.json"], "holds several runs"),
        (["a/b/c/regraft.json"], "no such file"),  # a home is not walked through
        (["index.json"], "no such file"),
        (["index.json", "initial.safetensors"], "holds a recorded training"),
    ],
)
def test_a_folder_is_looked_into_two_levels_deep(refused, image_folder, files, said):
    for name in files:
        file = Path("folder", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    assert said in refused("predict", "folder", image_folder)


@pytest.mark.filterwarnings("default")
def test_unreadable_pictures_are_named_and_left_out(regraft, refused, result, image_folder):
    broken = image_folder / "ant" / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0broken")
    assert "broken.jpg cannot be decoded" in refused("predict", result, image_folder / "ant")
    words = ("predict", result, image_folder / "ant", "--unreadable", "skip")
    found = json.loads(regraft(*words, "--json")[1])
    assert found["left_out"] == [str(broken)]
    assert len(found["images"]) == 8
    broken.rename(image_folder / "ant" / "2-broken.jpg")
    again = json.loads(regraft(*words, "--json")[1])
    assert [f["top"] for f in again["images"]] == [f["top"] for f in found["images"]]
    code, out, err = regraft(*words, "--csv")
    assert code == 0
    assert "2-broken.jpg" not in out
    assert "left out 1 unreadable image(s): " in err
    assert "2-broken.jpg" in err
    Path("only").mkdir()
    (image_folder / "ant" / "2-broken.jpg").rename("only/broken.jpg")
    assert "no image can be read" in refused("predict", result, "only", "--unreadable", "skip")


def test_folders_without_a_network_say_what_they_are_of(regraft, refused, image_folder):
    words = "ticket find --data digits --model mlp --method edge_popup --epochs 1 --train-size 40"
    assert regraft(*shlex.split(words), "--out", "found")[0] == 0
    for verb in (("predict", "found", image_folder), ("evaluate", "found", "--data", image_folder)):
        assert "found holds a ticket: `regraft ticket run found`" in refused(*verb)
    said = refused("predict", "found/model.ticket", image_folder)
    assert "is a ticket: `regraft ticket run found/model.ticket` predicts with it" in said
    for name in ("model.ticket", "result.json", "card.json"):
        (Path("found") / name).unlink()
    said = refused("predict", "found", image_folder)
    assert "found has not finished: start the same command again" in said
    write_json("found/card.json", {"kind": "condense"})
    assert "is a result of `regraft condense`" in refused("predict", "found", image_folder)
