"""The work of `regraft transfer`: the trajectory, every arm along it, the files, the paths."""

from __future__ import annotations

import json as jsonlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.cli.merging.card import describe
from regraft.cli.merging.gathered import gather
from regraft.cli.merging.matching import _spec
from regraft.cli.progress import Bar

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.cli.merging.gathered import Gathered
    from regraft.cli.transfer import Transfer
    from regraft.symmetry.spec import PermutationSpec
    from regraft.symmetry.trajectory import Trajectory
    from regraft.symmetry.transfer import Transferred

State = dict[str, "Tensor"]


@dataclass(eq=False)
class Arm:
    """A method along the trajectory.

    Attributes:
        rows: What was found at each step, for the card.
        best: The step of the best validation accuracy, or the last.
        last: The last step.
        seconds: Seconds of the transfer, with the scores that the best was chosen by.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    best: Transferred | None = None
    last: Transferred | None = None
    seconds: float = 0.0

    def start(self, which: str) -> Transferred:
        """Return the point to go on from."""
        found = self.best if which == "best" else self.last
        if found is None:
            raise ValueError("an arm without steps")
        return found


class Bench:
    """Scores on validation and test images."""

    def __init__(self, asked: Transfer, given: Gathered) -> None:
        from regraft.symmetry.connectivity import Kept

        self.given = given
        self.sources: dict[str, tuple[Any, Any]] = {}
        self.notes: list[str] = []
        if not given.data:
            return
        data = given.data[0]
        held_out = data.splits.validation
        if held_out is None:
            self.notes.append(
                f"{data.splits.name} has no validation images: the best step was chosen on training ones"
            )
        parts = {"validation": held_out or data.splits.train, data.tested_on: data.test}
        for name, part in parts.items():
            few = data.batches(part, given.device, limit=asked.curve_images, seed=asked.seed)
            self.sources[name] = Kept(few), data.batches(part, given.device)

    def score(self, state: State, *, everything: bool = False) -> dict[str, float]:
        """Return loss and accuracy on each part; of all images, or of those for the curves."""
        from regraft.symmetry.connectivity import measure

        found: dict[str, float] = {}
        self.given.model.load_state_dict(state)
        for name, sources in self.sources.items():
            scores = measure(self.given.model, [sources[everything]])
            key = "validation" if name == "validation" else "test"
            found |= {f"{key}_accuracy": scores.accuracy, f"{key}_loss": scores.loss}
        if found and "test_accuracy" not in found:  # the set has validation images and no others
            found |= {f"test_{k}": found[f"validation_{k}"] for k in ("accuracy", "loss")}
        return found


def transferred(asked: Transfer) -> dict[str, Any]:
    """Transfer, measure and train on; write the checkpoints and return the card."""
    from regraft.config import to_dict
    from regraft.train import command_line
    from regraft.train.environment import environment

    from .card import about_data, notes_of
    from .training import train_on

    began = time.monotonic()
    _refuse_other_architectures(asked)
    recorded = _recorded(asked)
    first = asked.from_init if recorded is None else _folder(asked) / "initial.safetensors"
    given = gather(asked.alignment(first or asked.to))
    states = list(given.states)
    trained = states.pop() if asked.to_final is not None else None
    target = states.pop()
    trajectory = _trajectory(asked, recorded, states)
    began_spec = time.monotonic()
    spec, spec_record = _spec(asked.alignment(first or asked.to), given)
    tracing = time.monotonic() - began_spec
    bench = Bench(asked, given)
    start = _with_statistics(asked, given, target)
    arms: dict[str, Arm] = {}
    controls = [] if not given.data else ["naive", "initial_weights"]
    if given.data and trained is not None:
        controls.append("oracle")
    for by in dict.fromkeys([asked.by, *controls]):
        arms[by] = _along(asked, given, bench, trajectory, target, spec, trained, by)
    for by, arm in arms.items():
        arm.seconds += 0.0 if by == "naive" else tracing
    main = arms[asked.by]
    files = _write(asked, given, spec, main)
    scores = _scores(asked, given, bench, arms, trajectory, start, trained)
    card: dict[str, Any] = {
        "kind": "transfer",
        "command": command_line(),
        "environment": environment(),
        "source": [str(p) for p in (*asked.source, asked.from_init, asked.from_final) if p],
        "to": str(asked.to),
        "to_final": None if asked.to_final is None else str(asked.to_final),
        "model": to_dict(given.config),
        "shape": given.shape,
        "data": about_data(given),
        "trajectory": {
            "origin": trajectory.origin,
            "steps": list(trajectory.steps),
            "error": trajectory.error,
        },
        "by": asked.by,
        "gradient_batches": asked.gradient_batches,
        "scale": asked.scale,
        "spec": spec_record,
        "curves": {by: arm.rows for by, arm in arms.items()} if given.data else {},
        "steps": main.rows,
        "seconds_of": {by: arm.seconds for by, arm in arms.items()},
        "best_step": main.start("best").step,
        "scores": scores,
        "paths": _paths(asked, given, bench, spec, main, trajectory, trained),
        "then_train": train_on(asked, given, arms, start, bench) if asked.then_train else None,
        "notes": [
            *given.notes,
            *bench.notes,
            *notes_of(len(spec), main.rows[-1], measured=bool(given.data)),
        ],
        "files": files,
    }
    return {**card, "seconds": time.monotonic() - began}


def _folder(asked: Transfer) -> Path:
    folder = asked.source[0]
    inner = folder / "trajectory"
    return inner if not (folder / "index.json").exists() and inner.is_dir() else folder


def _recorded(asked: Transfer) -> Trajectory | None:
    from regraft.symmetry.trajectory import Trajectory

    return Trajectory.open(_folder(asked), cut=asked.cut) if asked.source else None


def _refuse_other_architectures(asked: Transfer) -> None:
    """Name the first tensor that differs, before anything is built."""
    from regraft.symmetry.checkpoint import check_alike, read_checkpoint

    first = asked.from_init or _folder(asked) / "initial.safetensors"
    if not asked.from_init and not first.exists():
        return  # which is no trajectory, as it will be told
    found = read_checkpoint(first)
    for path in (asked.from_final, asked.to, asked.to_final):
        if path is not None:
            other = read_checkpoint(path)
            if set(other) & set(found):  # otherwise a prefix, which is seen to later
                check_alike(found, other)


def _trajectory(asked: Transfer, recorded: Trajectory | None, states: list[State]) -> Trajectory:
    from regraft.symmetry.trajectory import Trajectory

    if recorded is None:
        return Trajectory.linear(
            states[0], states[1], steps=asked.steps or 10, spacing=asked.spacing
        )
    if asked.straight:
        return recorded.straight(asked.steps or 10, spacing=asked.spacing)
    return recorded if asked.steps is None else recorded.thinned(asked.steps)


def _statistics(asked: Transfer, given: Gathered) -> Any:
    return given.statistics(asked.samples, asked.batch_size, asked.seed) if given.data else None


def _with_statistics(asked: Transfer, given: Gathered, state: State) -> State:
    """Return a state with BatchNorm statistics of the data, as all that is measured has."""
    from regraft.symmetry.repair import reset_batch_norm_

    batches = _statistics(asked, given)
    if batches is None:
        return dict(state)
    given.model.load_state_dict(state)
    reset_batch_norm_(given.model, batches)
    return {k: v.detach().clone() for k, v in given.model.state_dict().items()}


def _along(
    asked: Transfer,
    given: Gathered,
    bench: Bench,
    trajectory: Trajectory,
    target: State,
    spec: PermutationSpec,
    trained: State | None,
    by: Any,
) -> Arm:
    """Transfer by one method, and measure every step."""
    from regraft.symmetry.gradients import Gradients
    from regraft.symmetry.transfer import transfer

    data = None
    if given.data:
        own = given.data[0]
        batches = own.batches(
            own.splits.train, given.device, size=asked.batch_size, seed=asked.seed, shuffle=True
        )
        data = Gradients(given.model, batches, count=asked.gradient_batches)
    steps = transfer(
        trajectory,
        target,
        spec,
        data,
        by=by,
        trained=trained,
        scale=asked.scale,
        statistics=_statistics(asked, given),
        seed=asked.seed,
    )
    arm = Arm()
    highest = -1.0
    with Bar(enabled=not asked.json, noun=by, describe=_told) as bar:
        for i, found in enumerate(steps, start=1):
            began = time.monotonic()
            scores = bench.score(found.weights)
            arm.seconds += time.monotonic() - began
            arm.rows.append(_row(found, scores))
            arm.last = found
            accuracy = scores.get("validation_accuracy", float(i))
            if accuracy > highest:
                highest, arm.best = accuracy, found
            if asked.keep_steps and by == asked.by:
                _write_state(
                    asked, given, f"steps/step-{found.step:08d}.safetensors", found.weights
                )
            bar.update(i, len(trajectory), scores)
    if arm.last is not None:
        arm.seconds += arm.last.costs.total
    return arm


def _told(row: dict[str, float]) -> str:
    return f"accuracy {row['test_accuracy']:.1f}%" if "test_accuracy" in row else ""


def _row(found: Transferred, scores: dict[str, float]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "step": found.step,
        **scores,
        "objective": found.objective,
        "cosine": found.cosine,
        "cosine_before": found.cosine_before,
        "dead": list(found.dead),
        "costs": asdict(found.costs),
    }


def _scores(
    asked: Transfer,
    given: Gathered,
    bench: Bench,
    arms: dict[str, Arm],
    trajectory: Trajectory,
    start: State,
    trained: State | None,
) -> dict[str, Any]:
    """Return the scores on all images, of the ends and of every arm's best and last step."""
    if not given.data:
        return {}
    source = {k: v.to(given.device) for k, v in trajectory.state(-1).items()}
    found = {"target, untrained": bench.score(start, everything=True)}
    for by, arm in arms.items():
        for which in ("best", "final"):
            at = arm.start(which)
            if which == "best" and at is arm.last:
                continue
            name = f"{by}, {which} step ({at.step})"
            found[name] = bench.score(at.weights, everything=True)
    found["source, trained"] = bench.score(source, everything=True)
    if trained is not None:
        found["target, trained"] = bench.score(trained, everything=True)
    return found


