import csv
import json
import re
from pathlib import Path

import pytest
import torch
from finetuning import GIVEN, QUICK, folder_of, source
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from regraft.cli.finetune import METHOD_NAMES, FinetuneVerb
from regraft.errors import InputError

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


def test_one_command_leaves_a_usable_model(answer, regraft, clear, tmp_path):
    out = tmp_path / "run"
    found = answer("finetune", "--data", clear, "--out", out, *QUICK, "--epochs", 12, "--trials", 3)
    assert found["metrics"]["test_accuracy"] >= 80
    assert found["images"] == {"train": 18, "validation": 6, "test": 6}
    assert folder_of(out) == {
        "README.md", "card.json", "classes.txt", "regraft.json", "data.json", "environment.json",
        "evaluation.json", "metrics.jsonl", "model.safetensors", "report.html", "result.json",
        "search", "search.json", "split.csv",
    }  # fmt: skip
    assert (out / "classes.txt").read_text() == "ant\nbee\ncat\n"
    searched = json.loads((out / "search.json").read_text())
    assert [r["trials"] for r in searched["rungs"]] == [3, 2]
    assert len(searched["trials"]) == 5
    best = max(
        searched["trials"][3:], key=lambda t: (t["validation_accuracy"], -t["validation_loss"])
    )
    assert found["chosen"] == {k: best[k] for k in ("method", "lr", "weight")}
    # The run that is kept is the trial that was chosen.
    assert found["metrics"]["validation_accuracy"] == best["validation_accuracy"]
    measured = json.loads((out / "evaluation.json").read_text())
    assert measured["test"]["accuracy"] == found["metrics"]["test_accuracy"]
    assert measured["validation"]["loss"] <= measured["validation"]["uncalibrated"]["loss"] + 1e-9
    with safe_open(out / "model.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["regraft.model"])
    assert about["temperature"] == measured["test"]["temperature"] == 1.0  # of so few images
    rows = list(csv.DictReader((out / "split.csv").read_text().splitlines()))
    assert {r["image"] for r in rows} == {
        f"{c}/{i}.jpg" for c in ("ant", "bee", "cat") for i in range(10)
    }
    # Once more: nothing is trained, the same is told.
    assert (
        answer("finetune", "--data", clear, "--out", out, *QUICK, "--epochs", 12, "--trials", 3)
        == found
    )


def test_card_and_page_hold_the_same_figures_and_no_script(answer, clear, tmp_path):
    out = tmp_path / "run"
    answer("finetune", "--data", clear, "--out", out, *GIVEN)
    test = json.loads((out / "evaluation.json").read_text())["test"]
    card, page = (out / "README.md").read_text(), (out / "report.html").read_text()
    for text in (card, page):
        assert f"{test['accuracy']:.1f}% of 6 test images" in text
        assert "as given" in text
        for row in test["per_class"]:
            assert row["class"] in text
    for name, row in zip(("ant", "bee", "cat"), test["confusion"], strict=True):
        assert f"| {name} | {' | '.join(map(str, row))} |" in card
    tables = [[]]
    for line in card.splitlines():
        if line.startswith("|"):
            tables[-1].append(line.replace("\\|", "").count("|"))
        else:
            tables.append([])
    assert sum(map(bool, tables)) >= 3
    assert all(len(set(columns)) <= 1 for columns in tables)
    for table in re.findall("<table>.*?</table>", page, re.DOTALL):
        lines = [len(re.findall("<t[hd][ >]", row)) for row in re.findall("<tr>.*?</tr>", table)]
        assert len(set(lines)) == 1
        assert len(lines) >= 2
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") == 2


DOUBLE = ("--precision", "64-true")
METHODS = [
    ("plain", ("--precision", "bf16-mixed")), ("adarand", ("--mixup", 0.3, "--ema", 0.8)),
    ("l2sp", ("--layer-decay", 0.5)),
    ("bss", ()), ("supcon", ("--head-factor", 5)), ("core_tuning", DOUBLE), ("dr_tune", DOUBLE),
    ("delta", (*DOUBLE, "--class-weights")),
    ("lp_ft", ("--freeze-batchnorm",)), ("linear_probe", ()), ("bitfit", ()),
    ("randreg", ("--method-options", '{"kind": "class"}')), ("feature_norm", ("--optimizer", "adamw")),
    ("co_tuning", ("--checkpoint", "source.safetensors", *DOUBLE)),
]  # fmt: skip
NO_WEIGHT = {"plain", "lp_ft", "linear_probe", "bitfit"}


@pytest.mark.parametrize(("method", "more"), METHODS, ids=[m for m, _ in METHODS])
def test_every_method_trains_by_the_command(answer, clear, tmp_path, method, more):
    save_file(source(7), tmp_path / "source.safetensors")
    words = ("finetune", "--data", clear, "--out", "run", *QUICK, "--lr", 0.05)
    words += ("--model", "conv_small")
    weight = () if method in NO_WEIGHT else ("--weight", 0.1)
    found = answer(*words, *weight, "--method", method, *more)
    assert found["method"] == method
    assert 0 <= found["metrics"]["test_accuracy"] <= 100
    assert load_file(tmp_path / "run" / "model.safetensors").keys() == source(3).keys()


def test_a_regraft_file_says_its_own_network_size_and_channels(regraft, answer, clear, tmp_path):
    code, _, err = regraft(
        "finetune", "--data", clear, "--out", "a", *GIVEN, "--channels", 1, "--model", "conv_small"
    )
    assert code == 0, err
    words = ("finetune", "--data", clear, "--model", "a/model.safetensors", "--out", "b")
    answer(*words, "--epochs", 1, "--lr", 0.01, "--weight", 0.1)
    config = json.loads(Path("b/regraft.json").read_text())["config"]
    assert (config["model"]["width"], config["channels"]) == (0.5, 1)
    assert config["data"]["image_size"] == 10
    _, _, said = regraft(*words[:-1], "c", "--epochs", 1, "--lr", 0.01, "--weight", 0.1)
    assert "weights from a/model.safetensors" in said


def test_a_head_of_another_size_is_replaced_and_said_so(regraft, clear, tmp_path):
    save_file(source(7), tmp_path / "source.safetensors")
    words = ("finetune", "--data", clear, "--out", "run", *GIVEN, "--model", "conv_small")
    code, _, err = regraft(*words, "--checkpoint", "source.safetensors")
    assert code == 0
    assert (
        "the classifier head is new: that of source.safetensors has 7 classes and the data 3" in err
    )


def test_a_split_is_used_again(answer, clear):
    answer("finetune", "--data", clear, "--out", "a", *GIVEN, "--split-seed", 5)
    answer("finetune", "--data", clear, "--out", "b", *GIVEN, "--split", "a/split.csv")
    assert Path("a/split.csv").read_text() == Path("b/split.csv").read_text()
    assert Path("a/metrics.jsonl").read_text() == Path("b/metrics.jsonl").read_text()


def test_known_sets_and_shots(answer):
    pytest.importorskip("sklearn")
    found = answer("finetune", "--data", "digits", "--shots", 3, *GIVEN, "--out", "run")
    assert found["images"] == {"train": 30, "validation": 30, "test": 359}


def test_a_folder_too_large_for_memory_gives_the_same_numbers(answer, clear, monkeypatch):
    words = ("finetune", "--data", clear, *GIVEN, "--channels", 1)
    first = answer(*words, "--out", "a")["metrics"]
    monkeypatch.setattr("regraft.data.memory.MOST_BYTES", 0)
    monkeypatch.setattr("regraft.data.loader.cores", lambda: 0)
    assert answer(*words, "--out", "b")["metrics"] == first


def test_without_test_images_the_card_says_where_its_figures_come_from(answer, regraft, clear):
    code, _, err = regraft("finetune", "--data", clear, *GIVEN, "--out", "run", "--test", 0)
    assert code == 0
    assert "no test images" in err
    assert "These images also chose the model" in Path("run/README.md").read_text()


def test_results_and_trials_are_runs_that_a_report_reads(answer, clear):
    for method in ("plain", "adarand"):
        words = ("finetune", "--data", clear, *QUICK, "--method", method, "--out", f"all/{method}")
        answer(*words, "--lr", 0.05, 0.01, "--trials", 2)
    rows = answer("report", "all")["rows"]
    assert {(r["arm"], r.get("control")) for r in rows} == {("plain", None), ("adarand", "plain")}
    assert {r["setting"] for r in rows} == {"clear/conv_small"}
    tried = answer("report", "all/adarand/search", "--metric", "validation_accuracy")["rows"]
    assert len(tried) == 4  # two short ones, then both at full length


def test_odd_pictures_are_taken(answer, clear):
    for i in range(3):
        Image.new("L", (9, 9), 40 * i).save(clear / "ant" / f"grey{i}.png")
        Image.new("RGBA", (9, 9), (1, 2, 3, 40 * i)).save(clear / "bee" / f"alpha{i}.png")
        Image.new("I;16", (9, 9), 9000 * i).save(clear / "cat" / f"deep{i}.png")
        Image.new("P", (9, 9), i).save(clear / "cat" / f"moving{i}.gif")
    found = answer("finetune", "--data", clear, "--out", "run", *GIVEN)
    assert sum(found["images"].values()) == 42


@pytest.mark.filterwarnings("default")
def test_corrupt_images_are_named_or_left_out(refused, regraft, clear):
    (clear / "ant" / "bad.jpg").write_bytes((clear / "ant" / "0.jpg").read_bytes()[:200])
    words = ("finetune", "--data", clear, "--out", "run", *GIVEN)
    assert "bad.jpg cannot be decoded" in refused(*words)
    assert not Path("run").exists()
    code, _, err = regraft(*words, "--unreadable", "skip")
    assert code == 0
    assert "left out 1 unreadable image" in err


def test_a_class_of_one_image_is_trained_on_and_told(regraft, clear):
    for path in sorted((clear / "cat").iterdir())[1:]:
        path.unlink()
    code, _, err = regraft("finetune", "--data", clear, "--out", "run", *GIVEN)
    assert code == 0
    assert "one training image only of 1 class(es): 'cat'" in err


RANDOM = ("--model", "torchvision/googlenet", "--width", 1, "--image-size", 32, "--method", "plain")


def test_a_random_start_is_said_on_the_terminal_and_in_the_card(regraft, clear):
    words = ["finetune", "--data", clear, "--out", "run", *QUICK, "--lr", 0.01, *RANDOM]
    code, _, err = regraft(*words, "--epochs", 1, "--model-options", '{"init_weights": false}')
    assert code == 0, err
    said = (
        "torchvision/googlenet starts from random weights: give --pretrained or --checkpoint FILE"
    )
    assert said in " ".join(err.split())
    assert (
        f"Start: {said}; without the auxiliary classifiers aux1, aux2."
        in Path("run/README.md").read_text()
    )


@pytest.mark.parametrize("method", ["plain", "bss"])
def test_a_random_start_is_refused_to_methods_that_hold_on_to_it_only(method):
    from regraft.config import FinetuneConfig
    from regraft.jobs.finetune.methods import needs_pretrained

    assert not needs_pretrained(FinetuneConfig(method=method))
    for kind, needed in (("class", True), ("source", True), ("uniform", False)):
        assert needs_pretrained(FinetuneConfig(method="randreg", options={"kind": kind})) is needed


def test_the_help_names_every_method(regraft):
    from regraft.features import METHODS as REGISTERED

    assert set(METHOD_NAMES) == set(REGISTERED)
    said = " ".join(regraft("finetune", "--help")[1].replace("│", " ").split())
    assert ", ".join(METHOD_NAMES) in said


def test_what_torchvisions_weights_change_is_there_when_it_predicts(answer, clear, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    made = torchvision.models.googlenet

    def offline(weights=None, **options):
        """Change the options as torchvision does for weights, without fetching any."""
        if weights is None:
            return made(**options)
        torch.manual_seed(3)
        model = made(**options, num_classes=7, transform_input=True, init_weights=False)
        model.aux_logits, model.aux1, model.aux2 = False, None, None
        return model

    monkeypatch.setattr(torchvision.models, "googlenet", offline)
    words = ["finetune", "--data", clear, "--out", "run", *QUICK, "--lr", 0.01, *RANDOM]
    answer(*words, "--epochs", 1, "--pretrained")
    with safe_open("run/model.safetensors", framework="pt") as file:
        options = json.loads(file.metadata()["regraft.model"])["model"]["options"]
    assert options == {"transform_input": True, "aux_logits": False, "init_weights": False}
    found = answer("evaluate", "run", "--data", clear)
    wanted = json.loads(Path("run/evaluation.json").read_text())["test"]
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
    assert found["confusion"] == wanted["confusion"]


def test_single_images_are_taken_where_batchnorm_is_frozen(answer, clear):
    words = ("--model", "resnet18", "--batch-size", 1, "--freeze-batchnorm", "--method", "plain")
    words += ("--image-size", 8, "--lr", 1e-6)
    answer("finetune", "--data", clear, "--out", "run", *QUICK, *words, "--epochs", 1)


def test_a_search_survives_rates_that_diverge(answer, clear):
    found = answer(
        "finetune", "--data", clear, "--out", "run", *QUICK, "--lr", 1e30, 0.05, "--weight", 1
    )
    assert found["chosen"]["lr"] == 0.05
    trials = json.loads(Path("run/search.json").read_text())["trials"]
    assert "diverged" in next(t for t in trials if t["lr"] == 1e30)


def test_few_images_get_enough_steps(answer, clear):
    words = [w for w in GIVEN if w not in ("--epochs", "2")]
    answer("finetune", "--data", clear, "--out", "run", *words)
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    # 18 images in batches of 8 are 3 steps an epoch.
    assert max(r["epoch"] for r in rows) == 67 - 1
    assert max(r["step"] for r in rows if r["split"] == "train") == 201


def test_budgets_are_read(clear):
    def seconds(text):
        return FinetuneVerb.of(data=str(clear), budget=text).job().search.seconds

    assert [seconds(t) for t in ("90", "90s", "1.5 m", "2h")] == [90, 90, 90, 7200]
    for wrong in ("", "m", "-3", "1d", "0s"):
        with pytest.raises(InputError, match="--budget"):
            seconds(wrong)
