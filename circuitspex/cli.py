"""The command line: ``circuitspex discover``, ``circuitspex show``, ``circuitspex units``."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from circuitspex.errors import CircuitSpexError

if TYPE_CHECKING:
    from circuitspex.discover import Plan, Result, Settings
    from circuitspex.report import InteractionRow
    from circuitspex.verification import Verification

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Find which parts of a language model work together.",
)
_out = Console()
_err = Console(stderr=True)


class WandbMode(StrEnum):
    """Where a run is logged."""

    ONLINE = "online"
    OFFLINE = "offline"
    DISABLED = "disabled"


@app.command("discover")
def discover_command(
    model: Annotated[
        str, typer.Option(help="toy-induction, toy-redundant, a hub name, a folder, a .gguf file.")
    ] = "toy-induction",
    task: Annotated[str, typer.Option(help="ioi or induction.")] = "induction",
    units: Annotated[
        str,
        typer.Option(
            help="heads, neurons, blocks64, attention, mlps; join with +, restrict layers as in "
            "heads@0-3,7."
        ),
    ] = "heads",
    decoder: Annotated[
        str,
        typer.Option(
            help="exact, lasso, spex, moebius, proxyspex, hybrid, or auto: exact if the budget "
            "allows, else hybrid.",
        ),
    ] = "auto",
    budget: Annotated[
        int, typer.Option(min=1, help="Evaluations to spend: masks × prompts each.")
    ] = 4096,
    keep_rate: Annotated[
        float | None,
        typer.Option(help="Share of units a mask keeps. [default: 0.5 for exact, else 0.95]"),
    ] = None,
    max_order: Annotated[
        int | None,
        typer.Option(min=1, help="Largest set that is looked for. [default: the decoder's own]"),
    ] = None,
    prompts_per_mask: Annotated[
        str,
        typer.Option(help="all, or how many prompts each mask sees; auto: all for exact, else 1."),
    ] = "auto",
    tolerance: Annotated[
        float | None,
        typer.Option(help="Stop early once R² rises by less. [default: spend the budget]"),
    ] = None,
    n_prompts: Annotated[
        int, typer.Option(min=1, help="Prompts to discover on; as many others are held out.")
    ] = 16,
    ablation: Annotated[str, typer.Option(help="zero, mean or resample.")] = "zero",
    metric: Annotated[
        str,
        typer.Option(
            help="logit_difference, answer_log_probability, probability_difference, negative_kl."
        ),
    ] = "logit_difference",
    verify: Annotated[
        int,
        typer.Option(
            min=0,
            help="Interactions to measure one by one, within a quarter of the budget on top; 0: "
            "none.",
        ),
    ] = 20,
    circuit_size: Annotated[
        int | None,
        typer.Option(min=1, help="Units in the circuit. [default: half of all]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of prompts and masks.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results. [default: runs/<model>-<task>-<settings>]"),
    ] = None,
    wandb: Annotated[WandbMode, typer.Option(help="Log to Weights & Biases.")] = WandbMode.DISABLED,
    wandb_project: Annotated[str, typer.Option(help="Project to log to.")] = "circuitspex",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps. [default: the best there is]")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows per forward pass. [default: from free memory]")
    ] = None,
) -> None:
    """Find a circuit of interacting units. Without options: on a toy model, within a minute."""
    with _readable_errors():
        from circuitspex.discover import Settings, discover
        from circuitspex.tracking import NullTracker, wandb_tracker

        settings = Settings(
            model=model,
            task=task,
            units=units,
            decoder=decoder,
            budget=budget,
            keep_rate=keep_rate,
            max_order=max_order,
            prompts_per_mask=_read_prompts_per_mask(prompts_per_mask),
            tolerance=tolerance,
            n_prompts=n_prompts,
            ablation=ablation,
            metric=metric,
            verify=verify,
            circuit_size=circuit_size,
            seed=seed,
            dtype=dtype,
        )
        folder = out or default_folder(settings)
        tracker = NullTracker()
        if wandb is not WandbMode.DISABLED:
            tracker = wandb_tracker(project=wandb_project, mode=wandb.value, directory=folder)
        with _resumable(folder), _progress_bar(settings) as (announce, advance):
            result = discover(
                settings,
                folder,
                tracker=tracker,
                progress=advance,
                announce=announce,
                device=device,
                batch_size=batch_size,
            )
        _show(result, top=10)
        _out.print(
            f"{result.n_evaluated:,} evaluations run, {result.n_replayed:,} replayed from disk. "
            f"Open {folder / 'report.html'}"
        )


@app.command("show")
def show_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    top: Annotated[int, typer.Option(min=1, help="How many interactions to list.")] = 10,
) -> None:
    """Show what a finished run found."""
    with _readable_errors():
        from circuitspex.discover import Result

        _show(Result.load(folder), top)


@app.command("units")
def units_command(
    model: Annotated[str, typer.Option(help="As for discover.")] = "toy-induction",
    units: Annotated[str, typer.Option(help="As for discover.")] = "heads",
) -> None:
    """List units and the hook points they are ablated at."""
    with _readable_errors():
        from circuitspex import models
        from circuitspex.units import parse_units

        chosen = parse_units(units, models.load(model))
        table = Table("units", "count", "hook", "axis", title=f"{len(chosen)} units of {model}")
        counts = Counter(unit.hook for unit in chosen)
        for hook, count in counts.items():
            here = [unit for unit in chosen if unit.hook == hook]
            span = str(here[0]) if count == 1 else f"{here[0]} … {here[-1]}"
            table.add_row(span, str(count), hook, here[0].axis or "whole output")
        _out.print(table)


def default_folder(settings: "Settings") -> Path:
    """Name a run's folder after its settings, so that the same command finds it again.

    Args:
        settings: What to run.

    Returns:
        A folder below ``runs``.
    """
    digest = hashlib.blake2b(repr(asdict(settings)).encode(), digest_size=4).hexdigest()
    return Path("runs") / f"{Path(settings.model).stem}-{settings.task}-{digest}"


def _show(result: "Result", top: int) -> None:
    from circuitspex.report import NO_JOINT_TERMS, interaction_rows

    interactions, report = result.interactions, result.verification
    r2, error = interactions.held_out_r2, interactions.diagnostics.get("held_out_r2_std_error")
    give_or_take = "" if error is None else f" ± {error:.3f} (standard error)"
    _out.print(
        f"{len(interactions.support):,} terms by {interactions.decoder} from "
        f"{interactions.n_evaluations:,} evaluations, keep rate {interactions.keep_rate:g}; "
        + ("every mask evaluated" if r2 is None else f"held-out R² {r2:.3f}{give_or_take}")
    )
    verified = result.verified_interactions
    if verified is not None and not verified.checked:
        verified = None
    rows = interaction_rows(interactions, top, min_order=2, verification=verified)
    if not rows:
        _out.print(Text(NO_JOINT_TERMS))
    elif verified is None:
        _out.print(_interactions_table(rows, interactions.n_units))
    else:
        _out.print(_checked_table(rows, interactions.n_units))
        _out.print(Text(_summary(verified)))
    _out.print(Text(str(report)))


def _interactions_table(rows: "list[InteractionRow]", n_units: int) -> Table:
    table = Table("units", "kind", "effect of ablating together", "95 % interval", "Fourier")
    table.title = f"Strongest interactions of order ≥ 2 among {n_units:,} units"
    if any(row.significant for row in rows):
        table.caption = "★ of all so marked, at most 5 % are expected to be chance"
    star = " ★"
    for row in rows:
        table.add_row(
            " + ".join(row.units),
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
            " + ".join(row.units),
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


def _read_prompts_per_mask(text: str) -> Any:
    if text in ("all", "auto"):
        return text
    if not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(
            f"{text!r} is neither all, auto nor a positive number.", param_hint="--prompts-per-mask"
        )
    return int(text)


@contextmanager
def _readable_errors() -> Iterator[None]:
    try:
        yield
    except CircuitSpexError as error:
        _err.print(f"[bold red]error:[/] {type(error).__name__}: ", Text(str(error)), sep="")
        raise typer.Exit(2) from error


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _err.print(
            f"\nStopped. What was evaluated is in {folder / 'evaluations'}; "
            "run the same command again to go on from there."
        )
        raise typer.Exit(130) from None


class _MasksPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        evaluated, prompts = task.fields["evaluated"], task.fields["prompts"]
        if not evaluated or not task.elapsed:
            return Text("")
        return Text(f"{evaluated / prompts / task.elapsed:,.0f} masks/s", style="cyan")


@contextmanager
def _progress_bar(
    settings: "Settings",
) -> Iterator[tuple[Callable[["Plan"], None], Callable[[int, int], None]]]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _MasksPerSecond(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_err) as bar:
        task = bar.add_task(
            f"loading {settings.model}", start=False, total=None, prompts=1, evaluated=0
        )

        def announce(plan: "Plan") -> None:
            drawn = plan.prompts_per_mask
            _err.print(
                f"{plan.decoder} on {plan.n_units:,} units ({settings.units}) of {settings.model}, "
                f"{settings.task}: up to {settings.budget:,} evaluations, keep rate "
                f"{plan.keep_rate:g}, {drawn} of {plan.n_prompts} prompts per mask"
            )
            prompts = plan.n_prompts if drawn == "all" else drawn
            # The intact model is run once on every prompt before the budget is touched.
            total = settings.budget + plan.n_prompts + (plan.verify_budget or 0)
            bar.update(task, description="evaluating", prompts=prompts, total=total)
            bar.start_task(task)

        def advance(evaluated: int, replayed: int) -> None:
            done = bar.tasks[0].fields["evaluated"] + evaluated
            bar.update(task, advance=evaluated + replayed, evaluated=done)

        yield announce, advance
        # Budgets are upper limits, and what is known already is not in them.
        bar.update(task, total=bar.tasks[0].completed)


if __name__ == "__main__":
    app()
