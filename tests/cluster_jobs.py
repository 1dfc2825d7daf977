"""What jobs of the cluster tests do: runs of a toy model that keep a diary of every batch."""

import os
import sys
import time
from pathlib import Path

from circuitspex.findings import Findings
from circuitspex.runs import Settings, discover

BATCH = 32
SETTINGS = Settings(decoder="lasso", budget=1024, n_prompts=8, verify=2)
RESULTS = ("interactions.json", "circuit.json", "verification.json", "verified_interactions.json")


def run_toy(folder: Path, pause: float = 0.0, hold_after: int | None = None) -> Findings:
    """Find the toy's circuit; write down when each try starts and what each batch evaluates.

    The first try pauses after every batch, and holds after some number of them until it is ended
    or the file ``go`` is there.
    """
    _note(folder, "start")
    first = diary(folder).count("start") == 1

    def advance(n_evaluated: int, n_replayed: int) -> None:
        if n_evaluated:
            _note(folder, str(n_evaluated))
            time.sleep(pause if first else 0.0)
            while first and len(diary(folder)) - 1 == hold_after and not (folder / "go").exists():
                time.sleep(0.1)

    return discover(SETTINGS, folder, batch_size=BATCH, progress=advance)


def fail(folder: Path) -> None:
    """Fail as a run does that was asked for something impossible."""
    _note(folder, "start")
    raise ValueError("the model melted")


def wait_for(path: Path) -> None:
    """Go on until a file is there."""
    _note(path.parent, "start")
    while not path.exists():
        time.sleep(0.2)


def diary(folder: Path) -> list[str]:
    """Return what a run wrote down, over all of its tries."""
    file = folder / "diary"
    return file.read_text().split() if file.exists() else []


def results(folder: Path) -> list[bytes]:
    """Return what a run found, byte by byte."""
    return [(folder / name).read_bytes() for name in RESULTS]


def _note(folder: Path, word: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "diary").open("a") as file:
        file.write(f"{word}\n")


def make_program(path: Path, script: str) -> None:
    """Write an executable shell script."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def search_path() -> str:
    """Where jobs look for modules: where we do."""
    return os.pathsep.join(path for path in [str(Path(__file__).parent), *sys.path] if path)
