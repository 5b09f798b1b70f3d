"""A written regraft.json given back with --config: the same run, options of the command line on top."""

import json
from pathlib import Path

import pytest
import torch

from regraft.checkpoints.model_card import header
from regraft.config import ModelConfig, to_dict
from regraft.files import write_tensors
from regraft.models import build

CONFIG = ModelConfig(name="mlp", width=0.25)
SMALL = ("--threads", 1, "--accelerator", "cpu")


@pytest.fixture
def pair(tmp_path):
    """Two networks for the digits, in files that say what they are."""
    about = {
        "model": to_dict(CONFIG), "input": {"channels": 1, "image_size": 8},
        "classes": [str(i) for i in range(10)],
    }  # fmt: skip
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = build(CONFIG, num_classes=10, channels=1, image_size=8)
        write_tensors(tmp_path / f"{seed}.safetensors", model.state_dict(), header(about))
    return tmp_path / "1.safetensors", tmp_path / "2.safetensors"


def commands(verb, pair):
    a, b = pair
    return {
        "ticket find": (
            "--data", "digits", "--model", "mlp", "--width", 0.5, "--epochs", 1, "--train-size", 60,
            "--frozen", 0.25, "--trainable", "head.*", *SMALL,
        ),
        "merge": (
            a, b, "--data", "digits", "--match", "activations", "--statistics-images", 50,
            "--points", 0, "--curve-images", 20, "--seed", 3, *SMALL,
        ),
        "align": (a, b, "--mean", 0.5, "--std", 0.25, "--seed", 4, *SMALL),
        "transfer": (
            "--from-init", a, "--from-final", b, "--to", b, "--match", "naive", "--factor", 0.5,
            "--points", 0, "--plane-points", 0, *SMALL,
        ),
        "condense": (
            "--data", "digits", "--per-class", 1, "--restarts", 1, "--outer", 1, "--inner", 0,
            "--real-batch", 4, "--model", "mlp", "--width", 0.25, *SMALL,
        ),
        "finetune": (
            "--data", "digits", "--checkpoint", a, "--method", "plain", "--lr", 0.1, "--epochs", 1,
            "--shots", 4, *SMALL,
        ),
    }[verb]  # fmt: skip


def config_of(folder):
    return json.loads((Path(folder) / "regraft.json").read_text())["config"]


VERBS = ["ticket find", "merge", "align", "transfer", "finetune", "condense"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_written_file_makes_the_same_run_and_options_override_it(answer, pair, verb):
    words = verb.split()
    answer(*words, *commands(verb, pair), "--out", "first")
    for given in ("first", "first/regraft.json"):
        out = answer(*words, "--config", given, "--out", f"again-{len(given)}")["out"]
        assert config_of(out) == config_of("first")
    answer(*words, f"--config={Path('first/regraft.json')}", "--out", "other", "--seed", 9)
    other = config_of("other")
    assert other != config_of("first")
    assert "9" in json.dumps(other)


def test_a_result_changed_by_hand_is_an_input(regraft, refused, pair):
    assert regraft("ticket", "find", *commands("ticket find", pair), "--out", "one")[0] == 0
    text = Path("one/regraft.json").read_text()
    assert '"epochs": 1' in text
    Path("one/regraft.json").write_text(text.replace('"epochs": 1', '"epochs": 2'))
    assert regraft("ticket", "find", "--config", "one/regraft.json", "--out", "two")[0] == 0
    assert config_of("two")["optim"]["epochs"] == 2
    assert "not as Regraft wrote it" in refused("report", "one")


def test_what_may_be_said_twice_is_replaced(regraft, pair):
    from regraft.cli import _command

    content = {
        "verb": "merge",
        "options": {"checkpoints": [str(p) for p in pair], "data": ["x", "y"]},
    }
    Path("m.json").write_text(json.dumps(content))
    _, kept = _command(["merge", "--config", "m.json"])
    assert (kept.data, kept.checkpoints) == (("x", "y"), pair)
    _, said = _command(["merge", "--config", "m.json", "--data", "z"])
    assert said.data == ("z",)


def test_a_part_of_the_options_is_enough(regraft, tmp_path):
    from regraft.cli import _command

    Path("t.json").write_text('{"verb": "ticket find", "options": {"lr": 1, "record": true}}')
    _, find = _command(["ticket", "find", "--config", "t.json", "--epochs", "3", "--no-record"])
    assert (find.lr, find.epochs, find.record, find.data) == (1.0, 3, False, "digits")
    assert isinstance(find.lr, float)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"verb": "align", "options": {}}', "is of `regraft align`, not of `regraft ticket find`"),
        ('{"verb": "ticket find", "options": {"epoch": 1}}', "did you mean 'epochs'?"),
        ('{"verb": "ticket find", "options": {"out": "x"}}', "say --out on the command line"),
        (f'{{"verb": "ticket find", "options": {{"lr": 1{"0" * 400}}}}}', "expected a number"),
        (
            '{"verb": "ticket find", "options": {"epochs": "x"}}',
            "epochs is 'x': expected a whole number",
        ),
        (
            '{"verb": "ticket find", "options": {"method": "x"}}',
            "method is 'x': expected one of iterand",
        ),
        ('{"verb": "ticket find", "options": {"trainable": "x"}}', "expected a list"),
        ('{"verb": "ticket find", "options": {"record": 1}}', "expected true or false"),
        ('{"config": {}, "digest": "x"}', "has no `verb` and `options`"),
        ("[1]", "has no `verb` and `options`"),
        ("{", "is no JSON"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(refused, content, said):
    if content is not None:
        Path("c.json").write_text(content)
    assert said in refused("ticket", "find", "--config", "c.json")


def test_no_file_after_it_is_refused(refused):
    assert "--config: expected a file" in refused("ticket", "find", "--config")
    twice = ("--config", "a.json", "--config=b.json")
    assert "--config stands there twice" in refused("ticket", "find", *twice)
