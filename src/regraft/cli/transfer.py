"""`regraft transfer`: a training run carried over to another initialisation, and what that is worth."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from regraft.jobs.merge.alignment import Alignment, check_moments, images_of, stamp
from regraft.train.result_folder import claimed, finished, write_card

from .output import print_json, say, table

Method = Literal["gmt", "fgmt", "naive", "oracle", "initial_weights"]


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Carry a training run over to another initialisation of the same architecture.

    The source's weight changes are permuted to fit the target and added to it: no training. The
    folder gets the transferred checkpoints, the permutations, spec.json, card.json and README.md with
    accuracy along the steps beside the controls, and report.html. With --then-train the target is
    trained on from there, beside training from scratch and from the naive transfer. After an
    interruption the same command goes on, with the methods that are through kept.
    """

    source: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folder of a recorded trajectory, or of the run that holds one; or nothing, with --from-init and
    --from-final."""
    from_init: Path | None = None
    """Instead: the source's checkpoint before its training."""
    from_final: Path | None = None
    """Instead: the source's checkpoint after its training."""
    to: Path
    """The initialisation to carry the run over to: a checkpoint of the same architecture."""
    to_final: Path | None = None
    """That network after its own training, where there is one: adds the oracle and the paths to it."""
    out: Path
    """Folder to make."""
    by: Method = "fgmt"
    """fgmt and gmt match gradients; initial_weights needs no data; naive and oracle are controls."""
    steps: int | None = None
    """Steps of the trajectory to take: 10 on a straight line, all recorded ones."""
    straight: bool = False
    """Draw a recorded trajectory straight between its ends."""
    spacing: Literal["uniform", "cosine"] = "uniform"
    """Steps on a straight line: equal, or as a learning rate on a cosine advances."""
    cut: Literal["refuse", "warn", "use"] = "refuse"
    """A recording cut short: refuse it, use what is whole and say so, or use it silently."""
    gradient_batches: int = 1
    """Batches of each gradient."""
    batch_size: int = 128
    """Images in a batch."""
    scale: float = 1.0
    """Factor on the weight changes."""
    data: str | None = None
    """A known data set or a folder of images, one subfolder a class; gmt and fgmt need it."""
    labels: Literal["by-name", "by-number"] = "by-name"
    """Which row of the classifier a class of the data is: that of its name, where the checkpoints name
    their classes, or that of its number."""
    model: str | None = None
    """A built-in network, timm/NAME, torchvision/NAME or package.module:factory; without it what
    the source's checkpoint says it is."""
    width: float = 1.0
    """Width factor of a built-in network."""
    model_options: str = "{}"
    """Further keyword arguments of the model's factory, as a JSON object."""
    spec: Path | None = None
    """A spec.json of an earlier run, instead of tracing the model."""
    samples: int = 2000
    """Training images for BatchNorm statistics."""
    curve_images: int = 2000
    """Validation and test images for the scores along the steps; the last are measured on all."""
    points: int = 11
    """Points of the paths between networks; 0 measures none."""
    plane_points: int = 7
    """With --to-final: points along each side of the plane through the trained target, the oracle's
    network and the transferred one; 0 measures none."""
    keep_steps: bool = False
    """Keep every step's checkpoint, not only the best and the last."""
    then_train: int = 0
    """Epochs to train on from the transferred point, and each control, afterwards."""
    start: Literal["best", "final"] = "best"
    """Train on from the step of the best validation accuracy, or from the last."""
    lr: float = 0.01
    """Learning rate of the further training, with SGD and momentum 0.9."""
    weight_decay: float = 0.0
    """Its weight decay."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How its learning rate falls."""
    data_root: str | None = None
    """Folder of the known data sets; without it REGRAFT_DATA, then ~/.cache/regraft/data."""
    download: bool = True
    """Stop at a missing known set instead of fetching it."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Stop at an image that cannot be decoded, or warn and go on."""
    image_size: int | None = None
    """Side of the images in pixels; without it that of the data, or what fits the checkpoint."""
    channels: int | None = None
    """Channels of the images, likewise."""
    mean: tuple[float, ...] = ()
    """Mean of each channel by which images are normalised; without it the data set's own."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel."""
    seed: int = 1
    """Seed of batches and matcher."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """CPU threads."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> int:
        """Transfer, measure, train on, and write the folder."""
        from regraft.jobs.transfer.card import score_table, summary, write_documents
        from regraft.jobs.transfer.transferring import transferred
        from regraft.jobs.transfer.work import Work

        self._check()
        identity = self.identity()
        card = finished(self.out, identity)
        if card is None:
            with claimed(self.out, identity):
                card = write_documents(self.out, transferred(self))
                write_card(self.out, card)
        elif not self.json:
            say(f"{self.out} is finished already; remove it to transfer again")
        Work.remove(self.out)
        if self.json:
            print_json({"out": str(self.out), **card})
            return 0
        for line in summary(card):
            say(line)
        if card["curves"]:
            table(*score_table(card))
        say(f"transferred: {self.out}")
        return 0

    @property
    def folder(self) -> Path:
        """The folder of the recording: the one that was named, or `trajectory` in it."""
        inner = self.source[0] / "trajectory"
        whole = (self.source[0] / "index.json").exists()
        return inner if not whole and inner.is_dir() else self.source[0]

    @property
    def first(self) -> Path:
        """The checkpoint of the source before its training."""
        return self.from_init or self.folder / "initial.safetensors"

    def identity(self) -> dict[str, Any]:
        """Return what determines the result, as JSON: the options, and the files by size and time."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("out", "json", "threads", "data_root", "download", "accelerator"):
            fields.pop(name)
        named = [self.from_init, self.from_final, self.to, self.to_final, self.spec]
        if self.source:
            named.append(self.folder)
        fields["files"] = [stamp(Path(path)) for path in named if path is not None]
        fields |= images_of(() if self.data is None else (self.data,), self.data_root)
        return jsonlib.loads(jsonlib.dumps({"kind": "transfer", **fields}, default=str))

    def alignment(self) -> Alignment:
        """Return the same questions as those who gather checkpoints and data know them."""
        paths = (self.first, self.from_final, self.to, self.to_final)
        names = (
            "out", "model", "width", "model_options", "spec", "samples", "batch_size", "data_root",
            "download", "unreadable", "image_size", "channels", "mean", "std", "seed", "accelerator",
            "threads", "json",
        )  # fmt: skip
        return Alignment(
            checkpoints=tuple(path for path in paths if path is not None),
            data=() if self.data is None else (self.data,),
            **{name: getattr(self, name) for name in names},
        )

    def _check(self) -> None:
        from regraft.errors import InputError

        pair = (self.from_init, self.from_final)
        if len(self.source) > 1 or bool(self.source) == any(pair):
            raise InputError(
                "source: give the folder of one recorded trajectory, or --from-init and --from-final "
                "instead"
            )
        if any(pair) and not all(pair):
            missing = "--from-final" if self.from_init else "--from-init"
            raise InputError(f"{missing} is missing: a straight trajectory has two ends")
        if self.by in ("gmt", "fgmt") and self.data is None:
            raise InputError(
                f"--by {self.by} matches gradients on images: add --data, or take --by initial_weights"
            )
        if self.by == "oracle" and self.to_final is None:
            raise InputError("--by oracle needs the target after its own training: add --to-final")
        if self.then_train and self.data is None:
            raise InputError("--then-train needs images to train on: add --data")
        self._check_numbers()

    def _check_numbers(self) -> None:
        from regraft.errors import InputError

        ones = ("steps", "gradient_batches", "batch_size", "samples", "curve_images", "threads")
        for name in ones:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: expected at least 1")
        if self.then_train < 0:
            raise InputError(f"--then-train {self.then_train}: expected epochs, at least 0")
        if self.points < 0 or self.points == 1:
            raise InputError(f"--points {self.points}: expected 0, or at least the two ends")
        if self.plane_points < 0 or self.plane_points == 1:
            raise InputError(
                f"--plane-points {self.plane_points}: expected 0, or at least the two ends of a side"
            )
        if not math.isfinite(self.scale):
            raise InputError(f"--scale {self.scale}: expected a finite number")
        for name in ("lr", "width"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise InputError(f"--{name} {value}: expected a finite number above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"--weight-decay {self.weight_decay}: expected at least 0")
        check_moments(self.mean, self.std)
