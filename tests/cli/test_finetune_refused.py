from pathlib import Path

import pytest
from finetuning import GIVEN, source
from safetensors.torch import save_file

pytest.importorskip("PIL.Image")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


def one_class(clear):
    for name in ("bee", "cat"):
        (clear / name).rename(clear.parent / name)


def clash(clear):
    (clear / "cat").rename(clear / "ANT")
    if len(list(clear.iterdir())) < 3:
        pytest.skip("this file system does not tell them apart")


def nothing(clear):
    pass


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        (one_class, (), "has a single class, 'ant'"),
        (clash, (), "only differ in case"),
        (nothing, ("--split", "x.csv", "--shots", 1), "--shots 1: --split says which image"),
        (nothing, ("--split", "x.csv", "--test", 0.5), "--test 0.5: --split says which image"),
        (nothing, ("--class-weights", "--balanced-sampling"), "do the same twice: give one"),
        (nothing, ("--seed", 1 << 70), "--seed 1180591620717411303424: expected"),
        (nothing, ("--validation", 0.001), "--validation 0.001 of"),
        (nothing, ("--validation", 0), "--validation 0 and the data"),
        (nothing, ("--method", "adarnd"), "did you mean 'adarand'?"),
        (nothing, ("--method", "co_tuning"), "needs the classifier of the source"),
        (nothing, ("--method", "plain"), "method 'plain' has no weight"),
        (nothing, ("--method", "supcon", "--mixup", 0.2), "--mixup: method 'supcon'"),
        (nothing, ("--method-options", "{"), "--method-options is no JSON object"),
        (nothing, ("--method-options", '{"colour": 1}'), "colour"),
        (nothing, ("--method-options", '{"weight": 0.05}'), "an option of its own: use --weight"),
        (nothing, ("--method-options", '{"seed": 5}'), "an option of its own: use --seed"),
        (nothing, ("--model", "timm/test_resnet", "--width", 1, "--image-size", 32),
         "'adarand' holds on to what pretrained weights know, and timm/test_resnet starts from random"),
        (nothing, ("--model", "resnet18", "--image-size", 8, "--batch-size", 1), "a larger --batch-size"),
        (nothing, ("--model", "resnet18", "--image-size", 8, "--accumulate", 8), "a smaller --accumulate"),
        (nothing, ("--model", "conv_smal"), "did you mean 'conv_small'?"),
        (nothing, ("--model", "timm/resnet81", "--width", 1), "timm has no model 'resnet81'"),
        (nothing, ("--model", "no.safetensors"), "no.safetensors: no such file"),
        (nothing, ("--checkpoint", "other.safetensors"), "does not say which network it is of"),
        (nothing, ("--checkpoint", "other.safetensors", "--model", "conv4"),
         "checkpoint other.safetensors is of another model than conv4: its tensor 'features.0.weight'"),
        (nothing, ("--checkpoint", "other.safetensors", "--model", "conv_small", "--image-size", 10,
                   "--channels", 1), "its tensor 'features.0.weight' is"),
        (nothing, ("--pretrained",), "conv_small has no hub"),
        (nothing, ("--budget", "soon"), "--budget soon"),
        (nothing, ("--budget", "0"), "--budget 0"),
        (nothing, ("--lr", 0.1, 0.2, "--budget", "0.0001s"), "one trial takes about"),
        (nothing, ("--trials", 0), "--trials 0: expected at least 1"),
        (nothing, ("--lr", 0), "--lr 0"),
        (nothing, ("--lr", 0.1, -1), "--lr -1.0: expected"),
        (nothing, ("--weight", "nan"), "--weight nan: expected"),
        (nothing, ("--ema", 1), "--ema 1.0: expected a number in [0, 1)"),
        (nothing, ("--mixup", 0), "--mixup 0.0: expected"),
        (nothing, ("--layer-decay", 0), "--layer-decay 0.0: expected"),
        (nothing, ("--head-factor", "inf"), "--head-factor inf: expected"),
        (nothing, ("--epochs", 0), "--epochs 0: expected"),
        (nothing, ("--mean", 0.5), "--mean and --std belong together"),
        (nothing, ("--mean", 0.5, "--std", 0.5), "a number for each of the 3 channel(s)"),
        (nothing, ("--split", "none.csv"), "none.csv"),
        (nothing, ("--shots", 50), "shots"),
        (nothing, ("--data", "clea"), "neither a known set nor a folder"),
        (nothing, ("--data", "cora"), "is a graph"),
    ],
    ids=lambda v: " ".join(map(str, v)) if isinstance(v, tuple) else getattr(v, "__name__", ""),
)  # fmt: skip
def test_what_cannot_be_used_ends_in_one_sentence_and_leaves_nothing(
    refused, clear, tmp_path, change, more, said
):
    save_file(source(7), tmp_path / "other.safetensors")
    change(clear)
    assert said in refused("finetune", "--data", clear, *GIVEN, "--out", "run", *more)
    assert not Path("run").exists()
