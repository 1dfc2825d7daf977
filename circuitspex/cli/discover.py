"""``circuitspex discover``: one run, from options, a file, or what an agent of W&B passes."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
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
from rich.text import Text

from circuitspex._shared import Declared, read_mapping, wanted
from circuitspex.cli.console import err, readable_errors, resumable
from circuitspex.cli.console import out as console
from circuitspex.cli.decoders import defaults_of
from circuitspex.cli.show import show_findings
from circuitspex.decoders import all_options
from circuitspex.errors import SettingsError
from circuitspex.runs import (
    DECIDES,
    Plan,
    Settings,
    all_settings,
    discover,
    parse_value,
    setting_name,
)
from circuitspex.tracking import wandb_tracker

if TYPE_CHECKING:
    from circuitspex.cluster import RayWorkers


class WandbMode(StrEnum):
    """Where a run is logged."""

    ONLINE = "online"
    OFFLINE = "offline"
    DISABLED = "disabled"


_Out = Annotated[
    Path | None,
    typer.Option(help="Folder for the results. \\[default: runs/<model>-<task>-<hash>]"),
]
_Wandb = Annotated[
    WandbMode | None,
    typer.Option(help="Log to Weights & Biases. \\[default: disabled; WANDB_MODE under an agent]"),
]
_Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps. \\[default: the best there is]")]
_BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Rows per forward pass. \\[default: from free memory]")
]
_Workers = Annotated[
    int, typer.Option(min=0, help="Processes that hold the model, through Ray; 0: this one.")
]
_GpusPerWorker = Annotated[
    float, typer.Option(min=0, help="GPUs for each of the workers; 0: CPUs only.")
]
_RayAddress = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster that the workers run on, such as auto. \\[default: RAY_ADDRESS, else one "
        "on this machine]"
    ),
]


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose keyword arguments are written out: an option for every setting."""

    @wraps(command)
    def written_out(**arguments: Any) -> None:
        command(**arguments)

    own = [p for p in signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    settings = [
        Parameter(
            name,
            Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            # Values stay text here: settings are checked in one place, however they were given.
            annotation=Annotated[str | None, _option(name, field)],
        )
        for name, field in all_settings().items()
    ]
    written_out.__signature__ = Signature([*own[:2], *settings, *own[2:]])  # pyright: ignore[reportAttributeAccessIssue]
    return written_out


def _option(name: str, field: Declared) -> Any:
    help, _, unset = field.help.replace("``", "").partition("; None: ")
    decides = field.metadata.get("decides")
    default = unset.rstrip(".") or field.default
    if name in all_options() and (field.default is None or not decides):
        default = defaults_of(name)
    return typer.Option(
        help=f"{help.rstrip('.')}. \\[default: {default}]",
        metavar=_kind(field),
        rich_help_panel=DECIDES[decides] if decides else "Further options of decoders",
    )


def _kind(field: Declared) -> str:
    words = wanted(field.hint)
    if "'" in words or not words.startswith(("a whole number", "a number")):
        return "TEXT"
    return "INTEGER" if words.startswith("a whole") else "FLOAT"


@_with_settings
def discover_command(
    assignments: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=VALUE", help="Settings, as W&B's args_no_hyphens."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON file of settings; options given as well override it."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Any setting by name; may be repeated."),
    ] = None,
    out: _Out = None,
    wandb: _Wandb = None,
    wandb_project: Annotated[str, typer.Option(help="Project to log to.")] = "circuitspex",
    wandb_entity: Annotated[str | None, typer.Option(help="User or team to log to.")] = None,
    wandb_group: Annotated[str | None, typer.Option(help="Group that the run belongs to.")] = None,
    device: _Device = None,
    batch_size: _BatchSize = None,
    workers: _Workers = 0,
    gpus_per_worker: _GpusPerWorker = 0,
    ray_address: _RayAddress = None,
    **given: str | None,
) -> None:
    """Find a circuit of interacting units. Without options: on a toy model, within a minute."""
    with readable_errors():
        settings = _read_settings(config, assignments or [], option or [], given)
        folder = out or default_folder(settings)
        tracker = wandb_tracker(
            project=wandb_project,
            mode=_wandb_mode(wandb),
            entity=wandb_entity,
            group=wandb_group,
            directory=folder,
            name=settings.run_name,
            run_id=settings.run_id,
            config=settings.as_dict(),
        )
        crew = _make_workers(settings, workers, gpus_per_worker, ray_address)
        with resumable(folder), _progress_bar(settings) as (announce, advance):
            findings = discover(
                settings,
                folder,
                tracker=tracker,
                progress=advance,
                announce=announce,
                device=device or ("cpu" if crew else None),  # with workers only probed here
                batch_size=batch_size,
                workers=crew,
            )
        show_findings(findings, top=10)
        console.print(
            f"{findings.n_evaluated:,} evaluations run, {findings.n_replayed:,} replayed from "
            f"disk. Open {folder / 'report.html'}"
        )


