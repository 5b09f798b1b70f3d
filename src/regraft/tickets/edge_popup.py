"""Turn any model into an edge-popup search: frozen random weights, trainable scores.

References:
    Ramanujan et al., "What's hidden in a randomly weighted neural network?", CVPR 2020.
    Chijiwa et al., "Pruning randomly initialized neural networks with iterative randomization",
    NeurIPS 2021, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from regraft.errors import InputError

from .freeze import Freezing, FrozenPattern
from .frozen import build_mask
from .mask import GlobalScope, Mask
from .source import RELU_GAIN, WeightSource

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def edge_popup(
    model: nn.Module,
    *,
    sparsity: float | Mapping[str, float] = 0.5,
    scope: Literal["layer", "global"] = "layer",
    score: Literal["signed", "magnitude"] = "signed",
    weight_init: str = "signed_kaiming_constant",
    score_init: str = "kaiming_uniform",
    gain: float = RELU_GAIN,
    score_gain: float = RELU_GAIN,
    rescale: bool = False,
    dynamic_scale: bool = False,
    freezing: Freezing | None = None,
    params: Sequence[str] | None = None,
    trainable: Sequence[str] = (),
    seed: int = 0,
) -> nn.Module:
    """Mask `model` in place and return it: only scores are trainable afterwards.

    Every maskable weight W is replaced by W * M, M = 1[S >= tau], where W is drawn from the stream
    of `seed` and the parameter's name and frozen, and S is trained with a straight-through gradient.
    As in the papers, biases are set to zero and normalisation layers to scale 1 and shift 0, and
    both are frozen; running statistics go on. Whatever else the model holds is frozen as it is.

    Args:
        model: Any model; by default the weights of `Linear`, `Conv1d/2d/3d`, attention projections
            and PyTorch Geometric's `Linear` are masked.
        sparsity: Fraction of weights removed, s in [0, 1]; or one for each pattern of names, the
            first that matches.
        scope: One threshold for each tensor, or one for all of them together.
        score: Compare S (IteRand) or |S| (edge-popup, partially frozen tickets).
        weight_init: `signed_kaiming_constant`, `kaiming_uniform` or `kaiming_normal`, fan-in.
        score_init: `kaiming_uniform` or `kaiming_normal`, fan-in.
        gain: Gain of the weights, sqrt(2) for ReLU networks.
        score_gain: Gain of the scores; 1/sqrt(3) gives torch's own U(+-1/sqrt(fan_in)).
        rescale: Multiply the scale of W by 1/sqrt(1 - s) ("scaled" inits).
        dynamic_scale: Multiply W * M by c = 1/sqrt(kept share of the tensor), at every pass anew.
        freezing: Prune and lock random shares of the weights for good and search only the rest;
            `sparsity` still counts all weights, so it has to lie in [p, 1 - l].
        params: Patterns (as in shell globs) of the parameter names to mask instead of the default.
        trainable: Patterns of parameter names to leave alone: unmasked, unchanged and trainable.
        seed: Seed of weights and scores.

    Raises:
        InputError: No weight to mask, a sparsity outside [0, 1] or out of the frozen network's
            reach, a pattern that matches nothing, an uninitialised lazy layer, or a weight that is
            already parametrised.

    Example:
        >>> model = edge_popup(torchvision.models.resnet18(), sparsity=0.6, seed=1)
        >>> optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    """
    if scope not in ("layer", "global"):
        raise InputError(f"scope={scope!r}: expected 'layer' or 'global'")
    if score not in ("signed", "magnitude"):
        raise InputError(f"score={score!r}: expected 'signed' or 'magnitude'")
    if score_init not in ("kaiming_uniform", "kaiming_normal"):
        raise InputError(f"score_init={score_init!r}: expected kaiming_uniform or kaiming_normal")
    chosen = choose(model, params, trainable)
    if not chosen:
        raise InputError(
            "model has no maskable weight (no Linear, Conv1d/2d/3d or attention projection outside "
            "`trainable`): name the weights to mask with `params`"
        )
    if scope == "global" and isinstance(sparsity, Mapping):
        raise InputError("sparsity: scope='global' has one threshold, so give one number")
    if rescale and dynamic_scale:
        raise InputError("rescale and dynamic_scale both scale by the sparsity: choose one")
    patterns = _patterns(chosen, freezing, sparsity, scope, seed)
    # All masks are built, and so all arguments checked, before anything is changed.
    built = []
    for owner, attribute, name, parameter in chosen:
        s = _sparsity_of(name, sparsity)
        scale = gain / math.sqrt(max(1.0 - s, 1.0 / parameter.numel())) if rescale else gain
        shape = tuple(parameter.shape)
        mask = build_mask(
            WeightSource(weight_init, seed, name, shape, scale),
            WeightSource(score_init, seed, f"{name}#score", shape, score_gain),
            patterns.get(name),
            sparsity=s,
            magnitude=score == "magnitude",
            dynamic_scale=dynamic_scale,
        )
        built.append((owner, attribute, parameter, mask))
    _freeze_(model, trainable)
    lists: list[parametrize.ParametrizationList] = []
    first_owner: dict[int, parametrize.ParametrizationList] = {}
    for owner, attribute, parameter, mask in built:
        tied = first_owner.get(id(parameter))
        if tied is not None:
            # An identity makes the owner a parametrised one without touching the shared scores.
            parametrize.register_parametrization(owner, attribute, nn.Identity())
            owner.parametrizations[attribute] = tied  # pyrefly: ignore
            _save_plainly_(owner)
            continue
        # The scores of a partly frozen weight are fewer than its values: torch calls that unsafe.
        parametrize.register_parametrization(owner, attribute, mask, unsafe=True)
        _save_plainly_(owner)
        entry: Any = owner.parametrizations[attribute]  # pyrefly: ignore
        entry.original.requires_grad_(True)
        first_owner[id(parameter)] = entry
        lists.append(entry)
    if scope == "global":
        shared = GlobalScope(lists)
        for entry in lists:
            entry[0].scope = shared  # pyrefly: ignore
    _spare_broadcast_(model)
    return model


def _patterns(
    chosen: Sequence[tuple[nn.Module, str, str, nn.Parameter]],
    freezing: Freezing | None,
    sparsity: float | Mapping[str, float],
    scope: str,
    seed: int,
) -> dict[str, FrozenPattern]:
    """Return what is frozen in each weight, tied ones once, after checking the sparsity's reach."""
    if freezing is None or freezing.frozen == 0:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    visited: set[int] = set()
    for _, _, name, parameter in chosen:
        if id(parameter) not in visited:
            visited.add(id(parameter))
            shapes[name] = tuple(parameter.shape)
    patterns = freezing.patterns(shapes, seed)
    if not isinstance(sparsity, Mapping):
        freezing.check_reach(sparsity)
    if scope == "layer":
        for name, pattern in patterns.items():
            pattern.check_reach(_sparsity_of(name, sparsity))
    return patterns


