"""Checkpoints that are read but are unlike what a network holds: narrow, not dense, or tied apart."""

import importlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from checkpoints import checkpoint
from regraft.cli import main
from regraft.cli.merge import Merge
from regraft.errors import InputError
from regraft.files import write_tensors

TIED = """from torch import nn

class Tied(nn.Sequential):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(
            nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, num_classes)
        )
        self[3].weight = self[1].weight
"""


@pytest.fixture
def run(tmp_path, capsys):
    """Merge with --json and return the card."""

    def call(paths, **options):
        assert Merge.of(checkpoints=tuple(paths), json=True, **options).run() == 0
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out)

    return call


HEADS = [{}, {"heads": "union"}, {"heads": "separate"}, {"heads": "union", "match": "none"}]


@pytest.mark.parametrize("options", HEADS, ids=str)
def test_checkpoints_of_eight_bits_are_taken_by_their_values(options, run, tmp_path):
    halves = [(0, 1, 2, 3, 4, 5), (5, 6, 7, 8, 9, 0)]
    paths = {"eight": [], "wide": []}
    for i, classes in enumerate(halves):
        path = checkpoint(tmp_path / f"{i}.safetensors", "conv", i, classes)
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
        state = load_file(path)
        eight = {k: v.to(torch.float8_e4m3fn) for k, v in state.items() if v.is_floating_point()}
        for kind, files in paths.items():
            files.append(tmp_path / f"{kind}-{i}.safetensors")
            values = eight if kind == "eight" else {k: v.float() for k, v in eight.items()}
            write_tensors(files[-1], state | values, about)
    cards = [run(paths[kind], out=tmp_path / kind, **options) for kind in paths]
    for name in (n for n in cards[0]["files"] if n.endswith(".safetensors")):
        eight, wide = (load_file(tmp_path / kind / name) for kind in paths)
        for key, tensor in eight.items():
            if wide[key].is_floating_point():
                assert tensor.dtype == torch.float8_e4m3fn
            assert torch.equal(tensor.float(), wide[key].to(tensor.dtype).float())
    how = [[m.get("objective") for m in card["match"].get("models", ())] for card in cards]
    assert how[0] == how[1]


def test_tied_names_that_differ_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tied_for_a_merge.py").write_text(TIED)
    network = importlib.import_module("tied_for_a_merge").Tied

    options = {"model": "tied_for_a_merge:Tied", "image_size": 2, "channels": 1}
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append({k: v.clone() for k, v in network(3, 1, 2).state_dict().items()})
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path, state in zip(paths, states, strict=True):
        save_file(state, path)
    run(paths, out=tmp_path / "same", **options)
    save_file({**states[1], "3.weight": states[1]["3.weight"] + 1}, paths[1])
    with pytest.raises(InputError) as caught:
        run(paths, out=tmp_path / "out", **options)
    assert str(caught.value) == (
        f"{paths[1]}: 1.weight and 3.weight are one tied tensor of the model and hold different "
        "values: delete the one that is not meant from the checkpoint"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("match", "says"),
    [("weights", "the same command starts again: nothing is kept"), ("ste", "goes on where it")],
)
def test_an_interrupted_merge_says_what_happens_next(match, says, tmp_path, monkeypatch, capsys):
    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("regraft.jobs.merge.merge.read_models", stop)
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    command = ["merge", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    command += ["--data", "digits", "--match", match, "--out", str(tmp_path / "out")]
    assert main(command) == 130
    assert says in capsys.readouterr().err
