"""Every Python snippet of the README and of docs/ runs, small: what it names is made before."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from foreign_generators import digits
from torch import nn

from regraft.config import ModelConfig
from regraft.models import build
from regraft.report.picture import png

ROOT = Path(__file__).parents[1]
SNIPPETS = {
    f"{page.stem}-{i}": text
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for i, text in enumerate(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL))
}


def network():
    return build(ModelConfig(name="mlp", width=0.1), num_classes=2, channels=1, image_size=8)


def images(n=8, channels=1, size=8):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1] * 4)


def trained():
    """Two networks of one architecture, and what goes into them."""
    batches = [(images(), LABELS)] * 2
    return {
        "model": network(), "a": network().state_dict(), "b": network().state_dict(),
        "example_inputs": images(2), "batches": batches, "loader": batches,
    }  # fmt: skip


def symmetric():
    from regraft import symmetry

    names = trained()
    return {**names, "symmetry": symmetry, "spec": symmetry.trace(names["model"], images(2))}


def pictures():
    for name in ("ant", "bee"):
        folder = Path("photos", name)
        folder.mkdir(parents=True)
        for i in range(10):
            pixels = torch.randint(0, 255, (16, 16, 3), dtype=torch.uint8)
            (folder / f"{i}.png").write_bytes(png(pixels))
    return {}


def generating():
    from regraft.generators.sources import ModuleSource
    from regraft.streams import Counter

    generator = digits()
    source = ModuleSource(generator, classes=10)
    shape = {
        "num_classes": 10,
        "channels": source.image_shape[0],
        "image_size": source.image_shape[1],
    }
    model = build(ModelConfig(name="mlp", width=0.1), **shape)
    x = torch.rand(40, *source.image_shape)
    y = torch.arange(40) % 10
    return {
        "generator": generator, "my_generator": generator, "source": source, "Counter": Counter, "F": F,
        "torch": torch, "labels": y, "q": torch.full((64, 10), 0.1), "network": model,
        "model": model, "source_classifier": model, "target_images": x, "images": x, "x": x,
        "y": y, "step": 0, "mean": (0.5,) * x.shape[1], "std": (0.5,) * x.shape[1],
        "loader": [(x, y)], "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }  # fmt: skip


def tapped():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 2))
    return {"model": model, "x": images(), "other": torch.rand(3, 6)}


def few():
    return {
        "torch": torch, "images": images(40, size=28), "labels": torch.arange(40) % 10,
        "support_x": images(5, size=28), "support_y": torch.arange(5),
    }  # fmt: skip


def searching():
    return {"build_model": network, "loss": F.cross_entropy, "loader": [(images(), LABELS)]}


def carried():
    def train_step(model, batch):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return {**trained(), "train_step": train_step, "target_state": network().state_dict()}


def coloured():
    loader = [(images(8, 3, 32), LABELS)]
    return {**trained(), "loader": loader, "epochs": 1}


# What each snippet finds, and what in it is made small.
RUNS = {
    "README-0": (coloured, {}),
    "README-1": (trained, {}),
    "features-0": (coloured, {'"resnet50.a1_in1k", pretrained=True': '"resnet18"'}),
    "features-1": (tapped, {}),
    "fewshot-0": (few, {"30_000": "2", "784, (256, 128, 64, 64), 5": "784, (16, 8), 5"}),
    "finetune-0": (
        pictures,
        {'"timm/resnet18"': '"conv_small"', "pretrained=True": "pretrained=False",
         'method="adarand"': 'method="plain"', "epochs=30": "epochs=1", "image_size=64": "image_size=16"},
    ),
    "generators-0": (generating, {"latent=100": "latent=None", "sample(64, labels": "sample(40, labels"}),
    "generators-1": (generating, {"steps=4000": "steps=2"}),
    "generators-2": (generating, {}),
    "generators-3": (generating, {}),
    "mgr-0": (generating, {"latent=128": "latent=None"}),
    "mgr-1": (None, {}),  # tests/integrations holds both, where they are installed
    "symmetry-0": (dict, {}),
    "symmetry-1": (trained, {}),
    "symmetry-2": (symmetric, {}),
    "symmetry-3": (symmetric, {"steps=1000": "steps=2"}),
    "tickets-0": (searching, {}),
    "tickets-1": (searching, {}),
    "transfer-0": (carried, {"every=100": "every=1"}),
}  # fmt: skip


def test_every_snippet_is_known():
    assert set(SNIPPETS) == set(RUNS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, (names, _) in RUNS.items() if names is not None])
def test_it_runs(name, tmp_path, monkeypatch):
    for needed in ("timm", "transformers"):
        if f"import {needed}" in SNIPPETS[name] or f"from {needed}" in SNIPPETS[name]:
            pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names, small = RUNS[name]
    text = SNIPPETS[name]
    for long, short in small.items():
        assert long in text
        text = text.replace(long, short)
    exec(compile(text, name, "exec"), names())
