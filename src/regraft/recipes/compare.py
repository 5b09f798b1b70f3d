"""Arms of a recipe beside each other: metrics by seed, paired differences and how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from regraft.report import Estimate, Run, estimate, paired_difference
from regraft.report.figure import Line


def values(
    runs: Iterable[Run], setting: str, arm: str, metric: str = "test_accuracy"
) -> dict[int, float]:
    """Return a metric of one arm by seed."""
    return {
        r.seed: r.result.metrics[metric]
        for r in runs
        if r.result is not None
        and (r.setting, r.arm) == (setting, arm)
        and metric in r.result.metrics
    }


def gap(
    runs: Iterable[Run], setting: str, arm: str, other: str, metric: str = "test_accuracy"
) -> Estimate | None:
    """Return `arm` minus `other`, paired by seed, or None without a seed that both have."""
    runs = list(runs)
    one, two = (values(runs, setting, name, metric) for name in (arm, other))
    return paired_difference(one, two) if one.keys() & two.keys() else None


def better(found: Estimate | None) -> bool:
    """Whether a paired difference is above zero with its whole interval."""
    return found is not None and found.low is not None and found.low > 0


def worse(found: Estimate | None) -> bool:
    """Whether a paired difference is below zero with its whole interval."""
    return found is not None and found.high is not None and found.high < 0


def signed(found: Estimate | None, digits: int = 2) -> str:
    """Write a difference with its interval."""
    if found is None:
        return "unknown"
    if found.low is None or found.high is None:
        return f"{found.mean:+.{digits}f}"
    return f"{found.mean:+.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def verdict(found: Estimate | None, more: str = "more", less: str = "less") -> str:
    """Say whether a paired difference is decided, and which way."""
    if found is None or found.low is None or found.high is None:
        return "undecided: too few seeds"
    if better(found):
        return more
    return less if worse(found) else "undecided: the interval holds zero"


def mean_line(label: str, curves: Sequence[Mapping[float, float]]) -> Line | None:
    """Return means over seeds with 95% intervals, where all curves have a value; None without one."""
    if not curves:
        return None
    at = sorted(set.intersection(*(set(c) for c in curves)))
    return line_of(label, {x: estimate(c[x] for c in curves) for x in at})


def line_of(label: str, found: Mapping[float, Estimate]) -> Line:
    """Return estimates by x as a line with a band."""
    return Line(
        label=label,
        x=list(found),
        y=[e.mean for e in found.values()],
        low=[e.low for e in found.values()],
        high=[e.high for e in found.values()],
    )
