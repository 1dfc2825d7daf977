"""What all decoders share: their options, the checks, and the one way to call them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from circuitspex._shared import SetFunction
from circuitspex.algebra import Interactions
from circuitspex.decoders.measuring.restriction import Restricted, find_units
from circuitspex.decoders.measuring.samples import Meter, PromptsPerMask, is_count
from circuitspex.errors import DecoderError


@dataclass(frozen=True, kw_only=True)
class Decoder(ABC):
    """Turns a set function and a budget of evaluations into sparse interactions."""

    keep_rate: float = 0.5
    """Probability with which masks keep a unit, and p of the Fourier basis."""

    max_order: int | None = None
    """Most units in one interaction; None for no limit."""

    prompts_per_mask: PromptsPerMask = "all"
    """``"all"``, or how many prompts, drawn at random, each mask is evaluated on; ``"auto"`` for
    the fewest, which learns the average game best."""

    among: tuple[int | str, ...] | None = None
    """The only units that are ablated, by index or label, all others being kept; None for all."""

    name: ClassVar[str]
    """What :func:`circuitspex.decoders.get` calls it."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            DecoderError: If one is outside its range.
        """
        if not 0 < self.keep_rate < 1:
            raise DecoderError(
                f"keep_rate must lie strictly between 0 and 1; got {self.keep_rate}. Masks that "
                "keep or ablate everything tell nothing apart; near the intact model try 0.95."
            )
        if self.max_order is not None and not is_count(self.max_order):
            raise DecoderError(f"max_order must be an integer >= 1; got {self.max_order!r}.")
        if self.prompts_per_mask not in {"all", "auto"} and not is_count(self.prompts_per_mask):
            raise DecoderError(
                "prompts_per_mask must be 'all', 'auto' or an integer >= 1; "
                f"got {self.prompts_per_mask!r}."
            )

    def decode(self, set_function: SetFunction, *, budget: int, seed: int) -> Interactions:
        """Decode a set function.

        Args:
            set_function: Maps keep-masks to values; any callable with ``n_units``. Labels are
                taken from its ``units`` if it has them.
            budget: Most evaluations to spend: masks times prompts; masks for a plain callable.
            seed: Of the one generator that every draw comes from. The same seed asks for the same
                masks in the same order.

        Returns:
            Interactions in the Fourier basis of the keep rate.

        Raises:
            BudgetError: If the budget is too small for the method.
            DecoderError: If the set function is not one, or lacks what the options need.
            NonFiniteError: If a value is NaN or infinite.
        """  # noqa: DOC502
        meter, rng = Meter(set_function, budget), np.random.default_rng(seed)
        if self.among is None:
            return self._decode(meter, rng)
        labels = unit_labels(meter)
        chosen = find_units(self.among, labels)
        within = self._decode(Meter(Restricted(set_function, chosen, labels), budget), rng)
        return replace(
            within,
            n_units=len(labels),
            units=labels,
            support=tuple(tuple(chosen[i] for i in term) for term in within.support),
            diagnostics={**within.diagnostics, "among": list(within.units)},
        )

    @abstractmethod
    def _decode(self, meter: Meter, rng: np.random.Generator) -> Interactions:
        """Spend the meter's budget; every draw comes from ``rng``."""


def unit_labels(meter: Meter) -> tuple[str, ...]:
    """Return the set function's own labels, or the units' indices as text.

    Args:
        meter: The metered set function.

    Returns:
        One label per unit.

    Raises:
        DecoderError: If there is not one label per unit.
    """
    units = getattr(meter.set_function, "units", None)
    if units is None:
        return tuple(map(str, range(meter.n_units)))
    if len(units) != meter.n_units:
        raise DecoderError(
            f"the set function has n_units={meter.n_units} but labels {len(units)} units. "
            "Give one label per unit, or none."
        )
    return tuple(map(str, units))
