"""Findings in, tables, figures and one self-contained HTML page out."""

from circuitspex.report.circuit_figure import circuit_figure
from circuitspex.report.comparison import Comparison, render_comparison, write_comparison
from circuitspex.report.effect_map import head_map_image
from circuitspex.report.figures import effect_figure, energy_figure
from circuitspex.report.interactions_table import NO_JOINT_TERMS
from circuitspex.report.page import SECTIONS, render_page, write_page

__all__ = [
    "NO_JOINT_TERMS",
    "SECTIONS",
    "Comparison",
    "circuit_figure",
    "effect_figure",
    "energy_figure",
    "head_map_image",
    "render_comparison",
    "render_page",
    "write_comparison",
    "write_page",
]
