"""Evaluations in memory: digests of rows to look up, compressed tables to give back."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, UInt64
from torch import Tensor

from circuitspex._shared import check_masks
from circuitspex.algebra import masks as keep_masks
from circuitspex.errors import StoreError
from circuitspex.evaluation.store import tables as _tables
from circuitspex.evaluation.store.index import Index, digest_rows, digest_table

_PLACE = [("value", "<f8"), ("source", "<i4"), ("row", "<i4")]
"""Where a gradient is, and the value that came with it."""


class MemoryStore:
    """Evaluations in memory only, gone with the process."""

    def __init__(self, n_units: int, n_prompts: int) -> None:
        """Make an empty store.

        Args:
            n_units: How many units a mask covers.
            n_prompts: How many prompts there are; prompts are numbered from 0.
        """
        self.n_units = n_units
        self.n_prompts = n_prompts
        self._values = Index("<f8")
        self._places = Index(_PLACE)
        self._sources: list[Any] = []  # tables; on disk paths; None where nothing is any more
        self._shards: list[bytes] = []
        self._gradient_tables: list[pa.Table] = []
        self._closed = False

    def look_up(
        self, masks: Bool[Tensor, "rows units"], prompts: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """Look up rows.

        Args:
            masks: Keep-masks, one a row.
            prompts: Index of each row's prompt.

        Returns:
            Values in float64, NaN where unknown, and whether each row is known.
        """
        digests = self._digests(masks, prompts)
        values, found = self._values.get(digests)
        rest = np.flatnonzero(~found)
        places, found[rest] = self._places.get(digests[rest])
        values[rest] = places["value"]
        values[~found] = np.nan
        return torch.from_numpy(values), torch.from_numpy(found)

    def append(
        self,
        masks: Bool[Tensor, "rows units"],
        prompts: Int[Tensor, " rows"],
        values: Float[Tensor, " rows"],
    ) -> None:
        """Remember rows; one that is known already takes the new value.

        Args:
            masks: Keep-masks, one a row.
            prompts: Index of each row's prompt.
            values: What the rows evaluated to; finite.

        Raises:
            StoreError: If the store is closed, lengths differ, or a value is not finite.
        """  # noqa: DOC502 - raised by the checks
        digests = self._digests(masks, prompts)
        numbers = self._numbers(len(digests), values)
        if len(digests):
            self._values.put(digests, numbers)
            self._keep(_tables.to_table(masks, prompts, numbers))

    def look_up_gradients(
        self, masks: Bool[Tensor, "rows units"], prompts: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows units"], Bool[Tensor, " rows"]]:
        """Look up rows with their gradients.

        Args:
            masks: Keep-masks, one a row.
            prompts: Index of each row's prompt.

        Returns:
            Values in float64 and gradients in float32, as they were appended together, NaN where
            the gradient is unknown, and whether it is known.
        """
        places, found = self._places.get(self._digests(masks, prompts))
        values = np.where(found, places["value"], np.nan)
        gradients = np.full((len(places), self.n_units), np.nan, dtype=np.float32)
        for source in np.unique(places["source"][found]).tolist():
            rows = np.flatnonzero(found & (places["source"] == source))
            gradients[rows] = self._read(self._sources[source], places["row"][rows])
        return torch.from_numpy(values), torch.from_numpy(gradients), torch.from_numpy(found)

    def append_gradients(
        self,
        masks: Bool[Tensor, "rows units"],
        prompts: Int[Tensor, " rows"],
        values: Float[Tensor, " rows"],
        gradients: Float[Tensor, "rows units"],
    ) -> None:
        """Remember rows with their gradients; one that is known already takes the new ones.

        :meth:`look_up` knows their values too, unless :meth:`append` told it another: so either
        call gives the same again, whichever came first.

        Args:
            masks: Keep-masks, one a row.
            prompts: Index of each row's prompt.
            values: What the rows evaluated to; finite.
            gradients: Derivative of each row's value by every unit's gate; finite, kept in float32.

        Raises:
            StoreError: If the store is closed, shapes differ, or a number is not finite.
        """
        digests = self._digests(masks, prompts)
        numbers = self._numbers(len(digests), values)
        if gradients.shape != masks.shape:
            raise StoreError(
                f"there must be one derivative per unit of every mask, shape {tuple(masks.shape)}; "
                f"got {tuple(gradients.shape)}."
            )
        slopes = gradients.detach().cpu().to(torch.float32).numpy()
        _refuse_non_finite("gradients", slopes)
        if len(digests):
            table = _tables.to_table(masks, prompts, numbers, slopes)
            self._place(table, table)
            self._keep_gradients(table)

    def table(self) -> pa.Table:
        """Return everything but gradients as a table.

        Returns:
            One row per mask and prompt: ``mask`` packed as :func:`circuitspex.masks.pack` does,
            ``prompt``, ``value``; the schema's metadata holds ``n_units``.
        """
        return _tables.without_duplicates(self._all_tables(), _tables.schema(self.n_units))

    def close(self) -> None:
        """Take no more evaluations; what is there can still be looked up."""
        self._closed = True

    def __len__(self) -> int:
        """Return how many different rows are known."""
        also = self._places.digests()
        return len(self._values) + int((~self._values.get(also)[1]).sum())

    def __enter__(self) -> "MemoryStore":
        """Return the store itself; the end of the block closes it."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the store."""
        self.close()

    def _keep(self, table: pa.Table) -> None:
        self._shards.append(_tables.encode(table))  # a tenth of the table's size

    def _keep_gradients(self, table: pa.Table) -> None:
        self._gradient_tables.append(table)

    def _all_tables(self) -> Iterable[pa.Table]:
        # What append() was told comes last, so that it stays.
        yield from (table.select(_tables.SHORT) for table in self._gradient_tables)
        yield from map(_tables.decode, self._shards)

    def _place(self, table: pa.Table, source: Path | pa.Table) -> None:
        self._places.put(digest_table(table), self._places_in(table, source))

    def _places_in(self, table: pa.Table, source: Path | pa.Table) -> np.ndarray:
        places = np.empty(len(table), dtype=_PLACE)
        places["value"] = table["value"].to_numpy()
        places["source"], places["row"] = len(self._sources), np.arange(len(table))
        self._sources.append(source)
        return places

    def _read(
        self, source: Any, rows: Int[np.ndarray, " rows"]
    ) -> Float32[np.ndarray, "rows units"]:
        return _tables.gradients_of(source.take(rows))

    def _numbers(self, n_rows: int, values: Float[Tensor, " rows"]) -> Float64[np.ndarray, " rows"]:
        if self._closed:
            raise StoreError("the store is closed; open it again to append evaluations.")
        if values.shape != (n_rows,):
            raise StoreError(
                f"there must be one value per mask; got {tuple(values.shape)} for {n_rows}."
            )
        numbers = values.detach().cpu().to(torch.float64).numpy()
        _refuse_non_finite("values", numbers)
        return numbers

    def _digests(
        self, masks: Bool[Tensor, "rows units"], prompts: Int[Tensor, " rows"]
    ) -> UInt64[np.ndarray, "rows 2"]:
        check_masks(masks, self.n_units)
        if prompts.shape != (len(masks),):
            raise StoreError(
                f"there must be one prompt per mask; got {tuple(prompts.shape)} for {len(masks)}."
            )
        numbers = prompts.cpu().numpy()
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < self.n_prompts:
            raise StoreError(
                f"prompts must lie in 0..{self.n_prompts - 1}; "
                f"got {numbers.min()}..{numbers.max()}."
            )
        return digest_rows(keep_masks.pack(masks), numbers)


def _refuse_non_finite(what: str, numbers: np.ndarray) -> None:
    wrong = np.argwhere(~np.isfinite(numbers))
    if len(wrong):
        raise StoreError(
            f"{what} must be finite; row {wrong[0][0]} is {numbers[tuple(wrong[0])]}. "
            "Append the other rows without it."
        )
