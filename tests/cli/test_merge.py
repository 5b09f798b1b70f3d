import json
import os
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file

from checkpoints import CONV, MLP, accuracy, checkpoint, digits, network, trained
from regraft.cli.align import Align
from regraft.cli.merge import Merge
from regraft.errors import InputError
from regraft.symmetry.merge.merge import merge
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.symmetry.trace.trace import trace


def test_two_models_become_one_file_that_says_what_it_is(pair, combine, tmp_path):
    card = combine(pair)
    out = tmp_path / "out"
    names = {"model.safetensors", "spec.json", "permutation.safetensors", "README.md", "card.json"}
    assert {p.name for p in out.iterdir()} == names | {
        "regraft.json",
        "environment.json",
        "result.json",
    }
    assert set(card["files"]) == names
    spec = PermutationSpec.from_json((out / "spec.json").read_text())
    permutation = load_file(out / "permutation.safetensors")
    a, b = (trained(seed=i)[0] for i in (1, 2))
    aligned = spec.apply(b, permutation)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(MLP, aligned)(x), network(MLP, b)(x))
    merged = load_file(out / "model.safetensors")
    for name, tensor in merge([a, aligned]).items():
        torch.testing.assert_close(merged[name], tensor)
    how = card["match"]["models"][1]
    assert how["objective"] == sorted(how["objective"])
    assert how["objective"][-1] > how["objective"][0]
    assert card["repair"]["mode"] == "none"
    assert "there are no data" in card["repair"]["reason"]
    assert any("nothing was measured" in note for note in card["notes"])
    with safe_open(out / "model.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["regraft.model"])
    assert about["model"] == trained()[1]["model"]
    assert about["mean"] == trained()[1]["mean"]
    readme = (out / "README.md").read_text()
    assert "not repaired: there are no data" in readme.lower()


def test_alignment_lowers_the_barrier_and_repair_is_on_with_data(pair, combine, tmp_path):
    card = combine(pair, data=("digits",), points=5)
    scores, curves = card["scores"], card["curves"]["1-2"]
    assert card["repair"]["mode"] == "repair"
    assert card["repair"]["layers"] == ["features.1", "features.3"]
    assert list(curves) == ["not aligned", "not aligned, repaired", "aligned", "aligned, repaired"]
    assert all(len(curve["at"]) == 5 for curve in curves.values())
    assert curves["aligned"]["loss_barrier"] < curves["not aligned"]["loss_barrier"]
    assert scores["merged"]["accuracy"] > scores["not aligned"]["accuracy"]
    merged = network(MLP, load_file(tmp_path / "out" / "model.safetensors"))
    found = scores["merged and repaired"]["accuracy"]
    assert accuracy(merged) == pytest.approx(found, abs=0.01)
    for i in (1, 2):
        own = accuracy(network(MLP, trained(seed=i)[0]))
        assert scores[f"model {i}"]["accuracy"] == pytest.approx(own, abs=0.6)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "logit ensemble" in page
    assert f"{curves['aligned']['loss_barrier']:.3f}" in page


def test_batch_norm_is_reset_with_data_and_asked_for_without(tmp_path, combine):
    paths = [checkpoint(tmp_path / f"{i}.safetensors", "conv", i) for i in (1, 2)]
    card = combine(paths, out=tmp_path / "bare")
    assert any("running statistics (features.1.running_mean and 5" in n for n in card["notes"])
    card = combine(paths, data=("digits",))
    assert card["repair"]["mode"] == "reset"
    assert card["repair"]["norms"] == 3
    assert not any("running statistics" in n for n in card["notes"])
    bare, reset = (load_file(tmp_path / d / "model.safetensors") for d in ("bare", "out"))
    for name in bare:
        statistic = "running" in name
        assert torch.equal(bare[name], reset[name]) != statistic or "tracked" in name
    assert accuracy(network(CONV, reset)) == pytest.approx(
        card["scores"]["merged and repaired"]["accuracy"], abs=0.01
    )


@pytest.mark.parametrize("method", ["average", "slerp", "task_arithmetic", "ties"])
@pytest.mark.parametrize("stream", [False, True])
def test_every_method_merges_a_model_with_its_permuted_self_into_itself(
    method, stream, tmp_path, combine, capsys
):
    first = checkpoint(tmp_path / "1.safetensors")
    card = combine([first, checkpoint(tmp_path / "2.safetensors", seed=2)], out=tmp_path / "pair")
    assert card["kind"] == "merge"
    spec = PermutationSpec.from_json((tmp_path / "pair" / "spec.json").read_text())
    state = trained()[0]
    moved = spec.apply(state, spec.random(5))
    save_file({k: v.contiguous() for k, v in moved.items()}, tmp_path / "moved.safetensors")
    options = {"stream": stream, "combine": method}
    if method in ("task_arithmetic", "ties"):
        base = {k: v + 0.01 * torch.randn(v.shape) for k, v in state.items()}
        save_file(base, tmp_path / "base.safetensors")
        options |= {"base": tmp_path / "base.safetensors"}
    if method == "ties":
        options["density"] = 1.0
    combine([first, tmp_path / "moved.safetensors"], **options)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    if "base" in options:
        # Everything is in the frame of the base, which is nearly that of the first.
        assert (tmp_path / "out" / "permutation-2.safetensors").exists()
    for name in state:
        torch.testing.assert_close(merged[name], state[name], rtol=1e-5, atol=1e-6)


def test_a_streamed_merge_is_the_same_merge(pair, combine, tmp_path):
    combine(pair, out=tmp_path / "whole")
    combine(pair, out=tmp_path / "streamed", stream=True)
    combine(pair, out=tmp_path / "spec", stream=True, spec=tmp_path / "whole" / "spec.json")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    for other in ("streamed", "spec"):
        found = load_file(tmp_path / other / "model.safetensors")
        assert all(torch.equal(found[k], v) for k, v in whole.items())


def test_a_streamed_merge_with_a_base_is_the_same_merge(pair, combine, tmp_path):
    base = checkpoint(tmp_path / "base.safetensors", seed=3)
    options = {"combine": "task_arithmetic", "base": base}
    card = combine(pair, out=tmp_path / "whole", **options)
    combine(pair, out=tmp_path / "streamed", stream=True, **options)
    whole, streamed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "streamed")
    )
    assert all(torch.equal(streamed[k], v) for k, v in whole.items())
    assert [how["to"] for how in card["match"]["models"]] == ["the base"] * 2


