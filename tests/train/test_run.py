import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import safetensors
import safetensors.torch
import torch
from training import Stop, network, stop_at, train

from regraft.config import OptimConfig
from regraft.errors import InputError, RegraftError
from regraft.train import RunFolder, read_json

CONFIG = {"model": {"name": "mlp", "width": 1.0}, "optim": {"lr": 0.1, "epochs": 3}}
STATE = {"model": {"weight": torch.arange(4.0)}, "step": 3}


def opened(path, config=CONFIG, *, arm="iterand", seed=1):
    return RunFolder(path, config=config, setting="digits/mlp", arm=arm, seed=seed)


def contents(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_run_leaves_its_config_and_where_it_ran_and_finds_them_again(tmp_path):
    with opened(tmp_path / "a" / "b") as folder:
        folder.log({"step": 1, "loss": 0.5})
        folder.save_checkpoint(STATE)
        assert folder.result is None
    before = contents(tmp_path)
    assert json.loads((tmp_path / "a" / "b" / "regraft.json").read_text())["config"] == CONFIG
    assert read_json(tmp_path / "a" / "b" / "environment.json")["torch"] == torch.__version__
    with opened(tmp_path / "a" / "b") as folder:
        assert torch.equal(folder.load_checkpoint()["model"]["weight"], torch.arange(4.0))
        assert contents(tmp_path) == before
        folder.finish({"metrics": {"test_accuracy": 90.0}})
        assert folder.result == {"schema": 1, "metrics": {"test_accuracy": 90.0}}


def test_rows_are_cut_back_to_the_checkpoint(tmp_path):
    with opened(tmp_path) as folder:
        folder.log({"step": 1})
        length = folder.sync_metrics()
        folder.log({"step": 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # a row that a kill cut off
    with opened(tmp_path) as folder:
        folder.truncate_metrics(length)
        folder.log({"step": 4})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 4]


@pytest.mark.parametrize("name", ["notes.txt", "metrics.jsonl", ".hidden.tmp"])
def test_a_foreign_folder_is_refused_and_left_untouched(tmp_path, name):
    (tmp_path / name).write_text("mine")
    # The name of a temporary file of ours proves nothing beside a foreign one.
    (tmp_path / f".{'a' * 16}.tmp").write_text("mine too")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"is not empty and is no run folder.*choose another"):
        opened(tmp_path).__enter__()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kept", [[], ["regraft.json"], ["regraft.json", "environment.json"]])
def test_what_a_kill_left_half_written_is_cleared_away(tmp_path, kept):
    with opened(tmp_path):
        pass
    for path in list(tmp_path.iterdir()):
        if path.name not in kept:
            path.unlink()
    for name in (f".{'0123456789abcdef'}.tmp", ".tmpUZ9ab6"):
        (tmp_path / name).write_bytes(b"half")
    with opened(tmp_path):
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"regraft.json", "environment.json"}


@pytest.mark.parametrize(
    "text",
    ["", '{"schema": 1, "arm": "it', "[1, 2]", "{}", '{"digest": "0", "config": []}', "\xff"],
)
def test_a_damaged_config_is_refused(tmp_path, text):
    with opened(tmp_path):
        pass
    (tmp_path / "regraft.json").write_bytes(text.encode("latin-1"))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"regraft\.json is damaged .*remove the folder to start"):
        opened(tmp_path).__enter__()
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"config": {"model": {"name": "mlp", "width": 2.0}, "optim": {"lr": 9, "epochs": 3}}},
            r"model\.width=1\.0 instead of 2\.0",
        ),
        (
            {"config": {"model": CONFIG["model"], "optim": {"lr": 0.2, "epochs": 3}}},
            r"optim\.lr=0\.1 instead of 0\.2",
        ),
        ({"config": {**CONFIG, "new": 1}}, r"new=None instead of 1"),
        ({"config": {"model": CONFIG["model"]}}, r"optim=.* instead of None"),
        ({"arm": "edge_popup"}, "arm iterand instead of edge_popup"),
    ],
)
def test_the_folder_of_another_run_is_refused_by_the_first_difference(tmp_path, changes, message):
    with opened(tmp_path) as folder:
        folder.log({"step": 1})
    before = contents(tmp_path)
    with pytest.raises(InputError, match=rf"holds another run \({message}\): choose another"):
        opened(tmp_path, **changes).__enter__()
    assert contents(tmp_path) == before


