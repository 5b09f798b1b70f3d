"""Honest ratios: two calls taken in turn in one process, and where the results go."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from regraft.files import write_json, write_text
from regraft.train import environment

clock: Callable[[], float] = time.perf_counter
"""What tells the time in seconds; `time.process_time` where a loaded machine shall change little."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How long `arm` takes over how long `baseline` takes.

    Attributes:
        ratio: Median of the ratios of neighbouring calls.
        ratio_low: Lower end of its 95% bootstrap interval.
        ratio_high: Upper end.
        milliseconds: Median time of the arm.
        baseline_milliseconds: Median time of the baseline.
        target: What was aimed at, or None.
        floor: The least ratio that the extra memory traffic allows, or None.
    """

    setting: str
    arm: str
    baseline: str
    n: int
    ratio: float
    ratio_low: float
    ratio_high: float
    milliseconds: float
    baseline_milliseconds: float
    target: float | None = None
    floor: float | None = None


def median_ms(call: Callable[[], object], n: int, warmup: int = 3) -> float:
    """Return the median time of `n` calls in milliseconds."""
    for _ in range(warmup):
        call()
    return statistics.median(_ms(call) for _ in range(n))


def in_turn(
    setting: str,
    arm: tuple[str, Callable[[], object]],
    baseline: tuple[str, Callable[[], object]],
    *,
    n: int,
    warmup: int = 3,
    target: float | None = None,
    floor: Callable[[float], float] | None = None,
) -> Ratio:
    """Time two calls in turn, A B B A ..., and return the ratio with its interval."""
    for _ in range(warmup):
        arm[1]()
        baseline[1]()
    times: list[tuple[float, float]] = []
    for i in range(n):
        if i % 2:
            first = _ms(arm[1])
            times.append((first, _ms(baseline[1])))
        else:
            second = _ms(baseline[1])
            times.append((_ms(arm[1]), second))
    return _ratio(setting, arm[0], baseline[0], times, target, floor)


def in_rounds(
    setting: str,
    arms: Mapping[str, Callable[[], object]],
    baseline: tuple[str, Callable[[], object]],
    *,
    n: int,
    targets: Mapping[str, float] | None = None,
) -> list[Ratio]:
    """Time every arm and the baseline once a round, in an order that turns, and return the ratios.

    A baseline that takes far longer than the arms is called once for all of them. Nothing is warmed up.
    """
    calls = [("", baseline[1]), *arms.items()]
    rounds = _rounds(calls, n)
    return [
        _ratio(
            setting,
            name,
            baseline[0],
            [(one[name], one[""]) for one in rounds],
            (targets or {}).get(name),
            None,
        )
        for name in arms
    ]


def against(
    setting: str,
    arm: tuple[str, Callable[[], object]],
    baselines: Mapping[str, Callable[[], object]],
    *,
    n: int,
    targets: Mapping[str, float] | None = None,
) -> list[Ratio]:
    """Time one arm and all baselines once a round, as `in_rounds`; a ratio for each baseline."""
    calls = [("", arm[1]), *baselines.items()]
    rounds = _rounds(calls, n)
    return [
        _ratio(
            setting,
            arm[0],
            name,
            [(one[""], one[name]) for one in rounds],
            (targets or {}).get(name),
            None,
        )
        for name in baselines
    ]


def _rounds(calls: list[tuple[str, Callable[[], object]]], n: int) -> list[dict[str, float]]:
    rounds = []
    for i in range(n):
        turned = calls[i % len(calls) :] + calls[: i % len(calls)]
        rounds.append({name: _ms(call) for name, call in turned})
    return rounds


def _ratio(
    setting: str,
    arm: str,
    baseline: str,
    times: Sequence[tuple[float, float]],
    target: float | None,
    floor: Callable[[float], float] | None,
) -> Ratio:
    pairs = np.array(times)
    ratios = pairs[:, 0] / pairs[:, 1]
    draws = np.random.default_rng(0).integers(0, len(times), (2000, len(times)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    mine, theirs = np.median(pairs, axis=0)
    return Ratio(
        setting=setting,
        arm=arm,
        baseline=baseline,
        n=len(times),
        ratio=float(np.median(ratios)),
        ratio_low=float(low),
        ratio_high=float(high),
        milliseconds=float(mine),
        baseline_milliseconds=float(theirs),
        target=target,
        floor=None if floor is None else float(floor(float(theirs))),
    )


def _ms(call: Callable[[], object]) -> float:
    start = clock()
    call()
    return 1e3 * (clock() - start)


def write(
    folder: Path, name: str, title: str, command: str, rows: Sequence[Ratio], reading: str
) -> None:
    """Write `bench_NAME.md`, `.svg` and `.json`."""
    about, command = environment(), f"python benchmarks/{command}"
    hardware = f"{about['processor']}, {about['cores']} cores, torch {about['torch']}"
    data = {
        "benchmark": name,
        "command": command,
        "commit": about["commit"],
        "hardware": hardware,
        "rows": [{k: v for k, v in asdict(r).items() if v is not None} for r in rows],
    }
    lines = [
        f"# {title}",
        "",
        f"- Command: `{command}`",
        f"- Hardware: {hardware}",
        f"- Commit: {about['commit']}",
        "",
        f"![Ratios with 95% intervals](bench_{name}.svg)",
        "",
        "| setting | arm | baseline | n | arm, ms | baseline, ms | ratio [95%] | target | floor |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
        *(_line(r) for r in rows),
        "",
        reading,
        "",
    ]
    write_text(folder / f"bench_{name}.svg", _figure(rows))
    write_text(folder / f"bench_{name}.md", "\n".join(lines))
    write_json(folder / f"bench_{name}.json", data, indent=1)
    print("\n".join(lines))


def _line(r: Ratio) -> str:
    interval = f"{r.ratio:.3g} [{r.ratio_low:.3g}, {r.ratio_high:.3g}]"
    target = "" if r.target is None else f"{'at most' if r.target > 1 else '1 /'} " + (
        f"{r.target:g}" if r.target > 1 else f"{1 / r.target:g}"
    )  # fmt: skip
    floor = "" if r.floor is None else f"{r.floor:.2f}"
    return (
        f"| {r.setting} | {r.arm} | {r.baseline} | {r.n} | {r.milliseconds:.2f} | "
        f"{r.baseline_milliseconds:.2f} | {interval} | {target} | {floor} |"
    )


def _figure(rows: Sequence[Ratio]) -> str:
    """Draw the ratios near 1 (all of them where none is), a line each, with target and floor."""
    import io

    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from regraft.report.svg import INK, standalone

    style = {"svg.fonttype": "none", "svg.hashsalt": "regraft", "font.size": 9}
    style |= dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    )
    shown = ([r for r in rows if r.ratio > 0.5] if rows[0].ratio > 0.5 else list(rows))[::-1]
    with rc_context(style):
        figure = Figure(figsize=(7.5, 0.32 * len(shown) + 0.9), layout="constrained")
        axes = figure.subplots()
        for y, r in enumerate(shown):
            axes.plot([r.ratio_low, r.ratio_high], [y, y], color="#0072b2", lw=2)
            axes.plot([r.ratio], [y], "o", color="#0072b2", ms=5)
            if r.floor is not None:
                axes.plot([r.floor], [y], "|", color="#888888", ms=12, mew=2)
            if r.target is not None:
                axes.plot([r.target], [y], "d", color="#d55e00", ms=5, fillstyle="none")
        axes.axvline(1, color="#888888", lw=0.8)
        axes.set_yticks(range(len(shown)), [f"{r.setting}: {r.arm}" for r in shown])
        axes.set_xlabel("time over the baseline's; bar: floor, diamond: target")
        axes.spines[["top", "right"]].set_visible(False)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return standalone(buffer.getvalue(), "Time over the baseline's for each setting")
