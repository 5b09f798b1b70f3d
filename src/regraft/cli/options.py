"""Options that verbs share, in groups with titles in help, and what is common to all dataclasses of them.

A verb is a dataclass of its everyday options and of groups. Numbers are checked where a group makes its
config dataclass, by the ranges beside the fields of `regraft.config`, and named as they are typed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_type_hints

import tyro

from regraft.config import DataConfig, ImageConfig, ModelConfig, RuntimeConfig, check
from regraft.config.check import option_of
from regraft.errors import InputError

from .json_option import Values, json_object

if TYPE_CHECKING:
    import torch

_C = TypeVar("_C")


class Options:
    """A dataclass of options, some of them in groups, which are dataclasses of this kind as well."""

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Make one of options by name, whatever group they are in.

        Raises:
            TypeError: There is no such option.
        """
        own = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
        settings: Values = {}
        for name, group in groups_of(cls).items():
            inside = {key: values.pop(key) for key in option_names(group) if key in values}
            if inside:
                start = own[name].default
                if start is dataclasses.MISSING:
                    start = own[name].default_factory()  # type: ignore[misc]
                settings[name] = group.of(**{**start.values(), **inside})
        return cls(**values, **settings)

    def values(self) -> Values:
        """Return all options by name, those of groups among them."""
        flat: Values = {}
        for name, value in self._fields():
            flat |= value.values() if isinstance(value, Options) else {name: value}
        return flat

    def folder(self) -> Path | None:
        """Return the result folder of a verb that makes one, which --config takes back."""
        return None

    def check(self) -> None:
        """Refuse numbers out of the ranges that stand beside options, in groups as well.

        Raises:
            InputError: The first of them.
        """
        check(self)
        for _, value in self._fields():
            if isinstance(value, Options):
                value.check()

    def _fields(self) -> Iterator[tuple[str, Any]]:
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            yield f.name, getattr(self, f.name)


def groups_of(kind: type[Options]) -> dict[str, type[Options]]:
    """Return the groups of a dataclass of options, by the names of their fields."""
    hints = get_type_hints(kind)
    return {name: t for name, t in hints.items() if isinstance(t, type) and issubclass(t, Options)}


def option_names(kind: type[Options]) -> list[str]:
    """Return the names of all options, those of groups among them."""
    groups = groups_of(kind)
    names: list[str] = []
    for f in dataclasses.fields(kind):  # type: ignore[arg-type]
        names += option_names(groups[f.name]) if f.name in groups else [f.name]
    return names


def pick(kind: type[_C], values: Values, **more: Any) -> _C:
    """Return a config dataclass of the options that its fields are called by, and of `more`.

    Raises:
        InputError: A number is out of its range.
    """
    names = {f.name for f in dataclasses.fields(kind)} - more.keys()  # type: ignore[arg-type]
    config = kind(**{k: v for k, v in values.items() if k in names}, **more)
    check(config)
    return config


def registered(file: str, pattern: str) -> list[Any]:
    """Return what a pattern finds, line by line, in a file of the package, such as the names of a registry.

    The file is read and not imported: help answers without torch.
    """
    text = files("regraft").joinpath(file).read_text("utf-8")
    return re.findall(pattern, text, re.MULTILINE)


def default_out(verb: str, *names: object) -> Path:
    """Return what a verb makes without --out: runs/VERB-NAMES, a file by its name or that of its folder."""
    parts = [_short(n) if isinstance(n, Path) else Path(str(n)).name for n in names]
    plain = (part.replace(":", "-") for part in parts if part)
    return Path("runs") / "-".join([verb, *plain])


def _short(path: Path) -> str:
    return path.parent.name if path.stem in ("model", "checkpoint") else path.stem


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """Where known sets lie, and what is done about images that cannot be read."""

    data_root: str | None = None
    """Folder of the known data sets; without it REGRAFT_DATA, then ~/.cache/regraft/data."""
    offline: bool = False
    """Stop at a missing known set instead of fetching it."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Stop at an image that cannot be decoded, or warn and go on."""

    def config(self, name: str, **more: Any) -> DataConfig:
        """Return which data: a name of --data and further fields, the rest from the options.

        Raises:
            InputError: A number is out of its range.
        """
        values = {**self.values(), **more, "name": name}
        return pick(DataConfig, values, root=self.data_root, download=not self.offline)


