"""`regraft ticket pack`: a packed ticket from a run, a state dict, an older ticket or a folder."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

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

        ticket = _read(self.source, self.data_root)
        ticket = replace(ticket, about=self._about(dict(ticket.about)))
        written = write_ticket(self.out, ticket)
        bound = ticket.entropy_bound()
        if self.json:
            print_json({"out": str(self.out), "bytes": written, "entropy_bound": bound})
        else:
            say(f"{self.out}: {size(written)}, entropy bound of masks and draws {size(bound)}")
        return 0

    def _about(self, about: dict[str, Any]) -> dict[str, Any]:
        from regraft.config import ModelConfig, check, to_dict

        model: dict[str, Any] = dict(about.get("model", {}))
        if self.model is not None and self.model != model.get("name"):
            model = {"name": self.model}
        if self.width is not None:
            model["width"] = self.width
        if self.model_options is not None:
            model["options"] = _object(self.model_options)
        if "name" in model:
            config = ModelConfig(**model)
            check(config)
            about["model"] = to_dict(config)
        if self.classes:
            about["classes"] = _classes(self.classes)
        shape = {"channels": self.channels, "image_size": self.image_size}
        said = {k: v for k, v in shape.items() if v is not None}
        if said:
            default = {"channels": len(self.mean) or 3}
            about["input"] = {**default, **about.get("input", {}), **said}
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
        return load_ticket(path)
    if "regraft.ticket" in metadata:
        return load_ticket(path)
    if "tree" in metadata:
        return _checkpoint(path, data_root)
    try:
        return gather_state(load_file(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _checkpoint(path: Path, data_root: str | None) -> Any:
    from regraft.config import DataConfig, ModelConfig, TicketConfig
    from regraft.errors import InputError
    from regraft.recipes.job import Job, facts, load_once
    from regraft.tickets import gather_state
    from regraft.train import load_state
    from regraft.train.loop import finished_state

    state = load_state(path)
    if not isinstance(state.get("model"), dict):
        raise InputError(f"{path} is no run's checkpoint: expected a `model` in it")
    about: dict[str, Any] = {}
    config = path.parent / "config.json"
    if config.is_file():
        try:
            asked = jsonlib.loads(config.read_text(encoding="utf-8"))["config"]
            data = DataConfig(**asked["data"], root=data_root, download=False)
            job = Job(
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


def _object(text: str) -> dict[str, Any]:
    from regraft.errors import InputError

    try:
        options = jsonlib.loads(text)
    except ValueError as error:
        raise InputError(f"--model-options is no JSON object: {error}") from error
    if not isinstance(options, dict):
        raise InputError("--model-options is no JSON object: write e.g. '{\"depth\": 3}'")
    return options


def _classes(given: tuple[str, ...]) -> list[str]:
    from regraft.errors import InputError

    if len(given) == 1 and given[0].isdecimal():
        number = int(given[0])
        if not 2 <= number <= 1 << 20:
            raise InputError(f"classes={number}: expected 2 or more classes, or their names")
        return [str(k) for k in range(number)]
    return list(given)