def choose(
    model: nn.Module, params: Sequence[str] | None = None, trainable: Sequence[str] = ()
) -> list[tuple[nn.Module, str, str, nn.Parameter]]:
    """Return the weights to mask: (owner, attribute, full name, parameter), tied ones repeatedly.

    Args:
        model: Any model.
        params: Patterns of names to choose instead of the default layers' weights.
        trainable: Patterns of names to leave out.

    Raises:
        InputError: As `edge_popup`.
    """
    chosen = []
    held: dict[int, list[str]] = {}
    unmatched = set(params or ())
    unmatched |= {p for p in trainable if not any(_matching(model, p))}
    for prefix, module in model.named_modules():
        maskable = _maskable(module)
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{attribute}" if prefix else attribute
            held.setdefault(id(parameter), []).append(name)
            if params is None:
                wanted = attribute in maskable
            else:
                hits = {p for p in params if fnmatchcase(name, p)}
                unmatched -= hits
                wanted = bool(hits)
            lazy = isinstance(parameter, UninitializedParameter)
            if not wanted or matches(name, trainable) or not (lazy or parameter.numel()):
                continue  # a layer of no units has nothing to mask
            if lazy:
                raise InputError(
                    f"weight {name!r} is a lazy parameter without a shape: run one batch through "
                    "the model before masking it"
                )
            if not torch.is_floating_point(parameter):
                raise InputError(
                    f"weight {name!r} is {parameter.dtype}: only floating-point weights can be masked"
                )
            chosen.append((module, attribute, name, parameter))
        if params is None:
            _refuse_computed(prefix, module, maskable, trainable)
        if parametrize.is_parametrized(module):
            for attribute in dict(module.parametrizations.items()):  # pyrefly: ignore
                name = f"{prefix}.{attribute}" if prefix else attribute
                if params is None and attribute in maskable and not matches(name, trainable):
                    raise InputError(
                        f"weight {name} is already parametrised: remove its parametrisation "
                        "(torch.nn.utils.parametrize.remove_parametrizations) first"
                    )
    if unmatched:
        raise InputError(
            f"pattern {sorted(unmatched)[0]!r} matches no parameter; `dict(model.named_parameters())` "
            "lists the names"
        )
    _refuse_half_tied(chosen, held)
    return chosen


