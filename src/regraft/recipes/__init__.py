"""The papers' experiments as complete configs, and the command that runs and reads them."""

from .job import Job, run_in, run_job
from .recipe import RECIPES, SCALES, Outcome, Reading, Recipe, load_recipe, reproduce
from .runnable import Runnable

__all__ = [
    "RECIPES",
    "SCALES",
    "Job",
    "Outcome",
    "Reading",
    "Recipe",
    "Runnable",
    "load_recipe",
    "reproduce",
    "run_in",
    "run_job",
]
