"""Fine-tuning where images are few, or classes uneven: folds, the probe, `auto`, balanced choices."""

import csv
import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regraft.data import ImageSet, Splits
from regraft.jobs.finetune import engine
from regraft.jobs.finetune.defaults import metric_for
from regraft.jobs.finetune.engine import repeated
from regraft.jobs.finetune.files import line_of
from regraft.jobs.finetune.folds import stratified_folds

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

QUICK = shlex.split("--image-size 10 --epochs 2 --batch-size 8 --threads 1 --accelerator cpu")
FACTORY = """
from regraft.config import ModelConfig
from regraft.models import build


def make(num_classes, in_channels=3, image_size=10, **_):
    return build(
        ModelConfig(name="conv_small", width=0.5),
        num_classes=num_classes, channels=3, image_size=10,
    )
"""


def images(root, counts, noise=60):
    """Write classes that differ in colour, a number of images each."""
    generator = torch.Generator().manual_seed(0)
    for label, (name, n) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = torch.randint(noise, (12, 10, 3), generator=generator, dtype=torch.uint8)
            pixels[..., label % 3] += 150
            Image.fromarray(pixels.numpy()).save(root / name / f"{i:03d}.png")
    return root


@pytest.fixture
def counted(monkeypatch):
    """The trainings that take place."""
    trained = []
    fit = engine.fit

    def counting(model, batches, **more):
        trained.append(more["folder"].path)
        return fit(model, batches, **more)

    monkeypatch.setattr(engine, "fit", counting)
    return trained


def test_few_images_are_judged_by_folds_and_all_trained_on(answer, tmp_path, counted):
    data = images(tmp_path / "few", {"ant": 5, "bee": 5, "cat": 5, "dog": 5})
    words = ("finetune", "--data", data, "--out", "run", *QUICK, "--method", "plain")
    words += ("--width", 0.5, "--lr", 0.05, 0.01, "--trials", 2, "--epochs", 1)
    found = answer(*words)
    assert found["images"] == {"train": 16, "test": 4}
    assert found["judged"] == {"validation": 16, "test": 4}
    assert len(counted) == 2 * 5 + 1
    searched = json.loads(Path("run/search.json").read_text())
    assert (searched["folds"], searched["repeats"]) == (5, 1)
    figures = json.loads(Path("run/evaluation.json").read_text())["validation"]
    best = max(t["validation_accuracy"] for t in searched["trials"])
    assert figures["accuracy"] == pytest.approx(best)
    card = " ".join(Path("run/README.md").read_text().split())
    assert "on all 16 images that are not for the test, each judged by a network that was" in card
    rows = list(csv.DictReader(Path("run/split.csv").read_text().splitlines()))
    assert sorted(r["split"] for r in rows) == ["test"] * 4 + ["train"] * 16
    assert not list(Path("run").rglob("checkpoint.safetensors"))
    # The list can be used again; what it lists for training is not measured on.
    assert answer("evaluate", "run", "--data", data)["images"] == 4
    again = [w if w != "run" else "again" for w in words]
    assert answer(*again, "--split", "run/split.csv")["images"] == found["images"]


def test_a_budget_for_short_trials_alone_is_judged_by_them(answer, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.Tuner, "measure", lambda self: (1.0, 0.0))
    data = images(tmp_path / "few", {"ant": 5, "bee": 5})
    words = (
        "finetune",
        "--data",
        data,
        "--out",
        "run",
        *QUICK,
        "--method",
        "plain",
        "--width",
        0.5,
    )
    found = answer(*words, "--epochs", 3, "--lr", 0.05, 0.01, "--budget", "11s", "--batch-size", 4)
    searched = json.loads(Path("run/search.json").read_text())
    assert searched["rungs"] == [{"trials": 2, "epochs": 1}]
    assert found["judged"]["validation"] == found["images"]["train"] == 8
    assert json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["epoch"] == 2


def test_with_shots_the_folds_are_of_these_images_alone(answer, tmp_path):
    data = images(tmp_path / "few", {"ant": 12, "bee": 12})
    words = ("finetune", "--data", data, "--out", "run", *QUICK, "--method", "plain", "--shots", 4)
    found = answer(*words, "--width", 0.5, "--lr", 0.05, 0.01, "--trials", 2, "--epochs", 1)
    assert found["images"]["train"] == found["judged"]["validation"] == 8


