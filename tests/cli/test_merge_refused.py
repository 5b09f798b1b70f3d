import json
from pathlib import Path

import pytest
import torch

from checkpoints import checkpoint, trained
from regraft.errors import InputError, RegraftError
from regraft.files import write_tensors
from regraft.jobs.merge import merge as merge_engine


def test_other_peoples_folders_are_refused(pair, combine, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and is no run folder"):
        combine(pair)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        combine(pair, out=tmp_path / "file")


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
def test_what_cannot_be_used_is_said_and_leaves_no_folder(options, said, pair, combine, tmp_path):
    if options.get("model") == "mlp" or "model_options" in options:
        options = {"model": "mlp", **options}
    with pytest.raises(InputError) as caught:
        combine(pair, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_do_not_fit_are_said(pair, combine, tmp_path):
    bare = checkpoint(tmp_path / "bare.safetensors", header=False)
    with pytest.raises(
        InputError, match="does not say which network it is of: name it with --model"
    ):
        combine([bare, pair[1]])
    other = checkpoint(tmp_path / "conv.safetensors", "conv")
    with pytest.raises(
        InputError, match=r"conv.safetensors has no tensor 'features.1.bias'|has shape"
    ):
        combine([pair[0], other])
    nan = torch.full((16,), float("nan"))
    bad = checkpoint(tmp_path / "nan.safetensors", **{"features.3.bias": nan})
    with pytest.raises(
        InputError, match=r"nan.safetensors: features.3.bias holds NaN values \(16 of"
    ):
        combine([pair[0], bad])
    extra = checkpoint(tmp_path / "extra.safetensors", extra=torch.ones(2))
    with pytest.raises(InputError, match=r"extra.safetensors has a tensor 'extra' that"):
        combine([pair[0], extra])
    with pytest.raises(InputError, match="no such file"):
        combine([pair[0], tmp_path / "none.safetensors"])
    with pytest.raises(InputError, match="1 checkpoint"):
        combine(pair[:1])
    assert not (tmp_path / "out").exists()


def test_labels_that_do_not_fit_the_head_are_said(tmp_path, combine):
    paths = [
        checkpoint(tmp_path / f"{i}.safetensors", "conv", i, range(5), header=False) for i in (1, 2)
    ]
    options = {"model": "conv_small", "width": 0.5, "data": ("digits",)}
    with pytest.raises(InputError, match="data digits has 10 classes and the classifier 5 rows"):
        combine(paths, **options)


def test_a_checkpoint_that_names_code_is_not_run(pair, combine, tmp_path):
    state, about = trained()
    about["model"] = {"name": "antigravity:fly"}
    write_tensors(tmp_path / "x.safetensors", state, {"regraft.model": json.dumps(about)})
    with pytest.raises(InputError, match="names antigravity:fly, which is code outside"):
        combine([tmp_path / "x.safetensors", pair[1]])


def test_a_failure_after_the_start_leaves_no_half_folder(pair, combine, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise InputError("no")

    monkeypatch.setattr(merge_engine, "align", refuse)
    with pytest.raises(InputError, match="no"):
        combine(pair)
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
def test_when_memory_runs_out_the_cure_is_said(stream, error, pair, combine, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(merge_engine, "align", fail)
    with pytest.raises(RegraftError, match="give --spec" if stream else "add --stream"):
        combine(pair, stream=stream)


def test_other_errors_are_not_called_a_lack_of_memory(pair, combine, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(merge_engine, "align", fail)
    with pytest.raises(RuntimeError, match="something else"):
        combine(pair)