def default_folder(settings: Settings) -> Path:
    """Name a run's folder after its settings, so that the same command finds it again.

    Args:
        settings: What to run.

    Returns:
        A folder below ``runs``.
    """
    return Path("runs") / settings.run_name


def _read_settings(
    config: Path | None, assignments: list[str], options: list[str], flags: Mapping[str, str | None]
) -> Settings:
    # Put together: what comes later overrides.
    given = {} if config is None else {setting_name(k): v for k, v in read_mapping(config).items()}
    written_out = [f"{name}={text}" for name, text in flags.items() if text is not None]
    return Settings.from_mapping(given | _assigned(assignments) | _assigned(written_out + options))


def _assigned(texts: list[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign:
            raise SettingsError(f"{text!r} is no assignment; write NAME=VALUE, as in budget=2000.")
        name = setting_name(key)
        if name in given:
            raise SettingsError(f"the setting {name!r} is given twice; give it once.")
        given[name] = parse_value(name, value)
    return given


def _make_workers(
    settings: Settings, n_workers: int, gpus_per_worker: float, address: str | None
) -> "RayWorkers | None":
    if n_workers == 0:
        return None
    import torch

    from circuitspex.cluster import ray_workers

    return ray_workers(
        settings.model,
        n_workers,
        gpus_per_worker=gpus_per_worker,
        address=address,
        dtype=getattr(torch, settings.dtype),
    )


def _wandb_mode(asked: WandbMode | None) -> Any:
    if asked is not None:
        return asked.value
    if "WANDB_SWEEP_ID" in os.environ:  # an agent started this, and waits for what is logged
        return WandbMode(os.environ.get("WANDB_MODE", "online")).value
    return "disabled"


class _MasksPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        evaluated, prompts = task.fields["evaluated"], task.fields["prompts"]
        if not evaluated or not task.elapsed:
            return Text("")
        return Text(f"{evaluated / prompts / task.elapsed:,.0f} masks/s", style="cyan")


@contextmanager
def _progress_bar(
    settings: Settings,
) -> Iterator[tuple[Callable[[Plan], None], Callable[[int, int], None]]]:
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
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(
            f"loading {settings.model}", start=False, total=None, prompts=1, evaluated=0
        )

        def announce(plan: Plan) -> None:
            drawn = plan.prompts_per_mask
            why = f" ({plan.decoder_reason})" if settings.decoder != plan.decoder else ""
            err.print(
                f"{plan.decoder}{why} on {plan.n_units:,} units ({settings.units}) of "
                f"{settings.model}, {settings.task}: up to {settings.budget:,} evaluations, keep "
                f"rate {plan.keep_rate:g}, {drawn} of {plan.n_prompts} prompts per mask",
                highlight=False,
            )
            # The intact model is run once on every prompt before the budget is touched.
            total = settings.budget + plan.n_prompts + (plan.verify_budget or 0)
            bar.update(task, description="evaluating", prompts=drawn, total=total)
            bar.start_task(task)

        def advance(evaluated: int, replayed: int) -> None:
            done = bar.tasks[0].fields["evaluated"] + evaluated
            bar.update(task, advance=evaluated + replayed, evaluated=done)

        yield announce, advance
        # Budgets are upper limits, and what is known already is not in them.
        bar.update(task, total=bar.tasks[0].completed)
