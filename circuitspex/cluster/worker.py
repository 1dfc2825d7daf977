"""What a worker process does: hold the model, and run the passes it is given.

Nothing here knows what brought it there, so it runs in any process.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitspex.ablation import Pass, Room, Rows, ablate
from circuitspex.algebra import masks as keep_masks
from circuitspex.evaluation import LocalRunner
from circuitspex.models import describe_model
from circuitspex.tasks import Metric, Task
from circuitspex.units import Replacement, UnitSet


@dataclass(frozen=True, eq=False)
class Job:
    """Everything but the weights that decides a value."""

    key: str
    """The same for the same job only."""
    units: UnitSet
    task: Task
    metric: Metric
    replacement: Replacement
    forks: bool
    batch_size: int | None
    room: Room
    """As everywhere else, so that stand-ins are computed in the same batches everywhere."""
    matmul_precision: str
    """What torch may do to single-precision products, as in the process that asks."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """One pass of rows as it travels: a mask for every row, and no others."""

    masks: np.ndarray
    """Keep-masks, packed; or gates between 0 and 1."""
    prompts: np.ndarray
    n_units: int
    forked: bool
    gradients: bool

    @classmethod
    def of(cls, rows: Rows, planned: Pass, *, gradients: bool) -> "Chunk":
        """Return the rows of a pass, packed."""
        these = rows.take(planned.rows)
        own, prompts = these.own_masks, these.prompt_of_row.numpy()
        packed = keep_masks.pack(own) if own.dtype == torch.bool else own.numpy()
        return cls(packed, prompts, own.shape[1], planned.forked, gradients)

    @property
    def rows(self) -> Rows:
        """The rows, each with a mask of its own."""
        prompts = torch.tensor(self.prompts)
        if self.masks.dtype == np.uint8:
            masks = keep_masks.unpack(self.masks, self.n_units)
        else:
            masks = torch.tensor(self.masks)
        return Rows(masks, torch.arange(len(prompts)), prompts)


@dataclass(frozen=True, eq=False)
class Done:
    """What a chunk gave, row by row."""

    values: np.ndarray
    gradients: np.ndarray | None


@dataclass(frozen=True)
class Started:
    """What a worker says of itself once it holds the model."""

    model: dict[str, Any]
    """As :func:`circuitspex.models.describe_model` gives it."""
    room: Room


class Worker:
    """A model in a process, and the block of the job that it works on."""

    def __init__(self, load: Callable[[], Any], n_threads: int) -> None:
        self._load = load
        self._n_threads = n_threads
        self._model: Any = None
        self._key = ""
        self._runner: LocalRunner | None = None
        self._exits = ExitStack()

    def start(self) -> Started:
        """Load the model and say which it is.

        Returns:
            Its identity, and the memory that is left for rows.
        """
        torch.set_num_threads(self._n_threads)
        self._model = self._load()
        return Started(describe_model(self._model), Room.on(torch.device(self._model.cfg.device)))

    def run(self, key: str, fetch: Callable[[], Job], chunk: Chunk) -> Done:
        """Run one chunk as one pass.

        Args:
            key: Which job it belongs to.
            fetch: Gives that job; called when the last chunk was of another one.
            chunk: The rows.

        Returns:
            Values, and gradients if they are wanted.
        """
        runner = self._enter(key, fetch)
        rows, planned = chunk.rows, Pass(torch.arange(len(chunk.prompts)), chunk.forked)
        values = torch.full((len(rows),), torch.nan, dtype=torch.float64)
        if not chunk.gradients:
            for done, value in runner.values(rows, planned):
                values[done] = value
            return Done(values.numpy(), None)
        gradients = torch.full((len(rows), chunk.n_units), torch.nan)
        for done, value, gradient in runner.gradients(rows, planned):
            values[done], gradients[done] = value, gradient
        return Done(values.numpy(), gradients.numpy())

    def _enter(self, key: str, fetch: Callable[[], Job]) -> LocalRunner:
        if self._runner is None or key != self._key:
            self._exits.close()
            self._runner = None
            job = fetch()
            torch.set_float32_matmul_precision(job.matmul_precision)
            ablated = self._exits.enter_context(
                ablate(
                    self._model,
                    job.units,
                    job.replacement,
                    batch_size=job.batch_size,
                    probe=False,  # the one who asks has probed these weights
                    forks=job.forks,
                    room=job.room,
                )
            )
            self._key, self._runner = key, LocalRunner(ablated, job.task, job.metric)
        return self._runner


def name_rows(chunk: Chunk, units: UnitSet, n_shown: int = 3) -> str:
    """Name the masks of a chunk by what they ablate.

    Args:
        chunk: The rows.
        units: What the columns of a mask stand for.
        n_shown: How many rows to name.

    Returns:
        Text for an error.
    """
    rows = chunk.rows
    named = []
    for mask, prompt in zip(rows.masks[:n_shown], rows.prompt_of_row.tolist(), strict=False):
        ablated = [units.labels[i] for i in (mask != 1).nonzero().squeeze(1).tolist()]
        more = f", … ({len(ablated)} in all)" if len(ablated) > 8 else ""
        named.append(f"prompt {prompt} without {', '.join(ablated[:8]) or 'nothing'}{more}")
    rest = f"; … ({len(rows)} in all)" if len(rows) > n_shown else ""
    return "; ".join(named) + rest


def as_mask_table(chunk: Chunk) -> tuple[Tensor, Tensor]:
    """Return the mask, or gates, and the prompt of every row of a chunk."""
    rows = chunk.rows
    return rows.masks, rows.prompt_of_row
