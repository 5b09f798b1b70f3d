"""Options of a generator whose images regularise a fine-tuning."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from regraft.config import MGRConfig, SourceConfig, check
from regraft.config.check import option_of
from regraft.config.generate import SOURCES
from regraft.config.mgr import Hypergradient
from regraft.errors import InputError

from .json_option import json_object
from .options import Options

if TYPE_CHECKING:
    from regraft.jobs.finetune.generated import GeneratedTerm

NAMES = ("mgr", "pcr")


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions(Options):
    """Images of a generator, for the methods mgr and pcr."""

    generator: Annotated[str | None, tyro.conf.arg(help=f"{SOURCES}.")] = None
    generator_weights: Path | None = None
    """File of the generator's weights, for a factory."""
    generator_options: str = "{}"
    """How it is called, where one batch does not tell: classes, latent, method, labels, pixels,
    image_shape, and options for the factory, as a JSON object."""
    generator_weight: float = 1.0
    """lambda: weight of the loss on generated images."""
    generator_batch: int | None = None
    """Generated images a step; without it as many as real ones."""
    generator_chunk: int | None = None
    """Images that are generated with a graph at a time."""
    select: Literal["finder", "gradient", "entropy"] = "finder"
    """How mgr chooses: latents by a learned finder, or the best of a pool, by the derivative along the
    validation gradient or by predictive entropy."""
    hypergradient: Hypergradient = "exact"
    """Gradient of the finder: exact, or the paper's finite difference."""
    mgr_options: str = "{}"
    """Further fields of regraft.config.MGRConfig, as a JSON object."""

    def parted(self, method: str) -> tuple[str, tuple[GeneratedTerm, ...]]:
        """Return the method of features in `--method`, and the losses on generated images.

        Raises:
            InputError: A generator, or an option of one, without such a method, the reverse, or a
                combination that means nothing.
        """
        parts = method.split("+")
        wanted = [p for p in parts if p in NAMES]
        others = [p for p in parts if p not in NAMES]
        if len(wanted) > 1 or len(others) > 1:
            raise InputError(
                f"--method {method}: expected one method of features, mgr or pcr, or one of each as in "
                "adarand+mgr"
            )
        if not wanted:
            for name, value in self.values().items():
                if value != getattr(GeneratorOptions, name):
                    raise InputError(
                        f"{option_of(name)} is for the methods mgr and pcr, and --method is {method}: give "
                        f"mgr, pcr or {method}+mgr; a generator of --unlabelled takes --unlabelled-options"
                    )
            return method, ()
        if self.generator is None:
            raise InputError(
                f"--method {method} needs a generator: give --generator, or take another method"
            )
        from regraft.jobs.finetune.generated import GeneratedTerm

        term = GeneratedTerm(name=wanted[0], source=self._source(), loss=self._loss(wanted[0]))
        own = others[0] if others else "plain"
        term.check(own)
        return own, (term,)

    def _source(self) -> SourceConfig:
        more = json_object(self.generator_options, "--generator-options")
        if isinstance(more.get("image_shape"), list):
            more["image_shape"] = tuple(more["image_shape"])
        weights = None if self.generator_weights is None else str(self.generator_weights)
        own = {"name": self.generator, "weights": weights}
        return _made(SourceConfig, own, more, "--generator-options")

    def _loss(self, name: str) -> MGRConfig:
        more = json_object(self.mgr_options, "--mgr-options")
        own = {
            "select": "uniform" if name == "pcr" else self.select,
            "weight": self.generator_weight,
            "batch": self.generator_batch,
            "chunk": self.generator_chunk,
            "hypergradient": self.hypergradient,
        }
        return _made(MGRConfig, own, more, "--mgr-options")


def _made(kind: Any, own: dict[str, Any], more: dict[str, Any], option: str) -> Any:
    free = {f.name for f in dataclasses.fields(kind)} - own.keys()
    unknown = sorted(more.keys() - free)
    if unknown:
        raise InputError(f"{option} has {unknown[0]!r}: expected some of {', '.join(sorted(free))}")
    made = kind(**own, **more)
    check(made)
    return made
