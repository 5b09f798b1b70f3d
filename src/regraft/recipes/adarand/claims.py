"""What the numbers of the recipe `adarand` say: where AdaRand is better, and where it is not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from regraft.recipes.claims import above, below, difference, every, over_settings
from regraft.recipes.compare import better, gap, level, signed
from regraft.recipes.recipe import Findings
from regraft.recipes.selection import chosen, diverged, lasts
from regraft.report import Claim, Estimate, Published, Row, Run

from .figures import figures

Pairs = Mapping[str, Mapping[float, str]]
"""Settings by what is transferred from and to, and by size, the smallest first."""

_SIZE = re.compile(r"/(shots|share)=([\d.]+)$")
_CONTROLS = ("scratch", "plain")
_VARIANTS = "adarand"
_SAID = ("plain", "randreg_class", "randreg_source", "feature_norm", "linear_probe", "lp_ft")


def read(runs: list[Run], rows: list[Row]) -> Findings:
    """Return claims, text and figures of a finished recipe."""
    runs = [r for r in runs if r.finished]
    pairs = by_pair(r.setting for r in rows if r.metric == "test_accuracy")
    settings = [setting for sizes in pairs.values() for setting in sizes.values()]
    claims = _ordering(runs, pairs)
    for setting in settings:
        claims += _rivals(runs, setting)
    for pair, sizes in pairs.items():
        names = {s: f"{n:g} {unit_of(sizes)}" for n, s in sizes.items()}
        paper = f"Adapting the class means beats the frozen class prior ({pair})"
        claims += over_settings(
            runs, names, "adarand", "randreg_class", paper, each=True, over="sizes"
        )
    for setting in settings:
        claims += _features(runs, setting)
    text = [*_sentences(runs, pairs), _moved(runs, settings), diverged(runs), chosen(runs)]
    drawn = figures(runs, rows, pairs)
    return Findings(claims=claims, text="\n\n".join(t for t in text if t), figures=drawn)


def by_pair(settings: Iterable[str]) -> dict[str, dict[float, str]]:
    """Return settings by what they transfer from and to, and by size, the smallest first."""
    pairs: dict[str, dict[float, str]] = {}
    for setting in dict.fromkeys(settings):
        size = _SIZE.search(setting)
        if size and "-to-" in setting and not setting.startswith("selection/"):
            pairs.setdefault(setting[: size.start()], {})[float(size[2])] = setting
    return {pair: dict(sorted(sizes.items())) for pair, sizes in pairs.items()}


def unit_of(sizes: Mapping[float, str]) -> str:
    """Return what the sizes of a pair count, in words."""
    share = any("/share=" in s for s in sizes.values())
    return "of the training images (share)" if share else "images a class"


def rivals(runs: Iterable[Run], setting: str) -> list[str]:
    """Return the arms of a setting that AdaRand competes with: not controls, not its variants."""
    arms = dict.fromkeys(r.arm for r in runs if r.setting == setting)
    return [arm for arm in arms if arm not in _CONTROLS and not arm.startswith(_VARIANTS)]


def _ordering(runs: list[Run], pairs: Pairs) -> list[Claim]:
    """AdaRand over plain fine-tuning over scratch, at the smallest size of every pair and overall."""
    claims: list[Claim] = []
    states: dict[str, bool | None] = {}
    for sizes in pairs.values():
        setting = next(iter(sizes.values()))
        over_plain = gap(runs, setting, "adarand", "plain")
        over_scratch = gap(runs, setting, "plain", "scratch")
        if over_plain is None:
            continue
        note = f"AdaRand minus plain: {signed(over_plain)}"
        held = above()(over_plain)
        words = "AdaRand beats plain fine-tuning"
        if over_scratch is not None:
            words += ", and that training from scratch"
            note += f"; plain minus scratch: {signed(over_scratch)}"
            held = states[setting] = every([held, above()(over_scratch)])
        words, note = f"{words} ({setting})", f"{note}."
        claim = Claim(paper=words, held=held, evidence=[setting], note=note)
        claims.append(replace(claim, published=_published(setting, over_plain)))
    if len(states) < 2:
        return claims
    shown = [s for s, held in states.items() if held]
    possible = [s for s, held in states.items() if held is not False]
    overall = Claim(
        paper="AdaRand > plain fine-tuning > scratch at the smallest size of two pairs or more",
        held=True if len(shown) > 1 else None if len(possible) > 1 else False,
        evidence=list(states),
        note=f"Held at {len(shown)} of {len(states)}: {', '.join(shown) or 'none'}.",
    )
    return [overall, *claims]


def _published(setting: str, ours: Estimate) -> list[Published]:
    """Return the paper's gain where the source is the paper's, for orientation: the target is another."""
    what = "gain over plain fine-tuning (all images of Stanford Cars, ResNet-50: 91.17 - 88.29)"
    figure = Published(what=what, figure=2.88, unit="points", ours=ours)
    return [figure] if setting.startswith("imagenet-") else []


def _moved(runs: list[Run], settings: list[str]) -> str:
    """Say how far AdaRand's class means moved, without which nothing can be of their adapting."""
    far = {s: e for s in settings if (e := level(runs, s, "adarand", "means_moved")) is not None}
    if not far:
        return ""
    each = "; ".join(f"{s}: {e.mean:.3f}" for s, e in far.items())
    return (
        "From their start to the end AdaRand's class means moved by (root mean square of a coordinate, in "
        f"standard deviations of pretrained features): {each}."
    )


