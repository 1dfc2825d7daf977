"""Which rows are known: sorted digests of mask and prompt with what belongs to each, in arrays.

A digest is two sums, modulo 2**64, of the row's 16-bit words times fixed random numbers; two given
rows share both with a probability of at most 2**-98 (Carter & Wegman, 1979, "Universal classes of
hash functions"). Rows come in batches. Each is sorted and, as in O'Neil et al. (1996), "The
log-structured merge-tree", joined with earlier ones of no more than its size, so that there are
few arrays to search and every row is moved a few times only.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int, UInt8, UInt64

Records = np.ndarray
"""One entry per row, of any type."""

_BLOCK_ROWS = 8192  # what is widened to 64 bits at once stays in the cache


class _Run(NamedTuple):
    first: UInt64[np.ndarray, " rows"]
    """First halves of the digests, ascending, each once."""
    second: UInt64[np.ndarray, " rows"]
    records: Records


class Index:
    """Records by digest; of a row put twice, the later record counts.

    Rows that share only the first half of their digests push each other out: the earlier one is
    then unknown, and evaluated again, but never mistaken for the other.
    """

    def __init__(self, dtype: Any) -> None:
        """Make an empty index.

        Args:
            dtype: Type of a record.
        """
        self._dtype = np.dtype(dtype)
        self._runs: list[_Run] = []

    def put(self, digests: UInt64[np.ndarray, "rows 2"], records: Records) -> None:
        """Remember records.

        Args:
            digests: Of the rows, as :func:`digest_rows` makes them.
            records: One per row.
        """
        if len(digests):
            new = _Run(digests[:, 0], digests[:, 1], np.asarray(records, dtype=self._dtype))
            self._runs.append(_sort(new))
        while len(self._runs) > 1 and len(self._runs[-2].first) <= len(self._runs[-1].first):
            self._join_last_two()

    def get(
        self, digests: UInt64[np.ndarray, "rows 2"]
    ) -> tuple[Records, Bool[np.ndarray, " rows"]]:
        """Find records.

        Args:
            digests: Of the rows.

        Returns:
            One record per row, zero where there is none, and whether there is one.
        """
        records = np.zeros(len(digests), dtype=self._dtype)
        found = np.zeros(len(digests), dtype=bool)
        for run in self._runs:  # oldest first, so that later records win
            places = np.searchsorted(run.first, digests[:, 0])
            places[places == len(run.first)] = 0
            hits = (run.first[places] == digests[:, 0]) & (run.second[places] == digests[:, 1])
            records[hits] = run.records[places[hits]]
            found |= hits
        return records, found

    def keep(self, choose: Callable[[Records], Bool[np.ndarray, " rows"]]) -> None:
        """Forget rows by their records.

        Args:
            choose: Says of each record whether it stays.
        """
        self._join_all()
        for run in self._runs:
            staying = _Run(*(column[choose(run.records)] for column in run))
            self._runs = [staying] if len(staying.first) else []

    def digests(self) -> UInt64[np.ndarray, "rows 2"]:
        """Return the digests of all rows, each once, in no order that means anything."""
        self._join_all()
        halves = [np.stack([run.first, run.second], axis=1) for run in self._runs]
        return np.concatenate([np.empty((0, 2), dtype=np.uint64), *halves])

    def __len__(self) -> int:
        """Return how many different rows there are."""
        self._join_all()
        return sum(len(run.first) for run in self._runs)

    def _join_all(self) -> None:
        while len(self._runs) > 1:
            self._join_last_two()

    def _join_last_two(self) -> None:
        newer, older = self._runs.pop(), self._runs.pop()
        joined = (np.concatenate(pair) for pair in zip(older, newer, strict=True))
        self._runs.append(_sort(_Run(*joined)))


def digest_rows(
    packed: UInt8[np.ndarray, "rows bytes"], prompts: Int[np.ndarray, " rows"]
) -> UInt64[np.ndarray, "rows 2"]:
    """Compute digests; the same in every process.

    Args:
        packed: Masks as :func:`circuitspex.algebra.masks.pack` makes them.
        prompts: Each row's prompt.

    Returns:
        Both halves of every digest.
    """
    n_bytes = packed.shape[1]
    row = np.zeros((len(packed), n_bytes + n_bytes % 2 + 4), dtype=np.uint8)
    row[:, :n_bytes] = packed
    row[:, -4:] = prompts.astype("<i4")[:, None].view(np.uint8)
    words, numbers = row.view("<u2"), _random_numbers(row.shape[1] // 2)
    digests = np.empty((len(row), 2), dtype=np.uint64)
    for start in range(0, len(row), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        digests[part] = words[part].astype(np.uint64) @ numbers
    return digests


def digest_table(table: pa.Table) -> UInt64[np.ndarray, "rows 2"]:
    """Return the digests of a table's rows, in order."""
    return digest_rows(bytes_of(table["mask"]), table["prompt"].to_numpy())


def bytes_of(column: pa.ChunkedArray) -> UInt8[np.ndarray, "rows bytes"]:
    """Return a column of binary values of one width as an array."""
    width = column.type.byte_width
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype=np.uint8)[
            : (chunk.offset + len(chunk)) * width
        ].reshape(-1, width)[chunk.offset :]
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate([np.empty((0, width), dtype=np.uint8), *parts])


def last_of_each(digests: UInt64[np.ndarray, "rows 2"]) -> Int[np.ndarray, " distinct"]:
    """Return the place of the last one of rows with the same digest, ascending."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # keeps the order of equal ones
    ordered = digests[order]
    is_last = np.append((ordered[1:] != ordered[:-1]).any(axis=1), len(order) > 0)[: len(order)]
    return np.sort(order[is_last])


def _sort(run: _Run) -> _Run:
    order = np.argsort(run.first, kind="stable")  # in linear time where two runs are joined
    ordered = run.first[order]
    is_last = np.append(ordered[1:] != ordered[:-1], True)
    return _Run(*(column[order[is_last]] for column in run))


@lru_cache(maxsize=8)
def _random_numbers(n_words: int) -> UInt64[np.ndarray, "words 2"]:
    raw = np.random.PCG64(0).random_raw(2 * n_words)
    return np.asarray(raw, dtype=np.uint64).reshape(n_words, 2)
