"""A condensation as a command makes it: in a folder of its own, stopped in time, evaluated, with a card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from regraft._extras import optional
from regraft.config import ModelConfig, check
from regraft.config.check import AT_LEAST_1
from regraft.data import Splits
from regraft.errors import InputError
from regraft.generators import CondensedSet, Condenser
from regraft.jobs.progress import Bar
from regraft.jobs.verb import Done, write
from regraft.machine import is_first_process
from regraft.report import ResultCard
from regraft.train import RunFolder, keep_freed_memory, reset_peak

from .card import card_of
from .job import CondenseJob
from .scores import Trial, summary


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How good networks become on condensed images, measured or not."""

    wanted: bool = False
    """Train networks on the images, on as many random ones and on all."""
    model: ModelConfig | None = None
    """The networks; None for those that the images were condensed with."""
    seeds: Annotated[int, AT_LEAST_1.of("--evaluate-seeds")] = 3

    def check(self, splits: Splits) -> None:
        """Refuse an evaluation that cannot be, before hours are spent on the images.

        Raises:
            InputError: There is nothing to evaluate on.
            MissingExtraError: Networks cannot be trained here.
        """
        if not self.wanted:
            return
        check(self)
        if splits.test is None and splits.validation is None:
            raise InputError(
                f"--evaluate: {splits.name} has no test images: hold some of its images out, with "
                "--validation 0.1"
            )
        optional("lightning_fabric", "lightning-fabric", "train", "--evaluate")


def setting_of(job: CondenseJob, model: ModelConfig) -> str:
    """Return what is compared where networks are evaluated, so that a report can pair the runs."""
    data = Path(job.data.name).name or job.data.name
    name = model.name.replace("/", "-").replace(":", "-")
    return f"{data}/{name}/per_class={job.per_class}"


def run_condense(
    job: CondenseJob,
    out: Path,
    *,
    max_seconds: float | None = None,
    evaluation: Evaluation,
    bar: bool,
) -> Done:
    """Condense in a folder, or go on, as `CondenseJob` does it, evaluate, and write the card.

    Args:
        job: What is condensed.
        out: The folder.
        max_seconds: Stop after this time; the same call then goes on.
        evaluation: What is measured afterwards.
        bar: Show the progress.

    Raises:
        RegraftError: Whatever keeps it from its end, in one sentence.
    """
    keep_freed_memory()
    reset_peak()
    job.check()
    shown = bar and is_first_process()
    with job.open(out) as folder:
        evaluation.check(job.images())
        condenser = job.condenser()
        for fingerprint in job.fingerprints():
            folder.pin("data", fingerprint)
        with Bar(enabled=shown, noun="network", describe=_loss) as progress:
            result = job.advance(condenser, folder, progress.update, max_seconds=max_seconds)
        condensed = CondensedSet.load(out / "condensed.safetensors")
        if condenser.done:
            folder.finish(result)
        scores = _evaluate(job, condensed, folder, evaluation, shown) if evaluation.wanted else []
        folder.check_there()
        return Done(
            write(out, _card(job, condensed, condenser, scores, evaluation, out)), before=False
        )


def _evaluate(
    job: CondenseJob,
    condensed: CondensedSet,
    folder: RunFolder,
    evaluation: Evaluation,
    shown: bool,
) -> list[dict[str, Any]]:
    model = evaluation.model or job.model
    trial = Trial(
        setting=setting_of(job, model), model=model, runtime=job.runtime, splits=job.images()
    )
    place = folder.path / "evaluation" / model.name.replace("/", "-").replace(":", "-")
    with Bar(enabled=shown, noun="evaluation") as bar:
        return summary(trial.run(condensed, place, evaluation.seeds, bar.update))


def _card(
    job: CondenseJob,
    condensed: CondensedSet,
    condenser: Condenser,
    scores: list[dict[str, Any]],
    evaluation: Evaluation,
    out: Path,
) -> ResultCard:
    config = condenser.config
    facts = {
        "Data": job.data.name,
        "Method": job.method,
        "Network": job.model.name,
        "Start": str(config.init),
        "Steps": f"{config.outer} of the images, {config.inner} epochs of the network",
        "Learning rate": f"images {config.lr_images:g}, network {config.lr_network:g}",
        "Real batch": f"{config.real_batch} of each class",
        "Transforms": ", ".join(config.transforms or ()) or "none",
        "Seed": str(job.runtime.seed),
    }
    trained = (
        f"{(evaluation.model or job.model).name} networks, all trained by SGD with momentum 0.9 and "
        "a cosine from 0.05: 500 steps on the condensed and on the random images, 5 epochs on all."
    )
    card = card_of(
        out,
        condenser,
        condensed,
        name=Path(job.data.name).name or job.data.name,
        facts=facts,
        scores=scores,
        trained=trained,
    )
    return replace(card, notes=[*card.notes, *_notes(condenser.losses)])


def _notes(losses: Sequence[float]) -> list[str]:
    """Say so where the images have not come any closer."""
    part = len(losses) // 4
    if part < 2:
        return []
    first, last = math.fsum(losses[:part]) / part, math.fsum(losses[-part:]) / part
    if last < 0.95 * first:
        return []
    return [
        f"the matching loss has not fallen ({first:.3g} at first, {last:.3g} at the end): "
        "the images have hardly moved from their start; try more --restarts or another --lr-images"
    ]


def _loss(row: dict[str, float]) -> str:
    return f"loss {row['loss']:.3g}" if row else ""
