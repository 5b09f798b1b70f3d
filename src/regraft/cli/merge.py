"""`regraft merge`: checkpoints of one architecture, aligned, merged, repaired and measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from regraft.jobs.merge.config import Heads, MergeConfig

from .align import AlignOptions
from .options import pick, registered
from .output import tell

MERGE_NAMES = registered("symmetry/merge/methods.py", r'^@merge_method\("(\w+)"')


@dataclass(frozen=True, kw_only=True)
class Merge(AlignOptions):
    """Merge checkpoints of one architecture, trained apart, into one network of the same size.

    Each model is permuted to fit the first (three and more: the mean of the others), whatever the
    architecture; then they are merged and, with data, their statistics are put right. The folder
    gets model.safetensors, the permutations, spec.json, card.json and README.md that say what was
    done, and report.html; of a Hugging Face folder, its configuration and tokenizer as well. The same
    command goes on after an interruption and leaves a finished folder as it is.
    """

    combine: Annotated[
        str,
        tyro.conf.arg(
            help=f"{', '.join(MERGE_NAMES)}; slerp is of two models, task_arithmetic and ties take --base."
        ),
    ] = "average"
    weights: tuple[float, ...] = ()
    """Weight of each model; equal without it."""
    base: Path | None = None
    """The model that all were fine-tuned from; each is then aligned to it alone."""
    factor: float | None = None
    """task_arithmetic, ties: factor on the merged difference from the base."""
    density: float | None = None
    """ties: share of each model's differences that is kept."""
    ties_scope: Literal["model", "tensor"] | None = None
    """ties: take that share of the whole model, or of each tensor."""
    heads: Heads = "shared"
    """One classifier for all, each model's own (one file each), or one over all classes by name."""
    repair: Literal["auto", "reset", "repair", "none"] = "auto"
    """With --data: reset BatchNorm statistics, or REPAIR every channel, whichever the network needs."""
    points: int = 25
    """Points of the interpolation curves; 0 draws none."""
    curve_images: int = 1000
    """Test images of each data set for the curves; scores are measured on all."""
    stream: bool = False
    """Merge tensor by tensor, for large models; without --data. The files are mapped, not loaded,
    and three and more models are aligned each to the first.
    Matching keeps n x n numbers for each group of n units; tracing holds several copies of one model
    for its proof, which --spec of an earlier run spares."""

    def config(self) -> MergeConfig:
        """Return what the engine is told."""
        return pick(MergeConfig, self.values(), **self.settings())

    def run(self) -> int:
        """Align, merge, repair, measure, and write the folder."""
        from regraft.jobs.merge.verbs import run_merge

        out, json = self.folder(), self.output.json
        done = run_merge(self.config(), out, bar=not json)
        tell(done, out, "merge", as_json=json)
        return 0
