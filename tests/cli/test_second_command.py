"""Two commands on one folder, in two processes; and a folder that goes while a command runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints import checkpoint

pytest.importorskip("fcntl")

DIGITS = ["--data", "digits", "--threads", "1", "--accelerator", "cpu"]
QUICK = ["--restarts", "1", "--outer", "1", "--inner", "1", "--real-batch", "8", "--per-class", "1"]
VERBS = {
    "merge": ["merge", "1.safetensors", "2.safetensors"],
    "align": ["align", "1.safetensors", "2.safetensors"],
    "transfer": [
        "transfer", "--match", "initial_weights", "--from-init", "1.safetensors",
        "--from-final", "2.safetensors", "--to", "3.safetensors",
    ],
    "condense": ["condense", *DIGITS, *QUICK, "--width", "0.1"],
    "find": ["ticket", "find", *DIGITS, "--model", "mlp", "--epochs", "1", "--width", "0.1"],
    "finetune": [
        "finetune", *DIGITS, "--model", "mlp", "--method", "plain", "--lr", "0.01", "--epochs", "1",
        "--width", "0.1",
    ],
}  # fmt: skip


class Held:
    """The process that runs the first command of each pair."""

    def __init__(self, folder):
        driver = Path(__file__).parent.parent / "support" / "held_commands.py"
        self.process = subprocess.Popen(
            [sys.executable, driver],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start(self, words):
        """Start a command and return once it holds its folder."""
        self.write(json.dumps(words))
        assert self.read("held") == "held"

    def release(self):
        """Let it go on, and return its exit code."""
        self.write("")
        return int(self.read("left ").removeprefix("left "))

    def write(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def read(self, start):
        for line in self.process.stdout:
            if line.startswith(("held", "left")):
                assert line.startswith(start), self.process.stderr.read()
                return line.strip()
        raise AssertionError(self.process.stderr.read())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    for seed in (1, 2, 3):
        checkpoint(folder / f"{seed}.safetensors", seed=seed)
    return folder


@pytest.fixture(scope="module")
def held(folder):
    held = Held(folder)
    yield held
    held.process.kill()
    held.process.communicate()


@pytest.mark.parametrize("verb", VERBS)
def test_the_second_command_is_refused_at_once_in_one_sentence(
    verb, held, folder, regraft, monkeypatch
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits"))
    words = [*VERBS[verb], "--out", verb, "--json"]
    held.start(words)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in Path(verb).rglob("*")}
    assert before
    code, out, err = regraft(*words)
    assert (code, out) == (1, "")
    refusal = f"{verb} is being written by another process: wait for it or choose another folder"
    assert err == f"regraft: {refusal}\n"
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in Path(verb).rglob("*")}
    assert held.release() == 0
    assert Path(verb, "result.json").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_goes_while_a_command_runs_is_no_success(verb, held, folder):
    held.start([*VERBS[verb], "--out", f"{verb}-gone", "--json"])
    shutil.rmtree(folder / f"{verb}-gone")
    assert held.release() == 1