def test_three_models_are_aligned_alike_by_both_verbs_and_one_by_one_in_a_stream(
    pair, combine, tmp_path
):
    paths = [*pair, checkpoint(tmp_path / "3.safetensors", seed=3)]
    card = combine(paths, out=tmp_path / "merged")
    streamed = combine(paths, out=tmp_path / "streamed", stream=True)
    assert Align.of(checkpoints=tuple(paths), out=tmp_path / "aligned", json=True).run() == 0
    for k in (2, 3):
        name = f"permutation-{k}.safetensors"
        merged, aligned = (load_file(tmp_path / f / name) for f in ("merged", "aligned"))
        assert all(torch.equal(aligned[g], p) for g, p in merged.items())
        assert card["match"]["models"][k - 1]["to"] == "the mean of the others"
        assert streamed["match"]["models"][k - 1]["to"] == "model 1"
    assert any("aligned to the first alone" in note for note in streamed["notes"])
    assert not any("aligned to the first alone" in note for note in card["notes"])


def test_three_models_are_aligned_together(pair, combine, tmp_path):
    third = checkpoint(tmp_path / "3.safetensors", seed=3)
    card = combine([*pair, third], data=("digits",), weights=(1, 1, 2))
    assert {"permutation-2.safetensors", "permutation-3.safetensors"} <= set(card["files"])
    assert list(card["curves"]) == ["1-2", "1-3"]
    assert set(card["scores"]) >= {"model 1", "model 2", "model 3", "merged", "logit ensemble"}
    assert card["scores"]["merged"]["accuracy"] > card["scores"]["not aligned"]["accuracy"]


