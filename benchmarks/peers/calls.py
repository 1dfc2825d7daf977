"""Starts ``shapiq_worker.py`` in another Python, answers its questions, and stops it in time."""

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Interaction = tuple[int, ...]
WORKER = Path(__file__).with_name("shapiq_worker.py")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1", "NUMBA_NUM_THREADS": "1"}


@dataclass
class Found:
    """What one peer found, in the parity convention: (-1) to the number of kept units of a term."""

    spectrum: dict[Interaction, float]
    seconds: float
    n_samples: int
    version: str
    compile_seconds: float
    """What a first decoding in the process takes longer; not part of ``seconds``."""


class PeerError(Exception):
    """A peer that failed or ran out of time; its text says which."""


class Peer:
    """shapiq in a process of its own, which is kept between jobs: it takes long to start."""

    def __init__(self, python: str) -> None:
        """Name the interpreter of an environment with shapiq; it is started when needed."""
        self.python = python
        self.process: subprocess.Popen[str] | None = None

    def run(
        self,
        job: dict[str, Any],
        rows: tuple[np.ndarray, np.ndarray],
        game: Callable[[np.ndarray], np.ndarray],
        limit: float,
    ) -> dict[str, Found]:
        """Run one method of shapiq; some give several results by name.

        Args:
            job: ``method``, ``n_units``, ``budget``, ``seed`` and ``max_order``.
            rows: Masks and values for methods that take any.
            game: Answers methods that draw their own masks.
            limit: Seconds after which the process is killed.

        Raises:
            PeerError: If there is no result.
        """
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "job.json").write_text(json.dumps(job))
            np.savez(folder / "rows.npz", masks=rows[0], values=rows[1])
            _serve(self.process, folder, game, limit)
            return _read(folder)

    def close(self) -> None:
        """End the process, so that the next job starts a fresh one."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.python, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **ONE_THREAD},
        )


def _serve(
    process: "subprocess.Popen[str]",
    folder: Path,
    game: Callable[[np.ndarray], np.ndarray],
    limit: float,
) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    late = threading.Event()
    timer = threading.Timer(limit, lambda: (late.set(), process.kill()))
    timer.start()
    process.stdin.write(f"{folder}\n")
    process.stdin.flush()
    for line in iter(process.stdout.readline, ""):  # libraries may print in between
        if line == "done\n":
            break
        if line == "ask\n":
            np.save(folder / "answer.npy", game(np.load(folder / "ask.npy")))
            process.stdin.write("answered\n")
            process.stdin.flush()
    timer.cancel()
    if late.is_set():
        process.wait()
        raise PeerError(f"over {limit:.0f} s")


def _read(folder: Path) -> dict[str, Found]:
    if (folder / "error.txt").exists():
        raise PeerError((folder / "error.txt").read_text())
    if not (folder / "result.npz").exists():
        raise PeerError("ended without a result")
    arrays = np.load(folder / "result.npz")
    found = {}
    for name in (key.removesuffix(".seconds") for key in arrays if key.endswith(".seconds")):
        sizes = arrays[f"{name}.sizes"]
        parts = np.split(arrays[f"{name}.units"], np.cumsum(sizes)[:-1]) if len(sizes) else []
        terms = [tuple(map(int, part)) for part in parts]
        spectrum = dict(zip(terms, arrays[f"{name}.coefficients"].tolist(), strict=True))
        found[name] = Found(
            spectrum,
            float(arrays[f"{name}.seconds"]),
            int(arrays["samples"]),
            str(arrays["version"]),
            float(arrays["compile_seconds"]),
        )
    return found
