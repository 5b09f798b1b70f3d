import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transfers import between, run

from regraft.jobs.transfer import steps


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return run(root / "a", 1, epochs=3, every=1), run(root / "b", 2, epochs=3)


@pytest.fixture
def transfers(monkeypatch):
    """Every transfer that is begun, by its method; one that is put into `stops` is interrupted."""
    begun, stops = [], set()
    whole = steps.transfer

    def watched(*args, by, **options):
        begun.append(by)
        if by in stops:
            raise KeyboardInterrupt
        return whole(*args, by=by, **options)

    monkeypatch.setattr(steps, "transfer", watched)
    return begun, stops


def without_times(card):
    """Return a card without what the clock, the folder or the proof of the spec has a part in."""
    if isinstance(card, dict):
        left_out = (
            "seconds",
            "seconds_before",
            "seconds_of",
            "costs",
            "command",
            "environment",
            "out",
            "checked",
            "lines",
            "next",
        )
        return {k: without_times(v) for k, v in card.items() if k not in left_out}
    return [without_times(v) for v in card] if isinstance(card, list) else card


def test_a_transfer_that_was_interrupted_goes_on_between_its_arms(
    answer, regraft, runs, transfers, tmp_path
):
    begun, stops = transfers
    words = ("transfer", *between(*runs, trained=True), "--data", "digits", "--trajectory-steps", "3",
             "--points", "3", "--plane-points", "3", "--then-train", "1", "--keep-steps", "--threads",
             "1")  # fmt: skip
    wanted = answer(*words, "--out", "whole")
    assert begun == ["fgmt", "naive", "initial_weights", "oracle"]

    begun.clear()
    stops.add("initial_weights")
    code, _, err = regraft(*words, "--out", "out", "--json")
    assert (code, begun) == (130, ["fgmt", "naive", "initial_weights"])
    assert "the same command goes on where it stopped" in err
    assert not (tmp_path / "out/card.json").exists()
    seconds = load_file_of_arm(tmp_path / "out")

    begun.clear()
    stops.clear()
    found = answer(*words, "--out", "out")
    assert begun == ["initial_weights", "oracle"]
    assert without_times(found) == without_times(wanted)
    assert found["curves"]["fgmt"][-1]["costs"]["total"] == seconds
    for name in ("model.safetensors", "permutation.safetensors"):
        one, other = (load_file(tmp_path / folder / name) for folder in ("whole", "out"))
        assert all(torch.equal(one[k], other[k]) for k in other)
    # What was kept on the way is gone, and a finished folder is only read.
    assert not (tmp_path / "out/unfinished").exists()
    begun.clear()
    assert answer(*words, "--out", "out")["scores"] == found["scores"]
    assert begun == []


def load_file_of_arm(out):
    from regraft.train import load_state

    return load_state(out / "unfinished/steps-fgmt.safetensors")["tree"]["rows"][-1]["costs"][
        "total"
    ]


def test_what_another_command_has_kept_is_not_used(answer, regraft, runs, transfers, tmp_path):
    begun, stops = transfers
    words = ("transfer", *between(*runs), "--data", "digits", "--points", "0", "--out", "out")
    stops.add("naive")
    assert regraft(*words, "--trajectory-steps", "2")[0] == 130
    config = json.loads((tmp_path / "out/regraft.json").read_text())
    # The folder is another command's now, but for what is left in it.
    shutil.move(tmp_path / "out/unfinished", tmp_path / "kept")
    shutil.rmtree(tmp_path / "out")
    stops.clear()
    stops.add("fgmt")
    assert regraft(*words, "--trajectory-steps", "3")[0] == 130
    assert json.loads((tmp_path / "out/regraft.json").read_text())["digest"] != config["digest"]
    shutil.copytree(tmp_path / "kept", tmp_path / "out/unfinished")
    stops.clear()
    begun.clear()
    found = answer(*words, "--trajectory-steps", "3")
    assert begun == ["fgmt", "naive", "initial_weights"]
    assert len(found["curves"]["fgmt"]) == 3


def test_a_recording_that_has_changed_is_another_question(answer, refused, runs, tmp_path):
    a, b = runs
    source = tmp_path / "source"
    source.mkdir()
    shutil.copytree(a / "run", source / "trajectory")
    for named, out in ((source, "one"), (source / "trajectory", "two")):
        words = (
            "transfer",
            named,
            "--to",
            b / "init.safetensors",
            "--match",
            "naive",
            "--out",
            out,
        )
        answer(*words)
        answer(*words)
        for name in ("index.json", "step-00000002.safetensors"):
            file = source / "trajectory" / name
            before = file.stat()
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
            assert "changed since" in refused(*words)
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            answer(*words)


def test_of_an_index_of_shards_the_shards_count(tmp_path):
    from regraft.jobs.merge.identity import stamp

    shard, index = tmp_path / "model-1.safetensors", tmp_path / "model.safetensors.index.json"
    shard.write_bytes(b"1")
    index.write_text("{}")
    before = stamp(index)
    assert stamp(index) == before
    shard.write_bytes(b"22")
    assert stamp(index) != before
    assert {name for name, _, _ in stamp(tmp_path)} == {shard.name, index.name}
