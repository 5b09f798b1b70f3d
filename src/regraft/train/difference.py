"""What tells a run from the one that a folder holds, in words."""

from __future__ import annotations

from typing import Any

_CHANGED = {
    "files": "a checkpoint has changed since",
    "stamps": "a checkpoint has changed since",
    "images": "the images of --data have changed since",
    "factory": "the module of --model has changed since",
}
"""Entries of a config that tell whether what was read is still the same, and what to say if not."""


def difference(known: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Return the first entry in which two identities of runs differ."""
    if known.get("arm") != wanted["arm"]:
        return f"arm {known.get('arm')} instead of {wanted['arm']}"
    changed = []
    pairs = [("", known.get("config", {}), wanted["config"])]
    for prefix, a, b in pairs:
        for key in {**a, **b}:
            x, y = a.get(key), b.get(key)
            if isinstance(x, dict) and isinstance(y, dict):
                pairs.append((f"{prefix}{key}.", x, y))
            elif x != y and not prefix and key in _CHANGED:
                changed.append(_CHANGED[key])
            elif x != y:
                return f"{prefix}{key}={x!r} instead of {y!r}"
    return (changed or ["its config differs"])[0]
