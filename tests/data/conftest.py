import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture
def benchmark_root() -> str:
    """The folder of the real data sets, or a skip."""
    root = os.environ.get("REGRAFT_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("REGRAFT_DATA names no folder with the benchmark data sets")
    return root


@pytest.fixture
def make_images() -> Callable[..., None]:
    """Write PNG images of random pixels: make_images(folder, count, size=(w, h))."""
    image = pytest.importorskip("PIL.Image")

    def make(folder: Path, count: int, size: tuple[int, int] = (12, 10)) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(len(folder.name))
        for i in range(count):
            pixels = torch.randint(
                0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8
            )
            image.fromarray(pixels.numpy()).save(folder / f"{i:03d}.png")

    return make
