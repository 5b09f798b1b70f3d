"""What a transfer reads: the checkpoints, held against each other, and the source's trajectory."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from regraft.jobs.merge.gathered import gather, said_of
from regraft.jobs.merge.labels import Labels

if TYPE_CHECKING:
    from regraft.checkpoints.read import Checkpoint
    from regraft.cli.transfer import Transfer
    from regraft.jobs.merge.gathered import Gathered
    from regraft.symmetry.transfer.trajectory import Trajectory

    from .arms import State


@dataclass(eq=False)
class Read:
    """What was read.

    Attributes:
        given: Network and data.
        trajectory: The source's.
        target: The initialisation that it is carried over to.
        trained: That network after its own training, or None.
        notes: What the user should know.
    """

    given: Gathered
    trajectory: Trajectory
    target: State
    trained: State | None
    notes: list[str]


def read(asked: Transfer) -> Read:
    """Read everything that was named.

    Raises:
        InputError: Anything that does not fit, in one sentence.
    """
    notes: list[str] = []
    recorded = _recorded(asked, notes) if asked.source else None
    checkpoints = _of_one_architecture(asked, notes)
    labels = Labels(by_number=asked.labels == "by-number", cure="--labels by-number")
    given = gather(asked.alignment(), opened=checkpoints, labels=labels)
    _labelled(asked, given)
    states = list(given.states)
    trained = states.pop() if asked.to_final is not None else None
    target = states.pop()
    # Of merging, whose options are not those of this command.
    kept = [note for note in given.notes if "--heads" not in note]
    if len(kept) < len(given.notes):
        kept.append("source and target name their classes differently: the source's names count")
    return Read(
        given, _trajectory(asked, given, recorded, states), target, trained, [*notes, *kept]
    )


def _recorded(asked: Transfer, notes: list[str]) -> Trajectory:
    """Open the recording; refuse one that was cut short, or say so, as was asked."""
    from regraft.errors import InputError
    from regraft.symmetry.transfer.trajectory import Trajectory

    if asked.cut == "use":
        return Trajectory.open(asked.folder, cut="use")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = Trajectory.open(asked.folder, cut="warn")
    for message in (str(one.message) for one in caught):
        if asked.cut == "refuse":
            raise InputError(
                f"{message.removesuffix(', which is used')}: go on with the run, or add --cut warn to "
                "carry over what is whole"
            )
        warnings.warn(message, stacklevel=2)
        notes.append(message)
    return found


def _of_one_architecture(asked: Transfer, notes: list[str]) -> list[Checkpoint]:
    """Open the checkpoints and name the first tensor that differs, before anything is built.

    Bases that differ from what was fine-tuned in the rows of the classifier alone get a new one.
    """
    from regraft.checkpoints.read import check_alike, read_checkpoint

    from .heads import other_head, told, with_new_head

    found = [read_checkpoint(path) for path in asked.alignment().checkpoints]
    tuned = found[1 if asked.from_final else 0]
    to = 2 if asked.from_final else 1
    bases = {0: found[0], to: found[to]}  # a base is what is not trained for the new classes yet
    names = {i: other_head(base, tuned) for i, base in bases.items()}
    new = [i for i in bases if names[i]]
    for i in new:
        found[i] = with_new_head(bases[i], tuned, names[i], asked.seed, int(i > 0))
    if new:
        notes.append(told([bases[i] for i in new], tuned, names[new[0]], asked.seed))
    for other in found[1:]:
        if set(other) & set(found[0]):  # otherwise a prefix, which is seen to later
            check_alike(found[0], other)
    return found


def _labelled(asked: Transfer, given: Gathered) -> None:
    """See to it that the data's labels are the rows of the classifier that they should be.

    Raises:
        InputError: A checkpoint names its classes and the data have others.
    """
    from regraft.errors import InputError

    if not given.data:
        return
    classes = [str(name) for name in given.data[0].splits.classes]
    if asked.labels == "by-number":
        given.data[0] = replace(given.data[0], rows=tuple(range(len(classes))))
        return
    for checkpoint in given.checkpoints:
        said = said_of(checkpoint).get("classes")
        known = [str(name) for name in said] if isinstance(said, list) else []
        strange = next((name for name in classes if known and name not in known), None)
        if strange is not None:
            raise InputError(
                f"data {asked.data} has the class {strange!r} and {checkpoint.path} is of "
                f"{', '.join(known[:10])}{', ...' if len(known) > 10 else ''}: give data of these "
                "classes, or add --labels by-number to take class i of the data for row i of the "
                "classifier"
            )


def _trajectory(
    asked: Transfer, given: Gathered, recorded: Trajectory | None, states: list[State]
) -> Trajectory:
    from regraft.symmetry.transfer.trajectory import Trajectory

    if recorded is None:
        return Trajectory.linear(
            states[0],
            states[1],
            steps=asked.steps or 10,
            spacing=asked.spacing,
            buffers=given.buffers,
        )
    if asked.straight:
        return recorded.straight(asked.steps or 10, spacing=asked.spacing)
    return recorded if asked.steps is None else recorded.thinned(asked.steps)
