"""``circuitspex decoders``: what each decoder is, and every option it has."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from circuitspex._shared import wanted
from circuitspex.cli.console import out, readable_errors
from circuitspex.decoders import DECODERS, all_options, get, options_of


def decoders_command(
    name: Annotated[str | None, typer.Argument(help="One decoder. \\[default: all]")] = None,
) -> None:
    """Show the options of decoders: what each takes, its default, and what it means.

    Each is an option of circuitspex discover, a setting in files, and a parameter in sweeps.
    """
    with readable_errors():
        for decoder in DECODERS if name is None else [get(name).name]:
            table = Table("option", "takes", "default", "meaning", title=decoder, expand=True)
            for option, field in options_of(decoder).items():
                words = wanted(field.hint), _default(decoder, option), field.help
                table.add_row(option, *map(Text, words))
            out.print(table)


def defaults_of(option: str) -> str:
    """Return the defaults of an option, decoder by decoder, such as ``lasso, spex: 1024``."""
    having: dict[str, list[str]] = {}
    for decoder in all_options()[option]:
        having.setdefault(_default(decoder, option), []).append(decoder)
    return "; ".join(f"{', '.join(names)}: {default}" for default, names in having.items())


def _default(decoder: str, option: str) -> str:
    if option == "keep_rate":
        return str(DECODERS[decoder].model_keep_rate)
    return str(options_of(decoder)[option].default)
