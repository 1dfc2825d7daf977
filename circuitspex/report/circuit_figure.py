"""The circuit as a drawing: units by layer, interactions as links or around a junction."""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuitspex.algebra import Kind, Term, number
from circuitspex.findings import Findings
from circuitspex.report.effect_map import single_effects
from circuitspex.report.layout import Layout, arrange, short_label
from circuitspex.report.style import CELL_LINE, INK, KINDS, MUTED, describe, figure_with_defaults

if TYPE_CHECKING:
    import plotly.graph_objects as go

Point = tuple[float, float]

N_DRAWN = 25
"""How many interactions are drawn at most."""

# keeps labels legible where lines pass under them
_HALO = ", ".join(["0 0 3px white"] * 4)


@dataclass(frozen=True)
class _Link:
    term: Term
    path: list[Point | None]  # None lifts the pen
    label_at: Point


def circuit_figure(findings: Findings, n_shown: int = N_DRAWN) -> "go.Figure":
    """Draw the largest interactions, refuted ones and those that may be zero left out.

    Args:
        findings: What a run found; what was measured is drawn in that size, the circuit filled.
        n_shown: How many interactions of order two and more to draw at most.

    Returns:
        A plotly figure. Its ``layout.meta`` holds the width in pixels it needs to stay legible.
    """
    terms = drawn_terms(findings, n_shown)
    involved = {unit for term in terms for unit in term.indices}
    shown = sorted(involved | findings.members)
    layout = arrange(findings.interactions.units, shown)
    pitch = _pitch(layout)
    points = {unit: (x * pitch[0], y * pitch[1]) for unit, (x, y) in layout.places.items()}
    links = _links(terms, points, below=layout.is_row)

    figure = figure_with_defaults()
    _add_background(figure, [points[unit] for unit in points.keys() - set(shown)])
    _add_links(figure, links)
    _add_units(figure, findings, points, shown)
    _set_axes(figure, layout, pitch, points, links)
    return figure


def drawn_terms(findings: Findings, n_shown: int = N_DRAWN) -> list[Term]:
    """Choose what to draw: the largest that errors leave standing, fewer among few units.

    Args:
        findings: What a run found.
        n_shown: How many at most.

    Returns:
        Verified ones first, then others whose estimate's interval excludes zero and that are not
        refuted; the largest of each first.
    """
    standing = [term for term in findings.terms if term.order > 1 and _stands(term)]
    return standing[: min(n_shown, 2 * findings.interactions.n_units)]


def _stands(term: Term) -> bool:
    if term.verdict in ("verified", "refuted"):
        return term.verdict == "verified"
    return term.is_clear


def _pitch(layout: Layout) -> Point:
    """Return the distance of columns and of rows in pixels, wider where there are few."""
    if not layout.short_labels:
        return 74.0, 46.0
    n_columns, n_rows = max(len(layout.columns), 1), max(len(layout.rows), 1)
    return min(max(990 / n_columns, 33.0), 150.0), min(max(360 / n_rows, 40.0), 80.0)


