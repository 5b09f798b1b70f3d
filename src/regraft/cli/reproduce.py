"""`regraft reproduce`: a paper's experiment with all its controls."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .options import registered
from .output import print_json, say

RECIPE_NAMES = registered("recipes/recipe.py", r'^    "(\w+)": "regraft\.recipes\.\w+",$')
_MORE = registered("recipes/recipe.py", r'^    "(\w+)": \((.+?),?\),$')
_ALONE = "".join(f"; {one} alone: {more}".replace('"', "") for one, more in _MORE)
_SCALES = "smoke: a minute or two; cpu: under an hour on two cores; gpu; paper: the published ones"
_STYLES = {"held": "green", "did not hold": "yellow", "undecided": "cyan"}


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Run a recipe: every arm, every control, every seed; then a table and a report page.

    What is finished is not run again: the same command goes on after an interruption. With --only and
    --seed one run of it is made again, and with --check its numbers are held against committed ones.
    """

    recipe: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(help=f"Name of the recipe: {', '.join(RECIPE_NAMES)}."),
    ]
    scale: Annotated[str, tyro.conf.arg(help=f"{_SCALES}{_ALONE}.")] = "smoke"
    seeds: int | None = None
    """Seeds for each arm; the recipe's own number by default."""
    out: Path | None = None
    """Folder of the runs; runs/RECIPE-SCALE by default."""
    data_root: str | None = None
    """Folder of the data sets; without it REGRAFT_DATA, then ~/.cache/regraft/data."""
    workers: int | None = None
    """Runs side by side; by default as many as fit the cores."""
    results: Path | None = None
    """Write NAME.md, NAME.json and the figures into this folder as well."""
    only: str | None = None
    """SETTING/ARM: run this row of the table alone, and what it needs."""
    seed: int | None = None
    """Run this seed alone."""
    check: Path | None = None
    """Results file NAME.json: compare with its values by seed, at its scale; exit 1 where one differs."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def run(self) -> int:
        """Run the recipe and report."""
        from rich.console import Console

        from regraft.recipes import load_recipe, reproduce
        from regraft.report import to_rich
        from regraft.train import keep_freed_memory

        keep_freed_memory()
        if self.only is not None or self.seed is not None or self.check is not None:
            return self._again()
        recipe = load_recipe(self.recipe, self.scale, self.seeds)
        if self.data_root is not None:
            recipe = dataclasses.replace(
                recipe, jobs=[job.with_data_root(self.data_root) for job in recipe.jobs]
            )
        out = self.out or Path("runs") / f"{self.recipe}-{self.scale}"
        outcome = reproduce(
            recipe, out, workers=self.workers, results=self.results, console=Console(stderr=True)
        )
        if self.json:
            print_json(
                {
                    "rows": [row.to_dict() for row in outcome.rows],
                    "claims": [claim.to_dict() for claim in outcome.findings.claims],
                    "page": str(outcome.page),
                    "results": [str(p) for p in outcome.results],
                    "seconds": outcome.seconds,
                }
            )
            return 0
        console = Console()
        for grid in to_rich(outcome.rows):
            console.print(grid)
        for claim in outcome.findings.claims:
            say(f"{claim.state}: {claim.paper}. {claim.words}".strip(), style=_STYLES[claim.state])
        say(f"report: {outcome.page}")
        return 0

    def _again(self) -> int:
        """Run a part of the recipe, and hold it against a results file where there is one."""
        from rich.console import Console

        from regraft.recipes import load_recipe
        from regraft.recipes.again import only, read_committed, run_again

        committed = None if self.check is None else read_committed(self.check, self.recipe)
        scale = self.scale if committed is None else committed["scale"]
        recipe = only(
            load_recipe(self.recipe, scale, self.seeds or self.seed), self.only, self.seed
        )
        if self.data_root is not None:
            jobs = [job.with_data_root(self.data_root) for job in recipe.jobs]
            recipe = dataclasses.replace(recipe, jobs=jobs)
        out = self.out or Path("runs") / f"{self.recipe}-{scale}{'-check' if self.check else ''}"
        console = Console(stderr=True)
        compared = run_again(
            recipe, self.only, out, committed=committed, workers=self.workers, console=console
        )
        same = all(one.same for one in compared)
        if self.json:
            values = [{**dataclasses.asdict(one), "same": one.same} for one in compared]
            print_json({"values": values, "same": same})
        else:
            for one in compared:
                say(str(one), style="green" if one.same else "yellow")
            if not same and committed is not None:
                where = f"{committed.get('hardware')} at commit {committed.get('commit')}"
                say(f"{self.check} was made on {where}")
        return 0 if same else 1