def test_the_winner_is_kept_and_not_trained_again(answer, tmp_path, counted):
    data = images(tmp_path / "some", {"ant": 10, "bee": 10, "cat": 10})
    words = ("finetune", "--data", data, *QUICK, "--width", 0.5, "--folds", 0, "--weight", 0.3)
    found = answer(*words, "--lr", 0.05, 0.01, "--trials", 2, "--epochs", 3, "--out", "searched")
    assert len(counted) == 4
    named = answer(*words, "--lr", found["chosen"]["lr"], "--epochs", 3, "--out", "named")
    assert len(counted) == 5
    one, other = (load_file(Path(p) / "model.safetensors") for p in ("searched", "named"))
    assert all(torch.equal(one[k], other[k]) for k in other)
    assert found["metrics"] == named["metrics"]
    assert Path("searched/metrics.jsonl").read_text() == Path("named/metrics.jsonl").read_text()
    assert not list(Path("searched").rglob("checkpoint.safetensors"))


def test_auto_keeps_the_probe_where_training_adds_nothing(answer, tmp_path, monkeypatch, regraft):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_net.py").write_text(FACTORY)
    data = images(tmp_path / "clear", {"ant": 6, "bee": 6, "cat": 6})
    words = ("finetune", "--data", data, "--out", "run", *QUICK, "--model", "own_net:make")
    words += ("--method", "auto", "--trials", 2, "--epochs", 1, "--lr", 1e-6)
    found = answer(*words)
    assert found["chosen"] == {"method": "linear_probe", "lr": None, "weight": None}
    searched = json.loads(Path("run/search.json").read_text())
    assert {t["method"] for t in searched["trials"]} == {"plain", "adarand"}
    assert found["metrics"]["test_accuracy"] == searched["probe"]["test_accuracy"]
    assert found["metrics"]["test_accuracy"] == 100
    card = " ".join(Path("run/README.md").read_text().split())
    assert "A linear probe of the start has" in card
    assert "(+0.0 points by fine-tuning)" in card
    right = answer("evaluate", "run", "--data", data, "--model", "own_net:make")
    assert right["accuracy"] == 100
    assert answer(*words) == found
    code, out, _ = regraft(*words)
    assert code == 0
    assert "linear_probe" in out


def test_auto_keeps_the_probe_where_the_budget_holds_no_trial(regraft, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.Tuner, "measure", lambda self: (1000.0, 0.0))
    data = images(tmp_path / "clear", {"ant": 6, "bee": 6})
    words = ("finetune", "--data", data, "--model", "conv_small", *QUICK, "--budget", "10s")
    code, _, err = regraft(*words, "--method", "plain", "--out", "plain")
    assert code == 2
    assert "--budget of 10 seconds: one trial takes about 83 min and a choice needs two" in err
    code, said, err = regraft(*words, "--method", "auto", "--out", "run")
    assert code == 0, err
    assert "note: no fine-tuning was tried, and the linear probe is kept: --budget of 10" in said
    assert "linear_probe" in said
    assert "no fine-tuning was tried" in Path("run/README.md").read_text()
    assert regraft("predict", "run", data)[0] == 0
    # The probe of pretrained features is there before anything is tried.
    start = ("finetune", "--data", data, "--checkpoint", "run", *QUICK, "--budget", "10s")
    code, said, err = regraft(*start, "--method", "linear_probe", "--out", "probe")
    assert code == 0, err
    assert "the linear probe is kept" in said


