"""Pre-training and semi-supervised learning from a generator; numbers in `scales.toml`.

References:
    Yamaguchi et al., "Transfer learning with pre-trained conditional generative models", 2022
    (arXiv 2204.12833). Its tables could not be had; the claims are those of its abstract.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from regraft.jobs.base import Job
from regraft.recipes.notes import arm_names, named_rows, read_rows
from regraft.recipes.recipe import Recipe, Scale, assemble

from .arms import Architecture, Effort, PseudoTask, arms
from .claims import read

_SCALES = (__package__ or "", "scales.toml")
METRICS = (("test_accuracy", "%"), ("confident", "%"))
MEASURED = (("classification_accuracy_score", "%"), ("spread", "times"))
"""What is measured of a generator that was not trained here."""


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    groups = [Scale(row.jobs, row.seeds) for row in settings(scale)]
    return assemble(
        __package__ or "",
        groups,
        scale,
        seeds,
        title="Transfer by a generator: PP and P-SSL",
        read=read,
        metrics=(*METRICS, *(MEASURED if scale == "foreign" else ())),
    )


def settings(scale: str) -> list[PseudoSetting]:
    """Return the rows of `scales.toml` for a scale."""
    return read_rows(*_SCALES, scale, PseudoSetting)


@dataclass(frozen=True, kw_only=True)
class PseudoSetting:
    """Arms of tasks, sizes and networks; a row of `scales.toml`.

    Attributes:
        tasks: Names of `[[task]]`.
        sizes: Numbers of labels.
        nets: Keys of `[[net]]`.
        effort: Key of `[[effort]]`.
        arms: Names of arms, or of lists of them under `[arms]`.
        seeds: How many seeds they have.
        source_size: Images of the source; None for all.
        test_size: Images that results are measured on; None for all.
        pretrain_steps: Steps of PP.
        pretrain_batch: Generated images in each.
    """

    tasks: Sequence[str]
    sizes: Sequence[int]
    nets: Sequence[str]
    effort: str
    arms: Sequence[str]
    seeds: int
    source_size: int | None = None
    test_size: int | None = None
    pretrain_steps: int
    pretrain_batch: int = 64

    def jobs(self) -> list[Job]:
        """Return every arm."""
        names = arm_names(*_SCALES, self.arms)
        return [job for parts in self.parts() for job in arms(*parts, names)]

    def parts(self) -> Iterator[tuple[PseudoTask, int, Architecture, Effort]]:
        """Yield task, size, network and effort of each setting."""
        (effort,) = named_rows(*_SCALES, "effort", Effort, [self.effort])
        nets = named_rows(*_SCALES, "net", Architecture, self.nets)
        for task in named_rows(*_SCALES, "task", PseudoTask, self.tasks):
            for size in self.sizes:
                for net in nets:
                    yield self._sized(task), size, self._paced(net), effort

    def _sized(self, task: PseudoTask) -> PseudoTask:
        return replace(
            task,
            source=replace(task.source, size=self.source_size),
            tested=replace(task.tested, size=self.test_size),
            test=replace(task.test, size=self.test_size),
        )

    def _paced(self, net: Architecture) -> Architecture:
        pace = {"steps": self.pretrain_steps, "batch_size": self.pretrain_batch}
        return replace(net, pretrain=replace(net.pretrain, **pace))
