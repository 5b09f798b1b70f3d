from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture
def make_images() -> Callable[..., None]:
    """Write PNG images of random pixels: make_images(folder, count)."""
    image = pytest.importorskip("PIL.Image")

    def make(folder: Path, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(len(folder.name))
        for i in range(count):
            pixels = torch.randint(0, 256, (10, 12, 3), generator=generator, dtype=torch.uint8)
            image.fromarray(pixels.numpy()).save(folder / f"{i:03d}.png")

    return make
