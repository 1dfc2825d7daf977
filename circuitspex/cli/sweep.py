"""``circuitspex sweep``: plan a W&B sweep file, run it, see how far it is, collect its results."""

import json
import signal
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from circuitspex.cli.cluster import Cluster, Request, submit
from circuitspex.cli.console import err, out, readable_errors
from circuitspex.cli.discover import WandbMode

if TYPE_CHECKING:
    from circuitspex.sweeps import Manifest, RunState

app = typer.Typer(
    no_args_is_help=True,
    help="Many runs from one W&B sweep file, with or without internet: plan, run, status, collect.",
)

_Folder = Annotated[Path, typer.Argument(help="Folder that circuitspex sweep plan wrote.")]


@app.command("plan")
def plan_command(
    file: Annotated[Path, typer.Argument(help="Sweep file, as wandb sweep takes it.")],
    to: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the sweep. \\[default: sweeps/<file>-<hash>]"),
    ] = None,
    n_runs: Annotated[
        int | None, typer.Option(min=1, help="Runs to draw. \\[needed for random without run_cap]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
) -> None:
    """Decide every run of a sweep and check it; nothing runs yet."""
    with readable_errors():
        from circuitspex.sweeps import plan_sweep

        manifest = plan_sweep(file, to, n_runs=n_runs, seed=seed)
        out.print(_plan_table(manifest))
        if manifest.n_duplicates:
            out.print(f"{manifest.n_duplicates} runs with the settings of another were left out.")
        out.print(
            f"{len(manifest)} runs planned in {manifest.folder}. "
            f"Start them: circuitspex sweep run {manifest.folder}",
            soft_wrap=True,
        )


@app.command(
    "run",
    help="Run what is not done, each run in a process of its own; stop and go on as you like.",
)
def run_command(
    folder: _Folder,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    only: Annotated[
        str | None, typer.Option(help="Which runs, as in 3,5-7. \\[default: all]")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run again what failed before.")
    ] = False,
    wandb: Annotated[WandbMode, typer.Option(help="Log to Weights & Biases.")] = WandbMode.OFFLINE,
    cluster: Annotated[
        Cluster | None, typer.Option(help="Submit to a cluster. \\[default: run here]")
    ] = None,
    resources: Annotated[
        Path | None, typer.Option(help="YAML file of what each job gets: minutes, gpus, …")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Partition to queue in.")] = None,
    minutes: Annotated[int | None, typer.Option(min=1, help="Time limit of each job.")] = None,
    print_sbatch: Annotated[
        bool, typer.Option("--print-sbatch", help="Print the job script; submit nothing.")
    ] = False,
) -> None:
    """Run what is not done.

    Raises:
        typer.Exit: With code 1 if a run failed, 130 if it was stopped.
    """
    with readable_errors():
        from circuitspex.sweeps import read_manifest, run_sweep, sweep_states

        manifest = read_manifest(folder)
        chosen = None if only is None else read_ranges(only, len(manifest))
        request = Request(resources, partition, minutes, print_sbatch)
        if cluster is Cluster.SLURM:
            retry, mode = retry_failed, wandb.value
            submit(folder, request, chosen, jobs=jobs, retry_failed=retry, wandb=mode)
            return
        request.refuse()
        # A scheduler's request to stop is to stop the runs too, as Ctrl-C does.
        # Not SIGINT's own handler: shells start what runs in the background deaf to SIGINT.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            ended = run_sweep(
                folder,
                jobs=jobs,
                only=chosen,
                retry_failed=retry_failed,
                wandb=wandb.value,
                report=_report,
            )
        except KeyboardInterrupt:
            err.print(f"\nStopped. Go on with: circuitspex sweep run {folder}", soft_wrap=True)
            raise typer.Exit(130) from None
        states = sweep_states(manifest)
        out.print(Text(_counts(states)))
    if any(state.state == "failed" for state in ended):
        raise typer.Exit(1)


@app.command("status")
def status_command(
    folder: _Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how far every run is, and why those failed that did."""
    with readable_errors():
        from circuitspex.sweeps import read_manifest, states_with_jobs

        manifest = read_manifest(folder)
        states, silence = states_with_jobs(manifest)
        if silence:
            err.print(Text(silence, style="yellow"), soft_wrap=True)
        if as_json:
            runs = [
                asdict(state) | {"settings": entry["settings"]}
                for state, entry in zip(states, manifest.entries, strict=True)
            ]
            typer.echo(json.dumps({"group": manifest.group, "runs": runs}, indent=2))
            return
        out.print(_status_table(manifest, states))
        out.print(Text(_counts(states)))


@app.command("collect")
def collect_command(
    folder: _Folder,
    to_wandb: Annotated[
        bool, typer.Option("--sync", help="Then send what was logged offline to W&B.")
    ] = False,
) -> None:
    """Put all results into results.parquet, results.csv and comparison.html."""
    with readable_errors():
        from circuitspex.sweeps import collect, sync

        found = collect(folder)
        n_done = found.table["state"].tolist().count("done")
        out.print(
            f"{n_done} of {len(found.table)} runs in {folder / 'results.csv'} (and .parquet). "
            f"Open {found.page}",
            soft_wrap=True,
        )
        if to_wandb:
            out.print(f"{sync(folder)} offline logs handed to W&B.")


def read_ranges(text: str, n: int) -> list[int]:
    """Read a choice of runs.

    Args:
        text: Places and ranges of them, such as ``3,5-7``.
        n: How many runs there are.

    Returns:
        The places, in order.

    Raises:
        SweepError: If it is something else, or names a run there is not.
    """
    from circuitspex.errors import SweepError

    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else True)):
            raise SweepError(f"--only takes places and ranges, as in 3,5-7; got {text[:80]!r}.")
        low, high = int(first), int(last or first)
        if not low <= high < n:
            raise SweepError(f"--only {part.strip()[:40]}: the sweep has runs 0 to {n - 1}.")
        chosen.update(range(low, high + 1))
    return sorted(chosen)


def _plan_table(manifest: "Manifest", most: int = 20) -> Table:
    table = Table("run", "id", *manifest.varied, title=f"{manifest.group} ({manifest.method})")
    for i, entry in enumerate(manifest.entries[:most]):
        table.add_row(str(i), entry["id"], *_varied(manifest, entry))
    if len(manifest) > most:
        table.caption = f"and {len(manifest) - most} more, in manifest.json"
    return table


_STYLES = {"done": "green", "failed": "red", "running": "yellow", "waiting": "dim"}


def _status_table(manifest: "Manifest", states: "list[RunState]") -> Table:
    table = Table("run", "id", *manifest.varied, "state", "", title=Text(manifest.group))
    for state, entry in zip(states, manifest.entries, strict=True):
        look = Text(state.state, style=_STYLES[state.state])
        values = _varied(manifest, entry)
        table.add_row(str(state.index), state.id, *values, look, Text(state.note))
    return table


def _varied(manifest: "Manifest", entry: dict[str, Any]) -> list[Text]:
    values = (entry["settings"].get(name) for name in manifest.varied)
    return [Text("" if value is None else str(value)) for value in values]


def _counts(states: "list[RunState]") -> str:
    counts = Counter(state.state for state in states)
    named = ", ".join(f"{counts[name]} {name}" for name in _STYLES if counts[name])
    return f"{len(states)} runs: {named}."


def _report(state: "RunState") -> None:
    err.print(
        Text(f"run {state.index} "),
        Text(state.state, style=_STYLES[state.state]),
        Text(f" {state.note}"),
        sep="",
        soft_wrap=True,
    )
