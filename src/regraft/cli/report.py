"""`regraft report`: any set of runs as a table and one self-contained page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from regraft.errors import InputError

from .output import print_json, say


@dataclass(frozen=True, kw_only=True)
class Report:
    """Gather runs into a table, method against control, and an HTML page."""

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(help_behavior_hint="(one or more)")
    ]
    """Run folders, or folders that hold them."""
    out: Path = Path("report.html")
    """The page to write."""
    title: str = "Runs"
    """Heading of the page."""
    metric: str | None = None
    """Metric to tabulate: test_accuracy, or validation_accuracy where no run has test images."""
    unit: str = "%"
    """Unit of the metric."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> int:
        """Read the runs, print the table, write the page."""
        from rich.console import Console

        from regraft.files import write_text
        from regraft.report import find_runs, render_page, rows, to_rich, usual_metric

        if not self.runs:
            raise InputError("no run folder given: regraft report RUNS...")
        runs = find_runs(list(self.runs))
        metric = self.metric or usual_metric(runs)
        table = rows(runs, metric, self.unit)
        page = render_page(runs, title=self.title, metrics=((metric, self.unit),))
        write_text(self.out, page)
        if self.json:
            print_json({"rows": [row.to_dict() for row in table], "page": str(self.out)})
            return 0
        for grid in to_rich(table):
            Console().print(grid)
        say(f"report: {self.out}")
        return 0
