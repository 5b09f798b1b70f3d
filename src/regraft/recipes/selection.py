"""What a selection chose, which runs diverged, and at which sizes something was shown, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .compare import Runs

SELECTION = "selection/"
"""What settings of selections begin with."""


def chosen(runs: Runs, weights: Mapping[str, Sequence[float]]) -> str:
    """Say what the selection chose for each setting and arm, which no table holds.

    Args:
        runs: Finished runs; those with `lr` among their metrics were tuned.
        weights: The weights that each arm tried, none for an arm without; an edge is marked.
    """
    by_setting: dict[str, dict[str, str]] = {}
    seconds = 0.0
    for run in runs:
        if run.result is None:
            continue
        if run.setting.startswith(SELECTION):
            seconds += run.result.seconds or 0.0
        elif run.arm in weights and "lr" in run.result.metrics:
            tuning = _tuning(run.result.metrics, weights[run.arm])
            by_setting.setdefault(run.setting, {})[run.arm] = tuning
    if not by_setting or not seconds:
        return ""
    each = "\n\n".join(
        f"Chosen for {setting}: {'; '.join(f'{arm} {of}' for arm, of in tunings.items())}."
        for setting, tunings in by_setting.items()
    )
    return (
        f"Learning rate, weight where there is one, and AdaRand's rate for its means, that the selection "
        f"chose ({seconds:.0f} seconds of training in all); + marks the largest weight that was tried, - "
        f"the smallest:\n\n{each}"
    )


def _tuning(metrics: Mapping[str, float], weights: Sequence[float]) -> str:
    """Write learning rate, weight and the rate of means that a run had."""
    text = f"{metrics['lr']:g}"
    if "weight" in metrics:
        weight = metrics["weight"]
        edge = "+" if weight == max(weights) else "-" if weight == min(weights) else ""
        text += f", {weight:g}{edge}"
    return text + (f", {metrics['prior_lr']:g}" if "prior_lr" in metrics else "")


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
