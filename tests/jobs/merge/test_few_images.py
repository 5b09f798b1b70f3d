"""Statistics of a merged network that come from few images."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regraft.cli import main


@pytest.mark.parametrize(("images", "few"), [(100, True), (320, False)])
def test_statistics_of_few_images_are_noted(images, few, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"few_images_{images}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n\n"
        "def net(num_classes, in_channels, image_size):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    for i, file in enumerate("ab"):
        torch.manual_seed(i)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(4, 10),
        )  # fmt: skip
        save_file(net.state_dict(), tmp_path / f"{file}.safetensors")
    words = [
        "merge",
        "a.safetensors",
        "b.safetensors",
        "--model",
        f"{name}:net",
        "--data",
        "digits",
    ]
    words += ["--points", "0", "--statistics-images", str(images), "--out", "out", "--json"]
    assert main(words) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    said = [note for note in notes if "BatchNorm statistics were taken from 100 images" in note]
    assert len(said) == few
    if few:
        assert "compare with --repair none" in said[0]