def test_auto_keeps_what_training_made_better(answer, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_net.py").write_text(FACTORY)
    data = images(tmp_path / "clear", {"ant": 6, "bee": 6})
    monkeypatch.setattr(
        "regraft.jobs.finetune.choice.judged",
        lambda *_: {"accuracy": 0.0, "balanced_accuracy": 0.0, "loss": 9.0},
    )
    words = ("finetune", "--data", data, "--out", "run", *QUICK, "--model", "own_net:make")
    found = answer(*words, "--method", "auto", "--trials", 2, "--epochs", 1, "--lr", 0.05)
    assert found["chosen"]["method"] in ("plain", "adarand")
    assert f"Method {found['chosen']['method']}" in Path("run/README.md").read_text()


def test_auto_takes_no_options_of_a_method(refused, tmp_path):
    data = images(tmp_path / "clear", {"ant": 6, "bee": 6})
    words = ("finetune", "--data", data, "--out", "run", *QUICK, "--method", "auto")
    assert "--method auto takes the methods as they are" in refused(*words, "--weight", 0.1)


def test_uneven_classes_are_chosen_by_their_mean(answer, tmp_path):
    data = images(tmp_path / "uneven", {"ant": 20, "bee": 20, "cat": 4}, noise=250)
    words = ("finetune", "--data", data, *QUICK, "--method", "plain", "--width", 0.5, "--folds", 0)
    words += ("--lr", 0.05, 0.01, "--trials", 2)
    answer(*words, "--out", "run")
    searched = json.loads(Path("run/search.json").read_text())
    assert searched["metric"] == "balanced_accuracy"
    last = [t for t in searched["trials"] if t["epochs"] == 2]
    best = max(last, key=lambda t: (t["validation_balanced_accuracy"], -t["validation_loss"]))
    assert searched["chosen"]["lr"] == best["lr"]
    card = Path("run/README.md").read_text()
    assert "chosen by the mean over classes" in " ".join(card.split())
    answer(*words, "--out", "other", "--choose-by", "accuracy")
    assert json.loads(Path("other/search.json").read_text())["metric"] == "accuracy"


@pytest.mark.parametrize("option", ["--class-weights", "--balanced-sampling"])
def test_rare_classes_can_count_more(answer, tmp_path, option):
    data = images(tmp_path / "uneven", {"ant": 20, "bee": 4}, noise=250)
    words = ("finetune", "--data", data, *QUICK, "--method", "plain", "--width", 0.5, "--lr", 0.05)
    answer(*words, "--out", "plain")
    answer(*words, "--out", "even", option)
    rows = [
        [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
        for out in ("plain", "even")
    ]
    assert rows[0][0]["loss"] != rows[1][0]["loss"]
    steps = [max(r["step"] for r in part) for part in rows]
    if option == "--balanced-sampling":
        assert steps[1] > steps[0]
    else:
        assert steps[1] == steps[0]


def splits_of(counts):
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    train = ImageSet(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels, len(counts))
    return Splits("x", train, None, train, tuple(map(str, range(len(counts)))), (0.0,), (1.0,))


def test_the_mean_over_classes_is_for_uneven_ones():
    assert metric_for(splits_of((10, 5)), "auto") == "accuracy"
    assert metric_for(splits_of((11, 5)), "auto") == "balanced_accuracy"
    assert metric_for(splits_of((10, 0)), "auto") == "accuracy"
    assert metric_for(splits_of((11, 5)), "accuracy") == "accuracy"
    assert metric_for(splits_of((5, 5)), "balanced") == "balanced_accuracy"


def test_repeated_images_make_classes_even():
    labels = torch.tensor([0, 1, 1, 1, 1, 1, 2, 2])
    rows = repeated(labels)
    assert labels[rows].bincount().tolist() == [5, 5, 5]
    assert set(rows.tolist()) == set(range(8))
    assert torch.bincount(rows)[6:].tolist() == [3, 2]


@pytest.mark.parametrize("counts", [(5, 5, 5, 5), (100, 100, 6, 2), (3, 1, 9)])
def test_folds_hold_each_image_once_and_every_class_in_turn(counts):
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    fold = stratified_folds(labels, 5, seed=1)
    sizes = torch.bincount(fold[fold >= 0], minlength=5)
    assert sizes.max() - sizes.min() <= 1
    for k, n in enumerate(counts):
        own = fold[labels == k]
        if n == 1:
            assert own.tolist() == [-1]
            continue
        each = torch.bincount(own, minlength=5)
        assert each.sum() == n
        assert each.max() - each.min() <= 1
        # Every class can be learned in every fold.
        assert all((own != i).any() for i in range(5))
    other = stratified_folds(labels, 5, seed=1, repeat=1)
    assert not torch.equal(fold, other)
    assert torch.equal(fold, stratified_folds(labels, 5, seed=1))


def test_class_names_stay_on_their_lines():
    assert line_of("a\nb\x1b[31m é") == "a\\nb\\x1b[31m é"
