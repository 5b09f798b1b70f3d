"""The methods of a transfer along the trajectory: every step measured, the best and the last kept."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from regraft.jobs.progress import Bar

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.cli.transfer import Transfer
    from regraft.jobs.merge.gathered import Gathered
    from regraft.symmetry.spec.spec import PermutationSpec
    from regraft.symmetry.transfer.gradients import Gradients
    from regraft.symmetry.transfer.trajectory import Trajectory
    from regraft.symmetry.transfer.transfer import Transferred

    from .bench import Bench
    from .work import Work

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


@dataclass(frozen=True, eq=False)
class Along:
    """What all methods share.

    Attributes:
        asked: The command.
        given: Network and data.
        bench: What to measure on.
        trajectory: The source's.
        target: The initialisation that it is carried over to.
        spec: The symmetries.
        trained: The target after its own training, if there is one.
        work: What is kept of arms that are through.
    """

    asked: Transfer
    given: Gathered
    bench: Bench
    trajectory: Trajectory
    target: State
    spec: PermutationSpec
    trained: State | None
    work: Work

    def arm(self, by: Any) -> Arm:
        """Return a method along the trajectory, from an interrupted command if it was through."""
        tree = self.work.kept(f"arm-{by}", lambda: _packed(self._new(by)))
        return _unpacked(tree, self.given.device)

    def statistics(self) -> Any:
        """Return the batches that BatchNorm statistics are taken from, None without data."""
        asked, given = self.asked, self.given
        if not given.data:
            return None
        return given.statistics(asked.samples, asked.batch_size, asked.seed)

    def gradients(self, part: str = "train") -> Gradients | None:
        """Return what gradients are of: images of a split, None without data."""
        from regraft.symmetry.transfer.gradients import Gradients

        asked, given = self.asked, self.given
        if not given.data:
            return None
        own = given.data[0]
        images = getattr(own.splits, part) or own.splits.train
        batches = own.batches(
            images, given.device, size=asked.batch_size, seed=asked.seed, shuffle=True
        )
        return Gradients(given.model, batches, count=asked.gradient_batches)

    def with_statistics(self, state: State) -> State:
        """Return a state with BatchNorm statistics of the data, as all that is measured has."""
        from regraft.symmetry.merge.repair import reset_batch_norm_

        batches = self.statistics()
        if batches is None:
            return dict(state)
        self.given.model.load_state_dict(state)
        reset_batch_norm_(self.given.model, batches)
        return {k: v.detach().clone() for k, v in self.given.model.state_dict().items()}

    def _new(self, by: Any) -> Arm:
        from regraft.symmetry.transfer.transfer import transfer

        from .written import write_state

        asked = self.asked
        steps = transfer(
            self.trajectory,
            self.target,
            self.spec,
            self.gradients(),
            by=by,
            trained=self.trained,
            scale=asked.scale,
            statistics=self.statistics(),
            seed=asked.seed,
        )
        arm = Arm()
        highest = -1.0
        with Bar(enabled=not asked.json, noun=by, describe=_told) as bar:
            for i, found in enumerate(steps, start=1):
                began = time.monotonic()
                scores = self.bench.score(found.weights)
                arm.seconds += time.monotonic() - began
                arm.rows.append(_row(found, scores))
                arm.last = found
                accuracy = scores.get("validation_accuracy", float(i))
                if accuracy > highest:
                    highest, arm.best = accuracy, found
                if asked.keep_steps and by == asked.by:
                    name = f"steps/step-{found.step:08d}.safetensors"
                    write_state(asked.out, self.given, name, found.weights)
                bar.update(i, len(self.trajectory), scores)
        if arm.last is not None:
            arm.seconds += arm.last.costs.total
        return arm


def _told(row: dict[str, float]) -> str:
    return f"accuracy {row['test_accuracy']:.1f}%" if "test_accuracy" in row else ""


def _row(found: Transferred, scores: dict[str, float]) -> dict[str, Any]:
    return {
        "step": found.step,
        **scores,
        "objective": found.objective,
        "cosine": found.cosine,
        "cosine_before": found.cosine_before,
        "dead": list(found.dead),
        "costs": asdict(found.costs),
    }


def _packed(arm: Arm) -> dict[str, Any]:
    """Return an arm as a tree of plain values and tensors."""
    points = {"last": arm.start("final")}
    if arm.best is not arm.last:
        points["best"] = arm.start("best")
    found = {}
    for which, at in points.items():
        plain = {name: getattr(at, name) for name in _PLAIN}
        found[which] = {
            **plain,
            "weights": at.weights,
            "permutation": dict(at.permutation),
            "dead": list(at.dead),
            "costs": asdict(at.costs),
        }
    return {"rows": arm.rows, "seconds": arm.seconds, "points": found}


def _unpacked(tree: dict[str, Any], device: Any) -> Arm:
    from regraft.symmetry.transfer.transfer import Costs, Transferred

    points = {}
    for which, at in tree["points"].items():
        plain = {name: at[name] for name in _PLAIN}
        points[which] = Transferred(
            **plain,
            weights={k: v.to(device) for k, v in at["weights"].items()},
            permutation=at["permutation"],
            dead=tuple(at["dead"]),
            costs=Costs(**at["costs"]),
        )
    last = points["last"]
    return Arm(tree["rows"], points.get("best", last), last, tree["seconds"])


_PLAIN = ("step", "objective", "cosine", "cosine_before", "sweeps")
