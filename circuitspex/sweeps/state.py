"""How far a run is, read from the files in its folder; there is nothing to lock or to unlock.

``summary.json``, which a run writes last, says done. ``failed.json`` says failed and why.
``running.json`` says who runs it, and is written anew every few seconds: where its writer is known
to be dead, or has been silent for long, the run is waiting again, whatever the file says.
"""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from circuitspex._shared import read_document, write_document
from circuitspex.errors import ResultError
from circuitspex.findings import SUMMARY, read_summary
from circuitspex.sweeps.manifest import Manifest

RUNNING, FAILED, LOG = "running.json", "failed.json", "log.txt"

HEARTBEAT = 10.0
"""Seconds between two signs of life."""
SILENCE = 120.0
"""Seconds without a sign of life after which a run on another machine counts as dead."""

State = Literal["done", "running", "failed", "waiting"]


@dataclass(frozen=True)
class RunState:
    """How far one run is."""

    index: int
    """Its place in the manifest."""
    id: str
    """Its id: the name of its folder."""
    state: State
    """How far it is."""
    note: str = ""
    """Why it failed, who runs it, or what it took."""


def run_state(manifest: Manifest, index: int) -> RunState:
    """Read how far a run is.

    Args:
        manifest: The sweep.
        index: The run's place in it.

    Returns:
        The state, with a reason where it failed.
    """
    folder = manifest.run_folder(index)
    state, note = _read(folder)
    return RunState(index, folder.name, state, note)


def sweep_states(manifest: Manifest) -> list[RunState]:
    """Return how far every run is, in the manifest's order."""
    return [run_state(manifest, index) for index in range(len(manifest))]


def beat(folder: Path, child: int | None = None) -> None:
    """Write that this process runs the run in a folder.

    Args:
        folder: The run's folder.
        child: Process that it started for it.
    """
    pids = [os.getpid(), *([] if child is None else [child])]
    fields = {
        "host": socket.gethostname(),
        "processes": [[pid, psutil.Process(pid).create_time()] for pid in pids],
        "heartbeat": time.time(),
    }
    write_document(folder / RUNNING, "running", fields)


def fail(folder: Path, reason: str, exit_code: int | None) -> None:
    """Write that a run failed.

    Args:
        folder: The run's folder.
        reason: Why, in one line.
        exit_code: What its process returned, if there was one.
    """
    write_document(folder / FAILED, "failed", {"reason": reason, "exit_code": exit_code})


def clear(folder: Path, *names: str) -> None:
    """Remove files that say how far a run is."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _read(folder: Path) -> tuple[State, str]:
    if (folder / SUMMARY).exists():
        try:
            summary = read_summary(folder)
        except ResultError:
            return "waiting", f"{SUMMARY} is damaged; the run is repeated"
        if summary["run_id"] == folder.name:
            return "done", f"{summary['seconds']:.0f} s"
        return "waiting", f"{SUMMARY} is of other settings; the run is repeated"
    alive = _runner(folder)
    if alive:
        return "running", alive
    try:
        return "failed", read_document(folder / FAILED, "failed", _FAILED_FIELDS)["reason"]
    except ResultError:
        return "waiting", "interrupted" if (folder / RUNNING).exists() else ""


_FAILED_FIELDS: dict[str, Any] = {"reason": str, "exit_code": int | None}
_RUNNING_FIELDS: dict[str, Any] = {
    "host": str,
    "processes": list[list[float]],
    "heartbeat": float,
}


def _runner(folder: Path) -> str:
    # Who runs it, or no text if nobody does.
    try:
        found = read_document(folder / RUNNING, "running", _RUNNING_FIELDS)
    except ResultError:
        return ""
    who = f"on {found['host']}"
    if found["host"] == socket.gethostname():
        # A run goes on when who waited for it is killed.
        return who if any(_is_alive(*process) for process in found["processes"]) else ""
    # Clocks of two machines differ, and may be set back: what is from the future is recent.
    return who if abs(time.time() - found["heartbeat"]) < SILENCE else ""


def _is_alive(pid: int | float = 0, started: int | float = 0, *_: int | float) -> bool:
    try:
        process = psutil.Process(int(pid))
        # Another process may have been given the number since.
        return abs(process.create_time() - started) < 1 and process.status() != "zombie"
    except (psutil.Error, ValueError, OverflowError):
        return False
