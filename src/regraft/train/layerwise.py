"""Learning rates that fall towards the input: what is general changes less than what is special.

References:
    Howard and Ruder, "Universal language model fine-tuning for text classification", ACL 2018,
    section 3.2; Clark et al., "ELECTRA", ICLR 2020, appendix A (a factor for each layer).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from regraft.errors import InputError

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def layers_of(model: nn.Module, classifier: str) -> list[list[str]]:
    """Return the names of the parameters of each layer, from the input on, the classifier last.

    A layer is a child of an outermost `Sequential`, `ModuleList` or `ModuleDict` (a residual block,
    a transformer block); parameters between such, as of a stem, are one layer together.

    Args:
        model: The network.
        classifier: Name of its classifier.
    """
    groups: dict[str, list[str]] = {}
    loose = 0
    before = ""
    head: list[str] = []
    for name, _ in model.named_parameters():
        if name.startswith(f"{classifier}."):
            head.append(name)
            continue
        block = _block(model, name)
        if block is None:
            loose += before != "loose"
            before, key = "loose", f"loose {loose}"
        else:
            before = key = block
        groups.setdefault(key, []).append(name)
    return [*groups.values(), head]


def layerwise_groups(
    model: nn.Module, classifier: str, *, lr: float, decay: float = 1.0, head_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Return an optimiser's groups: layer i of L below the classifier at lr * decay^(L - i).

    i counts from 1 at the input, so that the layer before the classifier has `lr`; the classifier
    has lr * head_factor. Parameters that take no gradient are left out.

    Args:
        model: The network.
        classifier: Name of its classifier, as `features.find_classifier` returns.
        lr: Learning rate.
        decay: Factor from a layer to the one below it, in (0, 1].
        head_factor: Learning rate of the classifier over `lr`.

    Raises:
        InputError: A factor out of its range.
    """
    if not 0.0 < decay <= 1.0:
        raise InputError(f"layer_decay={decay}: expected a factor in (0, 1]")
    if not 0.0 < head_factor < float("inf"):
        raise InputError(f"head_factor={head_factor}: expected a finite number above 0")
    parameters = dict(model.named_parameters())
    *below, head = layers_of(model, classifier)
    rates = [lr * decay ** (len(below) - 1 - i) for i in range(len(below))]
    groups: dict[float, list[nn.Parameter]] = {}
    for names, rate in zip([*below, head], [*rates, lr * head_factor], strict=True):
        taken = [parameters[n] for n in names if parameters[n].requires_grad]
        if taken:
            groups.setdefault(rate, []).extend(taken)
    return [{"params": params, "lr": rate} for rate, params in groups.items()]


def _block(model: nn.Module, name: str) -> str | None:
    """Return the name of the container's child that a parameter belongs to."""
    module: nn.Module = model
    parts = name.split(".")[:-1]
    for depth, part in enumerate(parts):
        if isinstance(module, _CONTAINERS):
            return ".".join(parts[: depth + 1])
        module = module.get_submodule(part)
    return None
