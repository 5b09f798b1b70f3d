"""From a masked model, or its state dict alone, to the ticket it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regraft.errors import InputError
from regraft.files import parse_json

from .file.coder import Bits
from .freeze import FrozenPattern
from .frozen import build_mask
from .mask import GlobalScope, Mask, named_masks
from .source import WeightSource
from .ticket import Ticket, TicketLayer

_COMPILED = "_orig_mod"
_MASK_KEY = re.compile(r"(?:(.+)\.)?parametrizations\.([^.]+)\.0\._extra_state")


def gather(model: nn.Module, about: Mapping[str, Any] | None = None) -> Ticket:
    """Return the current ticket of an edge-popup model.

    Args:
        model: A model masked by `edge_popup`.
        about: What the ticket is of, JSON values.

    The names are those of the plain network: what `torch.compile` and `DistributedDataParallel` put
    before them is taken away.

    Raises:
        InputError: The model has no edge-popup mask, or its state dict holds something else than
            tensors.
    """
    model = _unwrapped(model)
    entries = {n: (e, m) for n, e, m in named_masks(model) if isinstance(m, Mask)}
    if not entries:
        raise InputError("model has no edge-popup mask to store: call `edge_popup(model)` first")
    owners = _owners(model)
    layers = {}
    for name, (entry, mask) in entries.items():
        tied = tuple(_plain(n) for n in owners[id(entry)] if n != name)
        layers[_plain(name)] = _layer(mask, entry.original, tied)
    prefixes = tuple(_parametrized(name) for names in owners.values() for name in names)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(prefixes)}
    rest, aliases = _rest({_plain(key): value for key, value in state.items()})
    return Ticket(layers, rest, dict(about or {}), aliases)


def gather_state(state: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> Ticket:
    """Return the ticket in the state dict of a masked model, without the model.

    Every mask describes itself there, so the state alone is enough. What `torch.compile` puts into
    the keys is taken away, and so is a prefix that a wrapper such as `DistributedDataParallel` put
    before all of them after the model was masked. A weight is tied to an earlier one of the same
    source if scores and draws are equal as well, or are there under the first name only.

    Args:
        state: Tensors by key.
        about: What the ticket is of, JSON values.

    Raises:
        InputError: No mask in it, one that is damaged or of another version, or something else than
            tensors.
    """
    plain = {_plain(key): value for key, value in state.items()}
    if prefix := _wrapper(plain):
        plain = {key.removeprefix(prefix): tensor for key, tensor in plain.items()}
    names = _mask_keys(plain)
    if not names:
        raise InputError(
            "the state dict has no edge-popup mask: expected keys like "
            "'layer.parametrizations.weight.0._extra_state', which `edge_popup(model)` makes"
        )
    mine = {k: v for k, v in plain.items() if k.startswith(tuple(_prefix(m) for m in names))}
    try:
        skeleton = _skeleton(mine, names)
        skeleton.load_state_dict(mine)
    except InputError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the state dict is not that of a masked model ({' '.join(str(error).split())}): give one "
            "that `model.state_dict()` returned"
        ) from error
    ticket = gather(skeleton, about)
    rest, aliases = _rest({k: v for k, v in plain.items() if k not in mine})
    return Ticket(ticket.layers, rest, ticket.about, aliases)


def _rest(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return copies of what is not masked, tied tensors once, and the further keys of these."""
    rest: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    stored: dict[tuple[Any, ...], str] = {}
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"the model's state {key!r} is a {type(tensor).__name__}: a ticket holds tensors only, "
                "so let the module's `get_extra_state` return one"
            )
        where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and where in stored:
            aliases[key] = stored[where]
            continue
        stored[where] = key
        rest[key] = tensor.detach().cpu().contiguous().clone()
    return rest, aliases


def _skeleton(state: dict[str, Tensor], names: Sequence[re.Match[str]]) -> nn.Module:
    """Return a module with nothing but the masked weights of a state dict.

    What a tied weight has under its first name only is added to `state`.
    """
    skeleton = nn.Module()
    lists: dict[str, list[tuple[str, str, parametrize.ParametrizationList]]] = {}
    shared: dict[tuple[Any, ...], list[parametrize.ParametrizationList]] = {}
    for match in names:
        settings = parse_json(bytes(state[match[0]].tolist()))
        owner = _child(skeleton, match[1] or "")
        # Parts of a model that were masked one by one have names, ties and thresholds of their own.
        part = _name(match).removesuffix(_plain(settings["source"]["name"]))
        alike = lists.setdefault(settings["source"]["name"], [])
        inside = ((k, e) for root, k, e in alike if match[0].startswith(root))
        tied = next(((k, e) for k, e in inside if _is_tied(state, _prefix(match), k)), None)
        if tied is not None:  # an identity makes the owner a parametrised one
            first, entry = tied
            owner.register_parameter(
                match[2], nn.Parameter(torch.zeros(settings["source"]["shape"]))
            )
            parametrize.register_parametrization(owner, match[2], nn.Identity(), unsafe=True)
            owner.parametrizations[match[2]] = entry  # pyrefly: ignore
            for key in [key for key in state if key.startswith(first)]:
                state.setdefault(_prefix(match) + key.removeprefix(first), state[key])
            continue
        entry = _empty(owner, match[2], settings)
        alike.append((part, _prefix(match), entry))
        if settings["scope"] == "global":
            group = (part, settings["source"]["seed"], settings["sparsity"], settings["magnitude"])
            shared.setdefault(group, []).append(entry)
    for entries in shared.values():
        scope = GlobalScope(entries)
        for entry in entries:
            entry[0].scope = scope  # pyrefly: ignore
    return skeleton


