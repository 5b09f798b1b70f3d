"""Claims made of runs: whether one held is read off an interval over seeds, never typed in.

A difference is of two arms, paired by seed. Its 95% interval [low, high] decides:

- `above(x)`: held with low > x, did not hold with high < x; undecided where the interval holds x;
- `reaches(gain)`, a published gain: held with low > 0 and high >= gain; did not hold with
  high < gain, since the interval rules the gain out; undecided otherwise;
- `no_worse(margin)`: held with a mean of at least 0 and low > -margin; did not hold with high < 0;
- one seed gives no interval and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from regraft.report import Claim, Estimate, Published

from .compare import Runs, gap, level, mean_gap, plain, signed, verdict

Held = bool | None
Decision = Callable[[Estimate | None], Held]


def above(limit: float = 0.0) -> Decision:
    """Return the decision whether an estimate is above a limit with its whole interval."""

    def decide(estimate: Estimate | None) -> Held:
        if estimate is None or estimate.low is None or estimate.high is None:
            return None
        return True if estimate.low > limit else False if estimate.high < limit else None

    return decide


def below(limit: float = 0.0) -> Decision:
    """Return the decision whether an estimate is below a limit with its whole interval."""
    is_above = above(limit)

    def decide(estimate: Estimate | None) -> Held:
        held = is_above(estimate)
        return None if held is None else not held

    return decide


def reaches(gain: float) -> Decision:
    """Return the decision whether a gain is there, and its interval reaches a published one."""

    def decide(estimate: Estimate | None) -> Held:
        if estimate is None or estimate.low is None or estimate.high is None:
            return None
        if estimate.high < gain:
            return False
        return True if estimate.low > 0 else None

    return decide


def no_worse(margin: float) -> Decision:
    """Return the decision whether a difference is no loss, at most `margin` at its lower end."""

    def decide(estimate: Estimate | None) -> Held:
        if estimate is None or estimate.low is None or estimate.high is None:
            return None
        if estimate.mean >= 0 and estimate.low > -margin:
            return True
        return False if estimate.high < 0 else None

    return decide


def every(states: Iterable[Held]) -> Held:
    """Return whether all hold: one that does not decides, one undecided leaves it open."""
    states = list(states)
    if any(state is False for state in states):
        return False
    return True if states and all(states) else None


def difference(
    runs: Runs,
    setting: str,
    arm: str,
    other: str,
    paper: str,
    *,
    metric: str = "test_accuracy",
    unit: str = "points",
    digits: int = 2,
    decide: Decision | None = None,
    gain: float | None = None,
    absolute: Mapping[str, float] | None = None,
    levels: bool = False,
    more: str = "",
) -> list[Claim]:
    """Return the claim that `arm` beats `other` in one setting; no claim without a common seed.

    Args:
        runs: Finished runs, all of the recipe's.
        setting: What is compared; it is named behind the claim, and is its evidence.
        arm: The arm that is said to be better.
        other: The arm it is held against.
        paper: What is claimed, without a stop.
        metric: The metric that is compared.
        unit: Unit of a difference.
        digits: Decimals in the note.
        decide: What decides; by default `reaches(gain)` with a published gain, else `above(0)`.
        gain: The published difference; it stands beside ours.
        absolute: Published values by arm; they stand beside ours.
        levels: Write the means of both arms into the note.
        more: What else is to be said, sentences.
    """
    runs = list(runs)
    estimate = gap(runs, setting, arm, other, metric)
    if estimate is None:
        return []
    plainly = f", {verdict(estimate)}" if decide is None and gain is None else ""
    said = f"{arm} minus {other}: {signed(estimate, digits)} {unit}{plainly}."
    if levels:
        sides = (f"{a} {plain(level(runs, setting, a, metric), digits)}" for a in (arm, other))
        said = f"{', '.join(sides)}. {said}"
    figures = [
        Published(what=f"{name}", figure=value, unit=_level_unit(unit), ours=ours)
        for name, value in (absolute or {}).items()
        if (ours := level(runs, setting, name, metric)) is not None
    ]
    return [
        Claim(
            paper=f"{paper} ({setting})",
            held=_decision(decide, gain)(estimate),
            evidence=[setting],
            note=f"{said} {more}".strip(),
            published=[*_gain(gain, unit, estimate), *figures],
        )
    ]


def over_settings(
    runs: Runs,
    settings: Sequence[str] | Mapping[str, str],
    arm: str,
    other: str,
    paper: str,
    *,
    each: bool = False,
    over: str = "settings",
    metric: str = "test_accuracy",
    unit: str = "points",
    digits: int = 2,
    decide: Decision | None = None,
    gain: float | None = None,
    more: str = "",
) -> list[Claim]:
    """Return the claim that `arm` beats `other` over several settings; no claim without a seed.

    Args:
        runs: Finished runs, all of the recipe's.
        settings: The settings, those without both arms left out; a mapping gives each a short name.
        arm: The arm that is said to be better.
        other: The arm it is held against.
        paper: What is claimed, without a stop.
        each: Every setting has to show it by itself; otherwise the mean over them, taken within
            each seed first.
        over: What the settings differ in, in words: `widths`.
        metric: The metric that is compared.
        unit: Unit of a difference.
        digits: Decimals in the note.
        decide: What decides; by default `reaches(gain)` with a published gain, else `above(0)`.
        gain: The published difference.
        more: What else is to be said, sentences.
    """
    runs = list(runs)
    names = settings if isinstance(settings, Mapping) else {s: s for s in settings}
    gaps = {s: g for s in names if (g := gap(runs, s, arm, other, metric)) is not None}
    if not gaps:
        return []
    by_setting = "; ".join(
        f"{names[s]}: {signed(g, digits)}, {verdict(g)}" for s, g in gaps.items()
    )
    decide = _decision(decide, gain)
    overall = mean_gap(runs, list(gaps), arm, other, metric)
    if each:
        states = [decide(g) for g in gaps.values()]
        held = every(states)
        said = f"Shown at {states.count(True)} of {len(states)} {over}."
    else:
        held = decide(overall)
        n = "" if overall is None else f", n = {overall.n} seeds"
        said = f"{signed(overall, digits)} {unit}, {verdict(overall)}{n}."
    said += f" {arm} minus {other} by itself: {by_setting}."
    return [
        Claim(
            paper=f"{paper}, {f'at each of the {over}' if each else f'mean over {over}'}",
            held=held,
            evidence=list(gaps),
            note=f"{said} {more}".strip(),
            published=_gain(gain, unit, overall),
        )
    ]


def _decision(decide: Decision | None, gain: float | None) -> Decision:
    if decide is not None:
        return decide
    return above() if gain is None else reaches(gain)


def _gain(gain: float | None, unit: str, estimate: Estimate | None) -> list[Published]:
    if gain is None:
        return []
    return [Published(what="gain", figure=gain, unit=unit, ours=estimate)]


def _level_unit(unit: str) -> str:
    return "%" if unit == "points" else unit
