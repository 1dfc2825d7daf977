"""What all decoders share: how they declare their options, and the one way to call them.

An option is a field of the decoder's dataclass. Its annotation holds the bounds, its default is the
default everywhere, and the text under it is its help: Python, settings, sweep files and the command
line read them here. A decoder that can use fewer values of a shared option declares it again.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Gt, Lt, MinLen

from circuitspex._shared import Count, SetFunction, declared, fit_all, fit_fields
from circuitspex.algebra import Interactions
from circuitspex.decoders.measuring.restriction import Restricted, find_units
from circuitspex.decoders.measuring.samples import Meter, PromptsPerMask, fewest_prompts
from circuitspex.errors import DecoderError


@dataclass(frozen=True, kw_only=True)
class Decoder(ABC):
    """Turns a set function and a budget of evaluations into sparse interactions."""

    keep_rate: Annotated[float, Gt(0), Lt(1)] = 0.5
    """Probability with which masks keep a unit, and p of the Fourier basis. Masks that keep or
    ablate everything tell nothing apart; near the intact model try 0.95."""

    max_order: Count | None = None
    """Most units in one interaction; None for no limit."""

    prompts_per_mask: PromptsPerMask = "auto"
    """Prompts, drawn at random, that each mask is evaluated on, or ``"all"``; ``"auto"`` for as few
    as the decoder can use, which learns the average game best."""

    among: Annotated[tuple[int | str, ...], MinLen(1)] | None = None
    """The only units that are ablated, by index or label, all others being kept; None for all."""

    name: ClassVar[str]
    """What :func:`circuitspex.decoders.get` calls it."""

    model_keep_rate: ClassVar[float] = 0.95
    """The keep rate where the set function is a model and none is asked for: a model of which half
    is gone is not the model that is studied."""

    auto_prompts: ClassVar[Literal["all", "fewest", "one"]] = "fewest"
    """What ``prompts_per_mask="auto"`` is: ``fewest`` is one, or as few as spend the budget."""

    def __post_init__(self) -> None:
        """Check the options against their declarations, and each other."""
        self._refuse(fit_fields(self) or list(self._disagreements()))

    @classmethod
    def make(cls, **options: Any) -> "Decoder":
        """Make the decoder from options as files and command lines give them, such as lists.

        Args:
            **options: Name to value.

        Returns:
            The decoder.
        """
        fitted, wrong = fit_all(cls, options)
        cls._refuse(wrong)
        return cls(**fitted)

    @classmethod
    def _refuse(cls, wrong: Sequence[str]) -> None:
        """Raise an error if something is wrong, with the help of the first option that is."""  # noqa: DOC501
        if wrong:
            help = declared(cls)[wrong[0].partition(" ")[0]].help
            raise DecoderError(f"decoder {cls.name!r}: {'; '.join(wrong)}. {help}".strip())

    def _disagreements(self) -> Iterator[str]:
        """Say which options do not go together, the name of the first in front."""
        yield from ()

    def n_drawn(self, n_units: int, n_prompts: int, budget: int) -> int:
        """Say on how many prompts each mask will be evaluated.

        Args:
            n_units: How many units there are.
            n_prompts: How many prompts there are.
            budget: Evaluations to spend.

        Returns:
            The number.
        """
        if self.prompts_per_mask != "auto":
            return n_prompts if self.prompts_per_mask == "all" else self.prompts_per_mask
        if self.auto_prompts == "fewest":
            n_units = n_units if self.among is None else len(self.among)
            return fewest_prompts(n_units, n_prompts, budget)
        return n_prompts if self.auto_prompts == "all" else 1

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