def _is_tied(state: Mapping[str, Tensor], later: str, first: str) -> bool:
    """Whether what is there below a prefix is the same as below an earlier one."""
    mine = {k.removeprefix(later): v for k, v in state.items() if k.startswith(later)}
    theirs = {k.removeprefix(first): v for k, v in state.items() if k.startswith(first)}
    if "original" in mine and mine.keys() != theirs.keys():
        return False
    return mine.keys() <= theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in mine.items())


def _layer(mask: Mask, scores: Tensor, tied: tuple[str, ...]) -> TicketLayer:
    kept = mask.kept(scores).reshape(-1).cpu()
    flips = draws = None
    if mask.draw is not None and bool(mask.draw.any()):
        draws = mask.draw.reshape(-1).cpu()[kept].numpy()
        if mask.source.init == "signed_kaiming_constant":
            # A redrawn sign is one of two values, so which event it comes from is not worth knowing.
            at = mask.positions(torch.nonzero(kept).reshape(-1))
            first = mask.source.draw(index=at.numpy())
            now = mask.weight.reshape(-1).cpu()[at]
            draws, flips = None, ((now > 0) != (first > 0)).numpy()
    return TicketLayer(
        source=mask.source,
        kept=Bits.of(kept.numpy()),
        pattern=mask.pattern,
        dynamic_scale=mask.dynamic_scale,
        tied=tied,
        flips=Bits.of(flips) if flips is not None and flips.any() else None,
        draws=draws if draws is not None and np.any(draws) else None,
    )


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Return every name of each parametrised parameter, by the identity of its parametrisations."""
    names: dict[int, list[str]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        if parametrize.is_parametrized(module):
            for attribute, entry in module.parametrizations.items():  # pyrefly: ignore
                if any(isinstance(p, Mask) for p in entry):
                    name = f"{prefix}.{attribute}" if prefix else attribute
                    names.setdefault(id(entry), []).append(name)
    return names


def _parametrized(name: str) -> str:
    prefix, _, attribute = name.rpartition(".")
    return f"{prefix}{'.' if prefix else ''}parametrizations.{attribute}."


def _mask_keys(state: Mapping[str, Tensor]) -> list[re.Match[str]]:
    matches = [_MASK_KEY.fullmatch(key) for key in state]
    return [match for match in matches if match and _is_mask(state[match[0]])]


def _wrapper(state: Mapping[str, Tensor]) -> str:
    """Return what stands before every key and was not there when the model was masked."""
    for match in _mask_keys(state):
        name = _name(match)
        masked = parse_json(bytes(state[match[0]].tolist()))["source"]["name"]
        prefix = name.removesuffix(_plain(masked))
        if name != prefix and prefix.endswith(".") and all(key.startswith(prefix) for key in state):
            return prefix
    return ""


def _is_mask(tensor: Any) -> bool:
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8 or tensor.ndim != 1:
        return False
    try:
        settings = parse_json(bytes(tensor.tolist()))
    except ValueError:
        return False
    return isinstance(settings, dict) and {"source", "sparsity", "magnitude"} <= settings.keys()


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside `torch.compile`, `DistributedDataParallel` and `DataParallel`."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inside := getattr(model, _COMPILED, None), nn.Module):
            model = inside
        else:
            return model


def _plain(name: str) -> str:
    """Return a name without what `torch.compile` puts into it."""
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _name(match: re.Match[str]) -> str:
    return f"{match[1]}.{match[2]}" if match[1] else match[2]


def _prefix(match: re.Match[str]) -> str:
    return match[0].removesuffix("0._extra_state")


def _child(root: nn.Module, path: str) -> nn.Module:
    """Return the module at a dotted path below `root`, made where it is missing."""
    for name in path.split(".") if path else ():
        below = root._modules.get(name)
        if below is None:
            below = nn.Module()
            root.add_module(name, below)
        root = below
    return root


def _empty(
    owner: nn.Module, attribute: str, settings: dict[str, Any]
) -> parametrize.ParametrizationList:
    """Mask a parameter of zeros the way a mask's extra state says, and return its list."""
    source = WeightSource.from_json(settings["source"])
    counts = settings.get("pattern")
    pattern = None
    if counts is not None:
        pattern = FrozenPattern(source.seed, source.name, source.numel, **counts)
    mask = build_mask(
        source,
        source,
        pattern,
        sparsity=settings["sparsity"],
        magnitude=settings["magnitude"],
        dynamic_scale=settings.get("dynamic_scale", False),
    )
    owner.register_parameter(attribute, nn.Parameter(torch.zeros(source.shape)))
    parametrize.register_parametrization(owner, attribute, mask, unsafe=True)
    return owner.parametrizations[attribute]  # pyrefly: ignore
