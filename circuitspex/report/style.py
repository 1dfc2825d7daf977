"""Colours, line styles and words that all figures and the page share."""

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuitspex.algebra import Kind, Term

if TYPE_CHECKING:
    import plotly.graph_objects as go

INK = "#1f2933"
MUTED = "#7b8794"
CELL_LINE = "#d5dbe1"


@dataclass(frozen=True)
class KindStyle:
    """How one kind of interaction is drawn. Colours by Okabe and Ito; dashes survive grey print."""

    name: str
    """In legends."""
    colour: str
    """Of its lines."""
    dash: str
    """Of its lines, in plotly's terms."""
    rank: int
    """Place in legends."""


KINDS: dict[Kind | None, KindStyle] = {
    "synergistic": KindStyle("synergy", "#0072b2", "solid", 1),
    "redundant": KindStyle("redundancy", "#d55e00", "6px,3px", 2),
    None: KindStyle("odd order", "#6c5b7b", "2px,3px", 3),
}
"""By :attr:`Term.kind`."""

# Purple to green is told apart by colour-blind readers and is not taken by a kind of interaction.
DIVERGING = ((118, 42, 131), (175, 141, 195), (247, 247, 247), (127, 191, 123), (27, 120, 55))
"""Colours from the most negative to the most positive effect, white at zero; RGB."""


def plotly_scale() -> list[list[float | str]]:
    """Return :data:`DIVERGING` as a plotly colour scale."""
    last = len(DIVERGING) - 1
    return [[i / last, f"rgb{colour}"] for i, colour in enumerate(DIVERGING)]


def describe(term: Term) -> str:
    """Put an interaction into a tooltip; labels are escaped.

    Args:
        term: The interaction.

    Returns:
        Lines joined by ``<br>``.
    """
    words = {name: html.escape(text, quote=False) for name, text in term.words().items()}
    estimate = words["coefficient"]
    if term.interval is not None:
        estimate += f", 95 % interval {words['interval']}"
    heading = f"<b>{words['units']}</b><br>{term.kind or 'order ' + words['order']}: "
    if term.measured is None:
        return f"{heading}{estimate}"
    return f"{heading}{words['measured']}, {words['verdict']}<br>estimate {estimate}"


def figure_with_defaults() -> "go.Figure":
    """Return an empty figure in the page's typography, without grid and zero lines."""
    import plotly.graph_objects as go  # a heavy import, wanted only when something is drawn

    figure = go.Figure()
    figure.update_layout(
        template="none",
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 12.5},
        font_color=INK,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 56, "r": 16, "t": 48, "b": 48},
        hovermode="closest",
        hoverlabel={"bgcolor": "white", "bordercolor": CELL_LINE, "font_color": INK},
    )
    figure.update_xaxes(showgrid=False, zeroline=False, showline=False, ticks="", title_standoff=8)
    figure.update_yaxes(showgrid=False, zeroline=False, showline=False, ticks="", title_standoff=8)
    return figure