@dataclass(frozen=True, kw_only=True)
class SplitOptions(DataOptions):
    """Which images are for what, and where known sets lie."""

    validation: float = 0.1
    """Share of the training images held out."""
    train_size: int | None = None
    """Keep this many training images, stratified."""
    shots: int | None = None
    """Keep this many training images of each class."""
    split_seed: int = 777
    """Seed of the split."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """More about the network of --model."""

    width: float = 1.0
    """Width factor of a built-in network."""
    model_options: str = "{}"
    """Further keyword arguments of the model's factory, as a JSON object."""

    def config(self, name: str) -> ModelConfig:
        """Return the network of a name.

        Raises:
            InputError: The width is out of its range, or the options are no JSON object.
        """
        model = ModelConfig(name=name, width=self.width, options=json_object(self.model_options))
        check(model)
        return model

    def optional(self, name: str | None) -> ModelConfig | None:
        """Return the network of --model, None where a checkpoint says which it is.

        Raises:
            InputError: As `config`, or options of a network that is not named.
        """
        if name is not None:
            return self.config(name)
        for option in ("width", "model_options"):
            value = getattr(self, option)
            if value != getattr(ModelOptions, option):
                raise InputError(
                    f"{option_of(option)} {value} is of the network that --model names: add --model"
                )
        return None


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """What the images are."""

    image_size: int | None = None
    """Side of the images in pixels; without it that of the data, or what fits the checkpoint."""
    channels: int | None = None
    """Channels of the images: 1 makes them grey, 3 coloured; without it likewise."""

    def config(self) -> ImageConfig:
        """Return what the images are.

        Raises:
            InputError: A number is out of its range, or --mean or --std stands alone.
        """
        images = pick(ImageConfig, self.values())
        images.check()
        return images


@dataclass(frozen=True, kw_only=True)
class NormalisedOptions(ImageOptions):
    """What the images are, and how they are normalised."""

    mean: tuple[float, ...] = ()
    """Mean of each channel by which images are normalised; without it the data set's own."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel."""


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Where and how exactly to compute."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    devices: int = 1
    """Processes; use torchrun for several."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    """Numerical precision."""
    threads: int | None = None
    """CPU threads; exact resuming needs them unchanged."""

    def config(
        self, *, refuse: Iterable[str] = (), because: str = "", **more: Any
    ) -> RuntimeConfig:
        """Return where and how exactly a run computes.

        Args:
            refuse: Options that the verb has no use of.
            because: Why.
            more: Further fields.

        Raises:
            InputError: A number is out of its range, or such an option is said.
        """
        runtime = pick(RuntimeConfig, self.values(), **more)
        for name in refuse:
            if (value := getattr(self, name)) != getattr(DeviceOptions, name):
                raise InputError(f"{option_of(name)} {value}: {because}; leave it out")
        return runtime

    def for_inference(self) -> torch.device:
        """Return the device that a verb without training computes on, and set the CPU threads.

        Raises:
            InputError: A number is out of its range, or there is no GPU where one is wanted.
        """
        from regraft.train.fabric import device_of

        because = "it is for training; predictions are computed by one process, in float32"
        return device_of(self.config(refuse=("devices", "precision"), because=because))


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions(DeviceOptions):
    """The seed, and where and how exactly to compute."""

    seed: int = 1
    """Seed of weights, batches and every other draw."""


@dataclass(frozen=True, kw_only=True)
class LongRuntimeOptions(RuntimeOptions):
    """The seed, where and how exactly to compute, and how often to save."""

    checkpoint_seconds: float = 30.0
    """Least time between two checkpoints."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Options):
    """What is printed."""

    json: bool = False
    """Print one JSON object instead of text."""


@dataclass(frozen=True, kw_only=True)
class ResultOptions(OutputOptions):
    """What is printed, and where options come from."""

    config: Path | None = None
    """Take the options of a result folder's regraft.json; those on the command line win."""


Data = Annotated[DataOptions, tyro.conf.arg(name="data")]
Splits = Annotated[SplitOptions, tyro.conf.arg(name="data")]
Network = Annotated[ModelOptions, tyro.conf.arg(name="model")]
