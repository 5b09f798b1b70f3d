"""A transfer: every method along the trajectory, what connects the networks, and training on.

The verb `regraft transfer` and the recipe's jobs both run it: the verb with all controls in one
folder, a job with one method in its own.

References:
    Chijiwa 2024, Transferring Learning Trajectories of Neural Networks (arXiv 2305.14122).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

from regraft.config import RuntimeConfig
from regraft.jobs.stages import Shown
from regraft.train import RunFolder

from .benefit import against_naive, agreement_of
from .config import TransferConfig, TransferMethod
from .connection import lines_of, plane_of
from .networks import Networks, State
from .steps import Steps, along
from .training import curve_of, train_on


@dataclass(eq=False, kw_only=True)
class TransferResult:
    """What a transfer found.

    Attributes:
        untrained: The target before everything, with statistics of the data.
        scores: Scores on all images of the untrained target, and with the controls of both trained
            networks.
        first: Scores of the untrained target on the images for the curves.
        steps: By method.
        agreement: Of the gradients on batches that were not matched, see `agreement_of`.
        against_naive: See `against_naive`.
        paths: Curves on the lines that end at the transferred network, by name.
        plane: Scores over the plane, see `plane_of`.
        trained_on: By arm: `from_step`, `seconds_before`, `curve`, and the training's `result`.
        notes: What the user should know.
        kept_seconds: What the parts took that an interrupted run had kept.
    """

    untrained: State
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    steps: dict[str, Steps] = field(default_factory=dict)
    agreement: dict[str, Any] | None = None
    against_naive: dict[str, Any] | None = None
    paths: dict[str, Any] = field(default_factory=dict)
    plane: dict[str, Any] | None = None
    trained_on: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kept_seconds: float = 0.0


def transfer(
    networks: Networks,
    config: TransferConfig,
    runtime: RuntimeConfig,
    folder: RunFolder,
    progress: Shown = None,
) -> TransferResult:
    """Carry a training over, measure it and train on; an interrupted run goes on between the methods.

    Args:
        networks: What is carried over to what. The model is left with the weights of the last training.
        config: How.
        runtime: Seed, and where and how exactly everything is computed.
        folder: The run's open folder. Trainings have folders in it where there are several.
        progress: Shown.

    Raises:
        RegraftError: What does not fit, in one sentence.
    """
    result = TransferResult(untrained=networks.with_statistics(networks.target))
    images, model = networks.images, networks.model
    if images is not None:
        note = images.note_on_choices(_chosen(networks, config))
        result.notes += [note] if note else []
        result.first = images.score(model, result.untrained)
        measured = {"target, untrained": result.untrained}
        if config.controls:
            measured["source, trained"] = networks.placed(networks.trajectory.state(-1))
            if networks.trained is not None:
                measured["target, trained"] = networks.placed(networks.trained)
        result.scores = {
            name: images.score(model, state, everything=True) for name, state in measured.items()
        }

    def carried(method: TransferMethod) -> Steps:
        if method not in result.steps:
            result.steps[method] = along(networks, config, runtime, method, folder, progress)
        return result.steps[method]

    for method in _methods(networks, config):
        carried(method)
    if config.match != "scratch":
        main = result.steps[config.match]
        if config.controls:
            result.agreement, notes = agreement_of(networks, config, main)
            result.notes += notes
            result.against_naive = against_naive(networks, config, result.steps)
        result.paths = folder.kept("paths", lambda: lines_of(networks, config, main, progress))
        plane = folder.kept(
            "plane", lambda: plane_of(networks, config, main, lambda: carried("oracle"))
        )
        result.plane = plane["plane"]
        result.notes += plane["notes"]
    result.kept_seconds = folder.kept_seconds
    if config.then is not None:
        _train(networks, config, runtime, folder, result, progress)
    return result


def _chosen(networks: Networks, config: TransferConfig) -> list[str]:
    """Return what is chosen by scores."""
    steps = ["the best step"] if _methods(networks, config) else []
    epochs = config.then is not None and config.then.select == "best"
    return [*steps, *(["the best epoch"] if epochs else [])]


def _methods(networks: Networks, config: TransferConfig) -> list[TransferMethod]:
    methods: list[TransferMethod] = []
    if config.match != "scratch":
        methods.append(config.match)
    if config.controls and networks.images is not None:
        methods.extend(("naive", "initial_weights"))
        if networks.trained is not None:
            methods.append("oracle")
    return list(dict.fromkeys(methods))


def _train(
    networks: Networks,
    config: TransferConfig,
    runtime: RuntimeConfig,
    folder: RunFolder,
    result: TransferResult,
    progress: Shown,
) -> None:
    """Train on from where the method ends, and with the controls from scratch and the naive end."""
    if config.then is None:
        return
    names = ["scratch", "naive", config.match] if config.controls else [config.match]
    for name in dict.fromkeys(names):
        steps = result.steps.get(name)
        if steps is None:
            state, before, step = result.untrained, 0.0, None
            scores = result.scores["target, untrained"]
        else:
            at = steps.start(config.start)
            state, before, step = at.weights, steps.seconds, at.step
            scores = steps.scores[config.start]
        own = contextlib.nullcontext(folder)
        if config.controls:
            own = RunFolder(
                folder.path / "then_train" / name,
                config={"transfer": folder.identity["digest"], "arm": name},
                setting="then_train",
                arm=name,
                control=None if name == "scratch" else "scratch",
                seed=runtime.seed,
            )
        with own as inner:
            trained = train_on(networks, config.then, runtime, inner, name, state, progress)
            if config.controls:
                inner.finish(trained)
            accuracy = scores["validation_accuracy"]
            result.trained_on[name] = {
                "from_step": step,
                "seconds_before": before,
                "test_accuracy_before": scores["test_accuracy"],
                "seconds": before + trained["seconds"],
                "curve": curve_of(inner, trained, before, accuracy),
                "metrics": trained["metrics"],
                "result": trained,
            }
