"""`regraft doctor`: what is installed, what is missing, and what that would unlock."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from typing import Any

from .output import print_json, say, table

_EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "train": (("lightning-fabric",), "training: ticket find, reproduce"),
    "vision": (("torchvision", "timm", "pillow"), "known image sets, image folders, timm models"),
    "graph": (("torch-geometric",), "graph networks"),
    "report": (("matplotlib", "jinja2"), "figures and the report page"),
    "match": (("lapx",), "faster assignments in merge and align"),
    "digits": (("scikit-learn",), "the embedded digits, the default data set"),
}
_CORE = ("torch", "numpy", "scipy", "safetensors", "constriction", "tyro", "rich")


@dataclass(frozen=True)
class Doctor:
    """Show versions, device, and which optional parts are missing and what each unlocks."""

    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> int:
        """Look and tell; missing optional parts are no failure."""
        found = self.look()
        if self.json:
            print_json(found)
            return 0
        say(f"regraft {found['regraft']}, Python {found['python']}, {found['device']}")
        say()
        table(["package", "version"], [[n, v or "missing"] for n, v in found["core"].items()])
        say()
        lines = [
            [name, "yes" if not e["missing"] else "no: " + e["install"], e["unlocks"]]
            for name, e in found["extras"].items()
        ]
        table(["extra", "installed", "unlocks"], lines)
        say()
        say(f"data root: {found['data_root']}")
        return 0

    def look(self) -> dict[str, Any]:
        """Return everything that is shown."""
        from regraft._version import __version__
        from regraft.data.known import data_root

        extras = {}
        for name, (packages, unlocks) in _EXTRAS.items():
            missing = [p for p in packages if _version(p) is None]
            extras[name] = {
                "versions": {p: _version(p) for p in packages},
                "missing": missing,
                "unlocks": unlocks,
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
