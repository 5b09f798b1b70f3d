"""What `regraft align` and `regraft merge` are both told: checkpoints, model, data, matcher."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json as jsonlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

Matcher = Literal["weights", "activations", "ste", "none"]
Surrogate = Literal["full", "random", "herding", "condensed"]


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Checkpoints, network, data and matcher."""

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Two or more checkpoints of one architecture: safetensors (or the index of shards), .pt, or
    run folders. The first stays as it is."""
    out: Path
    """Folder to make."""
    model: str | None = None
    """A built-in network, timm/NAME, torchvision/NAME or package.module:factory; without it what
    the first checkpoint says it is."""
    width: float = 1.0
    """Width factor of a built-in network."""
    model_options: str = "{}"
    """Further keyword arguments of the model's factory, as a JSON object."""
    inputs: str | None = None
    """package.module:function that returns what the network of --model is called with, if that is
    not images: a tensor, a tuple, or a dict of keyword arguments. For tracing, and for proving
    --spec; without --data."""
    spec: Path | None = None
    """A spec.json of an earlier run, instead of tracing the model."""
    match: Matcher = "weights"
    """weights: without data. activations, ste: with --data. none: merge the models as they are."""
    data: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A known data set or a folder of images, one subfolder a class: once for all models, or once
    for each."""
    surrogate: Surrogate = "full"
    """ste: all training images, or this many a class: random, by herding, or condensed first."""
    per_class: int = 10
    """Images a class of a surrogate."""
    condensed: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """What `regraft condense` made of each data set, in the order of --data, instead of condensing
    here."""
    # Validation loss of the merged network after 600 steps, MNIST with Fashion-MNIST, seed 11, by
    # benchmarks/choose_straight_through.py with all data: MLP 0.473 at rate 0.1, 0.449 at 0.3, 0.438
    # at 1; ResNet-8 0.974 at 0.3, 0.996 at 1. With batches of one set in turn 0.1 was worse at both.
    steps: int = 600
    """ste: steps of the latent network, with a matching at each."""
    lr: float = 0.3
    """ste: its learning rate; it falls to 0 along a cosine."""
    samples: int = 2000
    """Training images of each data set for activations and statistics."""
    batch_size: int = 128
    """Images in a batch."""
    data_root: str | None = None
    """Folder of the known data sets; without it REGRAFT_DATA, then ~/.cache/regraft/data."""
    download: bool = True
    """Stop at a missing known set instead of fetching it."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Stop at an image that cannot be decoded, or warn and go on."""
    classes: int | None = None
    """Number of classes; without it the rows of the checkpoint's classifier."""
    class_names: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Names of a model's classes, separated by commas: once for each model, for --heads union."""
    image_size: int | None = None
    """Side of the images in pixels; without it that of the data, or what fits the checkpoint."""
    channels: int | None = None
    """Channels of the images, likewise."""
    mean: tuple[float, ...] = ()
    """Mean of each channel by which images are normalised; without it each data set's own."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel."""
    seed: int = 1
    """Seed of the matcher and of every draw."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute what is done with data."""
    threads: int | None = None
    """CPU threads."""
    json: bool = False
    """Print one JSON object instead of text."""

    def check_options(self) -> None:
        """Refuse options that contradict each other, before anything is read.

        Raises:
            InputError: Too few checkpoints, data that are not there for a matcher that needs them, or
                a number out of its range.
        """
        from regraft.errors import InputError

        if len(self.checkpoints) < 2:
            raise InputError(
                f"{len(self.checkpoints)} checkpoint(s) given: expected two or more of one architecture"
            )
        if self.match in ("activations", "ste") and not self.data:
            raise InputError(
                f"--match {self.match} compares what the models do with images: add --data, or take "
                "--match weights"
            )
        if self.data and len(self.data) not in (1, len(self.checkpoints)):
            raise InputError(
                f"--data is given {len(self.data)} times for {len(self.checkpoints)} models: give it once "
                "for all, or once for each"
            )
        if self.inputs is not None:
            self._check_inputs()
        if self.class_names and len(self.class_names) != len(self.checkpoints):
            raise InputError(
                f"--class-names is given {len(self.class_names)} times for {len(self.checkpoints)} "
                "models: give it once for each"
            )
        if self.condensed and self.surrogate != "condensed":
            raise InputError("--condensed goes with --match ste --surrogate condensed: add them")
        if self.surrogate != "full" and self.match != "ste":
            raise InputError(
                f"--surrogate {self.surrogate} is for --match ste: --match {self.match} has no use of it"
            )
        for name in (
            "per_class",
            "steps",
            "samples",
            "batch_size",
            "classes",
            "image_size",
            "channels",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: expected at least 1")
        for name in ("lr", "width"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise InputError(f"--{name} {value}: expected a finite number above 0")
        check_moments(self.mean, self.std)

    def _check_inputs(self) -> None:
        from regraft.errors import InputError

        if self.model is None or ":" not in self.model:
            raise InputError(
                "--inputs goes with --model package.module:factory: name the network so"
            )
        if ":" not in str(self.inputs):
            raise InputError(f"--inputs {self.inputs}: expected package.module:function")
        if self.width != 1:
            raise InputError(
                f"--width {self.width:g} is for networks of images: use --model-options with --inputs"
            )
        for name in ("data", "classes", "class_names", "image_size", "channels", "mean", "std"):
            if getattr(self, name) not in (None, ()):
                raise InputError(
                    f"--inputs is for a network that takes no images: leave out "
                    f"--{name.replace('_', '-')} or --inputs"
                )

    def options(self) -> dict[str, Any]:
        """Return --model-options.

        Raises:
            InputError: It is no JSON object.
        """
        from regraft.errors import InputError

        try:
            options = jsonlib.loads(self.model_options)
        except ValueError as error:
            raise InputError(f"--model-options is no JSON object: {error}") from error
        if not isinstance(options, dict):
            raise InputError("--model-options is no JSON object: write e.g. '{\"depth\": 3}'")
        return options

    def identity(self, kind: str) -> dict[str, Any]:
        """Return what determines the result, as JSON: the options, and the files by size and time.

        Folders of images are told apart by their files; where known sets lie changes no number.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("out", "json", "threads", "data_root", "download", "accelerator"):
            fields.pop(name)
        named = [
            *self.checkpoints,
            *(v for v in (fields.get("base"), self.spec, *self.condensed) if v),
        ]
        fields["files"] = [stamp(Path(path)) for path in named]
        fields |= images_of(self.data, self.data_root)
        return jsonlib.loads(jsonlib.dumps({"kind": kind, **fields}, default=str))


def check_moments(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse --mean and --std that images cannot be normalised by.

    Raises:
        InputError: One is given without the other, or a number is out of its range.
    """
    from regraft.errors import InputError

    if len(mean) != len(std):
        raise InputError("--mean and --std go together: give one number of each for a channel")
    for value in mean:
        if not math.isfinite(value):
            raise InputError(f"--mean {value}: expected a finite number")
    for value in std:
        if not 0 < value < math.inf:
            raise InputError(f"--std {value}: expected a finite number above 0")


def stamp(path: Path) -> list[Any]:
    """Return what tells whether what is read of a file or a folder is still the same.

    Of a folder that is its tensors, with the index of shards or of a recorded trajectory; of an index,
    the shards beside it as well.
    """
    files = [path]
    if path.is_dir():
        files = [path / "index.json", *_tensors(path)]
    elif path.name.endswith(".index.json"):
        files += _tensors(path.parent)
    return [[f.name, s.st_size, s.st_mtime_ns] for f in files if f.is_file() for s in [f.stat()]]


def images_of(data: Sequence[str], root: str | None) -> dict[str, list[str | None]]:
    """Return, as `images`, what tells whether folders of images still hold the same.

    That is a digest of the names, sizes and times of the files of each folder, and None for a known
    set. Where all are known sets there is nothing to tell.
    """
    from regraft.config import DataConfig
    from regraft.data import graph_names, known_names
    from regraft.data.load import folder_of
    from regraft.errors import InputError

    found: list[str | None] = []
    for name in data:
        folder = None
        if name not in (*known_names(), *graph_names()):
            with contextlib.suppress(InputError):  # whoever loads it tells of one that is not there
                folder = Path(folder_of(DataConfig(name=name, root=root))).expanduser()
        found.append(None if folder is None or not folder.is_dir() else _images(folder))
    return {"images": found} if any(found) else {}


def _images(folder: Path) -> str:
    from regraft.data.folder import image_files

    seen = hashlib.blake2b(digest_size=8)
    for path in image_files(folder):
        about = path.stat()
        name = path.relative_to(folder).as_posix()
        seen.update(f"{name}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return seen.hexdigest()


def _tensors(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors*"))
