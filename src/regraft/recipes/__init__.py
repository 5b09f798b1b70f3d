"""The papers' experiments as complete configs, and the command that runs and reads them."""

from .recipe import RECIPES, SCALES, Findings, Outcome, Recipe, load_recipe, reproduce

__all__ = ["RECIPES", "SCALES", "Findings", "Outcome", "Recipe", "load_recipe", "reproduce"]