def _rivals(runs: list[Run], setting: str) -> list[Claim]:
    """AdaRand against every rival at once, where all of them ran."""
    against = {arm: gap(runs, setting, "adarand", arm) for arm in rivals(runs, setting)}
    gaps = {arm: g for arm, g in against.items() if g is not None}
    if len(gaps) < 3:
        return []
    states = {arm: above()(g) for arm, g in gaps.items()}
    listed = {
        state: "; ".join(f"{arm} ({signed(gaps[arm])})" for arm in gaps if states[arm] is state)
        for state in (None, False)
    }
    note = f"Better than {list(states.values()).count(True)} of {len(states)}."
    if listed[None]:
        note += f" Undecided, AdaRand minus rival: {listed[None]}."
    if listed[False]:
        note += f" Worse than: {listed[False]}."
    paper = f"AdaRand beats every rival ({setting})"
    return [Claim(paper=paper, held=every(states.values()), evidence=[setting], note=note)]


def _features(runs: list[Run], setting: str) -> list[Claim]:
    """The paper's analysis, from the features at the end of training."""
    paper = "AdaRand raises the mutual information of features and class"
    informed = {"metric": "mutual_information", "unit": "nats"}
    claims = difference(runs, setting, "adarand", "plain", paper, **informed)
    collapsed = gap(runs, setting, "randreg_uniform", "plain", "feature_norm")
    kept = gap(runs, setting, "adarand", "randreg_uniform", "feature_norm")
    if collapsed is not None and kept is not None:
        claims.append(
            Claim(
                paper=f"A uniform prior shrinks features, and AdaRand less ({setting})",
                held=every([below()(collapsed), above()(kept)]),
                evidence=[setting],
                note=(
                    f"Norm: randreg_uniform minus plain {signed(collapsed)}, AdaRand minus "
                    f"randreg_uniform {signed(kept)}."
                ),
            )
        )
    return claims


def _sentences(runs: list[Run], pairs: Pairs) -> list[str]:
    """Say for each pair from which size on AdaRand no longer beats what."""
    said = []
    for pair, sizes in pairs.items():
        parts = []
        for other in _SAID:
            gaps = {n: gap(runs, s, "adarand", other) for n, s in sizes.items()}
            known = {n: better(g) for n, g in gaps.items() if g is not None}
            if known:
                parts.append(f"{other}, {lasts(known, unit_of(sizes))}")
        if parts:
            said.append(f"{pair}: AdaRand beats {'; '.join(parts)}. {_best(runs, sizes)}".strip())
    return said


def _best(runs: list[Run], sizes: Mapping[float, str]) -> str:
    """Name the arm with the highest mean at each size."""
    tops = []
    for n, setting in sizes.items():
        arms = dict.fromkeys(r.arm for r in runs if r.setting == setting)
        means = {a: e.mean for a in arms if (e := level(runs, setting, a)) is not None}
        if means:
            top = max(means, key=means.__getitem__)
            tops.append(f"{n:g}: {top} {means[top]:.1f}")
    return f"Highest mean by size: {', '.join(tops)}." if tops else ""
