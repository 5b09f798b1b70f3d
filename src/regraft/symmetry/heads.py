"""Classifiers of merged networks: one for all, one each, or one over the union of the classes.

Also the ensemble of the models' logits, which no merged network of the same size is expected to
beat: the upper control.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.errors import InputError


@dataclass(frozen=True)
class Head:
    """The names of a classifier's tensors in a state dict, and its number of classes.

    Attributes:
        weight: Name of the weight, [classes, features, ...].
        bias: Name of the bias, or None.
        classes: Number of classes.
    """

    weight: str
    bias: str | None
    classes: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors of the classifier."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


def find_head(model: nn.Module) -> Head:
    """Return the classifier of a network: what timm's `get_classifier` gives, or the last linear layer.

    Raises:
        InputError: There is none, or it shares its weights with another layer.
    """
    layer: Any = None
    get_classifier: Any = getattr(model, "get_classifier", None)
    if callable(get_classifier):
        layer = get_classifier()
        # Some wrap the layer, or give an identity where there is no classifier.
        if isinstance(layer, nn.Module) and not isinstance(layer, nn.Linear | nn.Conv2d):
            inner = [m for m in layer.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
            layer = inner[-1] if inner else None
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise InputError(
                f"{type(model).__name__} ends in no linear layer: only heads='shared' is possible"
            )
        layer = linear[-1]
    name = next(name for name, module in model.named_modules() if module is layer)
    prefix = f"{name}." if name else ""
    return Head(
        f"{prefix}weight",
        None if layer.bias is None else f"{prefix}bias",
        layer.weight.shape[0],
    )


def separate_heads(
    merged: Mapping[str, Tensor], states: Sequence[Mapping[str, Tensor]], head: Head
) -> list[dict[str, Tensor]]:
    """Return the merged network once for each model, with that model's own classifier.

    Args:
        merged: The merged state dict.
        states: State dicts of the aligned models: their classifiers read the features where
            the merged network puts them.
        head: The classifier.
    """
    return [
        {k: (state[k] if k in head.names else v).clone() for k, v in merged.items()}
        for state in states
    ]


def union_classes(classes: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return all classes once, in the order in which they first appear."""
    return tuple(dict.fromkeys(name for names in classes for name in names))


def widen_heads(
    states: Sequence[Mapping[str, Tensor]], classes: Sequence[Sequence[str]], head: Head
) -> tuple[list[dict[str, Tensor]], tuple[str, ...]]:
    """Widen every model's classifier to the union of all classes, matched by name.

    The rows of classes that a model does not know are zero, which says nothing to a matcher; fill
    them with `share_rows` once the models are aligned.

    Args:
        states: State dicts, alike but for the rows of their classifiers.
        classes: Names of each model's classes, in the order of its rows.
        head: The classifier.

    Returns:
        The widened state dicts, and the classes in the order of their rows.

    Raises:
        InputError: A list that does not fit its classifier or names a class twice.
    """
    for i, (state, names) in enumerate(zip(states, classes, strict=True), start=1):
        rows = state[head.weight].shape[0]
        if len(names) != rows:
            raise InputError(
                f"model {i} has {rows} rows in {head.weight} and {len(names)} class names: expected "
                "one name for each row"
            )
        if len(set(names)) < len(names):
            twice = next(n for n in names if list(names).count(n) > 1)
            raise InputError(f"model {i} has the class {twice!r} twice: name each class once")
    union = union_classes(classes)
    found = [dict(state) for state in states]
    for state, names in zip(found, classes, strict=True):
        at = torch.tensor([union.index(c) for c in names])
        for name in head.names:
            own = state[name]
            wide = own.new_zeros(len(union), *own.shape[1:])
            state[name] = wide.index_copy(0, at.to(own.device), own)
    return found, union


def share_rows(
    states: Sequence[Mapping[str, Tensor]], classes: Sequence[Sequence[str]], head: Head
) -> list[dict[str, Tensor]]:
    """Give each model, for the classes it does not know, the mean row of those that do.

    Any average of the results has then for each class an average of the models that know it.

    Args:
        states: Aligned state dicts with the classifiers that `widen_heads` made.
        classes: Names of each model's own classes.
        head: The classifier.
    """
    union = union_classes(classes)
    found = [dict(state) for state in states]
    for name in head.names:
        for row, known in enumerate(union):
            knows = [known in names for names in classes]
            mean = _mean([s[name][row] for s, k in zip(states, knows, strict=True) if k])
            for state, has in zip(found, knows, strict=True):
                if not has:
                    like = state[name]
                    index = torch.tensor([row], device=like.device)
                    state[name] = like.index_copy(0, index, mean.to(like)[None])
    return found


def union_heads(
    states: Sequence[Mapping[str, Tensor]], classes: Sequence[Sequence[str]], head: Head
) -> tuple[list[dict[str, Tensor]], tuple[str, ...]]:
    """Widen the classifiers of aligned models to the union of their classes and share the rows.

    `share_rows` after `widen_heads`; arguments, result and errors are those of `widen_heads`.
    """
    wide, union = widen_heads(states, classes, head)
    return share_rows(wide, classes, head), union


def _mean(rows: list[Tensor]) -> Tensor:
    return torch.stack([row.to(rows[0].device, torch.float64) for row in rows]).mean(0)


class Ensemble(nn.Module):
    """The mean of several networks' predictions.

    Of `logits` it is their mean, of `probabilities` the logarithm of the mean of the softmaxes,
    log(1/n Σ_i softmax(f_i(x))), so that a cross-entropy of either is right.

    Args:
        models: The networks, all with the same classes.
        mean: What to average.

    Raises:
        InputError: No network, or an unknown mean.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        mean: Literal["logits", "probabilities"] = "logits",
    ) -> None:
        super().__init__()
        if not models:
            raise InputError("an ensemble of no models: give at least one")
        if mean not in ("logits", "probabilities"):
            raise InputError(f"mean={mean!r}: expected 'logits' or 'probabilities'")
        self.models = nn.ModuleList(models)
        self.mean = mean

    @classmethod
    def of(
        cls,
        model: nn.Module,
        states: Sequence[Mapping[str, Tensor]],
        *,
        mean: Literal["logits", "probabilities"] = "logits",
    ) -> Ensemble:
        """Make the ensemble of several state dicts of one architecture."""
        return cls(list(_filled(model, states)), mean=mean)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean logits, or log probabilities, [b, classes]."""
        logits = torch.stack([model(x) for model in self.models])
        if self.mean == "logits":
            return logits.mean(0)
        return torch.logsumexp(logits.log_softmax(-1), 0) - math.log(len(logits))

    def extra_repr(self) -> str:
        """Name what is averaged."""
        return f"mean={self.mean!r}"


def _filled(model: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> Iterator[nn.Module]:
    for state in states:
        twin = copy.deepcopy(model)
        twin.load_state_dict(dict(state))
        yield twin.eval()
