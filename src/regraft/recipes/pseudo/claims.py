"""What the runs say: the oracle's gate first, then PP, P-SSL and their controls."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from regraft.recipes.claims import difference, over_settings
from regraft.recipes.compare import better, gap, level, plain, signed, verdict
from regraft.recipes.recipe import Findings
from regraft.report import Claim, Row, Run

_RIVALS = ("scratch", "logit_matching", "soft_targets")
_WORDS = {
    "scratch": "training from scratch",
    "logit_matching": "logit matching",
    "soft_targets": "distillation of soft targets",
}

_PARTS = (
    ("pp", "scratch", "PP beats training from scratch"),
    ("pp_pssl", "pp", "P-SSL adds to PP"),
    ("pp_pssl", "pp_pssl_uniform", "Conditions of the classifier beat uniform ones"),
    ("pp_pssl", "pp_pssl_hard", "Soft conditions beat hard ones"),
    ("pp_pssl_own_head", "pp_pssl", "A head of their own helps generated images"),
    (
        "pp_pssl",
        "ssl_target",
        "PP + P-SSL beats the same loss on the labelled images themselves, without a generator",
    ),
)


def read(runs: list[Run], rows: list[Row]) -> Findings:
    """Return the claims of all settings that the oracle lets through, and what happened elsewhere."""
    settings = list(dict.fromkeys(r.setting for r in runs if r.arm == "pp_pssl"))
    passed = [s for s in settings if _gate(runs, s)]
    claims: list[Claim] = []
    for rival in _RIVALS:
        words = _WORDS[rival]
        claims += over_settings(
            runs, passed, "pp_pssl", rival, f"PP + P-SSL beats {words}",
            over="settings that the oracle lets through", each=True,
        )  # fmt: skip
    tasks = list(dict.fromkeys(_task(s) for s in passed))
    for task, rival in itertools.product(tasks, _RIVALS):
        own = [s for s in passed if _task(s) == task]
        if len(own) > 1 and len(own) < len(passed):
            claims += over_settings(
                runs, own, "pp_pssl", rival, f"PP + P-SSL beats {_WORDS[rival]} on {task}",
                over="architectures", each=True,
            )  # fmt: skip
    for setting in passed:
        for rival in _RIVALS:
            claims += difference(
                runs, setting, "pp_pssl", rival, f"PP + P-SSL beats {_WORDS[rival]}", levels=True
            )
        for one, other, words in _PARTS:
            claims += difference(runs, setting, one, other, words)
    text = "\n\n".join([*_gates(runs, settings), *_others(runs, settings, passed)])
    return Findings(claims=claims, text=text, figures={})


def _task(setting: str) -> str:
    return setting.partition("/")[0]


def _gate(runs: Sequence[Run], setting: str) -> bool:
    """Whether pre-training on the source's real images beats training from scratch."""
    return better(gap(runs, setting, "oracle", "scratch"))


def _gates(runs: Sequence[Run], settings: Sequence[str]) -> list[str]:
    lines = []
    for setting in settings:
        gain = gap(runs, setting, "oracle", "scratch")
        ssl = gap(runs, setting, "oracle_ssl", "oracle")
        more = (
            ""
            if ssl is None
            else f" Real source images without labels in the place of generated ones add {signed(ssl)}."
        )
        said = "it can show the claim" if better(gain) else "it cannot show the claim"
        over = " and ".join(
            f"{signed(gap(runs, setting, 'oracle', rival))} over {_WORDS[rival]}"
            for rival in _RIVALS[1:]
        )
        lines.append(
            f"{setting}: the oracle (real source images with their labels, then the target's) minus "
            f"scratch is {signed(gain)} points, {verdict(gain)}: {said}. It gains {over}.{more}"
        )
    return lines


def _others(runs: Sequence[Run], settings: Sequence[str], passed: Sequence[str]) -> list[str]:
    lines = []
    for setting in settings:
        arms = ", ".join(
            f"{arm} {plain(level(runs, setting, arm))}"
            for arm in ("scratch", "logit_matching", "soft_targets", "pp", "pp_pssl", "ssl_target")
        )
        teacher = level(runs, f"{_task(setting)}/teacher/{setting.rpartition('/')[2]}", "teacher")
        kind = "" if setting in passed else " (the oracle does not let it through)"
        lines.append(
            f"{setting}{kind}: {arms}; the teacher of both distillations {plain(teacher)}."
        )
    return lines
