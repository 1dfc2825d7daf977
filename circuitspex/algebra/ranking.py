"""Terms with values and errors, ranked and laid out as a table."""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

NORMAL_95 = 1.959963984540054
"""Standard errors from an estimate to either end of its 95 % interval."""


class RankedInteraction(NamedTuple):
    """One interaction of a ranking."""

    units: tuple[str, ...]
    """Labels of the units that act together."""
    coefficient: float
    """Its coefficient, or its value under an index, in the units of the value (logits)."""
    interval: tuple[float, float] | None
    """95 % interval of the coefficient; None where no errors are known."""


class Terms(NamedTuple):
    """What a ranking needs to know of a result."""

    units: tuple[str, ...]
    """Label of every unit."""
    support: tuple[tuple[int, ...], ...]
    """Unit indices of every term."""
    values: Tensor
    """One per term."""
    std_errors: Tensor | None
    """One per term, where known."""
    p_values: Tensor | None = None
    """One per term, where known."""

    def top(self, k: int, min_order: int, max_order: int | None) -> list[RankedInteraction]:
        """Return the ``k`` largest terms within a range of orders, equal ones in their order."""
        orders = range(min_order, 1 + (len(self.units) if max_order is None else max_order))
        return self.ranked({i for i, term in enumerate(self.support) if len(term) in orders})[:k]

    def ranked(self, chosen: set[int]) -> list[RankedInteraction]:
        """Return some of the terms, the largest first, equal ones in their order."""
        return [
            RankedInteraction(self._labels(i), float(self.values[i]), self._interval(i))
            for i in self._ranking()
            if i in chosen
        ]

    def to_dataframe(self, value_name: str) -> "pd.DataFrame":
        """Return a table of all terms, the largest first; ``value_name`` heads their values."""
        import pandas as pd  # takes longer to import than all the rest of this package

        ranking = self._ranking()
        unknown = torch.full_like(self.values, math.nan)
        errors = (unknown if self.std_errors is None else self.std_errors)[ranking]
        values = self.values[ranking]
        table = pd.DataFrame(
            {
                "units": [" + ".join(self._labels(i)) or "∅" for i in ranking],
                "order": [len(self.support[i]) for i in ranking],
                value_name: values.numpy(),
                "std_error": errors.numpy(),
                "low": (values - NORMAL_95 * errors).numpy(),
                "high": (values + NORMAL_95 * errors).numpy(),
            }
        )
        if self.p_values is not None:
            table["p_value"] = self.p_values[ranking].numpy()
        return table

    def _ranking(self) -> list[int]:
        return self.values.abs().argsort(descending=True, stable=True).tolist()

    def _labels(self, index: int) -> tuple[str, ...]:
        return tuple(self.units[unit] for unit in self.support[index])

    def _interval(self, index: int) -> tuple[float, float] | None:
        if self.std_errors is None:
            return None
        centre, error = float(self.values[index]), float(self.std_errors[index])
        return centre - NORMAL_95 * error, centre + NORMAL_95 * error
