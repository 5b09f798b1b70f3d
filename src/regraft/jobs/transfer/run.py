"""A transfer between checkpoints, with all controls and a card: what `regraft transfer` runs."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regraft.config import DataConfig, ImageConfig, ModelConfig, RuntimeConfig, check, to_dict
from regraft.errors import InputError, MissingExtraError
from regraft.jobs.base import to_json
from regraft.jobs.merge.identity import images_of, stamp
from regraft.jobs.stages import Shown
from regraft.models.external import factory_digest
from regraft.train import RunFolder, command_line, read_json
from regraft.train.environment import environment
from regraft.train.result_folder import CARD, write_card

from .card import data_of, notes_of
from .config import TransferConfig, TransferFiles
from .engine import transfer
from .files import write_transfer
from .page import write_documents
from .parts import Parts
from .source import read


@dataclass(frozen=True, kw_only=True)
class CheckpointTransfer:
    """Everything that determines one transfer between checkpoints.

    Attributes:
        files: The checkpoints, or the recording.
        transfer: How the run is carried over.
        data: The images, None for a transfer without.
        model: The network; None for what the source's checkpoint says it is.
        images: What the images are, where that is not to be what the data or the checkpoint say.
        runtime: The seed, and where and how exactly everything is computed.
    """

    files: TransferFiles
    transfer: TransferConfig = field(default_factory=TransferConfig)
    data: DataConfig | None = None
    model: ModelConfig | None = None
    images: ImageConfig = field(default_factory=ImageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Refuse what contradicts itself, before anything is read.

        Raises:
            InputError: The first option that is wrong or missing.
        """
        self.files.check()
        how, then = self.transfer, self.transfer.then
        if how.match in ("gmt", "fgmt") and self.data is None:
            raise InputError(
                f"--match {how.match} matches gradients on images: add --data, or take --match "
                "initial_weights"
            )
        if how.match == "oracle" and self.files.to_final is None:
            raise InputError(
                "--match oracle needs the target after its own training: add --to-final"
            )
        if then is not None and self.data is None:
            raise InputError("--then-train needs images to train on: add --data")
        how.check()
        self.images.check()
        check(*(c for c in (then, self.data, self.model, self.runtime) if c is not None))

    def config(self) -> dict[str, Any]:
        """Return the JSON form of everything that determines the numbers.

        Of files that is their size and time, of a folder of images those of all pictures, and of a
        network of one's own the module that it is built by.
        """
        files, data, model = self.files, self.data, self.model
        named = [
            files.folder,
            files.from_init,
            files.from_final,
            files.to,
            files.to_final,
            files.spec,
        ]
        images = images_of(
            () if data is None else (data.name,), None if data is None else data.root
        )
        factory = None if model is None else factory_digest(model.name)
        config = {
            "files": json.loads(json.dumps(asdict(files), default=str)),
            "stamps": [stamp(path) for path in named if path is not None],
            "transfer": to_dict(self.transfer),
            "data": to_json(data),
            "model": None if model is None else to_dict(model),
            "image": to_dict(self.images),
            "runtime": to_json(self.runtime),
            **images,
        }
        return config if factory is None else {**config, "factory": factory}

    def run(self, out: Path, progress: Shown = None) -> dict[str, Any]:
        """Transfer, measure and train on in a folder, or go on, or return the card of what is there.

        Raises:
            RegraftError: Whatever keeps the run from its end, in one sentence.
        """
        self.check()
        new, config = not (out / "regraft.json").exists(), self.config()
        _refuse_changed(out, config)
        with RunFolder(
            out,
            config=config,
            setting="transfer",
            arm=self.transfer.match,
            seed=self.runtime.seed,
        ) as folder:
            if folder.result is None:
                with _removed_if_refused(out, new=new):
                    card = self._work(folder, progress)
                write_card(out, card)
                folder.finish({"metrics": {}, "seconds": card["seconds"]})
            Parts(folder).remove()
        whole = read_json(out / CARD)
        if whole is None:
            raise InputError(f"{out / CARD} is missing: remove the folder to transfer again")
        return whole

    def _work(self, folder: RunFolder, progress: Shown) -> dict[str, Any]:
        """Transfer, measure, train on, write the files; return the card."""
        began = time.monotonic()
        networks, about = read(
            self.files,
            self.transfer,
            data=self.data,
            model=self.model,
            images=self.images,
            runtime=self.runtime,
        )
        result = transfer(networks, self.transfer, self.runtime, folder, progress)
        files, ends = (
            self.files,
            (self.files.recording, self.files.from_init, self.files.from_final),
        )
        card: dict[str, Any] = {
            "kind": "transfer",
            "command": command_line(),
            "environment": environment(),
            "source": [str(path) for path in ends if path is not None],
            "to": str(files.to),
            "to_final": None if files.to_final is None else str(files.to_final),
            **about,
            **data_of(networks, self.transfer, result),
            "files": write_transfer(folder.path, networks, result.steps[self.transfer.match]),
        }
        card["notes"] += notes_of(card)
        card["seconds"] = time.monotonic() - began + result.kept_seconds
        return write_documents(folder.path, card)


_FIRST = {"regraft.json", "environment.json", "metrics.jsonl"}
"""What a folder holds before anything was found."""


_CHANGED = {
    "stamps": "a checkpoint has changed since",
    "images": "the images of --data have changed since",
    "factory": "the module of --model has changed since",
}


def _refuse_changed(out: Path, config: dict[str, Any]) -> None:
    """Refuse the folder of the same command whose files were others, and say which.

    Raises:
        InputError: The first kind of file that has changed.
    """
    there = (read_json(out / "regraft.json") or {}).get("config")
    if not isinstance(there, dict):
        return
    changed = [key for key in {**there, **config} if there.get(key) != config.get(key)]
    if changed and set(changed) <= set(_CHANGED):
        raise InputError(
            f"{out} is of another transfer ({_CHANGED[changed[0]]}): choose another folder, or remove "
            "this one to start again"
        )


@contextlib.contextmanager
def _removed_if_refused(out: Path, *, new: bool) -> Iterator[None]:
    """Remove a new folder again, if the input is refused before anything is in it."""
    try:
        yield
    except (InputError, MissingExtraError):
        if new and {path.name for path in out.iterdir()} <= _FIRST:
            shutil.rmtree(out, ignore_errors=True)
        raise
