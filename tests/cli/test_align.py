import importlib
import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from checkpoints import CONV, checkpoint, trained
from regraft.cli.align import Align
from regraft.errors import InputError
from regraft.models import build
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.symmetry.trace.trace import trace


@pytest.fixture
def run(tmp_path, capsys):
    def call(paths, **options):
        options = {"out": tmp_path / "out", "json": True, **options}
        assert Align.of(checkpoints=tuple(paths), **options).run() == 0
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out)

    return call


def outputs(state):
    model = build(CONV, num_classes=10, channels=1, image_size=8)
    model.load_state_dict(state)
    x = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return model.eval()(x)


def test_what_is_aligned_computes_the_same_and_lies_closer(run, tmp_path):
    paths = [checkpoint(tmp_path / f"{i}.safetensors", "conv", i) for i in (1, 2)]
    card = run(paths)
    a, b = (trained("conv", i)[0] for i in (1, 2))
    found = load_file(tmp_path / "out" / "aligned.safetensors")
    torch.testing.assert_close(outputs(found), outputs(b), rtol=1e-4, atol=1e-4)
    names = [k for k in a if "weight" in k]
    before, after = (sum(float((a[k] * s[k]).sum()) for k in names) for s in (b, found))
    assert after > before
    spec = PermutationSpec.from_json((tmp_path / "out" / "spec.json").read_text())
    moved = spec.apply(b, load_file(tmp_path / "out" / "permutation.safetensors"))
    assert all(torch.equal(moved[k], v) for k, v in found.items())
    assert card["notes"] == []
    assert set(card["files"]) == {
        "aligned.safetensors", "permutation.safetensors", "spec.json", "README.md", "card.json"
    }  # fmt: skip
    with safe_open(tmp_path / "out" / "aligned.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["regraft.model"])
    assert about == trained("conv", 2)[1] | {"model": about["model"], "input": about["input"]}


def test_several_models_and_a_spec_of_before(run, tmp_path):
    paths = [checkpoint(tmp_path / f"{i}.safetensors", "conv", i) for i in (1, 2, 3)]
    run(paths[:2])
    card = run(paths, out=tmp_path / "more", spec=tmp_path / "out" / "spec.json")
    names = {f"{k}-{i}.safetensors" for k in ("aligned", "permutation") for i in (2, 3)}
    assert names <= set(card["files"])
    for i in (2, 3):
        found = load_file(tmp_path / "more" / f"aligned-{i}.safetensors")
        torch.testing.assert_close(
            outputs(found), outputs(trained("conv", i)[0]), rtol=1e-4, atol=1e-4
        )
    run(paths[:2], out=tmp_path / "again", spec=tmp_path / "out" / "spec.json")
    first = load_file(tmp_path / "out" / "aligned.safetensors")
    second = load_file(tmp_path / "again" / "aligned.safetensors")
    assert all(torch.equal(first[k], v) for k, v in second.items())


def test_classifiers_may_differ(run, tmp_path):
    halves = [(0, 1, 2), (3, 4, 5, 6, 7)]
    paths = [
        checkpoint(tmp_path / f"{i}.safetensors", "conv", i, half) for i, half in enumerate(halves)
    ]
    for given in (paths, paths[::-1]):
        run(given, out=tmp_path / given[0].stem / "out")
        classes = halves[int(given[1].stem)]
        found = load_file(tmp_path / given[0].stem / "out" / "aligned.safetensors")
        own = trained("conv", int(given[1].stem), classes)[0]
        assert found["head.bias"].shape == (len(classes),)
        assert torch.equal(found["head.bias"], own["head.bias"])
        x = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        pair = []
        for state in (found, own):
            model = build(CONV, num_classes=len(classes), channels=1, image_size=8)
            model.load_state_dict(state)
            pair.append(model.eval()(x))
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


def test_a_spec_of_another_network_is_refused(run, tmp_path):
    conv = [checkpoint(tmp_path / f"c{i}.safetensors", "conv", i) for i in (1, 2)]
    mlp = [checkpoint(tmp_path / f"m{i}.safetensors", "mlp", i) for i in (1, 2)]
    run(conv)
    with pytest.raises(InputError, match=r"m1.safetensors has no tensor 'features.0.weight'"):
        run(mlp, out=tmp_path / "no", spec=tmp_path / "out" / "spec.json")
    assert not (tmp_path / "no").exists()


def test_a_finished_folder_is_left_and_a_merge_of_the_same_is_refused(run, tmp_path, capsys):
    from regraft.cli.merge import Merge

    paths = [checkpoint(tmp_path / f"{i}.safetensors", "conv", i) for i in (1, 2)]
    assert run(paths) == run(paths)
    assert Align.of(checkpoints=tuple(paths), out=tmp_path / "out").run() == 0
    assert "is finished already" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"holds another run \(arm align instead of merge"):
        Merge.of(checkpoints=tuple(paths), out=tmp_path / "out").run()


