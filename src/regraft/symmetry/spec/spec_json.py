"""Specifications as JSON: positions as strides where they are regular, else one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.files import json_text, parse_json, reading

from .group import Group, Pin, Site, Symmetries

SCHEMA = 1

MOST_POSITIONS = 1 << 26
"""Positions that a spec may hold in all, eight bytes each: half a GiB."""


def to_json(spec: Symmetries) -> str:
    """Return a spec as JSON text."""
    data = {
        "schema": SCHEMA,
        "kind": "regraft-permutation-spec",
        "checked": spec.checked,
        "groups": [
            {
                "name": g.name,
                "size": g.size,
                "parent": g.parent,
                "copies": g.copies,
                "sites": [_site(s) for s in g.sites],
            }
            for g in spec
        ],
        "shapes": {k: list(v) for k, v in spec.shapes.items()},
        "aliases": dict(spec.aliases),
        "pins": [vars(pin) for pin in spec.pins],
    }
    return json_text(data, indent=1)


def read_fields(text: str) -> dict[str, Any]:
    """Return the fields of the `PermutationSpec` that `to_json` wrote.

    Raises:
        InputError: The text is no spec, is damaged, or is of a newer schema.
    """
    with reading(
        "this permutation spec", "it is no permutation spec that PermutationSpec.to_json wrote"
    ):
        data = parse_json(text, ours=True)
        if data["kind"] != "regraft-permutation-spec":
            raise KeyError("kind")
        if data["schema"] > SCHEMA:
            raise InputError(
                f"the permutation spec has schema {data['schema']}, and this version reads up to "
                f"{SCHEMA}: upgrade regraft"
            )
        _refuse_large(data["groups"])
        groups = {
            g["name"]: Group(
                g["name"],
                int(g["size"]),
                tuple(_read_site(s) for s in g["sites"]),
                g["parent"],
                int(g["copies"]),
            )
            for g in data["groups"]
        }
        fields = {
            "groups": groups,
            "shapes": {k: tuple(v) for k, v in data["shapes"].items()},
            "aliases": data["aliases"],
            "pins": tuple(Pin(**pin) for pin in data["pins"]),
            "checked": data["checked"],
        }
        _validate(**fields)
        return fields


def _refuse_large(groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse more positions than a network has, before room is made for them."""
    sites = [site for group in groups for site in group["sites"]]
    indices = [s["at"] for s in sites] + [s["slices"] for s in sites if "over" in s]
    count = sum(math.prod(map(int, index.get("shape", ()))) for index in indices)
    if count > MOST_POSITIONS or any(size < 0 for i in indices for size in i.get("shape", ())):
        raise ValueError(f"it claims {count} positions, where {MOST_POSITIONS} are the most")


def _validate(
    groups: Mapping[str, Group],
    shapes: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, str],
    pins: tuple[Pin, ...],
    checked: float | None,
) -> None:
    known: set[str] = set()
    for group in groups.values():
        copies = 1
        if group.parent is not None:
            if group.parent not in known:
                raise ValueError(
                    f"{group.name}: its parent {group.parent!r} does not come before it"
                )
            parent = groups[group.parent]
            copies = parent.copies * parent.size
        if group.size < 1 or group.copies != copies:
            raise ValueError(f"{group.name}: {group.copies} copies of {group.size} units")
        for site in group.sites:
            _validate_site(shapes, group, site)
        known.add(group.name)
    for other in aliases.values():
        if other not in shapes:
            raise ValueError(f"{other!r} is no tensor")
    if not isinstance(checked, float | int | None):
        raise TypeError(f"checked is {checked!r}")


def _validate_site(shapes: Mapping[str, tuple[int, ...]], group: Group, site: Site) -> None:
    what, shape, index = f"{group.name} in {site.tensor}", shapes[site.tensor], site.index
    if not 0 <= site.axis < len(shape):
        raise ValueError(f"{what}: no axis {site.axis}")
    if index.ndim != 3 or index.shape[:2] != (group.copies, group.size) or not index.numel():
        raise ValueError(f"{what}: positions of another size")
    if not 0 <= int(index.min()) <= int(index.max()) < shape[site.axis]:
        raise ValueError(f"{what}: positions outside the tensor")
    each = [index.flatten()] if site.over is None else [copy.flatten() for copy in index]
    if any(len(one.unique()) < len(one) for one in each):
        raise ValueError(f"{what}: a position that is there twice")
    if site.over is not None:
        slices = site.slices
        if slices is None or not 0 <= site.over < len(shape) or len(slices) != group.copies:
            raise ValueError(f"{what}: slices that do not fit")
        if not 0 <= int(slices.min()) <= int(slices.max()) < shape[site.over]:
            raise ValueError(f"{what}: slices outside the tensor")


def _site(site: Site) -> dict[str, Any]:
    entry: dict[str, Any] = {"tensor": site.tensor, "axis": site.axis, "at": _packed(site.index)}
    if site.over is not None and site.slices is not None:
        entry |= {"over": site.over, "slices": _packed(site.slices)}
    return entry


def _read_site(data: dict[str, Any]) -> Site:
    slices = _unpacked(data["slices"]) if "over" in data else None
    return Site(data["tensor"], int(data["axis"]), _unpacked(data["at"]), data.get("over"), slices)


def _packed(index: Tensor) -> dict[str, Any]:
    """Return the positions as start and strides where they are regular."""
    start = int(index.flatten()[0])
    strides = [
        int(index.select(axis, 1).flatten()[0]) - start if index.shape[axis] > 1 else 0
        for axis in range(index.ndim)
    ]
    packed = {"shape": list(index.shape), "start": start, "strides": strides}
    return packed if torch.equal(_unpacked(packed), index) else {"list": index.tolist()}


def _unpacked(data: dict[str, Any]) -> Tensor:
    if "list" in data:
        return torch.tensor(data["list"], dtype=torch.int64)
    shape, out = data["shape"], torch.tensor(data["start"], dtype=torch.int64)
    for axis, (size, stride) in enumerate(zip(shape, data["strides"], strict=True)):
        view = [1] * len(shape)
        view[axis] = size
        out = out + (torch.arange(size) * stride).reshape(view)
    return out.expand(shape).clone()