def _links(terms: Sequence[Term], points: dict[int, Point], below: bool) -> list[_Link]:
    links, taken = [], list(points.values())
    for term in terms:
        ends = [points[unit] for unit in term.indices]
        if len(ends) == 2:
            path = _arc(*ends, height=0.3 if below else 0.16)
            links.append(_Link(term, list(path), path[len(path) // 2]))
        else:
            junction = _free_place(ends, taken, below)
            taken.append(junction)
            spokes = [point for end in ends for point in (end, junction, None)]
            links.append(_Link(term, spokes, junction))
    return links


def _arc(start: Point, end: Point, height: float, n_points: int = 24) -> list[Point]:
    """Return points on a curve that arcs upwards, so that it clears what lies between.

    The height of its control point is a share of the distance of its ends.
    """
    (x0, y0), (x1, y1) = sorted((start, end))
    control = ((x0 + x1) / 2 - height * (y1 - y0), (y0 + y1) / 2 + height * (x1 - x0))
    steps = [step / (n_points - 1) for step in range(n_points)]
    weights = [((1 - t) ** 2, 2 * t * (1 - t), t**2) for t in steps]
    return [
        (a * x0 + b * control[0] + c * x1, a * y0 + b * control[1] + c * y1) for a, b, c in weights
    ]


def _free_place(ends: Sequence[Point], taken: Sequence[Point], below: bool) -> Point:
    """Return a place near the ends' middle that no node covers."""
    x = sum(point[0] for point in ends) / len(ends)
    y = sum(point[1] for point in ends) / len(ends)
    if min(ends)[0] == max(ends)[0]:  # on one line, spokes would run through other units
        x += 52
    elif below:
        y -= 40 + 0.12 * (max(ends)[0] - min(ends)[0])
    for step in range(200):
        angle, radius = 2.4 * step, 5 * math.sqrt(step)
        place = (x + radius * math.cos(angle), y + radius * math.sin(angle))
        if all(math.dist(place, other) > 19 for other in taken):
            return place
    return x, y


def _add_background(figure: "go.Figure", points: Iterable[Point]) -> None:
    points = list(points)
    figure.add_scatter(
        x=[x for x, _ in points],
        y=[y for _, y in points],
        mode="markers",
        marker={"size": 4, "color": CELL_LINE},
        hoverinfo="skip",
        showlegend=False,
    )


def _add_links(figure: "go.Figure", links: Sequence[_Link]) -> None:
    largest = max((abs(link.term.effect) for link in links), default=1.0)
    shown = set()
    for link in reversed(links):  # the largest on top
        style = KINDS[link.term.kind]
        share = abs(link.term.effect) / largest
        figure.add_scatter(
            x=[None if point is None else point[0] for point in link.path],
            y=[None if point is None else point[1] for point in link.path],
            mode="lines",
            line={"color": style.colour, "dash": style.dash, "width": 1.2 + 5.3 * share},
            opacity=0.45 + 0.4 * share,
            name=style.name,
            legendgroup=style.name,
            legendrank=style.rank,
            showlegend=link.term.kind not in shown,
            hovertemplate=f"{describe(link.term)}<extra></extra>",
        )
        shown.add(link.term.kind)
    for kind in shown:
        _add_junctions(figure, kind, [k for k in links if k.term.kind == kind and k.term.order > 2])


def _add_junctions(figure: "go.Figure", kind: Kind | None, links: Sequence[_Link]) -> None:
    figure.add_scatter(
        x=[link.label_at[0] for link in links],
        y=[link.label_at[1] for link in links],
        mode="markers+text",
        marker={"symbol": "diamond", "size": 15, "color": KINDS[kind].colour},
        text=[str(link.term.order) for link in links],
        textfont={"size": 9, "color": "white"},
        hovertext=[describe(link.term) for link in links],
        hovertemplate="%{hovertext}<extra></extra>",
        legendgroup=KINDS[kind].name,
        showlegend=False,
    )


def _add_units(
    figure: "go.Figure", findings: Findings, points: dict[int, Point], shown: Sequence[int]
) -> None:
    effects, all_labels = single_effects(findings), findings.interactions.units
    short = all(len(short_label(all_labels[unit])) <= 5 for unit in shown)
    for member, name in ((True, "in the circuit"), (False, "not in the circuit")):
        units = [unit for unit in shown if (unit in findings.members) == member]
        labels = [all_labels[unit] for unit in units]
        figure.add_scatter(
            x=[points[unit][0] for unit in units],
            y=[points[unit][1] for unit in units],
            mode="markers+text",
            marker={
                "size": 27 if short else 13,
                "color": INK if member else "white",
                "line": {"color": INK if member else MUTED, "width": 1.3},
            },
            text=[html.escape(short_label(label), quote=False) for label in labels],
            textposition="middle center" if short else "bottom center",
            textfont={
                "size": 9.5 if short else 11,
                "color": "white" if member and short else INK,
                "shadow": "none" if short else _HALO,
            },
            hovertext=[
                f"<b>{html.escape(label, quote=False)}</b>, {name}<br>ablated alone: "
                f"{number(effects.get(unit, 0.0))}"
                for unit, label in zip(units, labels, strict=True)
            ],
            hovertemplate="%{hovertext}<extra></extra>",
            name=name,
            legendrank=4 if member else 5,
            showlegend=bool(units),
        )


def _set_axes(
    figure: "go.Figure",
    layout: Layout,
    pitch: Point,
    points: dict[int, Point],
    links: Sequence[_Link],
) -> None:
    drawn = [*points.values(), *(point for link in links for point in link.path if point)]
    (left, right), (low, high) = (
        (min((p[axis] for p in drawn), default=0.0), max((p[axis] for p in drawn), default=0.0))
        for axis in (0, 1)
    )
    margin = 0.75 * pitch[0]
    figure.update_xaxes(
        range=[left - margin, right + margin],
        tickvals=[column * pitch[0] for column in layout.columns] if not layout.is_row else [],
        ticktext=list(layout.columns.values()),
        title=layout.column_title,
    )
    figure.update_yaxes(
        range=[low - 0.9 * pitch[1], high + 0.9 * pitch[1]],
        tickvals=[row * pitch[1] for row in layout.rows],
        ticktext=list(layout.rows.values()),
    )
    height = high - low + 1.8 * pitch[1] + 140
    figure.update_layout(
        height=max(320, min(1600, round(height))),
        meta={"min_width": round(min(6000, right - left + 2 * margin + 70))},
        legend_traceorder="normal",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    )
