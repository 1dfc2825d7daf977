"""Runs of a sweep, each in a process of its own: what kills one run leaves the others alone."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal

from circuitspex.findings import SUMMARY
from circuitspex.runs import SETTINGS
from circuitspex.sweeps.manifest import Manifest, read_manifest
from circuitspex.sweeps.state import (
    FAILED,
    HEARTBEAT,
    LOG,
    RUNNING,
    RunState,
    State,
    beat,
    clear,
    fail,
    run_state,
)

WandbMode = Literal["online", "offline", "disabled"]

GRACE = 20.0
"""Seconds a run has to end by itself once it is told to."""
_POLL = 0.2


def run_entry(
    folder: str | Path,
    index: int,
    *,
    wandb: WandbMode = "offline",
    stop: threading.Event | None = None,
) -> RunState:
    """Run one entry of a sweep and wait for it; what is done already is left as it is.

    The run is ``circuitspex discover`` in a process of its own, whose output is in ``log.txt``. It
    goes on where it was if it was begun before. When the caller is interrupted, the run is stopped
    and counts as waiting.

    Args:
        folder: The sweep's folder.
        index: The run's place in the manifest.
        wandb: Where it is logged; W&B's files are kept in the run's folder.
        stop: Set by another thread, it stops the run as an interrupt of the caller does.

    Returns:
        How it ended: done, or failed with the reason; waiting, where it was told to stop; or
        running, where another process is at it.
    """
    manifest = read_manifest(folder)
    settings, run = manifest.settings(index), manifest.run_folder(index).absolute()
    before = run_state(manifest, index)
    if before.state in ("done", "running"):
        return before
    run.mkdir(parents=True, exist_ok=True)
    beat(run)
    clear(run, FAILED, SUMMARY)
    settings.save(run / SETTINGS)
    try:
        with (run / LOG).open("ab") as log:
            begin = log.tell()
            code = _run_child(_command(manifest, run, wandb), run, log, stop or threading.Event())
        if code not in _STOPPED and (code != 0 or not (run / SUMMARY).exists()):
            fail(run, _reason(code, run / LOG, begin), code)
    finally:
        clear(run, RUNNING)
    return run_state(manifest, index)


def run_sweep(
    folder: str | Path,
    *,
    jobs: int = 1,
    only: Iterable[int] | None = None,
    retry_failed: bool = False,
    wandb: WandbMode = "offline",
    report: Callable[[RunState], None] | None = None,
) -> list[RunState]:
    """Run what is not done of a sweep, on this machine.

    Args:
        folder: The sweep's folder.
        jobs: How many runs at a time.
        only: Which runs, by their place in the manifest; all when None.
        retry_failed: Whether to run again what failed before.
        wandb: Where runs are logged.
        report: Called with each run's state when it ends.

    Returns:
        How each of the runs ended, in the manifest's order.
    """
    manifest = read_manifest(folder)
    states = due(manifest, only, retry_failed=retry_failed)
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        futures = [pool.submit(run_entry, folder, i, wandb=wandb, stop=stop) for i in states]
        try:
            for future in as_completed(futures):
                if report is not None:
                    report(future.result())
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return [future.result() for future in futures]


def due(
    manifest: Manifest, only: Iterable[int] | None = None, *, retry_failed: bool = False
) -> list[int]:
    """Say which runs there are to run.

    Args:
        manifest: The sweep.
        only: Which to choose among; all when None.
        retry_failed: Whether what failed is to be run again.

    Returns:
        Places of runs that wait, or failed and are to be run again.
    """
    chosen = range(len(manifest)) if only is None else sorted(set(only))
    wanted: set[State] = {"waiting", "failed"} if retry_failed else {"waiting"}
    return [i for i in chosen if run_state(manifest, i).state in wanted]


_STOPPED = {130, 143} | {
    -number
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if (number := getattr(signal, name, None)) is not None
}
"""Exit codes of a run that was told to stop, and can go on: no failures."""


def _command(manifest: Manifest, run: Path, wandb: WandbMode) -> list[str]:
    options = {
        "config": str(run / SETTINGS),
        "out": str(run),
        "wandb": wandb,
        "wandb-project": manifest.project,
        "wandb-group": manifest.group,
        **({} if manifest.entity is None else {"wandb-entity": manifest.entity}),
        **manifest.options,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "circuitspex.cli", "discover", *words]


def _run_child(command: list[str], run: Path, log: IO[bytes], stop: threading.Event) -> int:
    # Wide lines: a message must not be cut where a terminal would end.
    environment = {**os.environ, "COLUMNS": "1000", "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
    )
    try:
        while not stop.is_set():
            beat(run, child.pid)
            due_again = time.monotonic() + HEARTBEAT
            while time.monotonic() < due_again and not stop.is_set():
                with suppress(subprocess.TimeoutExpired):
                    return child.wait(_POLL)
    finally:
        _stop(child)
    return child.returncode


def _stop(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _reason(code: int, log: Path, begin: int) -> str:
    # One line: the last error, or what killed it.
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", as when memory runs out" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    errors = [line for line in lines if "rror" in line.partition(":")[0]]
    last = (errors or [line for line in lines if line] or ["it said nothing"])[-1]
    return f"{last[:500]} (exit code {code})"
