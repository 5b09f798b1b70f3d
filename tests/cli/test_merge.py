import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file

from checkpoints import CONV, MLP, checkpoint, digits, trained
from regraft.cli.align import Align
from regraft.cli.merge import Merge
from regraft.errors import InputError, RegraftError
from regraft.files import write_tensors
from regraft.jobs.merge import merge as merge_engine
from regraft.models import build
from regraft.symmetry.merge.connectivity import measure
from regraft.symmetry.merge.merge import merge
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.symmetry.trace.trace import trace


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Two checkpoints of mlps trained on the digits from different seeds."""
    monkeypatch.chdir(tmp_path)
    return [checkpoint(tmp_path / f"{i}.safetensors", seed=i) for i in (1, 2)]


@pytest.fixture
def run(tmp_path, capsys):
    """Run the verb on checkpoints with --json and return its answer."""

    def call(paths, **options):
        options = {"out": tmp_path / "out", "json": True, "points": 3, **options}
        assert Merge.of(checkpoints=tuple(paths), **options).run() == 0
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out)

    return call


def network(config, state, classes=10):
    model = build(config, num_classes=classes, channels=1, image_size=8)
    model.load_state_dict(state)
    return model.eval()


def accuracy(model):
    from regraft.jobs.merge.data import Data

    splits = digits()
    data = Data(splits, splits.mean, splits.std, tuple(range(10)))
    return measure(model, [data.batches(data.test, "cpu")]).accuracy


def test_two_models_become_one_file_that_says_what_it_is(pair, run, tmp_path):
    card = run(pair)
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


def test_alignment_lowers_the_barrier_and_repair_is_on_with_data(pair, run, tmp_path):
    card = run(pair, data=("digits",), points=5)
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


def test_batch_norm_is_reset_with_data_and_asked_for_without(tmp_path, run):
    paths = [checkpoint(tmp_path / f"{i}.safetensors", "conv", i) for i in (1, 2)]
    card = run(paths, out=tmp_path / "bare")
    assert any("running statistics (features.1.running_mean and 5" in n for n in card["notes"])
    card = run(paths, data=("digits",))
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
    method, stream, tmp_path, run, capsys
):
    first = checkpoint(tmp_path / "1.safetensors")
    card = run([first, checkpoint(tmp_path / "2.safetensors", seed=2)], out=tmp_path / "pair")
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
    run([first, tmp_path / "moved.safetensors"], **options)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    if "base" in options:
        # Everything is in the frame of the base, which is nearly that of the first.
        assert (tmp_path / "out" / "permutation-2.safetensors").exists()
    for name in state:
        torch.testing.assert_close(merged[name], state[name], rtol=1e-5, atol=1e-6)


def test_a_streamed_merge_is_the_same_merge(pair, run, tmp_path):
    run(pair, out=tmp_path / "whole")
    run(pair, out=tmp_path / "streamed", stream=True)
    run(pair, out=tmp_path / "spec", stream=True, spec=tmp_path / "whole" / "spec.json")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    for other in ("streamed", "spec"):
        found = load_file(tmp_path / other / "model.safetensors")
        assert all(torch.equal(found[k], v) for k, v in whole.items())


def test_a_streamed_merge_with_a_base_is_the_same_merge(pair, run, tmp_path):
    base = checkpoint(tmp_path / "base.safetensors", seed=3)
    options = {"combine": "task_arithmetic", "base": base}
    card = run(pair, out=tmp_path / "whole", **options)
    run(pair, out=tmp_path / "streamed", stream=True, **options)
    whole, streamed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "streamed")
    )
    assert all(torch.equal(streamed[k], v) for k, v in whole.items())
    assert [how["to"] for how in card["match"]["models"]] == ["the base"] * 2


def test_three_models_are_aligned_alike_by_both_verbs_and_one_by_one_in_a_stream(
    pair, run, tmp_path
):
    paths = [*pair, checkpoint(tmp_path / "3.safetensors", seed=3)]
    card = run(paths, out=tmp_path / "merged")
    streamed = run(paths, out=tmp_path / "streamed", stream=True)
    assert Align.of(checkpoints=tuple(paths), out=tmp_path / "aligned", json=True).run() == 0
    for k in (2, 3):
        name = f"permutation-{k}.safetensors"
        merged, aligned = (load_file(tmp_path / f / name) for f in ("merged", "aligned"))
        assert all(torch.equal(aligned[g], p) for g, p in merged.items())
        assert card["match"]["models"][k - 1]["to"] == "the mean of the others"
        assert streamed["match"]["models"][k - 1]["to"] == "model 1"
    assert any("aligned to the first alone" in note for note in streamed["notes"])
    assert not any("aligned to the first alone" in note for note in card["notes"])


def test_three_models_are_aligned_together(pair, run, tmp_path):
    third = checkpoint(tmp_path / "3.safetensors", seed=3)
    card = run([*pair, third], data=("digits",), weights=(1, 1, 2))
    assert {"permutation-2.safetensors", "permutation-3.safetensors"} <= set(card["files"])
    assert list(card["curves"]) == ["1-2", "1-3"]
    assert set(card["scores"]) >= {"model 1", "model 2", "model 3", "merged", "logit ensemble"}
    assert card["scores"]["merged"]["accuracy"] > card["scores"]["not aligned"]["accuracy"]


def test_without_matching_nothing_is_moved(pair, run, tmp_path):
    card = run(pair, match="none", data=("digits",), repair="none")
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
def test_matchers_with_data(options, pair, run):
    card = run(pair, data=("digits",), points=0, **options)
    how = card["match"]["models"][1]
    assert card["match"]["by"] == options["match"]
    assert card["scores"]["merged"]["loss"] < card["scores"]["not aligned"]["loss"]
    if options["match"] == "ste":
        images = 30 if "surrogate" in options else len(digits().train)
        assert how["images"] == [{"data": "digits", "images": images}]
        assert how["scores"]
        assert card["curves"] == {}


def test_a_condensed_set_is_read_and_labels_follow(pair, run, tmp_path):
    from regraft.generators import CondensedSet

    splits = digits()
    rows = torch.cat([(splits.train.labels == c).nonzero()[:2, 0] for c in range(10)])
    images = splits.train.images[rows].float() / 255
    made = CondensedSet(
        images, splits.train.labels[rows], splits.classes, splits.mean, splits.std, "dc"
    )
    made.save(tmp_path / "c.safetensors")
    options = {"match": "ste", "surrogate": "condensed", "ste_steps": 6, "points": 0}
    card = run(pair, data=("digits",), condensed=(tmp_path / "c.safetensors",), **options)
    assert card["match"]["models"][1]["images"] == [{"data": "digits", "images": 20}]


HALVES = [(0, 1, 2, 3, 4), (3, 4, 5, 6, 7, 8, 9)]


@pytest.fixture
def halves(tmp_path):
    return [
        checkpoint(tmp_path / f"{i}.safetensors", "conv", i, classes)
        for i, classes in enumerate(HALVES, start=1)
    ]


def test_class_lists_that_differ_become_one_head_by_name(halves, run, tmp_path):
    card = run(halves, heads="union", data=("digits",))
    assert card["shape"]["num_classes"] == 10
    merged = load_file(tmp_path / "out" / "model.safetensors")
    a, b = (trained("conv", i, c)[0] for i, c in enumerate(HALVES, start=1))
    assert merged["head.bias"].shape == (10,)
    torch.testing.assert_close(merged["head.bias"][:3], a["head.bias"][:3])
    torch.testing.assert_close(merged["head.bias"][5:], b["head.bias"][2:])
    both = (a["head.bias"][3:] + b["head.bias"][:2]) / 2
    torch.testing.assert_close(merged["head.bias"][3:5], both)
    assert accuracy(network(CONV, merged)) == pytest.approx(
        card["scores"]["merged and repaired"]["accuracy"], abs=0.01
    )
    best = max(card["scores"][f"model {i}"]["accuracy"] for i in (1, 2))
    assert best < 75  # neither knows all classes
    assert card["scores"]["logit ensemble"]["accuracy"] > best


def test_heads_apart_are_a_file_each(halves, run, tmp_path):
    with pytest.raises(
        InputError, match=r"has 5 classes and .*2.safetensors has 7: merge them with"
    ):
        run(halves)
    card = run(halves, heads="separate")
    files = [load_file(tmp_path / "out" / f"model-{i}.safetensors") for i in (1, 2)]
    assert "model.safetensors" not in card["files"]
    for i, (file, classes) in enumerate(zip(files, HALVES, strict=True), start=1):
        own = trained("conv", i, classes)[0]
        assert torch.equal(file["head.bias"], own["head.bias"])
        network(CONV, file, len(classes))
        with safe_open(tmp_path / "out" / f"model-{i}.safetensors", framework="pt") as opened:
            about = json.loads(opened.metadata()["regraft.model"])
        assert about["classes"] == trained("conv", i, classes)[1]["classes"]
    assert all(torch.equal(files[0][k], files[1][k]) for k in files[0] if "head" not in k)


def test_a_finished_folder_is_left_and_an_unfinished_one_is_made_again(pair, run, tmp_path):
    out = tmp_path / "out"
    first = run(pair)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}
    assert run(pair) == first
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()} == before
    (out / "card.json").unlink()
    (out / "model.safetensors").write_bytes(b"cut")
    (out / ".0123456789abcdef.tmp").write_bytes(b"cut")
    again = run(pair)
    assert (out / "model.safetensors").read_bytes() == before["model.safetensors"][0]
    assert not list(out.glob(".*"))
    assert again["match"]["models"][1]["objective"] == first["match"]["models"][1]["objective"]
    with pytest.raises(InputError, match="combine='average' instead of 'slerp'"):
        run(pair, combine="slerp")
    os.utime(pair[1])
    with pytest.raises(InputError, match="a checkpoint has changed since"):
        run(pair)


def test_other_peoples_folders_are_refused(pair, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and is no run folder"):
        run(pair)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        run(pair, out=tmp_path / "file")


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


def test_without_the_report_extra_the_merge_is_there_all_the_same(pair, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    card = run(pair, data=("digits",), points=0)
    assert "report.html" not in card["files"]
    assert any("report.html was left out" in note for note in card["notes"])


NAN, INF = float("nan"), float("inf")
ARITHMETIC = {"combine": "task_arithmetic", "base": Path("1.safetensors")}
TIES = {"combine": "ties", "base": Path("1.safetensors")}
REFUSED = [
    ({"combine": "averge"}, "--combine averge: expected one of average"),
    ({"combine": "ties"}, "give it with --base"),
    ({"base": "1.safetensors"}, "--base has no effect on --combine average"),
    ({"density": 0.5}, "--density has no effect on --combine average"),
    ({"weights": (1.0,)}, "1 weight(s) for 2 models"),
    ({"weights": (1.0, -1.0)}, "sum to 0"),
    ({"weights": (1.0, NAN)}, "--weights nan: expected a finite number"),
    ({"weights": (1.0, INF)}, "--weights inf: expected a finite number"),
    ({**ARITHMETIC, "factor": NAN}, "--factor nan: expected a finite number"),
    ({**ARITHMETIC, "factor": -INF}, "--factor -inf: expected a finite number"),
    ({**TIES, "density": NAN}, "--density nan: expected the share of values to keep, in (0, 1]"),
    ({**TIES, "density": 1.5}, "--density 1.5: expected the share"),
    ({"points": 1}, "--points 1"),
    ({"repair": "repair"}, "--repair repair takes statistics from images: add --data"),
    ({"match": "ste"}, "--match ste compares what the models do with images: add --data"),
    ({"surrogate": "random"}, "--surrogate random is for --match ste"),
    ({"stream": True, "data": ("digits",)}, "--stream holds no whole network, which --data needs"),
    ({"stream": True, "heads": "union"}, "which --heads union needs"),
    ({"data": ("digits",) * 3}, "--data is given 3 times for 2 models"),
    ({"data": ("digit",)}, "did you mean 'digits'?"),
    ({"class_names": ("a,b",)}, "--class-names is given 1 times for 2 models"),
    ({"mean": (0.5,)}, "--mean and --std go together"),
    ({"mean": (NAN,), "std": (1.0,)}, "--mean nan: expected a finite number"),
    ({"mean": (INF,), "std": (1.0,)}, "--mean inf: expected a finite number"),
    ({"mean": (0.5,), "std": (0.0,)}, "--std 0.0: expected a finite number above 0"),
    ({"mean": (0.5,), "std": (NAN,)}, "--std nan: expected a finite number above 0"),
    (
        {"mean": (0.5, 0.5), "std": (1.0, 1.0), "data": ("digits",)},
        "have 2 number(s) and data digits",
    ),
    ({"model": "mpl"}, "did you mean 'mlp'?"),
    ({"model": "mlp"}, "features.1.weight has shape (24, 64), expected (256, 64)"),
    ({"model": "conv_small"}, "has no tensor 'features.0.weight'"),
    ({"num_classes": 7}, "head.weight has shape (10, 16), expected (7, 16)"),
    ({"image_size": 9}, "expected (24, 81)"),
    ({"channels": 3, "data": ("digits",)}, "mlp was built for images of 3x8x8"),
    ({"model_options": "{"}, "--model-options is no JSON object"),
    ({"spec": Path("none.json")}, "--spec none.json cannot be read"),
    ({"spec": Path("1.safetensors")}, "--spec 1.safetensors"),
    ({"statistics_images": 0}, "--statistics-images 0: expected at least 1"),
    ({"ste_lr": 0.0}, "--ste-lr 0.0"),
    ({"ste_lr": NAN}, "--ste-lr nan: expected a finite number above 0"),
    ({"width": INF, "model": "mlp"}, "--width inf: expected a finite number above 0"),
    ({"heads": "separate", "match": "ste", "data": ("digits",)}, "--heads union"),
    ({"condensed": ("c.safetensors",)}, "--condensed goes with"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=[s for _, s in REFUSED])
def test_what_cannot_be_used_is_said_and_leaves_no_folder(options, said, pair, run, tmp_path):
    if options.get("model") == "mlp" or "model_options" in options:
        options = {"model": "mlp", **options}
    with pytest.raises(InputError) as caught:
        run(pair, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_do_not_fit_are_said(pair, run, tmp_path):
    bare = checkpoint(tmp_path / "bare.safetensors", header=False)
    with pytest.raises(
        InputError, match="does not say which network it is of: name it with --model"
    ):
        run([bare, pair[1]])
    other = checkpoint(tmp_path / "conv.safetensors", "conv")
    with pytest.raises(
        InputError, match=r"conv.safetensors has no tensor 'features.1.bias'|has shape"
    ):
        run([pair[0], other])
    nan = torch.full((16,), float("nan"))
    bad = checkpoint(tmp_path / "nan.safetensors", **{"features.3.bias": nan})
    with pytest.raises(
        InputError, match=r"nan.safetensors: features.3.bias holds NaN values \(16 of"
    ):
        run([pair[0], bad])
    extra = checkpoint(tmp_path / "extra.safetensors", extra=torch.ones(2))
    with pytest.raises(InputError, match=r"extra.safetensors has a tensor 'extra' that"):
        run([pair[0], extra])
    with pytest.raises(InputError, match="no such file"):
        run([pair[0], tmp_path / "none.safetensors"])
    with pytest.raises(InputError, match="1 checkpoint"):
        run(pair[:1])
    assert not (tmp_path / "out").exists()


def test_labels_that_do_not_fit_the_head_are_said(tmp_path, run):
    paths = [
        checkpoint(tmp_path / f"{i}.safetensors", "conv", i, range(5), header=False) for i in (1, 2)
    ]
    options = {"model": "conv_small", "width": 0.5, "data": ("digits",)}
    with pytest.raises(InputError, match="data digits has 10 classes and the classifier 5 rows"):
        run(paths, **options)


def test_a_checkpoint_that_names_code_is_not_run(pair, run, tmp_path):
    state, about = trained()
    about["model"] = {"name": "antigravity:fly"}
    write_tensors(tmp_path / "x.safetensors", state, {"regraft.model": json.dumps(about)})
    with pytest.raises(InputError, match="names antigravity:fly, which is code outside"):
        run([tmp_path / "x.safetensors", pair[1]])


def test_half_precision_and_torch_files_are_taken(tmp_path, run):
    state = trained(seed=2)[0]
    half = {k: v.half() for k, v in trained()[0].items()}
    save_file(half, tmp_path / "half.safetensors")
    wrapped = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "b.pth")
    options = {"widths": [24, 16]}
    card = run(
        [tmp_path / "half.safetensors", tmp_path / "b.pth"],
        model="mlp",
        model_options=json.dumps(options),
    )
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert {v.dtype for v in merged.values()} == {torch.float16}
    assert [m["dtypes"] for m in card["models"]] == [["float16"], ["float32"]]
    assert sum("b.pth" in note for note in card["notes"]) == 2
    assert card["shape"] == {"channels": 1, "image_size": 8, "num_classes": 10}


def test_a_failure_after_the_start_leaves_no_half_folder(pair, run, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise InputError("no")

    monkeypatch.setattr(merge_engine, "align", refuse)
    with pytest.raises(InputError, match="no"):
        run(pair)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_when_memory_runs_out_the_cure_is_said(stream, error, pair, run, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(merge_engine, "align", fail)
    with pytest.raises(RegraftError, match="give --spec" if stream else "add --stream"):
        run(pair, stream=stream)


def test_other_errors_are_not_called_a_lack_of_memory(pair, run, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(merge_engine, "align", fail)
    with pytest.raises(RuntimeError, match="something else"):
        run(pair)


def test_a_union_takes_names_without_data(halves, run, tmp_path):
    names = tuple(",".join(f"class {i}" for i in half) for half in HALVES)
    card = run(halves, heads="union", class_names=names)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as opened:
        about = json.loads(opened.metadata()["regraft.model"])
    assert about["classes"] == [f"class {i}" for i in range(10)]
    assert card["shape"]["num_classes"] == 10
    with pytest.raises(InputError, match="are 2 and its classifier has 5 rows"):
        run(halves, heads="union", class_names=("a,b", "c"), out=tmp_path / "other")


def test_what_was_merged_can_be_merged_again(pair, run, tmp_path):
    run(pair)
    card = run([tmp_path / "out", pair[1]], out=tmp_path / "again", data=("digits",), points=0)
    assert card["model"]["name"] == "mlp"
    assert card["scores"]["model 1"]["accuracy"] > 50


def test_a_condensed_set_is_made_once(pair, run, tmp_path, monkeypatch):
    options = {
        "match": "ste",
        "surrogate": "condensed",
        "ste_steps": 4,
        "points": 0,
        "per_class": 1,
    }
    card = run(pair, data=("digits",), **options)
    out = tmp_path / "out"
    assert card["match"]["models"][1]["images"] == [{"data": "digits", "images": 10}]
    assert "condensed-1.safetensors" in card["files"]
    assert not (out / "condensing-1.safetensors").exists()
    (out / "card.json").unlink()

    def refuse(*_, **__):
        raise AssertionError("condensed again")

    monkeypatch.setattr("regraft.generators.condense", refuse)
    again = run(pair, data=("digits",), **options)
    assert again["scores"] == card["scores"]


def test_any_kind_of_model_is_merged_by_a_spec_alone(tmp_path, run):
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
    card = run(paths, spec=tmp_path / "s.json")
    assert card["model"] is None
    assert any("head.weight is tied" in note for note in card["notes"])
    merged = load_file(tmp_path / "out" / "model.safetensors")
    spec = PermutationSpec.from_json((tmp_path / "s.json").read_text())
    moved = spec.apply(
        models[1].state_dict(), load_file(tmp_path / "out" / "permutation.safetensors")
    )
    expected = merge([models[0].state_dict(), moved])
    # A tied tensor is stored once, under the name that the first file has.
    assert set(merged) == set(expected) - {"head.weight"}
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name])
    assert load_model(Language(), tmp_path / "out" / "model.safetensors") == (set(), [])
    run(paths, spec=tmp_path / "s.json", stream=True, out=tmp_path / "streamed")
    streamed = load_file(tmp_path / "streamed" / "model.safetensors")
    assert all(torch.equal(streamed[k], v) for k, v in merged.items())
    run(paths, match="none", out=tmp_path / "plain")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    torch.testing.assert_close(plain["up.bias"], (models[0].up.bias + models[1].up.bias) / 2)
    with pytest.raises(InputError, match="name it with --model"):
        run(paths, out=tmp_path / "none")
    # Under both names with one value it is the same; with two it is not known which is meant.
    for path in paths:
        state = load_file(path)
        save_file({**state, "head.weight": state["embed.weight"].clone()}, path)
    run(paths, spec=tmp_path / "s.json", out=tmp_path / "both")
    save_file({**state, "head.weight": state["embed.weight"] + 1}, paths[1])
    with pytest.raises(InputError, match=r"embed.weight and head.weight are one tied tensor"):
        run(paths, spec=tmp_path / "s.json", out=tmp_path / "two")
