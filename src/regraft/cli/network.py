"""The network behind a ticket: what its header says, built with care and filled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

# A ticket brings all weights along, so nothing is fetched or loaded for the sake of its options.
_FETCHING = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


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
    import torch

    from regraft.errors import InputError, MissingExtraError
    from regraft.models import build
    from regraft.tickets import fill
    from regraft.tickets.ticket import compare

    config, shape = facts_of(ticket, path)
    if name is None and ":" in config.name and not config.name.startswith("timm/"):
        raise InputError(
            f"{path} names the factory {config.name}, which is code outside the ticket: pass "
            f"--model {config.name} if you trust it"
        )
    if name is not None:
        config = replace(config, name=name)
    if ":" not in config.name:
        # A header that asks for a gigantic network must be found out before it is made.
        try:
            with torch.device("meta"):
                sketch = build(config, **shape)
        except (InputError, MissingExtraError, RuntimeError, NotImplementedError):
            pass  # not every network can be sketched; what is wrong shows when it is built
        else:
            compare(sketch, ticket)
    return fill(build(config, **shape), ticket).eval()


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
        options = {k: v for k, v in model.get("options", {}).items() if k not in _FETCHING}
        fields: dict[str, Any] = {**model, "options": options}
        config = ModelConfig(**fields)
        whole = {k: v for k, v in shape.items() if isinstance(v, bool | int)}
        if (
            not isinstance(config.name, str)
            or not isinstance(config.width, int | float)
            or not isinstance(classes, list)
            or whole != shape
        ):
            raise TypeError("a value has another type than it should")
        needed = {"graph", "features"} if shape.get("graph") else {"channels", "image_size"}
        if shape.keys() != needed or not all(0 < v <= 1 << 20 for v in shape.values()):
            raise TypeError(f"the input is {str(shape)[:100]}")
    except (TypeError, AttributeError) as error:
        raise InputError(
            f"{path} says what it is of in a way this version does not understand ({error}): pack it "
            "again with --model"
        ) from error
    return config, {"num_classes": len(classes), **shape}
