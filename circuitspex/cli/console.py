"""What commands print on, and how errors look: one line, not a traceback."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from circuitspex.errors import CircuitSpexError

out = Console()
err = Console(stderr=True)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn errors of this package into one line.

    Yields:
        Nothing.

    Raises:
        typer.Exit: With code 2, in place of such an error.
    """
    try:
        yield
    except CircuitSpexError as error:
        err.print(f"[bold red]error:[/] {type(error).__name__}: ", Text(str(error)), sep="")
        raise typer.Exit(2) from error


def plain(text: str) -> Text:
    """Show words from a file as they are: no markup, and nothing that steers the terminal.

    Args:
        text: Such as a unit's label.

    Returns:
        The same, control characters replaced.
    """
    return Text("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text))


class _Terminated(KeyboardInterrupt):
    """Somebody, such as a cluster's scheduler, asked the process to end."""


def _terminate(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: what follows is closing files
    raise _Terminated


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Say after an interrupt, or a request to end, how to go on.

    Args:
        folder: The run's folder.

    Yields:
        Nothing.

    Raises:
        typer.Exit: With code 130 in place of an interrupt, 143 in place of a request to end.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        err.print(
            f"\nStopped. What was evaluated is in {folder / 'evaluations'}; "
            "run the same command again to go on from there."
        )
        raise typer.Exit(143 if isinstance(stop, _Terminated) else 130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
