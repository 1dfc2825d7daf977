"""``circuitspex show`` and ``circuitspex units``: results and units as tables."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from circuitspex.cli.console import out, plain, readable_errors

if TYPE_CHECKING:
    from circuitspex.algebra import Term
    from circuitspex.findings import Findings
    from circuitspex.verification import Verification


def show_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    top: Annotated[int, typer.Option(min=1, help="How many interactions to list.")] = 10,
) -> None:
    """Show what a finished run found."""
    with readable_errors():
        from circuitspex.findings import load

        show_findings(load(folder), top)


def units_command(
    model: Annotated[str, typer.Option(help="As for discover.")] = "toy-induction",
    units: Annotated[str, typer.Option(help="As for discover.")] = "heads",
) -> None:
    """List units and the hook points they are ablated at."""
    with readable_errors():
        from circuitspex import models
        from circuitspex.units import parse_units

        chosen = parse_units(units, models.load(model))
        table = Table("units", "count", "hook", "axis", title=f"{len(chosen)} units of {model}")
        counts = Counter(unit.hook for unit in chosen)
        for hook, count in counts.items():
            here = [unit for unit in chosen if unit.hook == hook]
            span = str(here[0]) if count == 1 else f"{here[0]} … {here[-1]}"
            table.add_row(span, str(count), hook, here[0].axis or "whole output")
        out.print(table)


def show_findings(findings: "Findings", top: int) -> None:
    """Print what a run found: fit, interactions, circuit."""
    from circuitspex.report import NO_JOINT_TERMS

    interactions = findings.interactions
    r2, error = interactions.held_out_r2, interactions.diagnostics.get("held_out_r2_std_error")
    give_or_take = f" ± {error:.3f} (standard error)" if isinstance(error, float) else ""
    out.print(
        f"{len(interactions.support):,} terms by {escape(plain(interactions.decoder).plain)} from "
        f"{interactions.n_evaluations:,} evaluations, keep rate {interactions.keep_rate:g}; "
        + ("every mask evaluated" if r2 is None else f"held-out R² {r2:.3f}{give_or_take}")
    )
    terms = [term for term in findings.terms if term.order > 1][:top]
    out.print(_table(terms, interactions.n_units) if terms else Text(NO_JOINT_TERMS))
    if findings.verification is not None and findings.verification.checked:
        out.print(plain(_summary(findings.verification)))
    if findings.criteria is not None:
        out.print(plain(str(findings.criteria)))


_DECODED = {
    "units": "units",
    "kind": "kind",
    "coefficient": "effect of ablating together",
    "interval": "95 % interval",
    "average": "Fourier",
}
_MEASURED = {
    "units": "units",
    "kind": "kind",
    "measured": "measured",
    "verdict": "verdict",
    "estimate": "estimate",
}
_STYLES = {"verified": "green", "refuted": "red", "undecided": "yellow", "not checked": "dim"}


def _table(terms: "list[Term]", n_units: int) -> Table:
    from circuitspex.algebra import ALIGNED_RIGHT

    measured = terms[0].verdict is not None
    headings = _MEASURED if measured else _DECODED
    table = Table()
    for name, heading in headings.items():
        table.add_column(heading, justify="right" if name in ALIGNED_RIGHT else "left")
    table.title = f"Strongest interactions of order ≥ 2 among {n_units:,} units"
    notes = []
    if measured:
        table.title += ", verified first"
        notes.append("± one standard error")
    if any(term.significant for term in terms):
        notes.append("★ of all so marked, at most 5 % are expected to be chance")
    table.caption = "; ".join(notes)
    for term in terms:
        words = {name: plain(text) for name, text in term.words().items()}
        words["verdict"].stylize(_STYLES[words["verdict"].plain])
        table.add_row(*(words[name] for name in headings))
    return table


def _summary(verified: "Verification") -> str:
    from circuitspex.verification import describe_place

    counts = ", ".join(f"{n:,} {verdict}" for verdict, n in verified.counts.items() if n)
    return (
        f"Measured {describe_place(verified)} ({verified.n_evaluations:,} evaluations): {counts}."
    )
