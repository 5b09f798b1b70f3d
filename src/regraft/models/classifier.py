"""Which module of a network is its classifier: by timm's protocol, by name, or by running it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import InputError

from .modes import evaluating

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LazyLinear)
_NAMES = ("fc", "classifier", "head", "heads", "score", "last_linear", "lm_head")
_CURE = "name it with classifier='...', as in model.named_modules()"


def unwrap(model: nn.Module) -> nn.Module:
    """Return what DDP, `torch.compile` and the like have been wrapped around."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in _WRAPPERS:
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


_WRAPPERS = {"DistributedDataParallel", "DataParallel", "_FabricModule"}


def find_classifier(
    model: nn.Module, *, classifier: str | None = None, example: Any = None
) -> tuple[str, nn.Module]:
    """Return name and module of the layer whose input are the penultimate features.

    In this order: the name that is given; timm's `get_classifier()`; an attribute named as
    torchvision and Hugging Face name theirs (`fc`, `classifier`, `head`, `heads`, `score`), and in
    it the last linear layer, where none is registered after it; the network's only linear layer, or
    the last of an `nn.Sequential` that ends in one; and with `example`, the linear layer that gives
    the output of a forward pass.

    Args:
        model: The network, wrapped by DDP or compiled or neither.
        classifier: The name, for a network where none of this finds it.
        example: Input of a forward pass: a tensor, a tuple of arguments, or a mapping of keywords.

    Raises:
        InputError: There is no such module, no classifier, or more than one.
    """
    model = unwrap(model)
    if classifier is not None:
        return classifier, _named(model, classifier)
    protocol = getattr(model, "get_classifier", None)
    if callable(protocol):
        return _by_protocol(model, protocol())
    candidates = []
    for name in _NAMES:
        inner = _last_linear(getattr(model, name, None))
        if inner is not None:
            candidates.append(f"{name}.{inner}" if inner else name)
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    # A hidden layer may be called `fc` as well; a classifier has no other linear layer after it.
    if len(candidates) == 1 and (not linear or candidates[0] not in linear[:-1]):
        return candidates[0], _named(model, candidates[0])
    if example is not None:
        return _by_running(model, example)
    if len(linear) == 1 or (isinstance(model, nn.Sequential) and _ends_in_linear(model)):
        return linear[-1], _named(model, linear[-1])
    if not linear:
        raise InputError(
            f"{type(model).__name__} has no linear layer to take for its classifier: {_CURE}"
        )
    raise InputError(
        f"{type(model).__name__} does not tell which of its linear layers is the classifier "
        f"({', '.join(linear[-4:])}): {_CURE}, or pass an example input"
    )


def _named(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        linear = [n for n, m in model.named_modules() if isinstance(m, _LINEAR)]
        raise InputError(
            f"classifier={name!r}: {type(model).__name__} has no such module; "
            f"its last linear layers are {', '.join(linear[-4:]) or 'none'}"
        ) from None


def _by_protocol(model: nn.Module, classifier: Any) -> tuple[str, nn.Module]:
    kind = type(model).__name__
    if isinstance(classifier, nn.Identity):
        raise InputError(
            f"{kind} has no classifier (num_classes=0): call reset_classifier(number of classes)"
        )
    if not isinstance(classifier, nn.Module):
        raise InputError(
            f"{kind}.get_classifier() returns {type(classifier).__name__} instead of one module, so the "
            f"classifier is ambiguous: {_CURE}"
        )
    name = next((name for name, module in model.named_modules() if module is classifier), None)
    inner = _last_linear(classifier)
    if name is None or inner is None:
        raise InputError(
            f"{kind}.get_classifier() returns a {type(classifier).__name__} that is not a linear layer of "
            f"the network: {_CURE}"
        )
    if not isinstance(classifier, nn.Sequential) and _count(classifier) > 1:
        raise InputError(
            f"{kind}.get_classifier() returns {name!r} with {_count(classifier)} linear layers, so the "
            f"classifier is ambiguous: {_CURE}"
        )
    return (f"{name}.{inner}", _named(model, f"{name}.{inner}")) if inner else (name, classifier)


def _count(module: nn.Module) -> int:
    return sum(isinstance(m, _LINEAR) for m in module.modules())


def _last_linear(module: Any) -> str | None:
    """Return the name of the last linear layer inside, '' for the module itself, None for none."""
    if not isinstance(module, nn.Module) or isinstance(module, nn.ModuleList | nn.ModuleDict):
        return None  # several modules side by side: which of them, only running the network tells
    names = [name for name, m in module.named_modules() if isinstance(m, _LINEAR)]
    return names[-1] if names else None


def _ends_in_linear(model: nn.Sequential) -> bool:
    last = model[-1] if len(model) else None
    return _ends_in_linear(last) if isinstance(last, nn.Sequential) else isinstance(last, nn.Linear)


def _by_running(model: nn.Module, example: Any) -> tuple[str, nn.Module]:
    """Return the linear layer whose output is the network's, in a forward pass in evaluation mode."""
    outputs: list[tuple[str, nn.Module, Any]] = []
    handles = [
        module.register_forward_hook(
            lambda m, _, output, name=name: outputs.append((name, m, output))
        )
        for name, module in model.named_modules()
        if isinstance(module, _LINEAR)
    ]
    try:
        with torch.no_grad(), evaluating(model):
            logits = logits_of(call(model, example))
    finally:
        for handle in handles:
            handle.remove()
    if not outputs:
        raise InputError(f"{type(model).__name__} ran through no linear layer: {_CURE}")
    same = [(name, m) for name, m, out in outputs if isinstance(out, Tensor) and _same(out, logits)]
    layers = dict(same)
    if len(layers) == 1:
        return same[0]
    if not layers:
        # What follows the classifier (a temperature, log_softmax) changes values, not the shape.
        shaped = [(n, m) for n, m, out in outputs if getattr(out, "shape", ()) == logits.shape]
        if len(dict(shaped)) == 1:
            return shaped[0]
    raise InputError(
        f"{type(model).__name__} has {len(layers) or 'no'} linear layers that give its output "
        f"{tuple(logits.shape)} (the last that ran is {outputs[-1][0]!r}): {_CURE}"
    )


def _same(output: Tensor, logits: Tensor) -> bool:
    return output.numel() == logits.numel() and torch.equal(output.flatten(), logits.flatten())


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a network with a tensor, a tuple of arguments, or a mapping of keywords."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(inputs)


def logits_of(output: Any) -> Tensor:
    """Return the logits in what a network returned: a tensor, Hugging Face's outputs, or a tuple.

    Raises:
        InputError: There are none.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else None
    if logits is None:
        logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple | list) and output:
        logits = output[0]
    if not isinstance(logits, Tensor):
        raise InputError(
            f"the network returned {type(output).__name__}: expected a tensor of logits, or an "
            "object or mapping with `logits`"
        )
    return logits


def as_vectors(features: Tensor, name: str) -> Tensor:
    """Return features [b, d]; maps [b, d, h, w] are averaged over positions.

    Raises:
        InputError: There is no one vector for each input.
    """
    if features.dim() == 2:
        return features
    if features.dim() == 4:
        return features.mean((2, 3))
    raise InputError(
        f"the classifier {name!r} sees features of shape {tuple(features.shape)}: expected one "
        "vector an input, [b, d]; tap a module after pooling with classifier='...'"
    )
