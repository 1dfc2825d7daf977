"""Contexts: gradients of the intact model, and how they change where sets of units are ablated.

For a multilinear set function the derivative by unit i's gate in a context, the units of a set D
being ablated, is what keeping i adds there. Its change against the intact model is therefore minus
the sum of θ(T) over all T that hold i and, beside it, only units of D: one backward pass asks every
unit at once whether it interacts with D.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from circuitspex._shared import GRADIENT_COST, SampledDifferentiableSetFunction
from circuitspex.decoders.measuring import Meter

_AT_ONCE = 32  # contexts asked for in one call: each has a gradient as long as there are units


@dataclass(frozen=True)
class Changes:
    """What ablating sets of units changes, set by set."""

    values: Float[np.ndarray, " sets"]
    gradients: Float[np.ndarray, "sets units"]
    """In single precision: there may be very many units."""
    prompts: Int[np.ndarray, "sets drawn"]
    """Which prompts each set was read on."""


class Contexts:
    """Reads gradients in contexts, against those of the intact model on the same prompts."""

    def __init__(self, meter: Meter, n_drawn: int | None, rng: np.random.Generator) -> None:
        """Read the intact model on every prompt.

        Args:
            meter: The metered set function.
            n_drawn: Prompts per context; None for the mean over all prompts.
            rng: Draws the prompts.
        """
        self.meter, self.rng = meter, rng
        sampled = isinstance(meter.set_function, SampledDifferentiableSetFunction)
        self.n_drawn = n_drawn if sampled else None
        intact = torch.ones(1, meter.n_units, dtype=torch.bool)
        every = None if self.n_drawn is None else meter.n_prompts
        values, gradients, _ = meter.gradients(intact, every, rng)
        self.values: Float[np.ndarray, " prompts"] = values[0]
        """Of the intact model, prompt by prompt unless every context is the mean over all."""
        self.gradients: Float[np.ndarray, "prompts units"] = gradients[0].astype(np.float32)
        """Of the intact model."""
        self.gradient: Float[np.ndarray, " units"] = gradients[0].mean(axis=0)
        """Their mean over prompts."""
        self.n_read = 0

    @property
    def cost(self) -> int:
        """Evaluations that a context counts for."""
        return GRADIENT_COST * (self.n_drawn or self.meter.n_prompts)

    def affordable(self, limit: int) -> int:
        """Return how many contexts can be read before so many evaluations are spent."""
        return max(0, (limit - self.meter.n_evaluations) // self.cost)

    def read(self, deletions: Bool[np.ndarray, "sets units"]) -> Changes:
        """Ablate sets of units.

        Args:
            deletions: The sets; True where ablated.

        Returns:
            The changes of values and gradients against the intact model.
        """
        values, drawn = np.empty(len(deletions)), []
        changes = np.empty(deletions.shape, dtype=np.float32)
        for start in range(0, len(deletions), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            masks = torch.from_numpy(~deletions[part])
            read, gradients, prompts = self.meter.gradients(masks, self.n_drawn, self.rng)
            values[part] = (read - self.values[prompts]).mean(axis=1)
            for row, gradient in enumerate(gradients):
                intact = self.gradients[prompts[row]]
                changes[start + row] = (gradient - intact).mean(axis=0)
            drawn.append(prompts)
        self.n_read += len(deletions)
        return Changes(values, changes, np.concatenate(drawn))
