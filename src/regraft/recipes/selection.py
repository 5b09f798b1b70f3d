"""What a selection chose, which runs diverged, and at which sizes something was shown, in words."""

from __future__ import annotations

from collections.abc import Mapping

from .compare import Runs

SELECTION = "selection/"
"""What settings of selections begin with."""


def chosen(runs: Runs) -> str:
    """Say what the selection chose for each setting and arm, which no table holds.

    Args:
        runs: Finished runs, the selections among them.
    """
    by_setting: dict[str, dict[str, str]] = {}
    results = [(r.setting, r.arm, r.result) for r in runs if r.result is not None]
    selections = {
        (setting.removeprefix(SELECTION), arm): result
        for setting, arm, result in results
        if setting.startswith(SELECTION)
    }
    seconds = sum(result.seconds or 0.0 for result in selections.values())
    for setting, arm, result in results:
        selection = selections.get((setting, arm))
        if selection is not None and "lr" in result.metrics:
            tuning = _tuning(result.metrics, selection.metrics)
            by_setting.setdefault(setting, {})[arm] = tuning
    if not by_setting or not seconds:
        return ""
    each = "\n\n".join(
        f"Chosen for {setting}: {'; '.join(f'{arm} {of}' for arm, of in tunings.items())}."
        for setting, tunings in by_setting.items()
    )
    return (
        f"Learning rate, weight where there is one, and AdaRand's rate for its means, that the selection "
        f"chose ({seconds:.0f} seconds of training in all); + marks the largest rate or weight that was "
        f"tried, - the smallest:\n\n{each}"
    )


def _tuning(metrics: Mapping[str, float], tried: Mapping[str, float]) -> str:
    """Write learning rate, weight and the rate of means that a run had, edges of what was tried marked."""

    def marked(key: str) -> str:
        value, low, high = metrics[key], tried.get(f"least_{key}"), tried.get(f"most_{key}")
        edge = "" if low == high else "+" if value == high else "-" if value == low else ""
        return f"{value:g}{edge}"

    parts = [marked(key) for key in ("lr", "weight") if key in metrics]
    parts += [f"{metrics['prior_lr']:g}"] if "prior_lr" in metrics else []
    parts += [f"{metrics['prior_scale']:g} x default"] if "prior_scale" in metrics else []
    return ", ".join(parts)


def diverged(runs: Runs) -> str:
    """Name the runs that diverged with what was chosen for them, or say nothing."""
    broken = [r for r in runs if r.result is not None and "diverged" in r.result.metrics]
    if not broken:
        return ""
    each = ", ".join(f"{r.setting} {r.arm} seed {r.seed}" for r in broken)
    return f"Diverged, and counted with the accuracy of guessing: {each}."


def lasts(shown: Mapping[float, bool], unit: str) -> str:
    """Return in words at which sizes, in rising order and counted in `unit`, something was shown."""
    sizes = list(shown)
    every = ", ".join(f"{n:g}" for n in sizes)
    if all(shown.values()):
        return f"at every size measured ({every} {unit})"
    if not any(shown.values()):
        return f"at no size measured ({every} {unit})"
    first = next(i for i, n in enumerate(sizes) if not shown[n])
    if first and not any(shown[n] for n in sizes[first:]):
        return f"up to {sizes[first - 1]:g} {unit}, not from {sizes[first]:g} on"
    return f"at {', '.join(f'{n:g}' for n in sizes if shown[n])} {unit} only"
