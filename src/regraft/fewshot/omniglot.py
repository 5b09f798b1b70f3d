"""Omniglot as episodes: the official split by alphabets, and the official one-shot runs.

References:
    Lake et al., "Human-level concept learning through probabilistic program induction", Science 2015:
    30 background and 20 evaluation alphabets; 20 runs of 20-way one-shot classification.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from regraft.data import ImageSet, resize
from regraft.data.known import data_root
from regraft.data.omniglot import read_characters
from regraft.errors import InputError, MissingExtraError

from .episodes import Episodes

Part = Literal["background", "evaluation"]
RUNS = 20


def omniglot(part: Part, root: str | None = None, *, size: int = 28) -> ImageSet:
    """Return all drawings of a part, paper white: uint8 [M, 1, size, size], 20 of each character.

    Args:
        part: `background` (964 characters) or `evaluation` (659).
        root: Data root; see `regraft.data.data_root`.
        size: Side in pixels.

    Raises:
        InputError: The file is missing, damaged, or holds something else.
    """
    name = "omniglot" if part == "background" else "omniglot_evaluation"
    ink = read_characters(data_root(root), name)
    characters, drawings = ink.shape[:2]
    labels = torch.arange(characters).repeat_interleave(drawings)
    return ImageSet(resize(255 - ink.flatten(0, 1)[:, None], size), labels, characters)


def one_shot_runs(root: str | None = None, *, size: int = 28) -> Episodes:
    """Return the 20 official runs: one drawing of each of 20 characters, and 20 drawings to classify.

    Raises:
        InputError: ROOT/omniglot/all_runs.zip is missing or damaged.
        MissingExtraError: Pillow is not installed.
    """
    path = data_root(root) / "omniglot" / "all_runs.zip"
    try:
        with zipfile.ZipFile(path) as file:
            runs = [_run(file, f"run{number:02d}", size) for number in range(1, RUNS + 1)]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}): put it there again") from error
    sx, qx, qy = (torch.stack(parts) for parts in zip(*runs, strict=True))
    sy = torch.arange(sx.shape[1]).expand(len(runs), -1).contiguous()
    return Episodes(sx.float() / 255, sy, qx.float() / 255, qy)


def _run(
    file: zipfile.ZipFile, run: str, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pairs = [line.split() for line in file.read(f"{run}/class_labels.txt").decode().splitlines()]
    pairs = [pair for pair in pairs if pair]
    support = sorted({Path(train).name for _, train in pairs})
    label = {name: i for i, name in enumerate(support)}
    sx = [_picture(file.read(f"{run}/training/{name}")) for name in support]
    qx = [_picture(file.read(f"{run}/test/{Path(test).name}")) for test, _ in pairs]
    qy = torch.tensor([label[Path(train).name] for _, train in pairs])
    return resize(torch.stack(sx), size), resize(torch.stack(qx), size), qy


def _picture(data: bytes) -> torch.Tensor:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("Pillow", "vision", "the one-shot runs of Omniglot") from error
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("L")))[None]
