"""When memory runs out: the batch and the chunk of the generator that would have fit."""

from __future__ import annotations

from collections.abc import Callable

import torch

from regraft.errors import RegraftError


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


def fitting(
    attempt: Callable[[int, int], object], batch: int, chunk: int
) -> tuple[int, int] | None:
    """Return the batch and the chunk, halved until an attempt has enough memory; None if none has.

    The chunk is halved first, since it changes no number.

    Args:
        attempt: (batch, chunk) -> anything; it raises where memory runs out.
        batch: Images a step.
        chunk: Images generated at a time.
    """
    while batch >= 2:
        chunk = min(chunk, batch)
        while chunk >= 1:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            try:
                attempt(batch, chunk)
            except Exception as error:
                if not ran_out(error):
                    raise
                chunk //= 2
            else:
                return batch, chunk
        batch //= 2
        chunk = batch
    return None


def too_large(batch: int, chunk: int, fits: tuple[int, int] | None) -> RegraftError:
    """Return the error to raise instead."""
    what = f"memory ran out with {batch} generated images a step, {chunk} at a time"
    if fits is None:
        return RegraftError(
            f"{what}, and with 2 too: take a smaller network, generator or image size"
        )
    return RegraftError(
        f"{what}: a batch of {fits[0]} with a chunk of {fits[1]} would fit; set --generator-batch "
        f"{fits[0]} and --generator-chunk {fits[1]} (in Python batch={fits[0]}, chunk={fits[1]})"
    )
