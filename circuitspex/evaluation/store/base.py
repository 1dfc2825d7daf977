"""What a store of evaluations offers, wherever it keeps them."""

from typing import Protocol, runtime_checkable

import pyarrow as pa
from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class Store(Protocol):
    """Remembers values, and gradients where there are some; a row is one mask on one prompt."""

    n_units: int
    n_prompts: int

    def look_up(
        self, masks: Bool[Tensor, "rows units"], prompts: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """Return each row's value, NaN where unknown, and whether it is known."""
        ...

    def append(
        self,
        masks: Bool[Tensor, "rows units"],
        prompts: Int[Tensor, " rows"],
        values: Float[Tensor, " rows"],
    ) -> None:
        """Remember finite values; when this returns they are as durable as the store can be."""
        ...

    def look_up_gradients(
        self, masks: Bool[Tensor, "rows units"], prompts: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows units"], Bool[Tensor, " rows"]]:
        """Return each row's value and gradient, NaN where the latter is unknown, and whether it is.

        They are those of one :meth:`append_gradients`, bit for bit.
        """
        ...

    def append_gradients(
        self,
        masks: Bool[Tensor, "rows units"],
        prompts: Int[Tensor, " rows"],
        values: Float[Tensor, " rows"],
        gradients: Float[Tensor, "rows units"],
    ) -> None:
        """Remember finite values with their gradients in float32, as durably as :meth:`append`.

        The values are then known to :meth:`look_up` too, unless :meth:`append` told it another.
        """
        ...

    def table(self) -> pa.Table:
        """Return all values: columns ``mask`` (packed), ``prompt``, ``value``, one row each."""
        ...

    def close(self) -> None:
        """Finish; closing twice is fine."""
        ...

    def __len__(self) -> int:
        """Return how many different rows are known."""
        ...

    def __enter__(self) -> "Store":
        """Return the store itself; the end of the block closes it."""
        ...

    def __exit__(self, *exception: object) -> None:
        """Close the store."""
        ...
