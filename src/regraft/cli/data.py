"""`regraft data list|get`: the known data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from .output import print_json, say, table


@dataclass(frozen=True)
class List:
    """Show the known data sets and which of them are here."""

    data_root: str | None = None
    """Folder of the data sets; without it REGRAFT_DATA, then ~/.cache/regraft/data."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> int:
        """List the sets."""
        from dataclasses import asdict

        from regraft.data import available

        sets = available(self.data_root)
        if self.json:
            print_json({"sets": [{k: _plain(v) for k, v in asdict(s).items()} for s in sets]})
            return 0
        lines = [
            [s.name, "yes" if s.present else "no", str(s.folder or "inside scikit-learn")]
            for s in sets
        ]
        table(["set", "here", "folder"], lines)
        return 0


@dataclass(frozen=True)
class Get:
    """Fetch a known data set where a network exists."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the set, e.g. fashion_mnist."""
    data_root: str | None = None
    """Folder of the data sets; without it REGRAFT_DATA, then ~/.cache/regraft/data."""

    def run(self) -> int:
        """Fetch the set."""
        from regraft.data import data_root, get

        get(self.name, self.data_root)
        say(f"{self.name} is below {data_root(self.data_root)}")
        return 0


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, bool | int | str) else str(value)
