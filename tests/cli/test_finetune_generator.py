"""`regraft finetune --generator`: as a new user would, and what is refused."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from regraft.cli import main
from regraft.cli.finetune import FinetuneVerb, PartOptions, UnlabelledOptions

GENERATOR = '''
import torch
from torch import nn


class Toy(nn.Module):
    """G(z, y): a bright row of each class, and some noise."""

    num_classes, latent_dim = 2, 4

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(2, 12 * 12)
        self.noise = nn.Linear(4, 12 * 12)
        with torch.no_grad():
            self.rows.weight.fill_(-2.0)
            for k in range(2):
                self.rows.weight.view(2, 12, 12)[k, 6 * k : 6 * k + 6] = 2.0

    def forward(self, z, y):
        return torch.tanh(self.rows(y) + 4 * self.noise(z)).view(-1, 1, 12, 12)


def build():
    torch.manual_seed(0)
    return Toy()


def steps():
    """Images in four grey levels: nothing passes a gradient."""

    class Steps(Toy):
        def forward(self, z, y):
            return ((super().forward(z, y) * 2).round() / 2).detach()

    torch.manual_seed(0)
    return Steps()
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """20 images a class, and a generator in a file beside them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("toy_generator_mgr", None)
    (tmp_path / "toy_generator_mgr.py").write_text(GENERATOR)
    draw = torch.Generator().manual_seed(0)
    for k, name in enumerate(("above", "below")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = torch.rand(12, 12, generator=draw) * 90
            pixels[6 * k : 6 * k + 6] += 160
            image = Image.fromarray(pixels.to(torch.uint8).numpy())
            image.save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path


COMMON = [
    "--image-size", "12", "--channels", "1", "--lr", "0.05", "--epochs", "2", "--threads", "1",
    "--generator", "toy_generator_mgr:build", "--accelerator", "cpu",
]  # fmt: skip


def finetune(*more):
    return main(["finetune", "--data", "photos", *COMMON, *more])


@pytest.mark.parametrize("method", ["mgr", "pcr", "adarand+mgr"])
def test_a_folder_and_a_generator_of_ones_own_make_a_model_that_predict_opens(
    folder, capsys, method
):
    weight = ["--weight", "0.1"] if "adarand" in method else []
    torch.save(
        importlib.import_module("toy_generator_mgr").build().state_dict(), folder / "toy.pth"
    )
    code = finetune("--method", method, "--out", "out", "--generator-weights", "toy.pth", *weight)
    assert code == 0, capsys.readouterr().err
    assert "test accuracy" in capsys.readouterr().out
    assert main(["predict", "out", "photos/above/0.png"]) == 0
    assert "above" in capsys.readouterr().out
    config = json.loads((folder / "out" / "regraft.json").read_text())
    assert method in json.dumps(config)
    # A finished run is only read; another generator is another run.
    assert (
        finetune("--method", method, "--out", "out", "--generator-weights", "toy.pth", *weight) == 0
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "mgr", "--generator", "toy_generator_mgr:steps"], "select='gradient'"),
        (["--method", "adarand"], "--generator is for the methods mgr and pcr"),
        (["--method", "linear_probe+mgr"], "trains the classifier alone"),
        (["--method", "core_tuning+pcr"], "replaces the base loss"),
        (["--method", "mgr+pcr"], "one method of features, mgr or pcr"),
        (["--method", "mgr", "--mgr-options", '{"folds": 50}'], "no image of class 'above'"),
        (["--method", "mgr", "--mgr-options", '{"fold": 5}'], "--mgr-options has 'fold'"),
        (["--method", "mgr", "--generator", "nothing"], "is no factory, folder or file"),
        (["--method", "mgr", "--generator-weight", "-1"], "--generator-weight -1"),
        (["--method", "mgr", "--generator-options", '{"labels": "onehot"}'], "cannot be called"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence(folder, capsys, arguments, message):
    assert finetune("--out", "out", *arguments) != 0
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_method_of_images_without_a_generator_is_refused(folder, capsys):
    assert main(["finetune", "--data", "photos", "--method", "mgr"]) != 0
    assert "needs a generator" in capsys.readouterr().err


def test_memory_that_runs_out_behind_the_loss_is_told_with_what_would_fit(
    folder, capsys, monkeypatch
):
    backward = torch.Tensor.backward
    sizes = []

    def scarce(self, *args, **options):
        sizes.append(1)
        if len(sizes) == 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return backward(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "backward", scarce)
    assert finetune("--method", "pcr", "--generator-batch", "16", "--out", "out") == 1
    error = capsys.readouterr().err
    assert "memory ran out with 16 generated images a step" in error
    assert "a batch of 8 with a chunk of 8 would fit; set --generator-batch 8" in error


@pytest.mark.filterwarnings("default:generated images of")
def test_generated_images_of_another_size_are_brought_to_the_targets_and_it_is_said(folder, capsys):
    assert finetune("--method", "pcr", "--image-size", "16", "--out", "out") == 0
    said = capsys.readouterr().err
    assert "generated images of 1x12x12 are brought to the real ones' 1x16x16" in said


def test_a_bank_serves_pcr(folder, capsys):
    made = ["toy_generator_mgr:build", "--count", "40", "--out", "bank", "--accelerator", "cpu"]
    assert main(["synth", "make", *made]) == 0
    assert finetune("--method", "pcr", "--generator", "bank", "--out", "out") == 0
    assert "test accuracy" in capsys.readouterr().out
    assert finetune("--method", "mgr", "--generator", "bank", "--out", "out2") == 2
    assert "passes no gradients to its latents" in capsys.readouterr().err


def test_a_source_without_gradients_serves_pcr_and_a_pool(folder, capsys):
    for i, more in enumerate((["--method", "pcr"], ["--method", "mgr", "--select", "gradient"])):
        more = [*more, "--generator", "toy_generator_mgr:steps", "--out", f"out{i}"]
        assert finetune(*more) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("--generator-weights", "a.pth"),
        ("--generator-batch", "8"),
        ("--mgr-options", '{"norm": "own"}'),
    ],
)
def test_options_of_a_generator_without_its_methods_are_refused(words, tmp_path, capsys):
    # With --unlabelled they would leave its generator untrained without a word.
    shared = [
        "finetune",
        "--data",
        "digits",
        "--model",
        "mlp",
        "--method",
        "plain",
        "--unlabelled",
        "x:y",
    ]
    assert main([*shared, *words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"{words[0]} is for the methods mgr and pcr" in said
    assert "--unlabelled-options" in said


@pytest.mark.parametrize("unreadable", ["refuse", "skip"])
def test_what_is_done_about_unreadable_pictures_is_done_about_those_without_labels(unreadable):
    verb = FinetuneVerb(
        data="digits",
        method="plain",
        out=Path("out"),
        sets=PartOptions(unreadable=unreadable),
        more=UnlabelledOptions(unlabelled="pictures"),
    )
    (term,) = verb.job().extras
    assert (term.source.name, term.unreadable) == ("pictures", unreadable)
