"""Axis names and the protocols that the parts of the package meet in.

Axis names used in every annotation: ``masks`` (one keep-mask a row), ``units`` (what can be
ablated), ``prompts``, ``rows`` (one mask on one prompt each), ``positions``, ``vocab``,
``coefficients`` (one interaction each).
"""

from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

Interaction: TypeAlias = tuple[int, ...]
"""An interaction: the sorted indices of units that are considered together."""

GRADIENT_COST = 3
"""Evaluations that one mask on one prompt counts for when its gradient is taken too."""


@runtime_checkable
class SetFunction(Protocol):
    """Anything that can be decoded: keep-masks in, one number per mask out."""

    n_units: int

    def __call__(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, " masks"]:
        """Return the value of every mask; True means kept."""
        ...


@runtime_checkable
class SampledSetFunction(SetFunction, Protocol):
    """A set function that is the mean of one game per prompt and can be read prompt by prompt."""

    n_prompts: int

    def per_prompt(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, "masks prompts"]:
        """Return the value of every mask on every prompt."""
        ...

    def sample(
        self,
        masks: Bool[Tensor, "masks units"],
        prompts_per_mask: int,
        rng: np.random.Generator,
    ) -> tuple[Float[Tensor, "masks drawn"], Int[Tensor, "masks drawn"]]:
        """Evaluate each mask on a few prompts, balanced over prompts.

        Returns the values and, for each, the index of its prompt.
        """
        ...


@runtime_checkable
class DifferentiableSetFunction(SetFunction, Protocol):
    """A set function with a gate per unit, so that derivatives by all gates come at once."""

    def value_and_gradient(
        self, masks: Bool[Tensor, "masks units"]
    ) -> tuple[Float[Tensor, " masks"], Float[Tensor, "masks units"]]:
        """Return the value of every mask and its derivative by every unit's gate."""
        ...


@runtime_checkable
class SampledDifferentiableSetFunction(SampledSetFunction, DifferentiableSetFunction, Protocol):
    """A differentiable mean of one game per prompt that can be read prompt by prompt."""

    def sample_gradients(
        self,
        masks: Bool[Tensor, "masks units"],
        prompts_per_mask: int,
        rng: np.random.Generator,
    ) -> tuple[
        Float[Tensor, "masks drawn"], Float[Tensor, "masks drawn units"], Int[Tensor, "masks drawn"]
    ]:
        """Evaluate each mask with its gradient on a few prompts, balanced over prompts.

        Returns the values, the gradients and, for each, the index of its prompt.
        """
        ...