def _paths(
    asked: Transfer,
    given: Gathered,
    bench: Bench,
    spec: PermutationSpec,
    arm: Arm,
    trajectory: Trajectory,
    trained: State | None,
) -> dict[str, Any]:
    from regraft.symmetry.mode_connectivity import connect

    if not given.data or not asked.points:
        return {}
    at = arm.start(asked.start)
    few = list(bench.sources.values())[-1][0]
    device = given.device
    with Bar(enabled=not asked.json, noun="paths", describe=lambda row: "") as bar:
        found = connect(
            given.model,
            at.weights,
            {k: v.to(device) for k, v in trajectory.state(-1).items()},
            spec,
            at.permutation,
            [few],
            trained=None if trained is None else {k: v.to(device) for k, v in trained.items()},
            statistics=_statistics(asked, given),
            points=asked.points,
            progress=lambda done, count: bar.update(done, count, {}),
        )
    return found.to_dict()["curves"]


def _write(asked: Transfer, given: Gathered, spec: PermutationSpec, arm: Arm) -> list[str]:
    from regraft.files import write_tensors, write_text

    write_text(asked.out / "spec.json", spec.to_json())
    files = ["spec.json"]
    last, best = arm.start("final"), arm.start("best")
    points = {"": last} if best is last else {"": last, "-best": best}
    for suffix, found in points.items():
        files.append(_write_state(asked, given, f"model{suffix}.safetensors", found.weights))
        name = f"permutation{suffix}.safetensors"
        tensors = {k: v.to("cpu").contiguous().clone() for k, v in found.permutation.items()}
        header = {"regraft.permutation": "1", "of": "the source", "step": str(found.step)}
        write_tensors(asked.out / name, tensors, header)
        files.append(name)
    if asked.keep_steps:
        files += sorted(f"steps/{p.name}" for p in (asked.out / "steps").glob("*.safetensors"))
    return files


def _write_state(asked: Transfer, given: Gathered, name: str, state: State) -> str:
    from regraft.files import write_tensors

    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    about = jsonlib.dumps(describe(given))
    write_tensors(asked.out / name, tensors, {"regraft.model": about})
    return name
