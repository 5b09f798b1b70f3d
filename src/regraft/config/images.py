"""What the images of a network are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from regraft.errors import InputError

from .check import AT_LEAST_1, FINITE, POSITIVE, check


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What the images of a network are, where that is not to be what data and checkpoints say."""

    image_size: Annotated[int | None, AT_LEAST_1] = None
    """Side of the images in pixels; without it that of the data, or what fits the checkpoint."""
    channels: Annotated[int | None, AT_LEAST_1] = None
    """Channels of the images, likewise."""
    mean: Annotated[tuple[float, ...], FINITE] = ()
    """Mean of each channel by which images are normalised; without it the data set's own."""
    std: Annotated[tuple[float, ...], POSITIVE] = ()
    """Standard deviation of each channel."""

    def check(self) -> None:
        """Refuse what images cannot be.

        Raises:
            InputError: A number is out of its range, or --mean or --std stands alone.
        """
        check_moments(self.mean, self.std)
        check(self)


def check_moments(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse --mean and --std that are not of the same channels.

    Raises:
        InputError: One is given without the other, or for other channels.
    """
    if len(mean) != len(std):
        raise InputError("--mean and --std go together: give one number of each for a channel")
