"""Contexts: gradients of the intact model, and how they change where sets of units are ablated.

For a multilinear set function the derivative by unit i's gate in a context, the units of a set D
being ablated, is what keeping i adds there. Its change against the intact model is therefore minus
the sum of θ(T) over all T that hold i and, beside it, only units of D: one backward pass asks every
unit at once whether it interacts with D.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from circuitspex._shared import GRADIENT_COST, Interaction
from circuitspex.algebra import alternating_sum, membership, subsets
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

    def __init__(
        self,
        meter: Meter,
        n_drawn: int | None,
        rng: np.random.Generator,
        *,
        precision: type[np.floating] = np.float32,
        note: Callable[..., None] | None = None,
    ) -> None:
        """Read the intact model on every prompt.

        Args:
            meter: The metered set function.
            n_drawn: Prompts per context; None for the mean over all prompts.
            rng: Draws the prompts.
            precision: Of the gradients that are kept: there may be very many units.
            note: Is told the masks, values, gradients and prompts of everything that is read.
        """
        self.meter, self.n_drawn, self.rng, self._note = meter, n_drawn, rng, note
        intact = np.ones((1, meter.n_units), dtype=bool)
        every = None if n_drawn is None else meter.n_prompts
        values, gradients, prompts = self._ask(intact, every)
        order = np.argsort(prompts[0])  # all prompts are drawn, but in any order
        self.values: Float[np.ndarray, " prompts"] = values[0][order]
        """Of the intact model, prompt by prompt unless every context is the mean over all."""
        self.gradients: Float[np.ndarray, "prompts units"] = gradients[0][order].astype(precision)
        """Of the intact model."""
        self.gradient: Float[np.ndarray, " units"] = gradients[0].mean(axis=0)
        """Their mean over prompts."""
        self.n_read = 0
        self.changes: dict[Interaction, Float[np.ndarray, " units"]] = {}
        """By how much ablating the units of a term changes the derivative by every unit's gate."""

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
        changes = np.empty(deletions.shape, dtype=self.gradients.dtype)
        for start in range(0, len(deletions), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            read, gradients, prompts = self._ask(~deletions[part], self.n_drawn)
            values[part] = (read - self.values[prompts]).mean(axis=1)
            for row, gradient in enumerate(gradients):
                intact = self.gradients[prompts[row]]
                changes[start + row] = (gradient - intact).mean(axis=0)
            drawn.append(prompts)
        self.n_read += len(deletions)
        return Changes(values, changes, np.concatenate(drawn))

    def take(self, terms: Sequence[Interaction]) -> None:
        """Ablate terms, and remember what that changes."""
        sets = membership(terms, self.meter.n_units)
        self.changes |= zip(terms, self.read(sets).gradients, strict=True)

    def _ask(
        self, masks: Bool[np.ndarray, "masks units"], n_drawn: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        answer = self.meter.gradients(torch.from_numpy(masks), n_drawn, self.rng)
        if self._note is not None:
            self._note(masks, *answer)
        return answer


def beyond_parts(
    changes: Mapping[Interaction, Float[np.ndarray, " units"]], base: Interaction
) -> Float[np.ndarray, " units"]:
    """Return what ablating all of a base changes beyond its parts; 0 for the base's own units.

    Args:
        changes: What ablating the base and each of its parts changes.
        base: Units that are ablated.

    Returns:
        In a multilinear game, minus the effect of the base with one more unit, unit by unit.
    """
    parts = subsets(base)[1:]
    pure = alternating_sum(parts, [changes[part] for part in parts])
    pure[list(base)] = 0
    return pure


def affordable_parts(
    terms: Iterable[Interaction], known: Container[Interaction], n_most: int
) -> tuple[list[Interaction], list[Interaction]]:
    """Return terms from the first on, as far as what is to be ablated for them is affordable.

    Args:
        terms: The terms, most wanted first.
        known: Sets that need not be ablated again.
        n_most: How many more may be.

    Returns:
        The terms, and those of their subsets that are not known.
    """
    taken: list[Interaction] = []
    needed: dict[Interaction, None] = {}
    for term in terms:
        new = [part for part in subsets(term) if part not in known and part not in needed]
        if len(needed) + len(new) > n_most:
            break
        needed |= dict.fromkeys(new)
        taken.append(term)
    return taken, list(needed)
