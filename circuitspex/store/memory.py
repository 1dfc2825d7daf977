"""Evaluations in memory: digests of masks to look up, compressed tables to give back."""

import math
from collections.abc import Iterable
from itertools import repeat

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex import masks as keep_masks
from circuitspex._checks import check_masks
from circuitspex.errors import StoreError
from circuitspex.store import _tables


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
        self._values: dict[bytes, float] = {}
        self._shards: list[bytes] = []
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
        keys = self._keys(masks, prompts)
        found = np.fromiter(map(self._values.get, keys, repeat(math.nan)), np.float64, len(keys))
        values = torch.from_numpy(found)
        return values, ~values.isnan()

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
        """
        keys = self._keys(masks, prompts)
        if self._closed:
            raise StoreError("the store is closed; open it again to append evaluations.")
        if values.shape != (len(keys),):
            raise StoreError(
                f"there must be one value per mask; got {tuple(values.shape)} for {len(keys)}."
            )
        numbers = values.detach().cpu().to(torch.float64).numpy()
        wrong = np.flatnonzero(~np.isfinite(numbers))
        if wrong.size:
            raise StoreError(
                f"values must be finite; row {wrong[0]} is {numbers[wrong[0]]}. "
                "Append the other rows without it."
            )
        if keys:
            self._values.update(zip(keys, numbers.tolist(), strict=True))
            self._keep(_tables.to_table(masks, prompts, numbers))

    def table(self) -> pa.Table:
        """Return everything as a table.

        Returns:
            One row per mask and prompt: ``mask`` packed as :func:`circuitspex.masks.pack` does,
            ``prompt``, ``value``; the schema's metadata holds ``n_units``.
        """
        return _tables.without_duplicates(self._all_tables(), self.n_units)

    def close(self) -> None:
        """Take no more evaluations; what is there can still be looked up."""
        self._closed = True

    def __len__(self) -> int:
        """Return how many different rows are known."""
        return len(self._values)

    def __enter__(self) -> "MemoryStore":
        """Return the store itself; the end of the block closes it."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the store."""
        self.close()

    def _keep(self, table: pa.Table) -> None:
        self._shards.append(_tables.encode(table))  # a tenth of the table's size

    def _all_tables(self) -> Iterable[pa.Table]:
        return map(_tables.decode, self._shards)

    def _keys(
        self, masks: Bool[Tensor, "rows units"], prompts: Int[Tensor, " rows"]
    ) -> list[bytes]:
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
        return _tables.join_keys(keep_masks.digest(masks), numbers)
