"""A ticket out of a run, a state dict, an older ticket or a folder, with what is said of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors

from regraft.config import DataConfig, ImageConfig, ModelConfig, TicketConfig, check, to_dict
from regraft.errors import InputError
from regraft.files import load_json, read_tensors
from regraft.jobs.data import load_once
from regraft.jobs.predict.network import compare_sketch, facts_of
from regraft.jobs.predict.pictures import Preparation
from regraft.jobs.train import TrainJob, facts
from regraft.models import build, model_names
from regraft.tickets import gather_state, load_ticket, read_unpacked
from regraft.train import load_state
from regraft.train.loop import finished_state

_MOST = 1 << 20
"""Pixels a side, channels and classes, at most."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is said of a ticket's network, where its file does not say it or says something else."""

    model: str | None = None
    """Name of the network."""
    width: float | None = None
    """Its width factor."""
    options: dict[str, Any] | None = None
    """Further keyword arguments of its factory."""
    num_classes: int | None = None
    """Number of classes, which are then called by their numbers."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in order."""
    images: ImageConfig = field(default_factory=ImageConfig)
    """What images it takes."""

    def check(self) -> None:
        """Refuse what no network can be fed, before anything is read.

        Raises:
            InputError: The first option that is wrong.
        """
        images = self.images
        images.check()
        for option, value in (("--channels", images.channels), ("--image-size", images.image_size)):
            if value is not None and value > _MOST:
                raise InputError(f"{option} {value}: expected at most {_MOST}")
        if images.channels and images.mean and len(images.mean) != images.channels:
            raise InputError(
                f"--mean and --std have {len(images.mean)} number(s) for {images.channels} channel(s): "
                "say one for each"
            )
        if self.num_classes is not None and not 2 <= self.num_classes <= _MOST:
            raise InputError(f"--num-classes {self.num_classes}: expected 2 or more")
        names = self.class_names
        if names and self.num_classes not in (None, len(names)):
            raise InputError(
                f"--class-names has {len(names)} name(s) for --num-classes {self.num_classes}: leave "
                "--num-classes out"
            )
        if len(names) == 1:
            raise InputError(
                f"--class-names has one name, {names[0]!r}: expected 2 or more, separated by commas"
            )
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"--class-names names {twice!r} twice: each class has its own name")

    def added(self, about: dict[str, Any], source: Path) -> dict[str, Any]:
        """Return what a header says, with what is said here in its place.

        Raises:
            InputError: It says things that cannot be gone on with.
        """
        about = {**about, **self._model(about, source)}
        if self.class_names:
            about["classes"] = list(self.class_names)
        elif self.num_classes is not None:
            about["classes"] = [str(k) for k in range(self.num_classes)]
        images = self.images
        shape = {"channels": images.channels, "image_size": images.image_size}
        said = {k: v for k, v in shape.items() if v is not None}
        if said:
            default = {"channels": len(images.mean) or 3}
            about["input"] = {**default, **_object(about, "input"), **said}
        moments = {"mean": list(images.mean), "std": list(images.std)}
        return about | {k: v for k, v in moments.items() if v}

    def _model(self, about: dict[str, Any], source: Path) -> dict[str, Any]:
        model: dict[str, Any] = dict(_object(about, "model"))
        if self.model is not None and self.model != model.get("name"):
            model = dict[str, Any](name=self.model)
        said = {"width": self.width, "options": self.options}
        model |= {k: v for k, v in said.items() if v is not None}
        if "name" not in model or (self.model, self.width, self.options) == (None, None, None):
            return {}
        try:
            config = ModelConfig(**model)
        except TypeError as error:
            raise InputError(
                f"{source} describes its model in a way this version does not understand "
                f"({error}): say another with --model"
            ) from error
        check(config)
        return {"model": to_dict(config)}


def described(source: Path, said: Description, *, data_root: str | None = None) -> Any:
    """Return the ticket of a source with what is said of it.

    Args:
        source: A run folder, a ticket of any version, an unpacked ticket, or a masked model's state dict.
        said: What is said.
        data_root: Of an unfinished run: folder of the known data sets.

    Raises:
        InputError: No such source, or what is said is not of it, as far as it can be told.
    """
    said.check()
    ticket = read_source(source, data_root)
    about = said.added(dict(ticket.about), source)
    if about == ticket.about:
        return ticket
    ticket = replace(ticket, about=about)
    if said.model is not None:
        _check_name(said.model)
    if all(k in about for k in ("model", "classes", "input")):
        config, shape = facts_of(ticket, source)
        if "mean" in about and "std" in about and "channels" in shape:
            Preparation.of(ticket, source)
        compare_sketch(ticket, config, shape)
    return ticket


def read_source(source: Path, data_root: str | None) -> Any:
    """Return the ticket that a file or folder holds, whatever its form.

    Raises:
        InputError: It holds none, or is damaged.
    """
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder; give a run folder, a ticket, an unpacked ticket or a "
            "state dict"
        )
    if source.is_dir():
        if (source / "ticket.json").is_file():
            return read_unpacked(source)
        if any((source / name).is_file() for name in ("model.ticket", "ticket.safetensors")):
            return load_ticket(source)
        if (source / "checkpoint.safetensors").is_file():
            return _checkpoint(source / "checkpoint.safetensors", data_root)
        raise InputError(
            f"{source} holds neither a ticket nor a run's checkpoint: `regraft ticket find` makes both"
        )
    return _file(source, data_root)


def _file(path: Path, data_root: str | None) -> Any:
    """Read a file: a ticket of any version, a run's checkpoint, or a masked model's state dict."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError):
        if _is_pickle(path):
            raise InputError(
                f"{path} is a PyTorch file, which may run code when it is opened: write the state with "
                "`safetensors.torch.save_file(model.state_dict(), ...)` and pack that"
            ) from None
        return load_ticket(path)
    if "regraft.ticket" in metadata:
        return load_ticket(path)
    if "tree" in metadata:
        return _checkpoint(path, data_root)
    _, state = read_tensors(path, ours=False)
    try:
        return gather_state(state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _is_pickle(path: Path) -> bool:
    """Whether a file begins like one of `torch.save`: a ZIP archive or a pickle."""
    try:
        with path.open("rb") as file:
            return file.read(4).startswith((b"PK\x03\x04", b"\x80\x02"))
    except OSError:
        return False


def _checkpoint(path: Path, data_root: str | None) -> Any:
    state = load_state(path)
    if not isinstance(state.get("model"), dict):
        raise InputError(f"{path} is no run's checkpoint: expected a `model` in it")
    about: dict[str, Any] = {}
    file = path.parent / "regraft.json"
    if file.is_file():
        try:
            config = load_json(file, ours=True)["config"]
            data = DataConfig(**config["data"], root=data_root, download=False)
            job = TrainJob(
                setting="",
                arm="",
                data=data,
                model=ModelConfig(**config["model"]),
                ticket=TicketConfig(**config["ticket"]),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{file} is no configuration of a run ({error}): give the checkpoint's own folder"
            ) from error
        about = facts(job, load_once(data))
    try:
        return gather_state(finished_state(state), about)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _object(about: dict[str, Any], key: str) -> dict[str, Any]:
    """Return an object of a header, empty where there is none that could be gone on with."""
    value = about.get(key)
    return value if isinstance(value, dict) else {}


def _check_name(name: str) -> None:
    """Refuse a name that no network has, where nothing must be imported to know."""
    plain = "/" not in name and ":" not in name
    if plain and name not in (*model_names(), *model_names(graph=True)):
        build(
            ModelConfig(name=name), num_classes=2, channels=3, image_size=8
        )  # tells what there is
