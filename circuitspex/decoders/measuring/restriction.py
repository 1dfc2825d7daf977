"""A set function of some of the units, all others being kept."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex._shared import (
    DifferentiableSetFunction,
    SampledDifferentiableSetFunction,
    SampledSetFunction,
    SetFunction,
)
from circuitspex.errors import DecoderError


class _Restricted:
    """A set function whose masks cover some units of another one."""

    def __init__(self, whole: SetFunction, chosen: tuple[int, ...], units: tuple[str, ...]) -> None:
        self.whole = whole
        self.chosen = list(chosen)
        self.units = units
        self.n_units = len(chosen)

    def widen(
        self, masks: Bool[Tensor, "masks units"] | Float[Tensor, "masks units"]
    ) -> Bool[Tensor, "masks all_units"] | Float[Tensor, "masks all_units"]:
        """Return the masks, or gates between 0 and 1, over all units."""
        wide = torch.ones(len(masks), self.whole.n_units, dtype=masks.dtype)
        wide[:, self.chosen] = masks
        return wide

    def __call__(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, " masks"]:
        return self.whole(self.widen(masks))


class _RestrictedSampled(_Restricted):
    """The same for one that can be read prompt by prompt."""

    whole: SampledSetFunction

    @property
    def n_prompts(self) -> int:
        """How many prompts there are."""
        return self.whole.n_prompts

    def per_prompt(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, "masks prompts"]:
        """Return every prompt's values."""
        return self.whole.per_prompt(self.widen(masks))

    def sample(
        self,
        masks: Bool[Tensor, "masks units"],
        prompts_per_mask: int,
        rng: np.random.Generator,
    ) -> tuple[Float[Tensor, "masks drawn"], Int[Tensor, "masks drawn"]]:
        """Return values on a few prompts per mask, and which."""
        return self.whole.sample(self.widen(masks), prompts_per_mask, rng)


class _RestrictedDifferentiable(_Restricted):
    """The same for one that has gradients."""

    whole: DifferentiableSetFunction

    def value_and_gradient(
        self, masks: Bool[Tensor, "masks units"] | Float[Tensor, "masks units"]
    ) -> tuple[Float[Tensor, " masks"], Float[Tensor, "masks units"]]:
        """Return values and the derivatives by the chosen units' gates."""
        values, gradients = self.whole.value_and_gradient(self.widen(masks))
        return values, gradients[:, self.chosen]


class _RestrictedSampledWithMeanGradient(_RestrictedSampled, _RestrictedDifferentiable):
    """The same for one that can be read prompt by prompt, but has the mean's gradient only."""


class _RestrictedSampledDifferentiable(_RestrictedSampledWithMeanGradient):
    """The same for one that has gradients and can be read prompt by prompt."""

    whole: SampledDifferentiableSetFunction

    def sample_gradients(
        self,
        masks: Bool[Tensor, "masks units"] | Float[Tensor, "masks units"],
        prompts_per_mask: int,
        rng: np.random.Generator,
    ) -> tuple[
        Float[Tensor, "masks drawn"], Float[Tensor, "masks drawn units"], Int[Tensor, "masks drawn"]
    ]:
        """Return values and derivatives on a few prompts per mask, and which."""
        values, gradients, prompts = self.whole.sample_gradients(
            self.widen(masks), prompts_per_mask, rng
        )
        return values, gradients[..., self.chosen], prompts


def restrict(whole: SetFunction, chosen: tuple[int, ...], labels: Sequence[str]) -> SetFunction:
    """Make a set function of some units, the others kept.

    Args:
        whole: The set function of all units.
        chosen: Indices of the units that its masks shall cover, ascending.
        labels: Labels of all units.

    Returns:
        The set function, prompt by prompt and with gradients if ``whole`` is.
    """
    sampled = isinstance(whole, SampledSetFunction)
    if isinstance(whole, SampledDifferentiableSetFunction):
        kind = _RestrictedSampledDifferentiable
    elif isinstance(whole, DifferentiableSetFunction):
        kind = _RestrictedSampledWithMeanGradient if sampled else _RestrictedDifferentiable
    else:
        kind = _RestrictedSampled if sampled else _Restricted
    return kind(whole, chosen, tuple(labels[unit] for unit in chosen))


def find_units(named: Sequence[int | str], labels: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of units given by index or label, ascending.

    Args:
        named: Indices or labels.
        labels: Labels of all units.

    Returns:
        The indices.

    Raises:
        DecoderError: If one does not exist or comes twice, or there is none.
    """
    where = {label: index for index, label in enumerate(labels)}
    found = []
    for name in named:
        index = where.get(name) if isinstance(name, str) else int(name)
        if index is None or not 0 <= index < len(labels):
            raise DecoderError(
                f"among names {name!r}, which is not a unit. Give labels such as {labels[0]!r}, or "
                f"indices from 0 to {len(labels) - 1}."
            )
        found.append(index)
    if len(set(found)) < max(1, len(found)):
        raise DecoderError(f"among must name at least one unit, each once; got {tuple(named)}.")
    return tuple(sorted(found))
