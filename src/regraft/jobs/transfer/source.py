"""What a transfer of checkpoints reads: the files, held against each other, and the trajectory."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from regraft.checkpoints.read import Checkpoint, check_alike, read_checkpoint
from regraft.config import DataConfig, ImageConfig, ModelConfig, RuntimeConfig, to_dict
from regraft.errors import InputError, few
from regraft.jobs.merge.card import describe
from regraft.jobs.merge.config import AlignConfig
from regraft.jobs.merge.labels import Labels
from regraft.jobs.merge.models import Models, read_models
from regraft.jobs.merge.symmetries import symmetries
from regraft.symmetry.transfer.trajectory import Trajectory

from .config import TransferConfig, TransferFiles
from .heads import new_head_note, other_head, with_new_head
from .images import Images
from .networks import Networks, State


def read(
    files: TransferFiles,
    config: TransferConfig,
    *,
    data: DataConfig | None,
    model: ModelConfig | None,
    images: ImageConfig,
    runtime: RuntimeConfig,
) -> tuple[Networks, dict[str, Any]]:
    """Read everything that was named.

    Args:
        files: The checkpoints, or the recording.
        config: How the run is carried over.
        data: The images, None for a transfer without.
        model: The network; None for what the source's checkpoint says it is.
        images: What the images are, where that is not to be what the data or the checkpoint say.
        runtime: Seed, device and threads.

    Returns:
        The networks, and what they are for the card: `model`, `shape` and `spec`.

    Raises:
        InputError: Anything that does not fit, in one sentence.
    """
    notes: list[str] = []
    recorded = None if files.folder is None else _recorded(files, notes)
    checkpoints = _of_one_architecture(files, runtime.seed, notes)
    options = _config(files, data, model, images, runtime)
    labels = Labels(by_number=files.labels == "by-number", cure="--labels by-number")
    models = read_models(options, opened=checkpoints, labels=labels)
    _check_classes(files, models)
    spec, record = symmetries(options, models)
    states = list(models.states)
    trained = states.pop() if files.to_final is not None else None
    target = states.pop()
    # Of merging, whose options are not those of this command.
    kept = [note for note in models.notes if "--heads" not in note]
    if len(kept) < len(models.notes):
        kept.append("source and target name their classes differently: the source's names count")
    networks = Networks(
        model=models.model,
        images=_images(models, config, runtime.seed),
        trajectory=_trajectory(config, models, recorded, states),
        target=target,
        trained=trained,
        spec=spec,
        tracing_seconds=record["seconds"],
        about=describe(models),
        notes=[*notes, *kept],
    )
    about = {"model": to_dict(models.config), "shape": models.shape, "spec": record}
    return networks, about


def _config(
    files: TransferFiles,
    data: DataConfig | None,
    model: ModelConfig | None,
    images: ImageConfig,
    runtime: RuntimeConfig,
) -> AlignConfig:
    """Return the same as those who read checkpoints and data for a merge know it."""
    return AlignConfig(
        checkpoints=files.checkpoints,
        model=model,
        spec=files.spec,
        data=() if data is None else (data,),
        runtime=runtime,
        **asdict(images),
    )


def _recorded(files: TransferFiles, notes: list[str]) -> Trajectory:
    """Open the recording; refuse one that was cut short, or say so, as the configuration says."""
    folder = files.folder or Path()
    if files.cut == "use":
        return Trajectory.open(folder, cut="use")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recorded = Trajectory.open(folder, cut="warn")
    for message in (str(one.message) for one in caught):
        if files.cut == "refuse":
            raise InputError(
                f"{message.removesuffix(', which is used')}: go on with the run, or add --cut warn to "
                "carry over what is whole"
            )
        warnings.warn(message, stacklevel=2)
        notes.append(message)
    return recorded


def _of_one_architecture(files: TransferFiles, seed: int, notes: list[str]) -> list[Checkpoint]:
    """Open the checkpoints and name the first tensor that differs, before anything is built.

    Bases that differ from what was fine-tuned in the rows of the classifier alone get a new one.
    """
    opened = [read_checkpoint(path) for path in files.checkpoints]
    tuned = opened[1 if files.from_final else 0]
    to = 2 if files.from_final else 1
    bases = {0: opened[0], to: opened[to]}  # a base is what is not trained for the new classes yet
    names = {i: other_head(base, tuned) for i, base in bases.items()}
    new = [i for i in bases if names[i]]
    for i in new:
        opened[i] = with_new_head(bases[i], tuned, names[i], seed, int(i > 0))
    if new:
        notes.append(new_head_note([bases[i] for i in new], tuned, names[new[0]], seed))
    for other in opened[1:]:
        if set(other) & set(opened[0]):  # otherwise a prefix, which is seen to later
            check_alike(opened[0], other)
    return opened


def _check_classes(files: TransferFiles, models: Models) -> None:
    """See to it that the data's labels are the rows of the classifier that they should be.

    Raises:
        InputError: A checkpoint names its classes and the data have others.
    """
    if not models.data:
        return
    data = models.data[0]
    classes = [str(name) for name in data.splits.classes]
    if files.labels == "by-number":
        models.data[0] = replace(data, rows=tuple(range(len(classes))))
        return
    for checkpoint in models.checkpoints:
        named = checkpoint.about.get("classes")
        known = [str(name) for name in named] if isinstance(named, list) else []
        strange = next((name for name in classes if known and name not in known), None)
        if strange is not None:
            raise InputError(
                f"data {data.splits.name} has the class {strange!r} and {checkpoint.path} is of "
                f"{few(known, 10)}: give data of these "
                "classes, or add --labels by-number to take class i of the data for row i of the "
                "classifier"
            )


def _images(models: Models, config: TransferConfig, seed: int) -> Images | None:
    """Return the images with the labels and the normalisation that the networks expect."""
    if not models.data:
        return None
    data = models.data[0]
    parts = {name: getattr(data.splits, name) for name in ("train", "validation", "test")}
    rows: dict[str, Any] = {
        name: None if part is None else data.in_rows(part) for name, part in parts.items()
    }
    splits = replace(data.splits, mean=data.mean, std=data.std, **rows)
    return Images(splits, config, device=models.device, seed=seed)


def _trajectory(
    config: TransferConfig, models: Models, recorded: Trajectory | None, states: list[State]
) -> Trajectory:
    count = config.trajectory_steps
    if recorded is None:
        return Trajectory.linear(
            states[0], states[1], steps=count or 10, spacing=config.spacing, buffers=models.buffers
        )
    if config.trajectory == "straight":
        return recorded.straight(count or 10, spacing=config.spacing)
    return recorded if count is None else recorded.thinned(count)
