"""Training on after a transfer, beside training from scratch and from the naive transfer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regraft.jobs.progress import Bar

if TYPE_CHECKING:
    from regraft.cli.transfer import Transfer
    from regraft.jobs.merge.gathered import Gathered

    from .arms import Arm, State
    from .bench import Bench


def train_on(
    asked: Transfer, given: Gathered, arms: dict[str, Arm], start: State, bench: Bench
) -> dict[str, Any]:
    """Train from every starting point on the same batches, each in a run folder of its own.

    Returns:
        By arm: `seconds_before` (of the transfer, scores to choose the step by and tracing), the
        curve by epoch (`step`, `seconds` with those before, validation accuracy) and the result.
    """
    from regraft.config import digest

    points: dict[str, tuple[State, float, int | None]] = {"scratch": (start, 0.0, None)}
    for by in dict.fromkeys(["naive", asked.by]):
        at = arms[by].start(asked.start)
        points[by] = at.weights, arms[by].seconds, at.step
    identity = digest(asked.identity())
    found = {}
    for arm, (state, before, step) in points.items():
        first = bench.score(state, everything=True)
        found[arm] = {
            "from_step": step,
            "seconds_before": before,
            **_train(asked, given, arm, state, before, first, identity),
        }
    return found


def _train(
    asked: Transfer,
    given: Gathered,
    arm: str,
    state: State,
    before: float,
    first: dict[str, float],
    identity: str,
) -> dict[str, Any]:
    from regraft.config import OptimConfig, RuntimeConfig
    from regraft.train import Batches, RunFolder, fit
    from regraft.train.fabric import make_fabric

    data, device = given.data[0], given.device
    train = data.batches(
        data.splits.train, device, size=asked.batch_size, seed=asked.seed, shuffle=True
    )
    held_out = data.splits.validation or data.splits.train
    batches = Batches(train, data.batches(held_out, device), data.batches(data.test, device))
    optim = OptimConfig(
        lr=asked.lr,
        weight_decay=asked.weight_decay,
        epochs=asked.then_train,
        batch_size=asked.batch_size,
        schedule=asked.schedule,
    )
    runtime = RuntimeConfig(
        seed=asked.seed,
        accelerator="cuda" if device.type == "cuda" else "cpu",
        threads=asked.threads,
    )
    model = given.model
    model.load_state_dict(state)
    folder = RunFolder(
        asked.out / "then_train" / arm,
        config={"transfer": identity, "arm": arm},
        setting="then_train",
        arm=arm,
        control=None if arm == "scratch" else "scratch",
        seed=asked.seed,
    )
    with folder, Bar(enabled=not asked.json, noun=f"training, {arm}") as bar:
        result = fit(
            model,
            batches,
            optim=optim,
            runtime=runtime,
            folder=folder,
            fabric=make_fabric(runtime),
            progress=bar.update,
        )
        folder.finish(result)
    steps = len(train) * asked.then_train
    curve = [{"epoch": 0, "seconds": before, "validation_accuracy": first["validation_accuracy"]}]
    for row in _validated(asked, arm):
        seconds = before + result["seconds"] * row["step"] / steps
        accuracy = {"validation_accuracy": row["accuracy"]}
        curve.append({"epoch": row["epoch"] + 1, "seconds": seconds, **accuracy})
    return {
        "curve": curve,
        "metrics": result["metrics"],
        "test_accuracy_before": first["test_accuracy"],
        "seconds": before + result["seconds"],
    }


def _validated(asked: Transfer, arm: str) -> list[dict[str, Any]]:
    """Return the validation rows of a run, one for each epoch."""
    import json

    file = asked.out / "then_train" / arm / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    found = {row["epoch"]: row for row in rows if row["split"] == "validation"}
    return [found[epoch] for epoch in sorted(found)]


def reached(curve: list[dict[str, Any]], accuracy: float) -> dict[str, Any] | None:
    """Return the first point of a curve at or above a validation accuracy, or None."""
    return next((p for p in curve if p["validation_accuracy"] >= accuracy), None)
