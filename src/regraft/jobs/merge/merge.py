"""The engine of `regraft merge` and of the recipe `merging`: align, merge, repair, measure, write.

References:
    Yamada et al., "Revisiting permutation symmetry for merging models between different datasets",
    arXiv 2306.05641.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft.data import Splits
from regraft.errors import InputError, RegraftError
from regraft.jobs.stages import Shown, remark
from regraft.symmetry.merge.connectivity import Curve
from regraft.symmetry.merge.heads import separate_heads, share_rows
from regraft.symmetry.merge.merge import merge as merge_states
from regraft.symmetry.merge.merge import merge_tensors, normalised
from regraft.symmetry.merge.methods import MERGE_METHODS
from regraft.symmetry.merge.repair import Repaired, repair
from regraft.train import RunFolder

from .align import Aligned, align, write_alignment
from .card import describe, facts_of
from .config import MergeConfig
from .models import Models, read_models
from .scores import Scores, State, to_json
from .written import write_streamed, write_whole


@dataclass(eq=False)
class Merged:
    """What a merge came to.

    Attributes:
        models: The models and data.
        aligned: How they were aligned.
        state: The merged state dict, None where it was streamed to its file.
        repaired: What was done to its statistics.
        scores: Scores by name, as JSON.
        curves: Curves by pair of models and what was done to them.
        files: Names of the files in the folder.
        seconds: Time of all of it.
    """

    models: Models
    aligned: Aligned
    state: State | None
    repaired: Repaired
    scores: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def facts(self, config: MergeConfig) -> dict[str, Any]:
        """Return what was done, as JSON."""
        how = {
            "method": config.combine,
            "weights": list(config.weights),
            "options": config.options,
            "base": None if config.base is None else str(config.base),
            "heads": config.heads,
        }
        more: dict[str, Any] = {"merge": how, "repair": self.repaired.to_dict()}
        more["curve_images"] = config.curve_images
        if self.models.data:
            more["scores"] = self.scores
            more["curves"] = {
                pair: {label: curve.to_dict() for label, curve in own.items()}
                for pair, own in self.curves.items()
            }
        facts = facts_of("merge", self.models, self.aligned, more)
        return {**facts, "files": self.files, "seconds": self.seconds}


def check(config: MergeConfig) -> None:
    """Refuse settings that contradict each other, before anything is read.

    Raises:
        InputError: The first of them, by the name of its option.
    """
    known = MERGE_METHODS.get(config.combine)
    if known is None:
        raise InputError(
            f"--combine {config.combine}: expected one of {', '.join(sorted(MERGE_METHODS))}"
        )
    for name, option in (("scale", "factor"), ("density", "density"), ("scope", "ties-scope")):
        if name in config.options and name not in known.options:
            raise InputError(
                f"--{option} has no effect on --combine {config.combine}: leave it out"
            )
    if known.needs_base and config.base is None:
        raise InputError(
            f"--combine {config.combine} works on differences from a common ancestor: give it with "
            "--base"
        )
    if config.base is not None and not known.needs_base:
        raise InputError(f"--base has no effect on --combine {config.combine}: leave it out")
    count = len(config.checkpoints)
    if known.models not in (None, count):
        raise InputError(
            f"--combine {config.combine} takes {known.models} models and {count} are given: use average"
        )
    config.check()
    if config.weights:
        normalised(config.weights, count)


def merge(
    config: MergeConfig,
    folder: RunFolder,
    *,
    progress: Shown = None,
    splits: Sequence[Splits] | None = None,
) -> Merged:
    """Merge checkpoints and write the model into the folder; go on where a run was interrupted.

    Args:
        config: What is merged, and how.
        folder: Where files are written, and where straight-through matching keeps its state.
        progress: Called with the steps done, all steps, and the newest row; or bars and remarks.
        splits: The data sets, where they are loaded already.

    Raises:
        RegraftError: Whatever keeps the merge from its end, in one sentence.
    """
    with _out_of_memory(stream=config.stream):
        if config.stream:
            return _streamed(config, folder, progress)
        return _merged(config, folder, progress, splits)


def _merged(
    config: MergeConfig, folder: RunFolder, progress: Shown, splits: Sequence[Splits] | None
) -> Merged:
    began = time.monotonic()
    remark(progress, "reading the models" + (" and the images" if config.data else ""))
    models = read_models(config, base=config.base, heads=config.heads, splits=splits)
    aligned = align(config, models, folder, progress=progress)
    frames = {"before": models.states[: models.models], "after": aligned.states}
    if config.heads == "union" and models.names and models.head:
        frames = {k: share_rows(v, models.names, models.head) for k, v in frames.items()}
    merged = _combined(config, models, aligned, frames["after"])
    if models.data:
        most = f"at most {config.statistics_images} training images"
        remark(progress, f"taking statistics of {most} of each set")
    state, repaired = _repaired(config, models, merged, frames["after"])
    result = Merged(models, aligned, state, repaired)
    if models.data:
        states = {"merged": (merged, "after")}
        if repaired.mode != "none":
            states["merged and repaired"] = (state, "after")
        if config.controls and config.match != "none":
            control = _combined(config, models, aligned, frames["before"])
            controls = {"not aligned": (control, "before")}
            if repaired.mode != "none":
                same, _ = _repaired(config, models, control, frames["before"])
                controls["not aligned, repaired"] = (same, "before")
            states = {
                "not aligned": controls["not aligned"], "merged": states["merged"],
                **controls, **states,
            }  # fmt: skip
        remark(progress, f"measuring {len(states)} merged networks and {models.models} models")
        result.scores = _scores(config, models, frames, states)
        if config.points:
            remark(
                progress, f"measuring {config.points} networks along each path between the models"
            )
            result.curves = _curves(config, models, frames, repaired)
    if folder.writes:
        files = _write(config, models, frames["after"], state, folder)
        result.files = [*files, *write_alignment(folder.path, aligned)]
        result.files += sorted(path.name for path in folder.path.glob("condensed-*.safetensors"))
    result.seconds = time.monotonic() - began
    return result


def _combined(config: MergeConfig, models: Models, aligned: Aligned, states: list[State]) -> State:
    return merge_states(
        states,
        method=config.combine,
        base=aligned.base,
        weights=config.weights or None,
        buffers=models.buffers,
        **config.options,
    )


def _repaired(
    config: MergeConfig, models: Models, merged: State, parents: list[State]
) -> tuple[State, Repaired]:
    if not models.data:
        reason = "there are no data to take statistics from: give --data"
        return merged, Repaired(mode="none", reason=reason)
    return repair(
        models.model,
        merged,
        parents,
        models.statistics(config.statistics_images, config.batch_size, config.runtime.seed),
        weights=config.weights or None,
        mode=config.repair,
    )


def _scores(
    config: MergeConfig,
    models: Models,
    frames: dict[str, list[State]],
    states: dict[str, tuple[State, str]],
) -> dict[str, Any]:
    separate = config.heads == "separate"
    measured = Scores(models, limit=None, separate=separate, seed=config.runtime.seed)
    scores: dict[str, Any] = {}
    if config.controls:
        for i, state in enumerate(frames["after"]):
            known = models.known[i] if models.known else None
            score = measured.score(state, frames["after"], known=known)
            scores[f"model {i + 1}"] = to_json(score)
    for name, (state, frame) in states.items():
        scores[name] = measured.score(state, frames[frame]).to_dict()
    ensemble = measured.ensemble(frames["after"]) if config.controls else None
    if ensemble is not None:
        scores["logit ensemble"] = ensemble.to_dict()
    return scores


def _curves(
    config: MergeConfig, models: Models, frames: dict[str, list[State]], repaired: Repaired
) -> dict[str, dict[str, Curve]]:
    """Return the curves from model 1 to each other: by pair, then by what was done."""
    seed = config.runtime.seed
    separate = config.heads == "separate"
    measured = Scores(models, limit=config.curve_images, separate=separate, seed=seed)
    repairs: dict[str, Any] = {"": {}}
    if repaired.mode != "none":
        batches = models.statistics(config.statistics_images, config.batch_size, seed)
        repairs[", repaired"] = {"statistics": batches, "repair": repaired.mode}
    labels = {"before": "not aligned", "after": "aligned"}
    if config.match == "none":
        labels = {"after": "not aligned"}
    if not config.controls:  # what becomes of the merge alone
        labels = {"after": labels["after"]}
        repairs = dict([list(repairs.items())[-1]])
    curves: dict[str, dict[str, Curve]] = {}
    for k in range(1, models.models):
        pair = curves[f"1-{k + 1}"] = {}
        for frame, label in labels.items():
            for suffix, how in repairs.items():
                a, b = frames[frame][0], frames[frame][k]
                pair[label + suffix] = measured.curve(a, b, frames[frame], config.points, **how)
    return curves


def _write(
    config: MergeConfig, models: Models, states: list[State], state: State, folder: RunFolder
) -> list[str]:
    if config.heads != "separate" or not models.head:
        return write_whole(folder.path, "model.safetensors", state, describe(models), models)
    files = []
    for i, own in enumerate(separate_heads(state, states, models.head)):
        for name in models.head.names:
            own[name] = own[name][: models.counts[i]]
        about = describe(models, model=i)
        files += write_whole(folder.path, f"model-{i + 1}.safetensors", own, about, models)
    return files


def _streamed(config: MergeConfig, folder: RunFolder, progress: Shown) -> Merged:
    began = time.monotonic()
    sketch = config.match == "none" or config.spec is not None
    models = read_models(config, base=config.base, sketch=sketch)
    aligned = align(config, models, folder, progress=progress, lazily=True, one_by_one=True)
    merged = merge_tensors(
        aligned.states,
        config.combine,
        weights=config.weights or None,
        base=aligned.base,
        buffers=models.buffers,
        **config.options,
    )
    files = write_streamed(folder.path, "model.safetensors", merged, describe(models), models)
    files += write_alignment(folder.path, aligned)
    repaired = Repaired(mode="none", reason="a streamed merge measures nothing")
    seconds = time.monotonic() - began
    return Merged(models, aligned, None, repaired, files=files, seconds=seconds)


@contextlib.contextmanager
def _out_of_memory(*, stream: bool) -> Iterator[None]:
    """Say what helps where memory runs out.

    Raises:
        RegraftError: It did.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch's own class for this is a RuntimeError, and on the CPU it is a plain one.
        text = str(error).lower()
        if not isinstance(error, MemoryError) and not any(
            part in text for part in ("out of memory", "can't allocate memory")
        ):
            raise
        cure = "give --spec, so that no network is built for tracing, or take a larger machine"
        if not stream:
            cure = "add --stream (without --data), or lower --batch-size and --statistics-images"
        raise RegraftError(f"memory ran out while merging: {cure}") from error
