"""A condensation as a command makes it: in a folder of its own, stopped in time, evaluated, with a card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from regraft._extras import optional
from regraft.config import ModelConfig, check
from regraft.config.check import AT_LEAST_1
from regraft.data import Splits
from regraft.errors import InputError
from regraft.generators import CondensedSet
from regraft.jobs.progress import Bar
from regraft.jobs.verb import Done, write
from regraft.machine import is_first_process
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
        card = card_of(job, out, condenser, condensed, scores, evaluation.model)
        return Done(write(out, card), before=False)


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


def _loss(row: dict[str, float]) -> str:
    return f"loss {row['loss']:.3g}" if row else ""