HOLD = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_that_another_process_holds_is_refused_until_it_ends(tmp_path):
    pytest.importorskip("fcntl")
    arguments = [sys.executable, "-S", "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RegraftError, match="is being written by another process") as caught:
            opened(tmp_path).__enter__()
        assert caught.value.exit_code == 1
        assert list(tmp_path.iterdir()) == []
        other.kill()
    with opened(tmp_path):
        pass


def test_a_folder_is_held_by_one_run_folder_at_a_time_and_given_back(tmp_path):
    pytest.importorskip("fcntl")
    with (
        opened(tmp_path),
        pytest.raises(RegraftError, match="another process"),
    ):
        opened(tmp_path).__enter__()
    with pytest.raises(InputError, match="another run"):
        opened(tmp_path, arm="dense").__enter__()
    with opened(tmp_path):  # the refusal kept no lock either
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("killed", [False, True])
def test_a_data_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path, killed):
    ends, wait = os.pipe()
    begun, began = os.pipe()
    with opened(tmp_path) as folder:
        worker = os.fork()
        if not worker:
            os.close(wait)
            os.write(began, b"!")
            os.read(ends, 1)  # until the parent is through
            os._exit(0)
        if killed:
            os.read(begun, 1)
            folder._lock.leave()
    with opened(tmp_path):
        pass
    os.close(wait)
    assert os.waitpid(worker, 0)[1] == 0


@pytest.mark.parametrize("kept", ["made", "empty", "begun"])
def test_a_new_folder_is_removed_when_its_input_is_refused(tmp_path, kept):
    path = tmp_path / "a"
    if kept != "made":
        path.mkdir()
    if kept == "begun":
        with opened(path):
            pass
    before = contents(tmp_path)

    def run():
        with opened(path) as folder:
            folder.pin("data", {"images": 3})
            raise InputError("no such data")

    with pytest.raises(InputError, match="no such data"):
        run()
    assert path.exists() == (kept != "made")
    if kept != "begun":
        assert contents(tmp_path) == before
        with opened(path, arm="corrected"):
            pass


@pytest.mark.parametrize("kept", ["checkpoint", "metrics", "part", "file"])
def test_what_there_is_to_go_on_from_stays_when_a_run_fails(tmp_path, kept):
    keep = {
        "checkpoint": lambda folder: folder.save_checkpoint(STATE),
        "metrics": lambda folder: folder.log({"step": 1}),
        "part": lambda folder: folder.kept("one", lambda: {"x": 1}),
        "file": lambda folder: (folder.path / "notes.txt").write_text("mine"),
    }[kept]

    def run():
        with opened(tmp_path / "a") as folder:
            keep(folder)
            raise InputError("later")

    with pytest.raises(InputError, match="later"):
        run()
    with pytest.raises(InputError, match="holds another run"):
        opened(tmp_path / "a", arm="corrected").__enter__()


def test_parts_are_kept_until_the_run_has_finished(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"state": torch.arange(3.0), "rows": [1, 2]}

    for _ in range(2):
        with opened(tmp_path) as folder:
            part = folder.kept("steps", make)
            assert torch.equal(part["state"], torch.arange(3.0))
            assert part["rows"] == [1, 2]
    assert made == [1]
    with opened(tmp_path) as folder:
        folder.save_checkpoint(STATE)
        folder.finish({"metrics": {}}, keep_checkpoint=False)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"regraft.json", "environment.json", "result.json"}


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("what", ["pin", "save_checkpoint", "kept", "finish"])
def test_a_folder_that_was_removed_ends_the_run_with_one_sentence(tmp_path, what, replaced):
    pytest.importorskip("fcntl")
    path = tmp_path / "a"
    with opened(path) as folder:
        folder.log({"step": 1})
        shutil.rmtree(path)
        if replaced:
            path.mkdir()
        calls = {
            "pin": lambda: folder.pin("data", {}),
            "save_checkpoint": lambda: folder.save_checkpoint(STATE),
            "kept": lambda: folder.kept("one", dict),
            "finish": lambda: folder.finish({}),
        }
        with pytest.raises(RegraftError, match="was removed while it was being written") as caught:
            calls[what]()
        assert caught.value.exit_code == 1
    assert contents(tmp_path) == {}


