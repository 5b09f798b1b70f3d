"""Classifiers of merged networks: one for all, one each, or one over the union of the classes.

Also the ensemble of the models' logits, which no merged network of the same size is expected to
beat: the upper control.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.errors import InputError
from regraft.models.copying import copy_module

from .output_layers import output_layers


@dataclass(frozen=True)
class Head:
    """The names of a classifier's tensors in a state dict, and its number of classes.

    Attributes:
        weight: Name of the weight, [classes, features, ...].
        bias: Name of the bias, or None.
        classes: Number of classes.
        further: Names of the tensors of the classifiers beside it, where the output is made of
            several with the same classes, as that of a distilled DeiT.
    """

    weight: str
    bias: str | None
    classes: int
    further: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors of the classifier; the rows of each are the classes."""
        own = (self.weight,) if self.bias is None else (self.weight, self.bias)
        return (*own, *self.further)


def find_head(model: nn.Module, *, example: Tensor | None = None) -> Head:
    """Return the classifier of a network.

    In this order: what timm's `get_classifier` gives; with an example, the linear layers that the
    output of a forward pass comes out of; the linear layer that was declared last.

    Args:
        model: The network; with an example it may be on the meta device.
        example: Images, [b, C, H, W], on its device. Without them a network that declares its
            classifier before its body is misread.

    Raises:
        InputError: There is none, or there are several with different numbers of classes.
    """
    layers = _by_protocol(model)
    if not layers and example is not None:
        layers = output_layers(model, example)
    if not layers:
        layers = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    if not layers:
        raise InputError(
            f"{type(model).__name__} ends in no linear layer: only heads='shared' is possible"
        )
    counts = [layer.weight.shape[0] for layer in layers]
    if len(set(counts)) > 1:
        raise InputError(
            f"{type(model).__name__} has classifiers of {' and '.join(map(str, counts))} classes: "
            "only heads='shared' is possible"
        )
    names = [_tensor_names(model, layer) for layer in layers]
    weight, bias = names[0]
    further = tuple(name for pair in names[1:] for name in pair if name is not None)
    return Head(weight, bias, counts[0], further)


def _tensor_names(model: nn.Module, layer: nn.Linear | nn.Conv2d) -> tuple[str, str | None]:
    name = next(name for name, module in model.named_modules() if module is layer)
    prefix = f"{name}." if name else ""
    return f"{prefix}weight", None if layer.bias is None else f"{prefix}bias"


def _by_protocol(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """Return what timm's `get_classifier` gives: one layer, several side by side, or none."""
    get_classifier: Any = getattr(model, "get_classifier", None)
    classifier: Any = get_classifier() if callable(get_classifier) else None
    layers = []
    for layer in classifier if isinstance(classifier, tuple | list) else (classifier,):
        # Some wrap the layer, or give an identity where there is no classifier.
        if isinstance(layer, nn.Module):
            layers += [m for m in layer.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:]
    return layers


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
    widened = [dict(state) for state in states]
    for state, names in zip(widened, classes, strict=True):
        at = torch.tensor([union.index(c) for c in names])
        for name in head.names:
            own = state[name]
            wide = own.new_zeros(len(union), *own.shape[1:])
            wide[at.to(own.device)] = own
            state[name] = wide
    return widened, union


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
    shared = [dict(state) for state in states]
    for name in head.names:
        for row, known in enumerate(union):
            knows = [known in names for names in classes]
            mean = _mean([s[name][row] for s, k in zip(states, knows, strict=True) if k])
            for state, has in zip(shared, knows, strict=True):
                if not has:
                    state[name] = state[name].clone()
                    state[name][row] = mean.to(state[name])
    return shared


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

    Of networks that do not all know every class, with K(c) the networks that know class c, the logit
    of c is the mean over K(c) of f_i(x)_c: rows that a network does not know of its own have no
    voice. The softmaxes are then each over what its network knows, and their means are normalised.

    Args:
        models: The networks, all with the same classes.
        mean: What to average.
        known: For each network the rows of the classes that it knows; None where each knows all.

    Raises:
        InputError: No network, an unknown mean, or rows that are not one list for each network or
            leave a class to none.
    """

    knows: Tensor | None

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        mean: Literal["logits", "probabilities"] = "logits",
        known: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if not models:
            raise InputError("an ensemble of no models: give at least one")
        if mean not in ("logits", "probabilities"):
            raise InputError(f"mean={mean!r}: expected 'logits' or 'probabilities'")
        self.models = nn.ModuleList(models)
        self.mean = mean
        self.register_buffer(
            "knows", None if known is None else _known(known, len(models)), persistent=False
        )

    @classmethod
    def of(
        cls,
        model: nn.Module,
        states: Sequence[Mapping[str, Tensor]],
        *,
        mean: Literal["logits", "probabilities"] = "logits",
        known: Sequence[Sequence[int]] | None = None,
    ) -> Ensemble:
        """Make the ensemble of several state dicts of one architecture."""
        return cls(list(_filled(model, states)), mean=mean, known=known)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean logits, or log probabilities, [b, classes]."""
        logits = torch.stack([model(x) for model in self.models])
        if self.knows is None:
            if self.mean == "logits":
                return logits.mean(0)
            return torch.logsumexp(logits.log_softmax(-1), 0) - math.log(len(logits))
        # [n, 1, classes]
        knows = self.knows.to(logits.device)[:, None]
        if self.mean == "logits":
            return logits.where(knows, 0).sum(0) / knows.sum(0)
        own = logits.masked_fill(~knows, -math.inf).log_softmax(-1)
        return (torch.logsumexp(own, 0) - knows.sum(0).log()).log_softmax(-1)

    def extra_repr(self) -> str:
        """Name what is averaged."""
        return f"mean={self.mean!r}"


def _known(known: Sequence[Sequence[int]], models: int) -> Tensor:
    """Return which network knows which class, bool [n, classes]."""
    if len(known) != models:
        raise InputError(f"known has {len(known)} lists of rows for {models} models: give one each")
    knows = torch.zeros(models, 1 + max(max(k, default=-1) for k in known), dtype=torch.bool)
    for own, rows in zip(knows, known, strict=True):
        own[list(rows)] = True
    if not knows.any(0).all():
        missing = int((~knows.any(0)).nonzero()[0])
        raise InputError(f"no model knows class {missing}: each must be in one of `known`")
    return knows


def _filled(model: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> Iterator[nn.Module]:
    for state in states:
        twin = copy_module(model)
        twin.load_state_dict(dict(state))
        yield twin.eval()
