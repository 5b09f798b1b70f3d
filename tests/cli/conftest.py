import json
import shutil
from pathlib import Path

import pytest
import torch

from checkpoints import checkpoint
from regraft.cli import main
from regraft.cli.merge import Merge


@pytest.fixture
def regraft(capfd, monkeypatch, tmp_path):
    """Run the command line in this process: regraft(*words) -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words):
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def answer(regraft):
    """Run a verb with --json: answer(*words) -> the one object on standard output."""

    def run(*words):
        code, out, err = regraft(*words, "--json")
        assert code == 0, err
        assert err == ""
        found = json.loads(out)
        assert isinstance(found, dict)
        return found

    return run


@pytest.fixture
def refused(regraft):
    """Run a command that must fail and return its one sentence."""

    def run(*words):
        code, out, err = regraft(*words)
        assert (code, out) == (2, ""), err
        assert err.startswith("regraft: ")
        assert err.count("\n") == 1
        return err

    return run


def photos(folder):
    """Write small random images into a folder, three classes of eight, the same every time."""
    image = pytest.importorskip("PIL.Image")
    numpy = pytest.importorskip("numpy")
    chance = numpy.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cat")):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            pixels = chance.integers(0, 80, (10, 12, 3), dtype=numpy.uint8) + 80 * label
            image.fromarray(pixels.astype("uint8")).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def image_folder(tmp_path):
    """A folder of small random images, three classes of eight."""
    return photos(tmp_path / "photos")


@pytest.fixture(scope="session")
def fine_tuned(tmp_path_factory):
    """Fine-tune on such images: fine_tuned(*words) -> the result, copied, made once for equal words."""
    made = {}

    def result(*words):
        if words not in made:
            folder = tmp_path_factory.mktemp("tuned")
            data = str(photos(folder / "photos"))
            made[words] = folder / "result"
            assert main(["finetune", "--data", data, "--out", str(made[words]), *words]) == 0
        return Path(shutil.copytree(made[words], "result"))

    return result


@pytest.fixture
def factory(tmp_path):
    """Write a module of factories that `--model factories_of_NAME:FACTORY` imports."""
    # A name of its own for each test, as a module is imported once in a process.
    name = f"factories_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n\n"
        "def small(num_classes, in_channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, 16),\n"
        "                         nn.ReLU(), nn.Linear(16, num_classes))\n\n"
        "class NoWeight(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.bias = nn.Parameter(__import__('torch').zeros(num_classes))\n\n"
        "    def forward(self, x):\n"
        "        return x.flatten(1).mean(1, keepdim=True) + self.bias\n\n"
        "def broken():\n"
        "    raise RuntimeError('no luck\\ntoday')\n"
    )
    return name


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Two checkpoints of mlps trained on the digits from different seeds."""
    monkeypatch.chdir(tmp_path)
    return [checkpoint(tmp_path / f"{i}.safetensors", seed=i) for i in (1, 2)]


@pytest.fixture
def combine(tmp_path, capsys):
    """Merge checkpoints with --json and return its answer."""

    def call(paths, **options):
        options = {"out": tmp_path / "out", "json": True, "points": 3, **options}
        assert Merge.of(checkpoints=tuple(paths), **options).run() == 0
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out)

    return call


@pytest.fixture
def clear(tmp_path):
    """A folder of three classes of ten images that differ in colour."""
    image = pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(0)
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "clear" / name).mkdir(parents=True)
        for i in range(10):
            noise = torch.randint(60, (12, 10, 3), generator=generator, dtype=torch.uint8)
            noise[..., label] += 150
            image.fromarray(noise.numpy()).save(tmp_path / "clear" / name / f"{i}.jpg")
    return tmp_path / "clear"
