"""The arms of the recipe `mgr`: PCR, MGR, its attempts, and every control, with equal optimiser steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.config import MGRConfig
from regraft.jobs.generate.regularised import ImageTerm, RegularisedJob

FINDER_LR = 1e-2
_HELD_OUT = 0.2


@dataclass(frozen=True)
class LossWeights:
    """lambda of every loss, chosen alone on seeds that are not reported (`benchmarks/choose_mgr.py`)."""

    pcr: float = 1.0
    ce: float = 1.0
    head: float = 1.0
    self_training: float = 1.0
    strong_ce: float = 1.0
    real: float = 1.0
    real_strong: float = 1.0


@dataclass(frozen=True)
class Plan:
    """What an arm trains with beside the labels.

    Attributes:
        terms: Its further losses.
        control: The arm that it is held against.
        fields: Further fields of the job.
    """

    terms: tuple[ImageTerm, ...] = ()
    control: str | None = "base"
    fields: Mapping[str, Any] = field(default_factory=dict)


def plans(w: LossWeights) -> dict[str, Plan]:
    """Return every arm by its name; `oracle` among the fields is True where it wants extra labels."""
    pcr = _on("generator", weight=w.pcr, select="uniform")
    gda = _on("generator", loss="ce", weight=w.ce, select="uniform")
    real = _on("target", weight=w.real, select="uniform")
    held = {"held_out": _HELD_OUT}

    def mps(select: str = "finder", **changes: Any) -> tuple[ImageTerm, ...]:
        return (_on("generator", weight=w.pcr, select=select, finder_lr=FINDER_LR, **changes),)

    def other(loss: str, weight: float) -> tuple[ImageTerm, ...]:
        return (_on("generator", loss=loss, weight=weight, select="uniform"),)

    return {
        "base": Plan(control=None),
        "base_80": Plan(fields=held),
        "gda": Plan((gda,)),
        # As published: the mean over generated images counts as much as that over real ones.
        "gda_naive": Plan(other("ce", 1.0)),
        "gda_head": Plan(other("head", w.head)),
        "gda_ssl": Plan(other("self_training", w.self_training)),
        "gda_strong": Plan(other("strong_ce", w.strong_ce)),
        "mps_gda": Plan(
            (_on("generator", loss="ce", weight=w.ce, finder_lr=FINDER_LR),), control="gda"
        ),
        "pcr": Plan((pcr,)),
        "pcr_80": Plan((pcr,), control="base_80", fields=held),
        "mgr": Plan(mps(), control="pcr"),
        "mgr_finite": Plan(mps(hypergradient="finite"), control="pcr"),
        "mgr_80": Plan(mps(), control="pcr_80", fields=held),
        "mgr_oracle": Plan(mps(), control="pcr", fields={"oracle": True}),
        "bank_entropy": Plan(mps("entropy"), control="pcr"),
        "bank_gradient": Plan(mps("gradient"), control="pcr"),
        "mps_draws": Plan(mps("gradient", draws=4), control="pcr"),
        "mps_pairs_80": Plan(mps("gradient", pairs=True), control="pcr_80", fields=held),
        "mps_copies": Plan(mps(copies=True, folds=2), control="pcr"),
        "mps_classes": Plan(mps(finder="per_class"), control="pcr"),
        "mps_batches": Plan(mps(validation_batches=4), control="pcr"),
        "mps_average": Plan(mps(average=0.9), control="pcr"),
        "mps_fisher": Plan(mps(damping=0.1), control="pcr"),
        "mps_pool": Plan(mps("gradient", pool=16, pool_share=1 / 8), control="pcr"),
        "real_pcr": Plan((real,)),
        "real_strong": Plan(
            (_on("target", loss="strong_ce", weight=w.real_strong, select="uniform"),)
        ),
        "pcr_real": Plan((pcr, real)),
        "gda_real": Plan((gda, real)),
        "more_real": Plan((_on("more", loss="ce", select="uniform"),)),
        # Trained on generated images alone: its accuracy is the generator's score (CAS).
        "cas": Plan(other("ce", 1.0), control=None, fields={"labels": False, "steps": 300}),
    }


def make(
    like: RegularisedJob,
    weights: LossWeights,
    names: Iterable[str],
    *,
    batch: int | None = None,
) -> list[RegularisedJob]:
    """Return the arms of a setting.

    Args:
        like: The base arm, with its generator, its further real images, and the labels of an oracle.
        weights: lambda of every loss.
        names: Which arms; a control that is not among them is none.
        batch: Generated images a step, as many as real ones by default.
    """
    names, every = list(names), plans(weights)
    jobs = []
    for name in names:
        plan = every[name]
        fields = dict(plan.fields)
        oracle = like.oracle if fields.pop("oracle", False) else None
        sources = {t.images for t in plan.terms}
        jobs.append(
            replace(
                like,
                arm=name,
                control=plan.control if plan.control in names else None,
                terms=tuple(_with_batch(t, batch) for t in plan.terms),
                oracle=oracle,
                generator=like.generator if "generator" in sources else None,
                more=like.more if "more" in sources else None,
                **fields,
            )
        )
    return jobs


def _with_batch(term: ImageTerm, batch: int | None) -> ImageTerm:
    return term if batch is None else replace(term, loss=replace(term.loss, batch=batch))


def _on(images: Any, **changes: Any) -> ImageTerm:
    return ImageTerm(images=images, loss=MGRConfig(**changes))
