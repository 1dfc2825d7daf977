"""Findings in, tables, figures and one self-contained HTML page out."""

from circuitspex.report.circuit_figure import circuit_figure
from circuitspex.report.comparison import Comparison, render_comparison, write_comparison
from circuitspex.report.effect_map import head_map_image
from circuitspex.report.figures import effect_figure, energy_figure, prediction_figure
from circuitspex.report.page import render_page, write_page
from circuitspex.report.tables import NO_JOINT_TERMS, InteractionRow, interaction_rows

__all__ = [
    "NO_JOINT_TERMS",
    "Comparison",
    "InteractionRow",
    "circuit_figure",
    "effect_figure",
    "energy_figure",
    "head_map_image",
    "interaction_rows",
    "prediction_figure",
    "render_comparison",
    "render_page",
    "write_comparison",
    "write_page",
]
