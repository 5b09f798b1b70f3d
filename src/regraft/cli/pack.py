"""`regraft ticket pack`: a packed ticket from a run, a state dict, an older ticket or a folder."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from regraft.jobs.predict.network import compare_sketch, facts_of
from regraft.jobs.predict.pictures import Preparation

from .json_option import json_object
from .output import print_json, say


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Write a packed ticket: entropy-coded masks, a seed, and what no seed gives back.

    The options say what the source does not: what the network is, and what it is fed.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """A run folder, a ticket of any version, a folder of `ticket unpack`, or a masked model's
    state dict as safetensors."""
    out: Path
    """File to write, e.g. model.ticket."""
    model: str | None = None
    """A built-in network, timm/NAME, torchvision/NAME or package.module:factory."""
    width: float | None = None
    """Width factor of a built-in network."""
    model_options: str | None = None
    """Further keyword arguments of the model's factory, as a JSON object."""
    classes: tuple[str, ...] = ()
    """Names of the classes in order, or their number."""
    image_size: int | None = None
    """Side of the images in pixels."""
    channels: int | None = None
    """Channels of the images."""
    mean: tuple[float, ...] = ()
    """Mean of each channel, for pixels in [0, 1]."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel."""
    data_root: str | None = None
    """Of an unfinished run: folder of the known data sets."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> int:
        """Gather the ticket, add what was said, and write it."""
        from dataclasses import replace

        from regraft.report.wording import size
        from regraft.tickets import write_ticket

        self._check_said()
        ticket = _read(self.source, self.data_root)
        about = self._about(dict(ticket.about))
        if about != ticket.about:
            ticket = replace(ticket, about=about)
            self._check_together(ticket)
        written = write_ticket(self.out, ticket)
        bound = ticket.entropy_bound()
        if self.json:
            print_json({"out": str(self.out), "bytes": written, "entropy_bound": bound})
        else:
            say(f"{self.out}: {size(written)}, entropy bound of masks and draws {size(bound)}")
        return 0

    def _check_said(self) -> None:
        """Refuse what no network can be fed, before anything is read."""
        from math import isfinite

        from regraft.errors import InputError

        for name in ("channels", "image_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1 << 20:
                raise InputError(f"{name}={value}: expected at least 1, and at most {1 << 20}")
        for name, low in (("mean", -float("inf")), ("std", 0.0)):
            for value in getattr(self, name):
                if not (isfinite(value) and value > low):
                    above = " above 0" if name == "std" else ""
                    raise InputError(f"{name}={value}: expected a finite number{above} a channel")
        channels = self.channels or max(len(self.mean), len(self.std))
        for name in ("mean", "std"):
            if getattr(self, name) and len(getattr(self, name)) != channels:
                raise InputError(
                    f"{name} has {len(getattr(self, name))} number(s) for {channels} channel(s): say one "
                    "for each channel"
                )

    def _check_together(self, ticket: Any) -> None:
        """Refuse a description that is not that of the ticket, as far as it can be told."""
        about = ticket.about
        if self.model is not None:
            _check_name(self.model)
        if not all(k in about for k in ("model", "classes", "input")):
            return
        config, shape = facts_of(ticket, self.source)
        if "mean" in about and "std" in about and "channels" in shape:
            Preparation.of(ticket, self.source)
        compare_sketch(ticket, config, shape)

    def _about(self, about: dict[str, Any]) -> dict[str, Any]:
        from regraft.config import ModelConfig, check, to_dict
        from regraft.errors import InputError

        model: dict[str, Any] = dict(_said(about, "model"))
        if self.model is not None and self.model != model.get("name"):
            model = {"name": self.model}
        if self.width is not None:
            model["width"] = self.width
        if self.model_options is not None:
            model["options"] = json_object(self.model_options)
        said = (self.model, self.width, self.model_options)
        if "name" in model and any(option is not None for option in said):
            try:
                config = ModelConfig(**model)
            except TypeError as error:
                raise InputError(
                    f"{self.source} describes its model in a way this version does not understand "
                    f"({error}): say another with --model"
                ) from error
            check(config)
            about["model"] = to_dict(config)
        if self.classes:
            about["classes"] = _classes(self.classes)
        shape = {"channels": self.channels, "image_size": self.image_size}
        given = {k: v for k, v in shape.items() if v is not None}
        if given:
            default = {"channels": len(self.mean) or 3}
            about["input"] = {**default, **_said(about, "input"), **given}
        for key in ("mean", "std"):
            if getattr(self, key):
                about[key] = list(getattr(self, key))
        return about


def _read(source: Path, data_root: str | None) -> Any:
    from regraft.errors import InputError
    from regraft.tickets import load_ticket, read_unpacked

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
    import safetensors
    from safetensors.torch import load_file

    from regraft.errors import InputError
    from regraft.tickets import gather_state, load_ticket

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
    try:
        return gather_state(load_file(path))
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
    from regraft.config import DataConfig, ModelConfig, TicketConfig
    from regraft.errors import InputError
    from regraft.jobs.data import load_once
    from regraft.jobs.train import TrainJob, facts
    from regraft.tickets import gather_state
    from regraft.train import load_state
    from regraft.train.loop import finished_state

    state = load_state(path)
    if not isinstance(state.get("model"), dict):
        raise InputError(f"{path} is no run's checkpoint: expected a `model` in it")
    about: dict[str, Any] = {}
    config = path.parent / "regraft.json"
    if config.is_file():
        try:
            asked = jsonlib.loads(config.read_text(encoding="utf-8"))["config"]
            data = DataConfig(**asked["data"], root=data_root, download=False)
            job = TrainJob(
                setting="",
                arm="",
                data=data,
                model=ModelConfig(**asked["model"]),
                ticket=TicketConfig(**asked["ticket"]),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{config} is no configuration of a run ({error}): give the checkpoint's own folder"
            ) from error
        about = facts(job, load_once(data))
    try:
        return gather_state(finished_state(state), about)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _classes(given: tuple[str, ...]) -> list[str]:
    from regraft.errors import InputError

    if len(given) == 1 and given[0].isdecimal():
        number = int(given[0])
        if not 2 <= number <= 1 << 20:
            raise InputError(f"classes={number}: expected 2 or more classes, or their names")
        return [str(k) for k in range(number)]
    if len(given) < 2:
        raise InputError(f"classes has one name, {given[0]!r}: expected 2 or more, or their number")
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"classes names {twice!r} twice: expected a name of its own for each class"
        )
    return list(given)


def _said(about: dict[str, Any], key: str) -> dict[str, Any]:
    """Return an object of a header, empty where there is none that could be gone on with."""
    found = about.get(key)
    return found if isinstance(found, dict) else {}


def _check_name(name: str) -> None:
    """Refuse a name that no network has, where nothing must be imported to know."""
    from regraft.config import ModelConfig
    from regraft.models import build, model_names

    plain = "/" not in name and ":" not in name
    if plain and name not in (*model_names(), *model_names(graph=True)):
        build(
            ModelConfig(name=name), num_classes=2, channels=3, image_size=8
        )  # tells what there is