def test_without_matching_nothing_is_moved(pair, combine, tmp_path):
    card = combine(pair, match="none", data=("digits",), repair="none")
    assert list(card["curves"]["1-2"]) == ["not aligned"]
    assert set(card["scores"]) == {"model 1", "model 2", "merged", "logit ensemble"}
    merged = load_file(tmp_path / "out" / "model.safetensors")
    states = [trained(seed=i)[0] for i in (1, 2)]
    assert all(torch.equal(merged[k], v) for k, v in merge(states).items())
    assert not (tmp_path / "out" / "spec.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"match": "activations"},
        {"match": "ste", "ste_steps": 8},
        {"match": "ste", "ste_steps": 8, "surrogate": "random", "per_class": 3},
        {"match": "ste", "ste_steps": 8, "surrogate": "herding", "per_class": 3},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_matchers_with_data(options, pair, combine):
    card = combine(pair, data=("digits",), points=0, **options)
    how = card["match"]["models"][1]
    assert card["match"]["by"] == options["match"]
    assert card["scores"]["merged"]["loss"] < card["scores"]["not aligned"]["loss"]
    if options["match"] == "ste":
        images = 30 if "surrogate" in options else len(digits().train)
        assert how["images"] == [{"data": "digits", "images": images}]
        assert how["scores"]
        assert card["curves"] == {}


def test_a_finished_folder_is_left_and_an_unfinished_one_is_made_again(pair, combine, tmp_path):
    out = tmp_path / "out"
    first = combine(pair)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}
    assert combine(pair) == first
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()} == before
    (out / "card.json").unlink()
    (out / "model.safetensors").write_bytes(b"cut")
    (out / ".0123456789abcdef.tmp").write_bytes(b"cut")
    again = combine(pair)
    assert (out / "model.safetensors").read_bytes() == before["model.safetensors"][0]
    assert not list(out.glob(".*"))
    assert again["match"]["models"][1]["objective"] == first["match"]["models"][1]["objective"]
    with pytest.raises(InputError, match="combine='average' instead of 'slerp'"):
        combine(pair, combine="slerp")
    os.utime(pair[1])
    with pytest.raises(InputError, match="a checkpoint has changed since"):
        combine(pair)


def test_it_tells_in_words(pair, tmp_path, capsys):
    assert (
        Merge.of(checkpoints=tuple(pair), out=tmp_path / "out", data=("digits",), points=3).run()
        == 0
    )
    out = capsys.readouterr().out
    for said in (
        "model 2 aligned to model 1 by weights",
        "merged: average",
        "repaired: REPAIR of 2 layers",
    ):
        assert said in out
    assert "barrier between models 1 and 2: not aligned" in out
    assert (
        Merge.of(checkpoints=tuple(pair), out=tmp_path / "out", data=("digits",), points=3).run()
        == 0
    )
    assert "is finished already" in capsys.readouterr().out


def test_without_the_report_extra_the_merge_is_there_all_the_same(pair, combine, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    card = combine(pair, data=("digits",), points=0)
    assert "report.html" not in card["files"]
    assert any("report.html was left out" in note for note in card["notes"])


def test_half_precision_and_torch_files_are_taken(tmp_path, combine):
    state = trained(seed=2)[0]
    half = {k: v.half() for k, v in trained()[0].items()}
    save_file(half, tmp_path / "half.safetensors")
    wrapped = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "b.pth")
    options = {"widths": [24, 16]}
    card = combine(
        [tmp_path / "half.safetensors", tmp_path / "b.pth"],
        model="mlp",
        model_options=json.dumps(options),
    )
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert {v.dtype for v in merged.values()} == {torch.float16}
    assert [m["dtypes"] for m in card["models"]] == [["float16"], ["float32"]]
    assert sum("b.pth" in note for note in card["notes"]) == 2
    assert card["shape"] == {"channels": 1, "image_size": 8, "num_classes": 10}


