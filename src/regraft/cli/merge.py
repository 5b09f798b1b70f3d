"""`regraft merge`: checkpoints of one architecture, aligned, merged, repaired and measured."""

from __future__ import annotations

import contextlib
import json as jsonlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regraft.jobs.merge.alignment import Alignment
from regraft.jobs.merge.card import describe, make_card, score_table, summary, write_documents
from regraft.jobs.merge.gathered import Gathered, gather
from regraft.jobs.merge.matching import Aligned, align, write_alignment
from regraft.jobs.merge.scores import Bench, State, told
from regraft.train.result_folder import claimed, finished, write_card

from .output import print_json, say, table

if TYPE_CHECKING:
    from regraft.symmetry.merge.repair import Repaired


@dataclass(frozen=True, kw_only=True)
class Merge(Alignment):
    """Merge checkpoints of one architecture, trained apart, into one network of the same size.

    Each model is permuted to fit the first (three and more: the mean of the others), whatever the
    architecture; then they are merged and, with data, their statistics are put right. The folder
    gets model.safetensors, the permutations, spec.json, card.json and README.md that say what was
    done, and report.html. The same command starts again after an interruption (only condensing goes
    on) and leaves a finished folder as it is.
    """

    method: str = "average"
    """average, slerp (two models), task_arithmetic or ties (both with --base)."""
    weights: tuple[float, ...] = ()
    """Weight of each model; equal without it."""
    base: Path | None = None
    """The model that all were fine-tuned from; each is then aligned to it alone."""
    scale: float | None = None
    """task_arithmetic, ties: factor on the merged difference from the base."""
    density: float | None = None
    """ties: share of each model's differences that is kept."""
    scope: Literal["model", "tensor"] | None = None
    """ties: take that share of the whole model, or of each tensor."""
    heads: Literal["shared", "separate", "union"] = "shared"
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

    def run(self) -> int:
        """Align, merge, repair, measure, and write the folder."""
        self._check()
        identity = self.identity("merge")
        card = finished(self.out, identity)
        if card is None:
            with claimed(self.out, identity):
                with _out_of_memory(stream=self.stream):
                    made = self._streamed() if self.stream else self._merged()
                card = write_card(self.out, made)
        elif not self.json:
            say(f"{self.out} is finished already; remove it to merge again")
        if self.json:
            print_json({"out": str(self.out), **card})
        else:
            _tell(self.out, card)
        return 0

    def _check(self) -> None:
        from regraft.errors import InputError
        from regraft.symmetry.merge.methods import MERGE_METHODS

        self.check_options()
        known = MERGE_METHODS.get(self.method)
        if known is None:
            raise InputError(
                f"--method {self.method}: expected one of {', '.join(sorted(MERGE_METHODS))}"
            )
        count = len(self.checkpoints)
        for name in ("scale", "density", "scope"):
            if getattr(self, name) is not None and name not in known.options:
                raise InputError(f"--{name} has no effect on --method {self.method}: leave it out")
        if known.needs_base and self.base is None:
            raise InputError(
                f"--method {self.method} works on differences from a common ancestor: give it with --base"
            )
        if self.base is not None and not known.needs_base:
            raise InputError(f"--base has no effect on --method {self.method}: leave it out")
        if known.models not in (None, count):
            raise InputError(
                f"--method {self.method} takes {known.models} models and {count} are given: use average"
            )
        self._check_numbers()
        if not self.data and self.repair in ("reset", "repair"):
            raise InputError(f"--repair {self.repair} takes statistics from images: add --data")
        if self.inputs is not None and self.heads != "shared":
            raise InputError(f"--heads {self.heads} needs images: leave --inputs or --heads out")
        if self.stream and (self.data or self.heads != "shared"):
            what = "--data" if self.data else f"--heads {self.heads}"
            raise InputError(
                f"--stream holds no whole network, which {what} needs: leave one of them out"
            )

    def _check_numbers(self) -> None:
        from regraft.errors import InputError
        from regraft.symmetry.merge.merge import normalised

        factors = () if self.scale is None else (("scale", self.scale),)
        for name, value in (*factors, *(("weights", weight) for weight in self.weights)):
            if not math.isfinite(value):
                raise InputError(f"--{name} {value}: expected a finite number")
        if self.weights:
            normalised(self.weights, len(self.checkpoints))
        if self.density is not None and not 0 < self.density <= 1:
            raise InputError(
                f"--density {self.density}: expected the share of values to keep, in (0, 1]"
            )
        if self.points < 0 or self.points == 1:
            raise InputError(f"--points {self.points}: expected 0, or at least the two ends")
        if self.curve_images < 1:
            raise InputError(f"--curve-images {self.curve_images}: expected at least 1")

    def _options(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in ("scale", "density", "scope")}
        return {k: v for k, v in given.items() if v is not None}

    def _merged(self) -> dict[str, Any]:
        from regraft.symmetry.merge.heads import share_rows
        from regraft.symmetry.merge.merge import merge

        began = time.monotonic()
        given = gather(self, base=self.base, heads=self.heads)
        aligned = align(self, given, heads=self.heads)
        before = given.states[: given.models]
        frames = {"before": before, "after": aligned.states}
        if self.heads == "union" and given.names and given.head:
            frames = {k: share_rows(v, given.names, given.head) for k, v in frames.items()}
        arguments: dict[str, Any] = {
            "method": self.method,
            "weights": self.weights or None,
            "buffers": given.buffers,
            **self._options(),
        }
        merged = merge(frames["after"], base=aligned.base, **arguments)
        control = merge(frames["before"], base=aligned.base, **arguments)
        result, done = self._repaired(given, merged, frames["after"])
        measured: dict[str, Any] = {}
        if given.data:
            states = {"not aligned": (control, "before"), "merged": (merged, "after")}
            if done.mode != "none":
                same, _ = self._repaired(given, control, frames["before"])
                states["not aligned, repaired"] = (same, "before")
                states["merged and repaired"] = (result, "after")
            if self.match == "none":
                states = {k: v for k, v in states.items() if not k.startswith("not aligned")}
            measured = self._measured(given, frames, states, done)
        files = self._write(given, aligned, frames["after"], result)
        return self._finish(given, aligned, done, files, began, measured)

    def _repaired(
        self, given: Gathered, merged: State, parents: list[State]
    ) -> tuple[State, Repaired]:
        from regraft.symmetry.merge.repair import Repaired, repair

        if not given.data:
            return merged, Repaired(
                mode="none", reason="there are no data to take statistics from: give --data"
            )
        return repair(
            given.model,
            merged,
            parents,
            given.statistics(self.samples, self.batch_size, self.seed),
            weights=self.weights or None,
            mode=self.repair,
        )

    def _measured(
        self,
        given: Gathered,
        frames: dict[str, list[State]],
        states: dict[str, tuple[State, str]],
        done: Repaired,
    ) -> dict[str, Any]:
        separate = self.heads == "separate"
        bench = Bench(given, limit=None, separate=separate, seed=self.seed)
        scores: dict[str, Any] = {}
        for i, state in enumerate(frames["after"], start=1):
            known = given.known[i - 1] if given.known else None
            scores[f"model {i}"] = told(bench.score(state, frames["after"], known=known))
        for name, (state, frame) in states.items():
            scores[name] = bench.score(state, frames[frame]).to_dict()
        both = bench.ensemble(frames["after"])
        if both is not None:
            scores["logit ensemble"] = both.to_dict()
        curves: dict[str, Any] = {}
        if self.points:
            bench = Bench(given, limit=self.curve_images, separate=separate, seed=self.seed)
            repairs: dict[str, Any] = {"": {}}
            if done.mode != "none":
                batches = given.statistics(self.samples, self.batch_size, self.seed)
                repairs[", repaired"] = {"statistics": batches, "repair": done.mode}
            labels = {"before": "not aligned", "after": "aligned"}
            if self.match == "none":
                labels = {"after": "not aligned"}
            for k in range(1, given.models):
                found = curves[f"1-{k + 1}"] = {}
                for frame, label in labels.items():
                    for suffix, how in repairs.items():
                        a, b = frames[frame][0], frames[frame][k]
                        curve = bench.curve(a, b, frames[frame], self.points, **how)
                        found[label + suffix] = curve.to_dict()
        return {"scores": scores, "curves": curves}

    def _write(
        self, given: Gathered, aligned: Aligned, states: list[State], result: State
    ) -> list[str]:
        from regraft.files import write_tensors
        from regraft.symmetry.merge.heads import separate_heads

        files = {"model.safetensors": (result, describe(given))}
        if self.heads == "separate" and given.head:
            files = {}
            for i, own in enumerate(separate_heads(result, states, given.head)):
                for name in given.head.names:
                    own[name] = own[name][: given.counts[i]]
                files[f"model-{i + 1}.safetensors"] = (own, describe(given, model=i))
        for name, (state, about) in files.items():
            tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
            write_tensors(self.out / name, tensors, {"regraft.model": jsonlib.dumps(about)})
        condensed = sorted(path.name for path in self.out.glob("condensed-*.safetensors"))
        return [*files, *write_alignment(self.out, aligned), *condensed]

    def _streamed(self) -> dict[str, Any]:
        from regraft.checkpoints.stream import write_stream
        from regraft.symmetry.merge.merge import merge_tensors
        from regraft.symmetry.merge.repair import Repaired

        began = time.monotonic()
        given = gather(self, base=self.base, sketch=self.match == "none" or self.spec is not None)
        aligned = align(self, given, lazily=True, one_by_one=True)
        merged = merge_tensors(
            aligned.states,
            self.method,
            weights=self.weights or None,
            base=aligned.base,
            buffers=given.buffers,
            **self._options(),
        )
        header = {"regraft.model": jsonlib.dumps(describe(given))}
        write_stream(self.out / "model.safetensors", given.checkpoints[0].sketch, merged, header)
        files = ["model.safetensors", *write_alignment(self.out, aligned)]
        done = Repaired(mode="none", reason="a streamed merge measures nothing")
        return self._finish(given, aligned, done, files, began, {})

    def _finish(
        self,
        given: Gathered,
        aligned: Aligned,
        done: Repaired,
        files: list[str],
        began: float,
        measured: dict[str, Any],
    ) -> dict[str, Any]:
        how = {
            "method": self.method,
            "weights": list(self.weights),
            "options": self._options(),
            "base": None if self.base is None else str(self.base),
            "heads": self.heads,
        }
        card = make_card("merge", given, aligned, {"merge": how, "repair": done.to_dict()})
        card |= {"curve_images": self.curve_images, **measured}
        card |= {"files": files, "seconds": time.monotonic() - began}
        return write_documents(self.out, card)


@contextlib.contextmanager
def _out_of_memory(*, stream: bool) -> Iterator[None]:
    """Say what helps where memory runs out.

    Raises:
        RegraftError: It did.
    """
    from regraft.errors import RegraftError

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch's own class for this is a RuntimeError, and on the CPU it is a plain one.
        told = str(error).lower()
        if not isinstance(error, MemoryError) and not any(
            part in told for part in ("out of memory", "can't allocate memory")
        ):
            raise
        cure = "give --spec, so that no network is built for tracing, or take a larger machine"
        if not stream:
            cure = "add --stream (without --data), or lower --batch-size and --samples"
        raise RegraftError(f"memory ran out while merging: {cure}") from error


def _tell(out: Path, card: dict[str, Any]) -> None:
    for line in summary(card):
        say(line)
    if card.get("scores"):
        table(*score_table(card))
    say(f"merged: {out}")