def test_a_finished_result_is_read_without_holding_the_folder(tmp_path):
    with opened(tmp_path / "a") as folder:
        assert opened(tmp_path / "a").finished() is None
        folder.finish({"metrics": {"x": 1.0}})
        assert opened(tmp_path / "a").finished() == {"schema": 1, "metrics": {"x": 1.0}}
        with pytest.raises(InputError, match="holds another run"):
            opened(tmp_path / "a", arm="dense").finished()
    assert opened(tmp_path / "b").finished() is None
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file: give a folder"):
        opened(tmp_path / "file").finished()


def test_what_was_read_and_has_changed_is_said_in_words(tmp_path):
    config = {**CONFIG, "files": [["a", 1]], "images": ["x"]}
    with opened(tmp_path, config):
        pass
    for changed, said in (
        ({"files": [["a", 2]]}, "a checkpoint has changed since"),
        ({"images": ["y"]}, "the images of --data have changed since"),
        ({"files": [["a", 2]], "optim": {"lr": 1, "epochs": 3}}, r"optim.lr=0.1 instead of 1"),
    ):
        with pytest.raises(InputError, match=rf"holds another run \({said}\)"):
            opened(tmp_path, {**config, **changed}).__enter__()


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK"])
def test_of_several_processes_only_the_first_writes(tmp_path, monkeypatch, rank):
    with opened(tmp_path) as folder:
        folder.save_checkpoint(STATE)
    before = contents(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(rank, "1")
    with opened(tmp_path) as folder:
        folder.log({"step": 1})
        folder.truncate_metrics(0)
        folder.finish({})
        assert folder.load_checkpoint()["step"] == 3
    assert contents(tmp_path) == before


@pytest.mark.parametrize("part", [0, 5, 60, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path, part):
    with pytest.raises(Stop):
        train(tmp_path, network(), progress=stop_at(4))
    file = tmp_path / "checkpoint.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: part if isinstance(part, int) else int(len(data) * part)])
    with pytest.raises(InputError, match=r"checkpoint\.safetensors is damaged.*start again"):
        train(tmp_path, network())


def test_metrics_shorter_than_the_checkpoint_says_are_refused(tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, network(), progress=stop_at(8))
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(InputError, match=r"metrics\.jsonl is shorter than its checkpoint says"):
        train(tmp_path, network())


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_result_is_refused(tmp_path, text):
    with opened(tmp_path) as folder:
        (tmp_path / "result.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=r"result\.json is damaged .*start again"):
            _ = folder.result


@pytest.mark.parametrize("name", ["file", "file/run", "file/a/b"])
def test_a_path_at_or_below_a_file_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot be written \(.*\): give a path"):
        opened(tmp_path / name).__enter__()
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        safetensors.SafetensorError("Error while serializing: I/O error: No space left on device"),
    ],
)
def test_a_full_disk_ends_the_run_with_one_sentence_and_keeps_the_checkpoint(
    tmp_path, monkeypatch, error
):
    whole, parts = network(), network()
    train(tmp_path / "whole", whole)
    real, calls = safetensors.torch.save_file, []

    def save_file(tensors, path, metadata=None):
        calls.append(path)
        real(tensors, path, metadata=metadata)
        if len(calls) == 5:
            path.write_bytes(b"half")
            raise error

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    with pytest.raises(RegraftError, match=r"writing .* failed .*No space left.*free") as caught:
        train(tmp_path / "parts", parts)
    assert not isinstance(caught.value, InputError)
    monkeypatch.undo()
    names = {path.name for path in (tmp_path / "parts").iterdir()}
    assert names == {
        "regraft.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoint.safetensors",
    }
    with opened_parts(tmp_path) as folder:
        assert folder.load_checkpoint()["position"]["step"] == 4
    again = network(seed=7)
    train(tmp_path / "parts", again)
    assert all(map(torch.equal, whole.state_dict().values(), again.state_dict().values()))


def opened_parts(tmp_path):
    config = {"lr": OptimConfig().lr}
    return RunFolder(tmp_path / "parts", config=config, setting="s", arm="dense", seed=1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is of Linux")  # noqa: PTH110
def test_a_row_that_finds_no_space_ends_the_run_with_one_sentence(tmp_path):
    with opened(tmp_path) as folder:
        folder.log({"step": 0})
        folder._metrics.close()
        folder._metrics = open("/dev/full", "ab")  # noqa: SIM115, PTH123
        with pytest.raises(RegraftError, match=r"metrics\.jsonl failed \(No space left"):
            folder.log({"step": 1})
