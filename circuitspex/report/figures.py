"""The other figures: single effects, energy by order."""

import html
from typing import TYPE_CHECKING

import numpy as np

from circuitspex.algebra import number
from circuitspex.findings import Findings
from circuitspex.report.effect_map import EffectMap, make_effect_map, single_effects
from circuitspex.report.layout import short_label
from circuitspex.report.style import CELL_LINE, INK, MUTED, figure_with_defaults, plotly_scale

if TYPE_CHECKING:
    import plotly.graph_objects as go

_MAX_BARS = 60


def effect_figure(findings: Findings) -> "go.Figure":
    """Draw what ablating each unit alone does: a map of a model, bars for other units.

    Args:
        findings: What a run found; the circuit's units are outlined.

    Returns:
        A plotly figure. Its ``layout.meta`` holds the width in pixels it needs to stay legible.
    """
    effects = make_effect_map(findings)
    return _bars(findings) if effects is None else _map(effects)


def _map(effects: EffectMap) -> "go.Figure":
    figure = figure_with_defaults()
    limit = effects.limit
    hover = [[html.escape(text, quote=False) for text in row] for row in effects.hover]
    figure.add_heatmap(
        z=effects.values,
        colorscale=plotly_scale(),
        zmin=-limit,
        zmax=limit,
        xgap=1.5,
        ygap=1.5,
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        colorbar={"thickness": 12, "outlinewidth": 0, "title": {"text": "effect"}, "len": 0.9},
    )
    rows, columns = np.nonzero(effects.in_circuit)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        box = {"x0": column - 0.47, "x1": column + 0.47, "y0": row - 0.47, "y1": row + 0.47}
        figure.add_shape(type="rect", line={"color": INK, "width": 2}, **box)
    n_rows, n_columns = effects.values.shape
    every = -(-n_rows // 32)
    several = effects.rows_per_cell > 1
    figure.update_xaxes(
        tickvals=list(range(n_columns)), ticktext=effects.column_names, title="layer"
    )
    figure.update_yaxes(
        tickvals=list(range(0, n_rows, every)),
        ticktext=effects.row_names[::every],
        title=f"strongest of every {effects.rows_per_cell}" if several else None,
        automargin=True,
    )
    figure.update_layout(
        height=120 + max(8, min(30, 900 // n_rows)) * n_rows,
        margin={"l": 70, "r": 8, "t": 12, "b": 48},
        meta={
            "min_width": min(6000, 26 * n_columns + 170),
            "max_width": 90 * n_columns + 200,
        },
    )
    return figure


def _bars(findings: Findings) -> "go.Figure":
    effects, all_labels = single_effects(findings), findings.interactions.units
    largest = sorted(effects, key=lambda unit: -abs(effects[unit]))[:_MAX_BARS]
    units = sorted(largest)
    labels = [html.escape(short_label(all_labels[unit]), quote=False) for unit in units]
    figure = figure_with_defaults()
    figure.add_bar(
        x=list(range(len(units))),
        y=[effects[unit] for unit in units],
        marker={
            "color": [INK if unit in findings.members else MUTED for unit in units],
        },
        hovertext=[
            f"<b>{label}</b>: {number(effects[unit])}"
            for unit, label in zip(units, labels, strict=True)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    figure.update_xaxes(tickvals=list(range(len(units))), ticktext=labels, tickangle=-60)
    figure.update_yaxes(title="effect of ablating it alone", gridcolor=CELL_LINE, showgrid=True)
    figure.update_layout(
        height=360,
        margin={"l": 64, "r": 16, "t": 16, "b": 110},
        meta={"min_width": 16 * len(units) + 120},
    )
    return figure


def energy_figure(findings: Findings) -> "go.Figure":
    """Draw how the variance under random masks splits by how many units act together.

    Args:
        findings: What a run found.

    Returns:
        A plotly figure.
    """
    energy = findings.interactions.energy_by_order()
    total = sum(energy.values()) or 1.0
    shares = [100 * part / total for part in energy.values()]
    figure = figure_with_defaults()
    figure.add_bar(
        x=[f"order {order}" for order in energy],
        y=shares,
        marker={"color": "#52667a"},
        text=[f"{share:.1f} %" for share in shares],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{x}: %{text}<extra></extra>",
    )
    figure.update_yaxes(title="share of variance, %", range=[0, 112], tickvals=[0, 25, 50, 75, 100])
    figure.update_layout(height=300, bargap=0.45, margin={"l": 64, "r": 16, "t": 16, "b": 40})
    return figure
