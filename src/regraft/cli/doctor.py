"""`regraft doctor`: what is installed and works, what is missing, and what that would unlock."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass, field

from regraft._extras import EXTRAS, optional

from .json_option import Values
from .options import Options, OutputOptions
from .output import print_json, say, table

_CORE = ("torch", "numpy", "scipy", "safetensors", "constriction", "tyro", "rich")


@dataclass(frozen=True, kw_only=True)
class Doctor(Options):
    """Show versions, device, and which optional parts are missing and what each unlocks."""

    output: OutputOptions = field(default_factory=OutputOptions)

    def run(self) -> int:
        """Look and tell; missing optional parts are no failure."""
        state = self.look()
        if self.output.json:
            print_json(state)
            return 0
        say(f"regraft {state['regraft']}, Python {state['python']}, {state['device']}")
        say()
        table(["package", "version"], [[n, v or "missing"] for n, v in state["core"].items()])
        say()
        lines = [[name, _state(e), e["unlocks"]] for name, e in state["extras"].items()]
        table(["extra", "installed", "unlocks"], lines)
        say()
        say(f"data root: {state['data_root']}")
        return 0

    def look(self) -> Values:
        """Return everything that is shown."""
        from regraft._version import __version__
        from regraft.data.known import data_root

        extras = {}
        for name, extra in EXTRAS.items():
            versions = {package: _version(package) for package in extra.packages}
            extras[name] = {
                "versions": versions,
                "missing": [package for package, version in versions.items() if version is None],
                "broken": _broken(
                    name, [p for p, version in versions.items() if version is not None]
                ),
                "unlocks": extra.unlocks,
                "install": f"pip install 'regraft[{name}]'",
            }
        return {
            "regraft": __version__,
            "python": platform.python_version(),
            "device": _device(),
            "core": {name: _version(name) for name in _CORE},
            "extras": extras,
            "data_root": str(data_root()),
        }


def _state(extra: Values) -> str:
    """Return whether an extra can be used, and else the cure."""
    if extra["broken"]:
        return "no: " + "; ".join(extra["broken"].values())
    return f"no: {extra['install']}" if extra["missing"] else "yes"


def _broken(name: str, packages: list[str]) -> dict[str, str]:
    """Import packages and return what is wrong with those that cannot be."""
    broken = {}
    for package in packages:
        try:
            optional(EXTRAS[name].packages[package], package, name, name)
        except ImportError as error:
            broken[package] = str(error)
    return broken


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"CUDA: {', '.join(names)}"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads != 1 else ''}"
