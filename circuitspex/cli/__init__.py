"""Words on a command line in, runs, tables and pages out."""

import typer

from circuitspex.cli import sweep
from circuitspex.cli.decoders import decoders_command
from circuitspex.cli.discover import discover_command
from circuitspex.cli.show import show_command, units_command

__all__ = ["app"]


def _spell(option: str) -> str:
    # W&B's agents write --keep_rate=0.9, as parameters are named in Python.
    return option.replace("_", "-")


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"token_normalize_func": _spell},
    help="Find which parts of a language model work together.",
)
app.command("discover")(discover_command)
app.command("decoders")(decoders_command)
app.command("show")(show_command)
app.command("units")(units_command)
app.add_typer(sweep.app, name="sweep")
