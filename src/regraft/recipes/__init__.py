"""The papers' experiments as complete configs, and the command that runs and reads them."""

from regraft.jobs.base import Runnable
from regraft.jobs.train import Job, run_in, run_job

from .recipe import RECIPES, SCALES, Outcome, Reading, Recipe, load_recipe, reproduce

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
