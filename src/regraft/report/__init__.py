"""Runs turned into tables, figures, one self-contained page, and committed results."""

from .card import ResultCard, command_of, read_card, write_card
from .claims import Claim, Published
from .document import Cell, Figure, Table
from .figure import Line, Panel, lines
from .page import render_page
from .picture import contact_sheet, png
from .plots import efficiency, learning_curves
from .results import write_results
from .runs import Result, Run, find_runs, read_run
from .stats import Estimate, estimate, paired_difference
from .table import Row, rows, to_markdown, to_rich, usual_metric

__all__ = [
    "Cell",
    "Claim",
    "Estimate",
    "Figure",
    "Line",
    "Panel",
    "Published",
    "Result",
    "ResultCard",
    "Row",
    "Run",
    "Table",
    "command_of",
    "contact_sheet",
    "efficiency",
    "estimate",
    "find_runs",
    "learning_curves",
    "lines",
    "paired_difference",
    "png",
    "read_card",
    "read_run",
    "render_page",
    "rows",
    "to_markdown",
    "to_rich",
    "usual_metric",
    "write_card",
    "write_results",
]
