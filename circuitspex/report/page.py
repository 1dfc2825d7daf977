"""One self-contained HTML page of findings: no CDN, no network, every label escaped.

A section is a function from findings to HTML, empty where it has nothing to say, and a line in
:data:`SECTIONS`.
"""

from collections.abc import Callable
from pathlib import Path

from circuitspex._shared import write_result
from circuitspex.findings import Findings
from circuitspex.report import sections
from circuitspex.report.frame import document
from circuitspex.report.header import header, title
from circuitspex.report.interactions_table import interactions_table

SECTIONS: list[Callable[[Findings], str]] = [
    sections.meaning,
    sections.circuit,
    sections.criteria,
    sections.single_units,
    interactions_table,
    sections.energy,
    sections.limits,
    sections.spec,
]
"""The sections of the page, from the top."""


def write_page(path: str | Path, findings: Findings) -> Path:
    """Write findings as one HTML file that opens anywhere, also without a network.

    Args:
        path: The file to write or replace.
        findings: What a run found.

    Returns:
        The path.
    """
    write_result(path, render_page(findings).encode())
    return Path(path)


def render_page(findings: Findings) -> str:
    """Return the page of :func:`write_page` as text.

    Args:
        findings: What a run found.

    Returns:
        A whole HTML document.
    """
    spec = findings.spec
    return document(
        title=title(spec),
        header=header(findings),
        parts=[section(findings) for section in SECTIONS],
        footer=f"run {spec.run_hash}, evaluations {spec.evaluation_hash}",
    )