def test_nothing_to_align_by_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="--match none aligns nothing"):
        run([tmp_path / "a", tmp_path / "b"], match="none")


NETWORKS = """
from torch import nn
import torch.nn.functional as F

class Attention(nn.Module):
    def __init__(self, num_classes, in_channels, image_size, heads=4):
        super().__init__()
        self.heads = heads
        self.embed, self.qkv = nn.Linear(image_size, 24), nn.Linear(24, 72)
        self.out, self.head = nn.Linear(24, 24), nn.Linear(24, num_classes)

    def forward(self, x):
        x = self.embed(x[:, 0])
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(y)).mean(1))

class Auxiliary(nn.Module):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        self.a, self.b = nn.Linear(image_size**2, 8), nn.Linear(8, 8)
        self.aux, self.head = nn.Linear(8, num_classes), nn.Linear(8, num_classes)

    def forward(self, x):
        h = F.relu(self.a(x.flatten(1)))
        y = self.head(F.relu(self.b(h)))
        return (y, self.aux(h)) if self.training else y
"""


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """The path of a checkpoint of one of the networks, by name and seed."""
    (tmp_path / "aligned_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "aligned_networks", raising=False)
    module = importlib.import_module("aligned_networks")

    def call(name, seed):
        torch.manual_seed(seed)
        path = tmp_path / f"{name}-{seed}.safetensors"
        save_file(getattr(module, name)(10, 1, 8).state_dict(), path)
        return path

    call.module = module
    return call


def test_a_spec_of_other_heads_is_refused_where_the_network_is_known(networks, run, tmp_path):
    paths = [networks("Attention", seed) for seed in (1, 2)]
    model = "aligned_networks:Attention"
    other = networks.module.Attention(10, 1, 8, heads=6)
    example = torch.randn(2, 1, 8, 8)
    (tmp_path / "spec.json").write_text(trace(other, example).to_json())
    with pytest.raises(InputError, match=r"spec.json is of another network \(permuting the group"):
        run(paths, model=model, spec=tmp_path / "spec.json")
    own = replace(trace(networks.module.Attention(10, 1, 8), example), checked=None)
    (tmp_path / "spec.json").write_text(own.to_json())
    card = run(paths, model=model, spec=tmp_path / "spec.json")
    assert card["match"]["spec"]["checked"] < 1e-12
    assert not card["notes"]
    card = run(paths, spec=tmp_path / "spec.json", out=tmp_path / "bare")
    assert card["match"]["spec"]["checked"] is None
    assert "were not proved here, for want of a network" in card["notes"][0]


def test_an_auxiliary_head_is_named(networks, tmp_path, capsys):
    paths = tuple(networks("Auxiliary", seed) for seed in (1, 2))
    model = "aligned_networks:Auxiliary"
    with pytest.warns(UserWarning, match=r"Auxiliary: aux.weight: used in training only"):
        Align.of(checkpoints=paths, out=tmp_path / "out", model=model, json=True).run()
    assert json.loads(capsys.readouterr().out)["notes"][0].startswith(
        "aux.weight: used in training"
    )
    # What a spec of before says is said again.
    spec = tmp_path / "out" / "spec.json"
    Align.of(checkpoints=paths, out=tmp_path / "more", model=model, spec=spec, json=True).run()
    assert json.loads(capsys.readouterr().out)["notes"][0].startswith(
        "aux.weight: used in training"
    )
