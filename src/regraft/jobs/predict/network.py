"""The network behind a ticket: what its header says, built with care and filled."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

# A file brings all weights along, so nothing is fetched or loaded for the sake of its options.
FETCHING = (
    "pretrained",
    "checkpoint_path",
    "checkpoint",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_backbone",
    "weights",
    "weights_backbone",
)
_MAX_UNSKETCHED = 1 << 24


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
    from regraft.errors import InputError
    from regraft.models import build
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
    with _bounded(ticket):
        network = build(config, **shape)
    return fill(network, ticket).eval()


def compare_sketch(ticket: Any, config: Any, shape: dict[str, Any]) -> None:
    """Compare a ticket with the network that is to hold it, on the device that stores nothing.

    Not every network can be sketched; what is wrong with the others shows when they are built.

    Raises:
        InputError: The network has other tensors.
    """
    import torch

    from regraft.errors import InputError, MissingExtraError
    from regraft.models import build
    from regraft.tickets.ticket import compare

    if is_elsewhere(config.name):
        return
    # A header that asks for a gigantic network must be found out before it is made.
    try:
        with torch.device("meta"):
            sketch = build(config, **shape)
    except (InputError, MissingExtraError, RuntimeError, NotImplementedError):
        return
    compare(sketch, ticket)


def is_elsewhere(name: str) -> bool:
    """Whether a name points to code or a configuration outside Regraft's own dependencies."""
    # timm resolves a colon or a slash: into a hub, which it reaches for, or into a local folder.
    return ":" in name or "/" in name.removeprefix("timm/").removeprefix("torchvision/")


@contextlib.contextmanager
def _bounded(ticket: Any) -> Iterator[None]:
    """Refuse a network under construction as soon as it has far more weights than the ticket."""
    from torch.nn.modules.module import register_module_parameter_registration_hook
    from torch.nn.parameter import UninitializedParameter

    from regraft.errors import InputError

    # A factory may make a layer that it then replaces, such as a head of a thousand classes.
    most = _MAX_UNSKETCHED + 4 * sum(math.prod(s) for s in ticket.shapes().values())
    made = 0

    def count(module: Any, name: str, parameter: Any) -> None:
        nonlocal made
        made += 0 if isinstance(parameter, UninitializedParameter) else parameter.numel()
        if made > most:
            raise InputError(
                f"the network has more than {most} weights, far more than the ticket: build the "
                "architecture the ticket was found in"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def facts_of(ticket: Any, path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the `ModelConfig` of a ticket, and the shapes that `build` takes beside it.

    Raises:
        InputError: The header lacks them or they are not what they should be.
    """
    from regraft.config import ModelConfig
    from regraft.errors import InputError

    about = ticket.about
    missing = [k for k in ("model", "classes", "input") if k not in about]
    if missing:
        raise InputError(
            f"{path} does not say which {missing[0]} it is of: say it with `regraft ticket pack {path} "
            f"--out NEW.ticket --{missing[0] if missing[0] != 'input' else 'image-size'} ...`, or fill "
            "the model in a program, with regraft.tickets.fill(model, load_ticket(path))"
        )
    model, classes, shape = (about[k] for k in ("model", "classes", "input"))
    try:
        asked = model.get("options", {})
        options = {k: v for k, v in asked.items() if k not in FETCHING}
        if asked.get("weights") and model.get("name") == "torchvision/inception_v3":
            options.setdefault("transform_input", True)  # what the weights would have set
        fields: dict[str, Any] = {**model, "options": options}
        config = ModelConfig(**fields)
        if not isinstance(config.name, str) or not isinstance(config.width, int | float):
            raise TypeError(f"the model is {str(model)[:100]}")
        if not isinstance(classes, list) or not all(isinstance(k, str) for k in classes):
            raise TypeError(f"the classes are {str(classes)[:100]}")
        graph = shape.get("graph") is True
        sizes = {"features"} if graph else {"channels", "image_size"}
        if shape.keys() != (sizes | {"graph"} if graph else sizes) or not all(
            type(shape[k]) is int and 0 < shape[k] <= 1 << 20 for k in sizes
        ):
            raise TypeError(f"the input is {str(shape)[:100]}")
    except (TypeError, AttributeError) as error:
        raise InputError(
            f"{path} says what it is of in a way this version does not understand ({error}): pack it "
            "again with --model"
        ) from error
    return config, {"num_classes": len(classes), **shape}