def _refuse_computed(
    prefix: str, module: nn.Module, maskable: Iterable[str], trainable: Sequence[str]
) -> None:
    """Refuse a weight that a hook computes from other parameters: masking would pass it over."""
    for attribute in maskable:
        name = f"{prefix}.{attribute}" if prefix else attribute
        if (
            attribute in module._parameters
            or matches(name, trainable)
            or parametrize.is_parametrized(module, attribute)
            or not isinstance(getattr(module, attribute, None), torch.Tensor)
        ):
            continue
        raise InputError(
            f"weight {name!r} is no parameter but computed from others (by torch.nn.utils.weight_norm "
            "or torch.nn.utils.prune): make it plain first, with remove_weight_norm or prune.remove, or "
            "name it in `trainable`"
        )


def _refuse_half_tied(
    chosen: Sequence[tuple[nn.Module, str, str, nn.Parameter]], held: Mapping[int, Sequence[str]]
) -> None:
    """Refuse a weight that an unmasked parameter shares: it would turn into scores as well."""
    for _, _, name, parameter in chosen:
        others = set(held[id(parameter)]) - {n for _, _, n, _ in chosen}
        if others:
            raise InputError(
                f"weight {name!r} is tied to {sorted(others)[0]!r}, which is not masked: name both in "
                "`params`, or both in `trainable`"
            )


def _matching(model: nn.Module, pattern: str) -> Iterable[str]:
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return (name for name in names if fnmatchcase(name, pattern))


def _maskable(module: nn.Module) -> Iterable[str]:
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return ("weight",)
    if isinstance(module, nn.MultiheadAttention):
        return _ATTENTION
    kind = type(module)
    if kind.__name__ == "Linear" and kind.__module__.startswith("torch_geometric."):
        return ("weight",)
    return ()


def _save_plainly_(owner: nn.Module) -> None:
    """Keep PyTorch Geometric's `Linear` from writing W * M into checkpoints beside the scores."""
    kind: Any = type(owner)  # made for this module alone by `register_parametrization`
    if kind.__bases__[0].__module__.startswith("torch_geometric."):
        kind._save_to_state_dict = nn.Module._save_to_state_dict


def _freeze_(model: nn.Module, trainable: Sequence[str]) -> None:
    for prefix, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            if matches(f"{prefix}.{attribute}" if prefix else attribute, trainable):
                continue
            parameter.requires_grad_(False)
            with torch.no_grad():
                if isinstance(module, _NORMS):
                    parameter.fill_(1.0 if attribute == "weight" else 0.0)
                elif attribute == "bias" or attribute.endswith("_bias"):
                    parameter.zero_()


def _sparsity_of(name: str, sparsity: float | Mapping[str, float]) -> float:
    if not isinstance(sparsity, Mapping):
        return sparsity
    for pattern, value in sparsity.items():
        if fnmatchcase(name, pattern):
            return value
    raise InputError(
        f"sparsity: no pattern matches weight {name!r}; end the mapping with '*' for the rest"
    )


def _spare_broadcast_(model: nn.Module) -> None:
    """Tell DDP not to broadcast W: every rank draws the same one from the stream."""
    # A mask has no `draw` yet, but may when it is resumed.
    names = [
        f"{prefix}.{buffer}"
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, Mask)
        for buffer in ("weight", "draw", "free")
    ]
    known = list(getattr(model, "_ddp_params_and_buffers_to_ignore", []))
    model._ddp_params_and_buffers_to_ignore = known + names  # pyrefly: ignore


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a parameter name fits one of the shell-glob patterns."""
    return any(fnmatchcase(name, p) for p in patterns)
