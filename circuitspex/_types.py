"""Axis names and the protocols that the parts of the package meet in.

Axis names used in every annotation: ``masks`` (one keep-mask a row), ``units`` (what can be
ablated), ``prompts``, ``rows`` (one mask on one prompt each), ``positions``, ``vocab``,
``coefficients`` (one interaction each).
"""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
