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
    from circuitspex.report import InteractionRow
    from circuitspex.runs import Result
    from circuitspex.verification import Verification


def show_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    top: Annotated[int, typer.Option(min=1, help="How many interactions to list.")] = 10,
) -> None:
    """Show what a finished run found."""
    with readable_errors():
        from circuitspex.runs import Result

        show_result(Result.load(folder), top)


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


def show_result(result: "Result", top: int) -> None:
    """Print what a run found: fit, interactions, circuit."""
    from circuitspex.report import NO_JOINT_TERMS, interaction_rows

    interactions, report = result.interactions, result.verification
    r2, error = interactions.held_out_r2, interactions.diagnostics.get("held_out_r2_std_error")
    give_or_take = f" ± {error:.3f} (standard error)" if isinstance(error, float) else ""
    out.print(
        f"{len(interactions.support):,} terms by {escape(plain(interactions.decoder).plain)} from "
        f"{interactions.n_evaluations:,} evaluations, keep rate {interactions.keep_rate:g}; "
        + ("every mask evaluated" if r2 is None else f"held-out R² {r2:.3f}{give_or_take}")
    )
    verified = result.verified_interactions
    if verified is not None and not verified.checked:
        verified = None
    rows = interaction_rows(interactions, top, min_order=2, verification=verified)
    if not rows:
        out.print(Text(NO_JOINT_TERMS))
    elif verified is None:
        out.print(_interactions_table(rows, interactions.n_units))
    else:
        out.print(_checked_table(rows, interactions.n_units))
        out.print(plain(_summary(verified)))
    out.print(plain(str(report)))


def _interactions_table(rows: "list[InteractionRow]", n_units: int) -> Table:
    table = Table("units", "kind", "effect of ablating together", "95 % interval", "Fourier")
    table.title = f"Strongest interactions of order ≥ 2 among {n_units:,} units"
    if any(row.significant for row in rows):
        table.caption = "★ of all so marked, at most 5 % are expected to be chance"
    star = " ★"
    for row in rows:
        table.add_row(
            plain(" + ".join(row.units)),
            row.kind,
            f"{row.coefficient:+.3f}",
            ""
            if row.low is None
            else f"{row.low:+.3f} … {row.high:+.3f}{star * bool(row.significant)}",
            f"{row.fourier:+.3f}",
        )
    return table


_STYLES = {"verified": "green", "refuted": "red", "undecided": "yellow"}


def _checked_table(rows: "list[InteractionRow]", n_units: int) -> Table:
    table = Table("units", "kind", "measured", "verdict", "estimate")
    table.title = f"Strongest interactions of order ≥ 2 among {n_units:,} units, verified first"
    table.caption = "± one standard error"
    if any(row.significant for row in rows):
        table.caption += "; ★ of all so marked, at most 5 % are expected to be chance"
    for row in rows:
        verdict = "not checked" if row.check is None else row.check.verdict
        table.add_row(
            plain(" + ".join(row.units)),
            row.kind,
            "" if row.check is None else _number(row.check.measured, row.check.std_error),
            Text(verdict, style=_STYLES.get(verdict, "dim")),
            f"{_number(row.coefficient, row.std_error)}{' ★' if row.significant else ''}",
        )
    return table


def _number(value: float | None, error: float | None) -> str:
    return f"{value:+.3f}" + ("" if error is None else f" ± {error:.3f}")


def _summary(verified: "Verification") -> str:
    from circuitspex.verification import describe_place

    counts = ", ".join(f"{n:,} {verdict}" for verdict, n in verified.counts.items() if n)
    return (
        f"Measured {describe_place(verified)} ({verified.n_evaluations:,} evaluations): {counts}."
    )
