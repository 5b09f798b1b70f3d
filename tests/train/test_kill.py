"""A run that is killed and started again ends with the same bits as one that never stopped."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from regraft.cli import main
from regraft.train import load_state

DRIVER = Path(__file__).parents[1] / "support" / "kill_driver.py"
FIND = shlex.split(
    "ticket find --data digits --model conv_small --width 0.25 --method iterand --every 5 "
    "--epochs 6 --batch-size 64 --threads 1 --accelerator cpu --json"
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are of POSIX")


def command(out, seconds=30.0):
    return [*FIND, "--checkpoint-seconds", str(seconds), "--out", str(out)]


def quiet(arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=400
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of the run that nobody stops."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(out)) == 0
    return out


def assert_same(out, whole, story):
    for name in ("metrics.jsonl", "model.ticket"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), f"{name} after {story}"
    left, right = (load_state(path / "checkpoint.safetensors") for path in (out, whole))
    for part in (left, right):
        part["position"].pop("seconds")  # the one thing that a clock decides
    assert_equal_trees(left, right, story)
    results = [json.loads((path / "result.json").read_text()) for path in (out, whole)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}, story


def assert_equal_trees(left, right, story, path=""):
    assert type(left) is type(right), f"{path} after {story}"
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal_trees(left[key], right[key], story, f"{path}/{key}")
    elif isinstance(left, list):
        assert len(left) == len(right)
        for i, pair in enumerate(zip(left, right, strict=True)):
            assert_equal_trees(*pair, story, f"{path}/{i}")
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right), f"{path} after {story}"
    else:
        assert left == right, f"{path} after {story}"


def test_killed_again_and_again_it_ends_with_the_same_bits(tmp_path, whole):
    # A checkpoint after every step: kills fall into the writing of one. With pauses: between two.
    seed = random.SystemRandom().randrange(2**32)
    outs = (tmp_path / "often", tmp_path / "seldom")
    plans = [
        [seed, 10, 6, 0.02, *command(outs[0], 0.0)],
        [seed, 5, 1, 0.05, *command(outs[1], 0.05)],
    ]
    done = quiet([str(DRIVER), "again", json.dumps(plans)])
    assert done.returncode == 0, f"{plans}: {done.stderr}"
    for out, plan, told in zip(outs, plans, json.loads(done.stdout.splitlines()[-1]), strict=True):
        story = shlex.join(map(str, plan))
        assert told["exit"] == 0, f"{story}: {done.stderr}"
        assert len(told["kills"]) >= 3, story
        for kill in told["kills"]:
            assert kill["signal"] == signal.SIGKILL, story
            assert "result.json" not in kill["files"], story
        assert_same(out, whole, story)


def test_the_command_itself_goes_on_after_a_kill(tmp_path, whole):
    out = tmp_path / "run"
    arguments = [sys.executable, "-m", "regraft.cli", *command(out, 0)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (out / "checkpoint.safetensors").exists():
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert not (out / "result.json").exists()
    assert main(command(out, 0)) == 0
    assert_same(out, whole, "one kill at the first checkpoint")


def test_a_kill_before_the_first_step_is_no_obstacle(tmp_path, whole):
    out = tmp_path / "run"
    out.mkdir()
    (out / f".{'0' * 16}.tmp").write_bytes(b"half a config")
    assert main(command(out)) == 0
    assert_same(out, whole, "a kill in the first write")
