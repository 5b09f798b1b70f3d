"""Networks that take something else than images, merged by the command line."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft.cli.align import Align
from regraft.cli.merge import Merge
from regraft.errors import InputError

MODULE = """
import torch
from torch import nn

class Tagger(nn.Module):
    def __init__(self, hidden=16):
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.up, self.down = nn.Linear(12, hidden), nn.Linear(hidden, 12)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids, *, mask):
        x = self.embed(ids) * mask[..., None]
        return {"logits": self.head(x + self.down(torch.relu(self.up(x))))}

def inputs():
    return {"ids": torch.arange(10).reshape(2, 5), "mask": torch.ones(2, 5)}

def nothing():
    pass

def broken():
    raise OSError("no such corpus")
"""


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """A tagger and one that computes the same with its units in other places."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tagger_net.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tagger_net", raising=False)
    import tagger_net  # pyrefly: ignore

    torch.manual_seed(0)
    state = dict(tagger_net.Tagger().state_dict())
    del state["head.weight"]  # tied, and stored once
    order = torch.randperm(16)
    moved = state | {
        "up.weight": state["up.weight"][order],
        "up.bias": state["up.bias"][order],
        "down.weight": state["down.weight"][:, order],
    }
    for name, tensors in (("a", state), ("b", moved)):
        save_file({k: v.clone().contiguous() for k, v in tensors.items()}, f"{name}.safetensors")
    return ("a.safetensors", "b.safetensors"), state


OPTIONS = {"model": "tagger_net:Tagger", "inputs": "tagger_net:inputs", "json": True}


@pytest.mark.parametrize("stream", [False, True])
def test_a_network_of_token_ids_is_traced_and_merged_into_itself(stream, pair, tmp_path, capsys):
    paths, state = pair
    assert Merge.of(checkpoints=paths, out=tmp_path / "out", stream=stream, **OPTIONS).run() == 0
    card = json.loads(capsys.readouterr().out)
    assert card["match"]["spec"]["checked"] < 1e-10
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in state.items():
        torch.testing.assert_close(merged[name], tensor)


@pytest.mark.parametrize("stream", [False, True])
def test_a_spec_of_before_is_proved_with_the_inputs(stream, pair, tmp_path, capsys):
    paths, _ = pair
    assert Align.of(checkpoints=paths, out=tmp_path / "first", **OPTIONS).run() == 0
    spec = tmp_path / "first" / "spec.json"
    capsys.readouterr()
    options = {"checkpoints": paths, "spec": spec, "stream": stream}
    assert Merge.of(out=tmp_path / "proved", **options, **OPTIONS).run() == 0
    assert json.loads(capsys.readouterr().out)["match"]["spec"]["checked"] < 1e-10
    assert Merge.of(out=tmp_path / "bare", **options, json=True).run() == 0
    assert json.loads(capsys.readouterr().out)["match"]["spec"]["checked"] is None


def test_align_takes_such_a_network_too(pair, tmp_path, capsys):
    paths, state = pair
    assert Align.of(checkpoints=paths, out=tmp_path / "out", **OPTIONS).run() == 0
    aligned = load_file(tmp_path / "out" / "aligned.safetensors")
    assert all(torch.equal(aligned[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inputs": "tagger_net:nothing"}, "returned None: expected a tensor, a tuple, or a dict"),
        ({"inputs": "tagger_net:broken"}, "could not be called .OSError: no such corpus"),
        ({"inputs": "tagger_net:input"}, "tagger_net has no 'input': did you mean 'inputs'"),
        ({"inputs": "tagger_net"}, "--inputs tagger_net: expected package.module:function"),
        ({"model": "mlp"}, "--inputs goes with --model package.module:factory"),
        ({"data": ("digits",)}, "takes no images: leave out --data"),
        ({"width": 2.0}, "--width 2 is for networks of images"),
        ({"heads": "union"}, "--heads union needs images"),
        ({"inputs": None}, "is traced with --inputs package.module:function"),
    ],
)
def test_wrong_inputs_are_refused_in_one_sentence(options, said, pair, tmp_path):
    paths, _ = pair
    with pytest.raises(InputError, match=said):
        Merge.of(checkpoints=paths, out=tmp_path / "out", **{**OPTIONS, **options}).run()
    assert not (tmp_path / "out" / "model.safetensors").exists()
