"""What all pages are made of: a document that loads nothing, sections, drawings."""

import html
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go


def section(heading: str, note: str, contents: Sequence[str]) -> str:
    """Return a section of a page.

    Args:
        heading: Its heading, as HTML.
        note: What a reader should know; escaped here.
        contents: What it holds, as HTML.

    Returns:
        HTML.
    """
    return (
        f"<section><h2>{heading}</h2>"
        f'<p class="note">{html.escape(note)}</p>{"".join(contents)}</section>'
    )


def header(kicker: str, heading: str, facts: Mapping[str, str], example: str = "") -> str:
    """Return the top of a page.

    Args:
        kicker: What kind of page it is.
        heading: Of what; escaped here.
        facts: Name to value; values are escaped here.
        example: What stands between the heading and the facts, as HTML.

    Returns:
        HTML.
    """
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts.items()
    )
    return (
        f'<header><p class="kicker">{kicker}</p><h1>{html.escape(heading)}</h1>'
        f'{example}<dl class="facts">{cells}</dl></header>'
    )


def drawing(name: str, figure: "go.Figure") -> str:
    """Return a figure that scrolls sideways where it is wider than the page.

    Args:
        name: What tells it from the page's other figures.
        figure: A plotly figure; its ``layout.meta`` may hold ``min_width`` and ``max_width``.

    Returns:
        HTML, without plotly's own script.
    """
    import plotly.io

    drawn = plotly.io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        div_id=f"figure-{name}",
        config={"displaylogo": False, "responsive": True, "displayModeBar": False},
    )
    sizes = dict(figure.layout.meta or {})  # pyright: ignore[reportAttributeAccessIssue]
    width = "".join(f"{name.replace('_', '-')}:{size}px;" for name, size in sizes.items())
    return f'<figure class="scroll"><div style="{width}">{drawn}</div></figure>'


def document(*, title: str, header: str, parts: Sequence[str], footer: str) -> str:
    """Return a whole page that opens anywhere, also without a network.

    Args:
        title: Of the window; escaped here.
        header: HTML.
        parts: Its sections, as HTML.
        footer: Escaped here.

    Returns:
        An HTML document.
    """
    from plotly.offline import get_plotlyjs

    return _PAGE.format(
        title=html.escape(title),
        style=resources.files("circuitspex.report").joinpath("page.css").read_text(),
        plotly=get_plotlyjs(),
        header=header,
        body="\n".join(parts),
        footer=html.escape(footer),
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<script>{plotly}</script>
</head>
<body>
<main>
{header}
{body}
<footer>{footer}</footer>
</main>
</body>
</html>
"""
