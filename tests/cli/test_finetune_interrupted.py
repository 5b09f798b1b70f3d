import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finetuning import GIVEN, QUICK, folder_of
from safetensors.torch import load_file

from regraft.cli import main
from regraft.errors import RegraftError

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


def test_an_error_before_the_first_checkpoint_leaves_the_folder_to_the_corrected_command(
    regraft, answer, clear, monkeypatch
):
    words = ("finetune", "--data", clear, "--out", "run", *QUICK, "--trials", 2)
    Path("run").mkdir()

    def broken(*_, **__):
        raise ValueError("somebody else's code")

    with monkeypatch.context() as patch:
        patch.setattr("regraft.jobs.finetune.engine.fit", broken)
        code, _, err = regraft(*words, "--weight", 0.1)
    assert code == 1
    assert "somebody else's code" in err
    assert folder_of(Path("run")) == set()
    # After a checkpoint there is something to go on from.
    with monkeypatch.context() as patch:
        patch.setattr("regraft.jobs.finetune.job.write_result", broken)
        assert regraft(*words, "--weight", 0.1)[0] == 1
    assert list(Path("run/search").rglob("checkpoint.safetensors"))
    answer(*words, "--weight", 0.1)


def test_another_runs_folder_is_kept(answer, refused, clear):
    answer("finetune", "--data", clear, "--out", "run", *GIVEN)
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    words = ("finetune", "--data", clear, "--out", "run", *GIVEN)
    assert "finetune.ema=None instead of 0.5" in refused(*words, "--ema", 0.5)
    assert "arm adarand instead of plain" in refused(
        "finetune", "--data", clear, "--out", "run", *QUICK, "--lr", 0.05, "--method", "plain"
    )
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before


def test_images_that_changed_meanwhile_are_noticed(regraft, refused, clear, monkeypatch):
    words = ("finetune", "--data", clear, "--out", "run", *GIVEN)
    with monkeypatch.context() as patch:
        patch.setattr("regraft.jobs.finetune.job.write_result", interrupted)
        assert regraft(*words)[0] == 130
    Image.new("RGB", (9, 9)).save(clear / "ant" / "new.png")
    assert "was started with other data" in refused(*words)


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_a_loss_that_is_no_number_ends_the_run_with_its_step(regraft, clear):
    code, _, err = regraft(
        "finetune", "--data", clear, "--out", "run", *QUICK, "--lr", 1e30, "--weight", 1
    )
    assert code == 1
    assert err.count("regraft: ") == 1
    assert "lower the learning rate" in err


def test_a_full_disk_ends_in_one_sentence_and_the_command_goes_on(regraft, clear, monkeypatch):
    words = ("finetune", "--data", clear, "--out", "run", *GIVEN)

    def full(path, *_):
        raise RegraftError(f"writing {path} failed (No space left on device): free some space")

    with monkeypatch.context() as patch:
        patch.setattr("regraft.checkpoints.write.write_tensors", full)
        code, _, err = regraft(*words)
    assert code == 1
    assert "No space left" in err.splitlines()[-1]
    assert not Path("run/result.json").exists()
    rows = Path("run/metrics.jsonl").read_text()
    assert regraft(*words)[0] == 0
    assert Path("run/metrics.jsonl").read_text() == rows
    assert Path("run/result.json").exists()


DRIVER = Path(__file__).parents[1] / "support" / "kill_driver.py"
SEARCHED = shlex.split("--trials 3 --lr 0.05 0.01 --ema 0.8 --mixup 0.2 --json")


def test_killed_at_any_place_it_ends_with_the_same_numbers(clear, tmp_path, capfd):
    words = ["finetune", "--data", str(clear), *QUICK, "--epochs", "6", *SEARCHED]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "run"
    places = [
        f"{place}checkpoint.safetensors"
        for place in ("search/2-epochs/*/", "search/6-epochs/*/", "")
    ]
    arguments = [json.dumps(places), *words, "--out", str(out), "--checkpoint-seconds", "0"]
    done = subprocess.run(
        [sys.executable, DRIVER, "at", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]).count(-signal.SIGKILL) >= 2
    assert main([*words, "--out", str(out), "--checkpoint-seconds", "0"]) == 0
    capfd.readouterr()
    for name in ("metrics.jsonl", "evaluation.json", "split.csv", "classes.txt"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    left, right = (load_file(p / "model.safetensors") for p in (out, tmp_path / "whole"))
    assert all(torch.equal(left[k], right[k]) for k in right)
    left, right = (json.loads((p / "search.json").read_text()) for p in (out, tmp_path / "whole"))
    for kept in (left, right):
        kept.pop("regraft.digest")  # of the seconds too
        for trial in kept["trials"]:
            trial.pop("seconds")
    assert left == right
    assert not list(out.rglob("checkpoint.safetensors"))
