"""What code does in processes of its own, where no state, hash order or memory is shared."""

import multiprocessing
import resource
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def outputs_by_hash_seed(code: str) -> list[str]:
    """Return what the code prints under two different orders of sets of strings."""
    return [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    ]


def in_a_process_of_its_own(work: Callable[[], Any]) -> Any:
    """Return what a function of a module gives in a new process, which inherits nothing."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work).result()


def peak_memory() -> int:
    """Return the most memory this process has had so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss begins with the parent's
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
