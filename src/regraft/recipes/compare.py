"""Arms of a recipe beside each other: metrics by seed, paired differences and how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from regraft.report import Estimate, Run, estimate
from regraft.report.figure import Line

Runs = Iterable[Run]


def values(runs: Runs, setting: str, arm: str, metric: str = "test_accuracy") -> dict[int, float]:
    """Return a metric of one arm by seed."""
    return {
        r.seed: r.result.metrics[metric]
        for r in runs
        if r.result is not None
        and (r.setting, r.arm) == (setting, arm)
        and metric in r.result.metrics
    }


def level(runs: Runs, setting: str, arm: str, metric: str = "test_accuracy") -> Estimate | None:
    """Return the mean of one arm with its interval, or None without a finished seed."""
    own = values(runs, setting, arm, metric)
    return estimate(own.values()) if own else None


def differences(
    runs: Runs, setting: str, arm: str, other: str, metric: str = "test_accuracy"
) -> dict[int, float]:
    """Return `arm` minus `other` by seed, of the seeds that both have."""
    runs = list(runs)
    one, two = (values(runs, setting, name, metric) for name in (arm, other))
    return {seed: one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())}


def gap(
    runs: Runs, setting: str, arm: str, other: str, metric: str = "test_accuracy"
) -> Estimate | None:
    """Return `arm` minus `other`, paired by seed, or None without a seed that both have."""
    each = differences(runs, setting, arm, other, metric)
    return estimate(each.values()) if each else None


def mean_gap(
    runs: Runs, settings: Sequence[str], arm: str, other: str, metric: str = "test_accuracy"
) -> Estimate | None:
    """Return `arm` minus `other`, averaged over settings within each seed that all of them have."""
    runs = list(runs)
    by_setting = [differences(runs, s, arm, other, metric) for s in settings]
    seeds = set.intersection(*map(set, by_setting)) if by_setting else set()
    if not seeds:
        return None
    return estimate(sum(g[seed] for g in by_setting) / len(by_setting) for seed in sorted(seeds))


def better(estimate: Estimate | None) -> bool:
    """Whether a paired difference is above zero with its whole interval."""
    return estimate is not None and estimate.low is not None and estimate.low > 0


def worse(estimate: Estimate | None) -> bool:
    """Whether a paired difference is below zero with its whole interval."""
    return estimate is not None and estimate.high is not None and estimate.high < 0


def signed(estimate: Estimate | None, digits: int = 2) -> str:
    """Write a difference with its interval."""
    return "unknown" if estimate is None else _write(estimate, f"+.{digits}f", f".{digits}f")


def plain(estimate: Estimate | None, digits: int = 2) -> str:
    """Write a level with its interval."""
    return "unknown" if estimate is None else _write(estimate, f".{digits}f", f".{digits}f")


def _write(estimate: Estimate, mean: str, ends: str) -> str:
    text = format(estimate.mean, mean)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:{ends}}, {estimate.high:{ends}}]"


def verdict(estimate: Estimate | None, more: str = "more", less: str = "less") -> str:
    """Say whether a paired difference is decided, and which way."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return "undecided: too few seeds"
    if better(estimate):
        return more
    return less if worse(estimate) else "undecided: the interval holds zero"


def mean_line(label: str, curves: Sequence[Mapping[float, float]]) -> Line | None:
    """Return means over seeds with 95% intervals, where all curves have a value; None without one."""
    if not curves:
        return None
    at = sorted(set.intersection(*(set(c) for c in curves)))
    return line_of(label, {x: estimate(c[x] for c in curves) for x in at})


def line_of(label: str, points: Mapping[float, Estimate]) -> Line:
    """Return estimates by x as a line with a band."""
    return Line(
        label=label,
        x=list(points),
        y=[e.mean for e in points.values()],
        low=[e.low for e in points.values()],
        high=[e.high for e in points.values()],
    )
