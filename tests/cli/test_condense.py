import base64
import json
import re
from pathlib import Path

import pytest
import torch

from regraft.cli.condense import Condense
from regraft.config import DataConfig, RuntimeConfig
from regraft.errors import InputError, RegraftError
from regraft.generators import CondenseConfig, CondensedSet
from regraft.jobs.condense.job import CondenseJob, transforms_for
from regraft.report import find_runs

QUICK = {
    "data": "digits", "per_class": 2, "restarts": 3, "outer": 2, "inner": 2, "real_batch": 16,
    "width": 0.25, "threads": 1, "accelerator": "cpu",
}  # fmt: skip


@pytest.fixture
def condense(capfd, monkeypatch, tmp_path):
    """Run the verb with --json in an empty folder and return what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(**change):
        assert Condense.of(**{**QUICK, "out": Path("run"), "json": True, **change}).run() == 0
        out, err = capfd.readouterr()
        assert err == ""
        return json.loads(out)

    return run


def test_it_leaves_a_set_a_picture_and_a_page(condense):
    told = condense()
    assert (told["classes"], told["per_class"], told["restarts"]) == (10, 2, 3)
    assert told["finished"] is True
    condensed = CondensedSet.load("run")
    assert condensed.images.shape == (20, 1, 8, 8)
    assert condensed.classes == tuple("0123456789")
    assert condensed.about["restarts"] == 3
    assert told["stored_bytes"] == Path("run/condensed.safetensors").stat().st_size
    with pytest.importorskip("PIL.Image").open("run/images.png") as picture:
        # Two columns of eight pixels, each seven wide, and gaps of two.
        assert picture.size == (2 * 58 + 2, 10 * 58 + 2)
    page = Path("run/report.html").read_text()
    inside = re.search(r"data:image/png;base64,([^\"]+)", page)
    assert inside is not None
    assert base64.b64decode(inside[1]) == Path("run/images.png").read_bytes()
    assert not re.search(r"(src|href)=.https?:|<script|@import", page)
    assert "3 of 3" in page
    assert "What networks learn" not in page
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["loss"] == told["loss"]


@pytest.mark.parametrize("method", ["dc", "dsa", "dm"])
def test_interrupted_it_goes_on_to_the_same_files(condense, method):
    change = {"method": method}
    if method == "dm":
        change |= {"outer": None, "inner": None}
    condense(**change, out=Path("whole"))
    for done in (1, 2, 3):
        told = condense(**change, max_seconds=0, out=Path("part"))
        assert (told["restarts"], told["finished"]) == (done, done == 3)
        assert Path("part/result.json").exists() == (done == 3)
    again = condense(**change, out=Path("part"))
    assert again["restarts"] == 3
    whole, part = (CondensedSet.load(name) for name in ("whole", "part"))
    assert torch.equal(whole.images, part.images)
    for name in ("images.png", "metrics.jsonl"):
        assert Path("whole", name).read_bytes() == Path("part", name).read_bytes()


def test_the_evaluation_compares_with_chance_and_with_all(condense):
    change = {"evaluate": True, "evaluate_seeds": 2, "restarts": 20, "init": "real"}
    told = condense(**change)
    rows = {row["arm"]: row for row in told["evaluation"]}
    assert list(rows) == ["condensed", "random", "all"]
    assert all(row["n"] == 2 for row in rows.values())
    assert rows["all"]["mean"] > rows["random"]["mean"] > 20
    difference = rows["condensed"]["mean"] - rows["random"]["mean"]
    assert rows["condensed"]["difference"] == pytest.approx(difference)
    page = Path("run/report.html").read_text()
    for row in rows.values():
        assert f"{row['mean']:.1f}" in page
    runs = find_runs(Path("run/evaluation"))
    assert sorted((r.arm, r.seed) for r in runs) == sorted(
        (arm, seed) for arm in rows for seed in (1, 2)
    )
    found = {r.seed: r.result.metrics["test_accuracy"] for r in runs if r.arm == "condensed"}
    assert sum(found.values()) / 2 == pytest.approx(rows["condensed"]["mean"])
    stamps = {p: p.stat().st_mtime_ns for p in Path("run/evaluation").rglob("result.json")}
    assert condense(**change)["evaluation"] == told["evaluation"]
    assert stamps == {p: p.stat().st_mtime_ns for p in Path("run/evaluation").rglob("result.json")}


def test_a_folder_of_images_is_condensed_by_its_class_names(condense, image_folder):
    told = condense(
        data=str(image_folder), image_size=8, method="dsa", transforms=("color", "crop"),
        model="mlp", real_batch=4, validation=0.25, evaluate=True, evaluate_seeds=1,
    )  # fmt: skip
    assert told["classes"] == 3
    condensed = CondensedSet.load("run")
    assert condensed.classes == ("ant", "bee", "cat")
    assert condensed.images.shape == (6, 3, 8, 8)
    assert condensed.about["settings"]["transforms"] == ["color", "crop"]
    assert [row["arm"] for row in told["evaluation"]] == ["condensed", "random", "all"]


def test_digits_are_not_mirrored():
    transforms = Condense.of(data="digits", method="dsa").job().condense.transforms
    assert transforms is not None
    assert "flip" not in transforms
    assert len(transforms) == 5
    assert Condense.of(data="cifar10", method="dsa").job().condense.transforms is None
    assert Condense.of(data="mnist").job().condense.transforms is None


def test_the_default_networks_are_the_papers():
    model = Condense.of().job().model
    assert (model.name, model.options) == ("mlp", {"widths": [128, 128]})
    assert Condense.of(method="dm").job().model.name == "conv_small"


def test_another_run_keeps_its_folder(condense):
    condense()
    before = {p: p.read_bytes() for p in Path("run").iterdir()}
    with pytest.raises(RegraftError, match=r"run holds another run \(per_class=2 instead of 3"):
        condense(per_class=3)
    assert {p: p.read_bytes() for p in Path("run").iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_class": 0}, "--per-class 0: expected at least 1"),
        ({"per_class": 500}, r"--per-class 500: class '0' has 142 image\(s\)"),
        ({"model": "mpl"}, "model name='mpl' is unknown: did you mean 'mlp'"),
        ({"model_options": "[1]"}, "--model-options is no JSON object"),
        ({"model_options": "{"}, "--model-options is no JSON object"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"data": "cora"}, "is a graph and no set of images"),
        ({"transforms": ("crop",)}, "--method dc, which augments nothing"),
        ({"max_seconds": -1.0}, "--max-seconds -1.0"),
        ({"evaluate": True, "evaluate_seeds": 0}, "--evaluate-seeds 0: expected at least 1"),
        ({"threads": 0}, "--threads 0"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_no_folder(condense, change, message):
    with pytest.raises(InputError, match=message):
        condense(**change)
    assert not Path("run").exists()


def test_a_folder_without_test_images_says_how_to_evaluate(condense, image_folder):
    with pytest.raises(InputError, match=r"no test images: hold .* --validation 0.1"):
        condense(data=str(image_folder), image_size=8, evaluate=True)
    assert not Path("run").exists()


def test_a_person_reads_sentences(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for _ in range(2):
        Condense.of(**{**QUICK, "restarts": 2}, out=Path("run"), max_seconds=0).run()
    out, _ = capfd.readouterr()
    first, second, third, *_ = out.splitlines()
    assert first == "stopped after 1 of 2 networks: the same command goes on"
    assert second.startswith("2 images of each of 10 classes in ")
    assert third == "result: run; card: run/README.md"
    assert out.count("stopped") == 1


@pytest.mark.parametrize("method", ["dc", "dm"])
def test_the_command_and_the_job_of_a_recipe_give_the_same_bits(condense, method, tmp_path):
    change = {"outer": None, "inner": None} if method == "dm" else {}
    condense(method=method, seed=3, **change)
    few = {"restarts": 3, "real_batch": 16} | ({} if change else {"outer": 2, "inner": 2})
    transforms = transforms_for("digits", method)
    job = CondenseJob(
        setting="digits",
        data=DataConfig(name="digits", validation=0.0),
        model=Condense.of(**{**QUICK, "method": method}).job().model,
        per_class=2,
        method=method,
        condense=CondenseConfig(**few, transforms=transforms),
        runtime=RuntimeConfig(seed=3, threads=1, accelerator="cpu"),
    )
    job.run(tmp_path / "runs")
    ours, theirs = CondensedSet.load("run"), CondensedSet.load(job.file(tmp_path / "runs"))
    assert torch.equal(ours.images, theirs.images)
    assert ours.classes == theirs.classes
    rows = job.folder(tmp_path / "runs") / "metrics.jsonl"
    assert rows.read_bytes() == Path("run/metrics.jsonl").read_bytes()
    assert ("method" in job.config()) == (method != "dc")


def test_grey_pictures_are_condensed_with_one_channel(condense, image_folder):
    condense(data=str(image_folder), image_size=8, channels=1, model="mlp", real_batch=4)
    assert CondensedSet.load("run").images.shape == (6, 1, 8, 8)


def test_what_only_training_uses_is_refused(condense):
    with pytest.raises(InputError, match="--precision bf16-mixed: images are condensed by one"):
        condense(precision="bf16-mixed")
    with pytest.raises(InputError, match="--devices 2"):
        condense(devices=2)
    assert str(Condense.of().folder()) == "runs/condense-digits-dc"


def test_a_condensation_that_has_not_moved_says_so(condense):
    (note,) = condense(restarts=8, outer=1, inner=0, lr_images=1e-9)["notes"]
    assert "has not fallen" in note
    assert condense(restarts=8, outer=1, inner=0, lr_images=1.0, out=Path("b"))["notes"] == []
