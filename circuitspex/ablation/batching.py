"""How many rows go through the model at once, and what happens when they do not fit."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from circuitspex.errors import OutOfMemoryError

_CPU_WORKING_SET = 96 * 2**20
"""Bytes of activations per batch beyond which larger batches were not faster on CPUs."""
_SHARE_OF_FREE = 0.3


@dataclass(frozen=True)
class Room:
    """Memory that rows may fill, and the kind of device it belongs to."""

    n_bytes: float
    device: str
    """Such as ``cpu`` or ``cuda``."""

    @classmethod
    def on(cls, device: torch.device) -> "Room":
        """Return the room that is there now."""
        if device.type == "cuda":
            return cls(_SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0], device.type)
        return cls(_SHARE_OF_FREE * psutil.virtual_memory().available, device.type)


class Batch:
    """Rows to try at once; a block in which they do not fit into memory ends without an error."""

    def __init__(self, rows: slice, n_positions: int) -> None:
        self.rows = rows
        self.fits = True
        """Whether memory was enough, once they were tried."""
        self._n_positions = n_positions

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start

    def __enter__(self) -> "Batch":
        """Return the batch itself."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        """Note that memory ran out; other errors pass.

        Returns:
            Whether it did.

        Raises:
            OutOfMemoryError: If a single row does not fit.
        """
        if not isinstance(error, RuntimeError | MemoryError) or not _is_out_of_memory(error):
            return False
        if len(self) == 1:
            raise OutOfMemoryError(
                f"not even one row of {self._n_positions} tokens fits into memory: {error} "
                "Use a shorter prompt, a smaller dtype or a larger device."
            ) from error
        self.fits = False
        return True


class Batcher:
    """Cuts rows into batches; halves the batch when memory runs out and remembers that."""

    def __init__(
        self,
        model: Any,
        batch_size: int | None = None,
        *,
        gradients: bool = False,
        room: Room | None = None,
    ) -> None:
        self._model = model
        self._fixed = batch_size
        self._gradients = gradients
        self._room = room
        self._limit: int | None = None

    def size(self, n_positions: int, *, alive: float = 1.0) -> int:
        """Choose how many rows of that length to run at once.

        Args:
            n_positions: Tokens per row.
            alive: Mean share of the rows that is there in a layer: below 1 where rows become more.

        Returns:
            At least 1.
        """
        size = self._fixed or rows_that_fit(
            self._model, n_positions, gradients=self._gradients, alive=alive, room=self._room
        )
        return size if self._limit is None else min(size, self._limit)

    def __call__(
        self, rows: slice, n_positions: int, *, alive: float = 1.0, at_once: bool = False
    ) -> Iterator[Batch]:
        """Cut rows into batches; one that did not fit comes again, halved.

        Args:
            rows: Which rows to run.
            n_positions: Tokens per row.
            alive: Mean share of the rows that is there in a layer.
            at_once: Make one batch of all, as long as no batch was too large before.

        Yields:
            Batches, each to be run in its own block, so that a failure is seen here.
        """
        start = rows.start
        while start < rows.stop:
            size = self._limit or rows.stop if at_once else self.size(n_positions, alive=alive)
            batch = Batch(slice(start, min(start + size, rows.stop)), n_positions)
            yield batch
            if batch.fits:
                start = batch.rows.stop
                continue
            # The block is over, so its traceback no longer holds the failed batch alive.
            self._limit = max(1, len(batch) // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def rows_that_fit(
    model: Any,
    n_positions: int,
    *,
    gradients: bool = False,
    alive: float = 1.0,
    room: Room | None = None,
) -> int:
    """Estimate how many rows the free memory holds.

    Counts the activations that are alive at once, inside one layer or, for a backward pass, in all
    of them, and the logits of one position.

    Args:
        model: A TransformerBridge.
        n_positions: Tokens per row.
        gradients: Whether the rows run backward too.
        alive: Mean share of the rows that is there in a layer. All of them have to fit into memory,
            since in the last layer they are there; not all into what a processor works on quickly.
        room: Memory to fill; what is free on the model's device when None.

    Returns:
        At least 1, at most 4,096.
    """
    cfg = model.cfg
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model
    per_position = 12 * cfg.d_model + 4 * d_mlp + 3 * cfg.n_heads * n_positions
    logits = 3 * cfg.dtype.itemsize * cfg.d_vocab
    per_layer = cfg.dtype.itemsize * n_positions * per_position
    at_once = logits + per_layer * (cfg.n_layers if gradients else 1)
    most = 4096
    room = room or Room.on(torch.device(cfg.device))
    if room.device != "cuda":
        most = min(most, _CPU_WORKING_SET / (logits + per_layer) / alive)
    return int(max(1, min(most, room.n_bytes // at_once)))


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return "can't allocate memory" in text or "out of memory" in text