def test_what_was_merged_can_be_merged_again(pair, combine, tmp_path):
    combine(pair)
    card = combine([tmp_path / "out", pair[1]], out=tmp_path / "again", data=("digits",), points=0)
    assert card["model"]["name"] == "mlp"
    assert card["scores"]["model 1"]["accuracy"] > 50


def test_a_condensed_set_is_made_once(pair, combine, tmp_path, monkeypatch):
    options = {
        "match": "ste",
        "surrogate": "condensed",
        "ste_steps": 4,
        "points": 0,
        "per_class": 1,
    }
    card = combine(pair, data=("digits",), **options)
    out = tmp_path / "out"
    assert card["match"]["models"][1]["images"] == [{"data": "digits", "images": 10}]
    assert "condensed-1.safetensors" in card["files"]
    assert not (out / "condensing-1.safetensors").exists()
    (out / "card.json").unlink()

    def refuse(*_, **__):
        raise AssertionError("condensed again")

    monkeypatch.setattr("regraft.generators.condense", refuse)
    again = combine(pair, data=("digits",), **options)
    assert again["scores"] == card["scores"]


def test_any_kind_of_model_is_merged_by_a_spec_alone(tmp_path, combine):
    """No network of the command line's own is built: here one for sequences, with a tied head."""

    class Language(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(11, 6)
            self.up, self.down = torch.nn.Linear(6, 9), torch.nn.Linear(9, 6)
            self.head = torch.nn.Linear(6, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            x = self.embed(tokens)
            return self.head(x + self.down(self.up(x).relu()))

    tokens = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))
    paths, models = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(Language())
        paths.append(tmp_path / f"{seed}.safetensors")
        state = {k: v for k, v in models[-1].state_dict().items() if k != "head.weight"}
        save_file(state, paths[-1])
    (tmp_path / "s.json").write_text(trace(models[0], tokens).to_json())
    card = combine(paths, spec=tmp_path / "s.json")
    assert card["model"] is None
    assert any("head.weight is tied" in note for note in card["notes"])
    average = load_file(tmp_path / "out" / "model.safetensors")
    spec = PermutationSpec.from_json((tmp_path / "s.json").read_text())
    moved = spec.apply(
        models[1].state_dict(), load_file(tmp_path / "out" / "permutation.safetensors")
    )
    expected = merge([models[0].state_dict(), moved])
    # A tied tensor is stored once, under the name that the first file has.
    assert set(average) == set(expected) - {"head.weight"}
    for name, tensor in average.items():
        torch.testing.assert_close(tensor, expected[name])
    assert load_model(Language(), tmp_path / "out" / "model.safetensors") == (set(), [])
    combine(paths, spec=tmp_path / "s.json", stream=True, out=tmp_path / "streamed")
    streamed = load_file(tmp_path / "streamed" / "model.safetensors")
    assert all(torch.equal(streamed[k], v) for k, v in average.items())
    combine(paths, match="none", out=tmp_path / "plain")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    torch.testing.assert_close(plain["up.bias"], (models[0].up.bias + models[1].up.bias) / 2)
    with pytest.raises(InputError, match="name it with --model"):
        combine(paths, out=tmp_path / "none")
    # Under both names with one value it is the same; with two it is not known which is meant.
    for path in paths:
        state = load_file(path)
        save_file({**state, "head.weight": state["embed.weight"].clone()}, path)
    combine(paths, spec=tmp_path / "s.json", out=tmp_path / "both")
    save_file({**state, "head.weight": state["embed.weight"] + 1}, paths[1])
    with pytest.raises(InputError, match=r"embed.weight and head.weight are one tied tensor"):
        combine(paths, spec=tmp_path / "s.json", out=tmp_path / "two")
