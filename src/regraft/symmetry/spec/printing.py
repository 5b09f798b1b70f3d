"""A specification in words, so that a person can read what may move and why the rest may not."""

from __future__ import annotations

from .group import NOT_REACHED, TRAINING_ONLY, Group, Site, Symmetries

_SHOWN = 6


def describe(spec: Symmetries, *, most: int = _SHOWN) -> str:
    """Return the groups, the sites of each, and what is pinned, as text.

    Args:
        spec: The specification.
        most: Sites shown of a group, and pins shown at all.
    """
    proof = "not checked" if spec.checked is None else f"proved to {spec.checked:.0e}"
    lines = [
        f"{len(spec)} groups, {100 * spec.free_share:.1f}% of the axes of all matrices and kernels "
        f"free to move, {proof}"
    ]
    for group in spec:
        depth = _depth(spec, group)
        copies = f" in each of {group.copies}" if group.parent else ""
        lines.append(f"{'  ' * depth}{group.name}: {group.size} units{copies}")
        shown = group.sites[:most]
        lines += [f"{'  ' * depth}    {place(site)}" for site in shown]
        if len(group.sites) > most:
            lines.append(f"{'  ' * depth}    and {len(group.sites) - most} more")
    if spec.left_behind:
        lines.append(f"left behind: {said(spec)}")
    if spec.pins:
        lines.append(f"pinned: {len(spec.pins)} axes, in whole or in part")
    for pin in spec.pins[:most]:
        within = f", {pin.within} only within blocks that stay" if pin.within else ""
        lines.append(
            f"    {pin.tensor} axis {pin.axis}: {pin.pinned} of {pin.size}{within}: {pin.reason}"
        )
    if len(spec.pins) > most:
        lines.append(f"    and {len(spec.pins) - most} more")
    return "\n".join(lines)


def said(spec: Symmetries, most: int = 3) -> str:
    """Return in a sentence for each reason which tensors are left behind; empty if there are none."""
    return "; ".join(
        _left(spec, why, words, most)
        for why, words in _WORDS.items()
        if any(pin.reason == why for pin in spec.pins)
    )


_WORDS = {
    TRAINING_ONLY: (
        "used in training only, so left as they are while the units that they may read move (train them "
        "anew before training goes on, or drop them)"
    ),
    NOT_REACHED: (
        "not used with these example inputs, so left as they are while the units that they may read move "
        "(trace with inputs that use them, or drop them if nothing does)"
    ),
}


def _left(spec: Symmetries, why: str, words: str, most: int) -> str:
    tensors = dict.fromkeys(pin.tensor for pin in spec.pins if pin.reason == why)
    names = sorted(tensors, key=lambda name: -len(spec.shapes[name]))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}: {words}"


def place(site: Site) -> str:
    """Return where a site is: the tensor, the axis, and how many positions a unit has there."""
    repeats = site.index.shape[2]
    each = f", {repeats} positions each" if repeats > 1 else ""
    over = "" if site.over is None else f", over axis {site.over}"
    return f"{site.tensor} axis {site.axis}{each}{over}"


def _depth(spec: Symmetries, group: Group) -> int:
    return 0 if group.parent is None else 1 + _depth(spec, spec.groups[group.parent])
