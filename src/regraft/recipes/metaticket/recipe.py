"""Meta-ticket against MAML, its relatives, and mask controls; numbers in `scales.toml`.

References:
    Chijiwa et al., "Meta-ticket: finding optimal subnetworks for few-shot learning within randomly
    initialized neural networks", NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from regraft.config import (
    DataConfig,
    EpisodeConfig,
    FewshotConfig,
    FewshotMethod,
    ModelConfig,
    OuterConfig,
    RuntimeConfig,
)
from regraft.config.fewshot import UNTRAINED
from regraft.errors import InputError
from regraft.jobs.fewshot.choice import RateChoice
from regraft.jobs.fewshot.job import FewshotJob
from regraft.recipes.notes import read_rows
from regraft.recipes.recipe import Recipe, Scale, assemble
from regraft.recipes.selection import SELECTION

from .claims import DOMAINS, read
from .rates import AT_RATE


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    near = ("test", *DOMAINS[:3])
    names = {"cpu": near, "rates": near, "gpu": ("test", *DOMAINS)}.get(scale, ("test",))
    metrics = [(f"{n}_accuracy{end}", "%") for n in names for end in ("", "_by_support")]
    title = "Meta-ticket against MAML and mask controls"
    package, groups = __package__ or "", _groups(scale)
    return assemble(package, groups, scale, seeds, title=title, read=read, metrics=metrics)


def _groups(scale: str) -> list[Scale]:
    """Return the jobs of a scale as `scales.toml` lists them."""
    package, file = __package__ or "", "scales.toml"
    (selection,) = read_rows(package, file, "selection", _Selection)
    rows = read_rows(package, file, scale, _Row)
    return [Scale(partial(row.jobs, selection), row.seeds) for row in rows]


@dataclass(frozen=True, kw_only=True)
class _Selection:
    """How a method's outer learning rate is chosen, on held-out background characters of Omniglot."""

    seeds: Sequence[int]
    steps: int
    test_tasks: int
    rates: Mapping[str, Sequence[float]]

    def choice(self, job: FewshotJob, steps: int | None, network: str | None) -> RateChoice | None:
        """Return the choice of a job's rate; None for a method that trains nothing.

        It is one for all settings of equal ways, shots, width, network and length of the trials,
        whatever their statistics.

        Raises:
            InputError: There are no rates for the method.
        """
        ways, shots, width = job.episodes.ways, job.episodes.shots, job.model.width
        method = job.fewshot.method
        if method in UNTRAINED:
            return None
        if method not in self.rates:
            file = "regraft/recipes/metaticket/scales.toml"
            raise InputError(f"{file}: [selection.rates]: key {method!r} is missing")
        setting = f"{SELECTION}omniglot/{ways}way-{shots}shot/{network or f'width={width:g}'}"
        if steps is not None:
            setting += f"/steps={steps}"
        trials = [
            replace(
                job,
                setting=setting,
                arm=method,
                control=None,
                data=replace(job.data, name="omniglot"),
                episodes=replace(job.episodes, rotations=True),
                fewshot=replace(job.fewshot, batchnorm="transductive"),
                outer=replace(job.outer, steps=steps or self.steps, lr=rate),
                tests=(),
                test_tasks=self.test_tasks,
                curve_points=1,
            ).with_seed(seed)
            for rate in self.rates[method]
            for seed in self.seeds
        ]
        first = replace(job.runtime, seed=self.seeds[0])
        return RateChoice(setting=setting, arm=method, runtime=first, trials=tuple(trials))


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row of `scales.toml`, which says what its keys mean; most are fields of `FewshotJob`."""

    setting: str
    seeds: int
    methods: Sequence[FewshotMethod]
    widths: Sequence[float] = ()
    data: DataConfig
    model: ModelConfig
    network: str | None = None
    trial_steps: int | None = None
    episodes: EpisodeConfig
    fewshot: FewshotConfig = field(default_factory=FewshotConfig)
    outer: OuterConfig
    tuned: bool
    equal_time: float | None = None
    rates: Mapping[FewshotMethod, Sequence[float]] = field(default_factory=dict)
    tests: tuple[str, ...] = ()
    held_out: float = 0.2
    test_tasks: int
    domain_tasks: int | None = None
    curve_points: int = 8
    runtime: RuntimeConfig

    def jobs(self, selection: _Selection) -> list[FewshotJob]:
        """Return every arm, at every width."""
        if self.widths:
            model, name = self.model, self.setting
            at = {f"{name}/width={w:g}": replace(model, width=w) for w in self.widths}
            rows = [replace(self, setting=s, model=m, widths=()) for s, m in at.items()]
            return [job for row in rows for job in row.jobs(selection)]
        job = partial(self._job, selection)
        ticket = job("meta-ticket")
        jobs = []
        for method in self.methods:
            source = ticket if method.endswith("-mask") else None
            jobs.append(ticket if method == "meta-ticket" else job(method, source=source))
        if self.equal_time is not None:
            longer = replace(self.outer, steps=round(self.equal_time * self.outer.steps))
            jobs.append(job("maml", arm="maml-equal-time", outer=longer))
        fixed = replace(self, tuned=False)
        for method, rates in self.rates.items():
            for rate in rates:
                outer = replace(self.outer, lr=rate)
                jobs.append(
                    fixed._job(selection, method, arm=f"{method}{AT_RATE}{rate:g}", outer=outer)
                )
        return jobs

    def _job(self, selection: _Selection, method: FewshotMethod, **more: Any) -> FewshotJob:
        control = {"meta-ticket": "maml", "untrained": None}.get(method, "untrained")
        how: dict[str, Any] = {
            "arm": method,
            "outer": self.outer,
            "fewshot": replace(self.fewshot, method=method),
            **more,
        }
        job = FewshotJob(
            setting=self.setting,
            control=control,
            data=self.data,
            model=self.model,
            episodes=self.episodes,
            tests=self.tests,
            held_out=self.held_out,
            test_tasks=self.test_tasks,
            domain_tasks=self.domain_tasks,
            curve_points=self.curve_points,
            runtime=self.runtime,
            **how,
        )
        if not self.tuned:
            return job
        return replace(job, choice=selection.choice(job, self.trial_steps, self.network))
