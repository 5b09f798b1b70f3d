"""A transfer between checkpoints, with all controls and a card: what `regraft transfer` runs."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regraft.config import DataConfig, ImageConfig, ModelConfig, RuntimeConfig, check, to_dict
from regraft.errors import InputError
from regraft.jobs.base import to_json
from regraft.jobs.merge.card import ready
from regraft.jobs.merge.identity import images_of, stamp
from regraft.jobs.predict.used_images import write_used
from regraft.jobs.stages import Shown
from regraft.jobs.verb import Done, work_in
from regraft.models.external import factory_digest
from regraft.report import ResultCard
from regraft.train import RunFolder

from .card import card_of, data_of, notes_of
from .config import TransferConfig, TransferFiles
from .engine import transfer
from .files import write_transfer
from .networks import Networks
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
        ends = (files.from_init, files.from_final, files.to, files.to_final)
        named = [files.folder, *ends, files.spec]
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

    def run(self, out: Path, progress: Shown = None) -> Done:
        """Transfer, measure and train on in a folder, or go on, or return the card of what is there.

        Raises:
            RegraftError: Whatever keeps the run from its end, in one sentence.
        """
        self.check()
        folder = RunFolder(out, config=self.config(), arm="transfer", seed=self.runtime.seed)
        return work_in(folder, lambda: self._work(folder, progress))

    def _work(self, folder: RunFolder, progress: Shown) -> ResultCard:
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
        files = self.files
        ends = (files.recording, files.from_init, files.from_final)
        facts: dict[str, Any] = {
            "source": [str(path) for path in ends if path is not None],
            "to": str(files.to),
            "to_final": None if files.to_final is None else str(files.to_final),
            **about,
            "ready": ready(networks.about),
            **data_of(networks, self.transfer, result),
            "files": [
                *write_transfer(folder.path, networks, result.steps[self.transfer.match]),
                *self._list(folder.path, networks),
            ],
        }
        facts["notes"] += notes_of(facts)
        facts["seconds"] = time.monotonic() - began + result.kept_seconds
        return card_of(folder.path, facts)

    def _list(self, out: Path, networks: Networks) -> list[str]:
        """List the images that the run and this transfer learnt from."""
        files, images = self.files, networks.images
        models = [*files.checkpoints, files.folder]
        models.append(None if files.folder is None else files.folder.parent)  # of the run
        splits = [] if images is None else [images.splits]
        return write_used(out, splits, [path for path in models if path is not None])
