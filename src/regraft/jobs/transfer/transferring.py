"""The work of `regraft transfer`: the trajectory, every arm along it, the files, the paths."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from regraft.jobs.merge.symmetries import symmetries

if TYPE_CHECKING:
    from regraft.cli.transfer import Transfer

    from .arms import Along, Arm, State


def transferred(asked: Transfer) -> dict[str, Any]:
    """Transfer, measure and train on; write the checkpoints and return the card.

    What an interrupted command of the same identity has found is used and not found again.
    """
    from regraft.config import digest, to_dict
    from regraft.train import command_line
    from regraft.train.environment import environment

    from .arms import Along
    from .bench import Bench
    from .benefit import against_naive, agreement_of, notes_of
    from .card import about_data
    from .paths import lines_of, plane_of
    from .source import read
    from .training import train_on
    from .work import Work
    from .written import write_transfer

    began = time.monotonic()
    found = read(asked)
    given, trajectory, trained = found.given, found.trajectory, found.trained
    spec, spec_record = symmetries(asked.alignment(), given)
    work = Work(asked.out, digest(asked.identity()))
    bench = Bench(asked, given)
    along = Along(asked, given, bench, trajectory, found.target, spec, trained, work)
    start = along.with_statistics(found.target)
    controls = [] if not given.data else ["naive", "initial_weights"]
    if given.data and trained is not None:
        controls.append("oracle")
    arms = {by: along.arm(by) for by in dict.fromkeys([asked.by, *controls])}
    for by, arm in arms.items():
        arm.seconds += 0.0 if by == "naive" else spec_record["seconds"]
    main = arms[asked.by]
    agreed, untold = agreement_of(along, main)
    plane = work.kept("plane", lambda: plane_of(along, arms))
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
        "scores": _scores(along, arms, start),
        "agreement": agreed,
        "against_naive": against_naive(along, arms),
        "paths": work.kept("paths", lambda: lines_of(along, main)),
        "plane": plane["plane"],
        "then_train": train_on(asked, given, arms, start, bench) if asked.then_train else None,
        "files": write_transfer(asked, given, spec, main),
    }
    card["notes"] = [*found.notes, *bench.notes, *untold, *plane["notes"], *notes_of(card)]
    return {**card, "seconds": time.monotonic() - began + work.seconds}


def _scores(along: Along, arms: dict[str, Arm], start: State) -> dict[str, Any]:
    """Return the scores on all images, of the ends and of every arm's best and last step."""
    given, bench = along.given, along.bench
    if not given.data:
        return {}
    source = {k: v.to(given.device) for k, v in along.trajectory.state(-1).items()}
    found = {"target, untrained": bench.score(start, everything=True)}
    for by, arm in arms.items():
        for which in ("best", "final"):
            at = arm.start(which)
            if which == "best" and at is arm.last:
                continue
            name = f"{by}, {which} step ({at.step})"
            found[name] = bench.score(at.weights, everything=True)
    found["source, trained"] = bench.score(source, everything=True)
    if along.trained is not None:
        found["target, trained"] = bench.score(along.trained, everything=True)
    return found
