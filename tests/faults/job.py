"""What a trial runs in a process of its own: a discovery through the command line, with a fault.

Processes are forked from one that has everything imported, so that a trial takes seconds.
"""

import hashlib
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import circuitspex.runs  # noqa: F401 - imported before the fork
from circuitspex.ablation.hooks import HookedModel
from circuitspex.cli import app
from circuitspex.evaluation import LocalRunner

BATCH = 16
OPTIONS = {"decoder": "lasso", "budget": 512, "keep_rate": 0.7, "n_prompts": 4, "verify": 4}
PROCESSES: Any = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["job", "warm"])
# Python 3.11's forkserver looks for these two nowhere else, and says nothing if it finds none.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
)


@dataclass(frozen=True)
class Job:
    """One process to be: where it works, and what befalls it."""

    folder: Path
    """Results go here, two levels below what is written down about the run."""
    fault: str = ""
    seed: int = 0
    """Of the fault's moment."""
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def evaluated(self) -> Path:
        """One line per evaluation that the model made."""
        return self.folder.parent.parent / "evaluated"

    @property
    def said(self) -> Path:
        """What the process printed."""
        return self.folder.parent.parent / "said"


def start(job: Job) -> Any:
    """Start the process of a job."""
    process = PROCESSES.Process(target=run, args=(job,))
    process.start()
    return process


def run(job: Job) -> None:
    """Be that process; ends as the command line does."""
    said = os.open(job.said, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ |= {"COLUMNS": "1000", **job.environment}
    options = {**OPTIONS, "batch_size": BATCH, "out": str(job.folder), **job.options}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    with ExitStack() as exits:
        _count(job.evaluated, exits)
        _FAULTS[job.fault](random.Random(job.seed), exits)
        app(["discover", *words])


def _count(path: Path, exits: ExitStack) -> None:
    """Write down every row that goes through the model, before the store hears of it."""
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for name in ("values", "gradients"):
        original = getattr(LocalRunner, name)

        def count(
            self: LocalRunner, rows: Any, planned: Any = None, original: Callable = original
        ) -> Iterator[Any]:
            task = repr([tokens.tolist() for tokens in self.task.tokens]).encode()
            for done, *results in original(self, rows, planned):
                known = rows.take(done)
                masks, prompts = known.own_masks.numpy(), known.prompt_of_row.tolist()
                keys = (
                    hashlib.blake2b(task + m.tobytes() + bytes([p]), digest_size=8).hexdigest()
                    for m, p in zip(masks, prompts, strict=True)
                )
                os.write(file, "".join(f"{key}\n" for key in keys).encode())
                yield done, *results

        exits.enter_context(patch.object(LocalRunner, name, count))


def _nothing(rng: random.Random, exits: ExitStack) -> None:
    """Leave everything as it is."""


def _slow(rng: random.Random, exits: ExitStack) -> None:
    forward = HookedModel.forward

    def wait(*args: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return forward(*args, **options)

    exits.enter_context(patch.object(HookedModel, "forward", wait))


def _out_of_memory(rng: random.Random, exits: ExitStack) -> None:
    forward, left = HookedModel.forward, [rng.randrange(30), rng.randrange(30)]
    errors = [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ]

    def fail_sometimes(self: HookedModel, tokens: Any, gates: Any, *args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0 and len(left) > 1 and len(gates) > 1:
            del left[0]
            os.write(2, b"no memory this time\n")
            raise rng.choice(errors)
        return forward(self, tokens, gates, *args)

    exits.enter_context(patch.object(HookedModel, "forward", fail_sometimes))


def _clock_backwards(rng: random.Random, exits: ExitStack) -> None:
    now = [2e9]

    def tick() -> float:
        now[0] -= rng.expovariate(1e-4)
        return now[0]

    exits.enter_context(patch("time.time", tick))
    exits.enter_context(patch("time.time_ns", lambda: int(1e9 * tick())))
    utime = 0 if rng.random() < 0.5 else 4e9
    original = os.replace

    def replace_and_touch(source: Any, target: Any) -> None:
        original(source, target)
        os.utime(target, (utime, utime))

    exits.enter_context(patch("os.replace", replace_and_touch))


class _FakeWandb:
    """Stands in for the module and everything in it; the call with a certain number throws."""

    Settings = dict

    def __init__(self, fails_at: int) -> None:
        self._left = fails_at

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **options: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ConnectionError("the server said 503")
        return self


def _broken_wandb(rng: random.Random, exits: ExitStack) -> None:
    fake = _FakeWandb(rng.randrange(16))
    exits.enter_context(patch("circuitspex.tracking._wandb.wandb", fake))


_FAULTS: dict[str, Callable[[random.Random, ExitStack], None]] = {
    "": _nothing,
    "slow": _slow,
    "out of memory": _out_of_memory,
    "clock": _clock_backwards,
    "wandb": _broken_wandb,
}
