"""Omniglot's characters as classes: 964 for background, 659 for evaluation, twenty drawings of each."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.errors import InputError

FILES = {
    "omniglot": "omniglot/images_background.npz",
    "omniglot_evaluation": "omniglot/images_evaluation.npz",
}
"""Files of the known sets, below a data root."""

_HELD_OUT = 4


def read_omniglot(root: Path, *, name: str = "omniglot") -> tuple[Any, ...]:
    """Read the characters of a known set; ink becomes 255 and paper 0, as in MNIST.

    Each drawing of a character is by another hand; the last four are the test images.

    Returns:
        (images uint8 [N, 1, H, H], labels int64 [N]) of train and of test, and the classes.

    Raises:
        InputError: The file is damaged, or holds something else.
    """
    ink = read_characters(root, name)
    labels = torch.arange(len(ink))[:, None].expand(-1, ink.shape[1])
    parts = []
    for chosen in (slice(None, -_HELD_OUT), slice(-_HELD_OUT, None)):
        images, y = ink[:, chosen], labels[:, chosen]
        parts.append((images.flatten(0, 1)[:, None].contiguous(), y.reshape(-1)))
    return *parts, tuple(f"character{i:04d}" for i in range(1, len(ink) + 1))


def read_characters(root: Path, name: str) -> Tensor:
    """Read the file of a known set: `images` bool [C, n, H, H], True where paper is.

    Args:
        root: The data root.
        name: One of `FILES`.

    Returns:
        uint8 [C, n, H, H], ink 255 and paper 0.

    Raises:
        InputError: The file is missing, damaged, or holds something else.
    """
    path = root / FILES[name]
    try:
        # numpy does not close a file that it opened itself and could not read.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            paper = file["images"]
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: put it there, or name another data root") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error}): put it there again") from error
    drawings = paper.shape[1] if paper.ndim == 4 else 0
    if paper.dtype != bool or drawings <= _HELD_OUT:
        raise InputError(
            f"{path} holds images of shape {list(paper.shape)} and {paper.dtype}: expected booleans "
            f"[characters, drawings, pixels, pixels] with more than {_HELD_OUT} drawings"
        )
    return torch.from_numpy(~paper).to(torch.uint8).mul_(255)
