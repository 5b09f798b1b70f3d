"""The network behind a ticket: what its header says, built with care and filled."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from regraft.errors import InputError, MissingExtraError


def network_of(ticket: Any, path: Path, name: str | None = None) -> Any:
    """Return the network of a ticket, filled, in evaluation mode.

    The architecture is compared before memory is spent on it, and code outside Regraft's own
    dependencies is imported only when the caller names it.

    Args:
        ticket: The ticket.
        path: Where it came from, for errors.
        name: The network to build instead of the one the ticket names.

    Raises:
        InputError: The ticket does not say what it is of, or names a factory that the caller has
            not, or the network cannot be built or has other tensors.
    """
    from regraft.checkpoints.model_card import is_elsewhere
    from regraft.models import build
    from regraft.models.bounded import bounded
    from regraft.tickets import fill

    config, shape = facts_of(ticket, path)
    if name is None and is_elsewhere(config.name):
        what = "place outside timm" if config.name.startswith("timm/") else "factory"
        raise InputError(
            f"{path} names the {what} {config.name}, which is code outside the ticket: pass "
            f"--model {config.name} if you trust it"
        )
    if name is not None:
        config = replace(config, name=name)
    compare_sketch(ticket, config, shape)
    with bounded(sum(math.prod(s) for s in ticket.shapes().values())):
        network = build(config, **shape)
    return fill(network, ticket).eval()


def compare_sketch(ticket: Any, config: Any, shape: dict[str, Any]) -> None:
    """Compare a ticket with the network that is to hold it, on the device that stores nothing.

    Not every network can be sketched; what is wrong with the others shows when they are built.

    Raises:
        InputError: The network has other tensors.
    """
    from regraft.tickets.ticket import compare

    sketch = sketched(config, shape)
    if sketch is not None:
        compare(sketch, ticket)


def sketched(config: Any, shape: dict[str, Any]) -> Any:
    """Return a network on the device that stores nothing; None where it cannot be made there.

    A header that asks for a gigantic network must be found out before it is made.
    """
    import torch

    from regraft.checkpoints.model_card import is_elsewhere
    from regraft.models import build
    from regraft.models.bounded import bounded

    if is_elsewhere(config.name):
        return None
    try:
        with torch.device("meta"), bounded():
            return build(config, **shape)
    except (InputError, MissingExtraError, RuntimeError, NotImplementedError):
        return None


def facts_of(ticket: Any, path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the `ModelConfig` of a ticket or model file, and the shapes that `build` takes beside it.

    Raises:
        InputError: The header lacks them or they are not what they should be.
    """
    from regraft.checkpoints.model_card import ModelCard

    card = ModelCard.read(ticket.about, path)
    return card.model, card.shape
