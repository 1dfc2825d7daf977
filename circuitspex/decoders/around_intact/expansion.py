r"""The expansion around the intact model: effects measured exactly, gradients for all other units.

.. math:: v(N \setminus D) = v(N) + \sum_{T \subseteq D} \theta(T)

Measured terms come from ablating all their subsets. The effect of a unit that was not measured is
minus its derivative. Both are known prompt by prompt, so that a value of one prompt can be compared
with what is known about that very prompt.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from circuitspex._shared import Interaction
from circuitspex.algebra import membership, subsets
from circuitspex.decoders.around_intact.contexts import Contexts
from circuitspex.decoders.codes import Residuals, SpentError
from circuitspex.decoders.measuring import Reader

_AT_ONCE = 64  # terms whose subsets are asked for in one call


class Expansion:
    """What is known about the neighbourhood of the intact model."""

    def __init__(self, contexts: Contexts, reader: Reader) -> None:
        """Start from the gradient.

        Args:
            contexts: The intact model.
            reader: Reads every prompt under every mask.
        """
        self.contexts = contexts
        self.residuals = Residuals(reader, 0, contexts.meter.n_units)
        self.effects: dict[Interaction, Float[np.ndarray, " prompts"]] = {}
        """Measured effects beyond those of their parts; units, pairs and so on."""

    def measure(self, terms: Sequence[Interaction], limit: int) -> int:
        """Measure terms and all their parts on every prompt, in order, while the budget lasts.

        Args:
            terms: The terms, most wanted first.
            limit: Evaluations after which no more are spent.

        Returns:
            How many were measured.
        """
        self.residuals.limit = limit
        for start in range(0, len(terms), _AT_ONCE):
            batch = terms[start : start + _AT_ONCE]
            parts = dict.fromkeys(part for term in batch for part in subsets(term))
            try:
                self.residuals.look_up(membership(parts, self.residuals.n_units))
            except SpentError:
                return start + self._measure_singly(batch)
            self._measure_singly(batch)
        return len(terms)

    def _measure_singly(self, terms: Sequence[Interaction]) -> int:
        for done, term in enumerate(terms):
            try:
                parts, effects = self.residuals.effects(term)
            except SpentError:
                return done
            self.effects.update(zip(parts, effects, strict=True))
        return len(terms)

    def single(self) -> Float[np.ndarray, " units"]:
        """Return the effect of ablating each unit alone, averaged over prompts."""
        effects = -self.contexts.gradient
        for term, values in self.effects.items():
            if len(term) == 1:
                effects[term[0]] = values.mean()
        return effects

    def of_order(self, order: int) -> list[Interaction]:
        """Return the measured terms of an order, the largest effect first."""
        terms = [term for term in self.effects if len(term) == order]
        return sorted(terms, key=lambda term: -abs(self.effects[term].mean()))

    def is_more(self, term: Interaction) -> bool:
        """Return whether a measured effect is more than rounding."""
        game = self.residuals
        return bool(abs(self.effects[term].mean()) > game.relative_rounding * game.largest)

    def interactions(self) -> list[Interaction]:
        """Return what is measured of more than one unit and is more than rounding.

        The largest effects come first.
        """
        terms = [term for term in self.effects if len(term) > 1 and self.is_more(term)]
        return sorted(terms, key=lambda term: -abs(self.effects[term].mean()))

    def search_beyond(self, limit: int) -> Residuals:
        """Return the game of what ablating sets does beyond all of this."""
        known: dict[Interaction, float] = {(): float(self.effects[()].mean())}
        known |= {(unit,): effect for unit, effect in enumerate(self.single().tolist()) if effect}
        known |= {
            term: float(values.mean()) for term, values in self.effects.items() if len(term) > 1
        }
        self.residuals.limit = limit
        self.residuals.correct_for(known)
        return self.residuals

    def parts_of(
        self, deletions: Bool[np.ndarray, "sets units"], terms: Iterable[Interaction]
    ) -> Float[np.ndarray, "sets prompts 3"]:
        """Say what ablating sets should do, by where this is known from.

        Args:
            deletions: The sets.
            terms: Measured terms of more than one unit to count.

        Returns:
            The sums, prompt by prompt, of gradients, of measured units, and of measured terms.
        """
        n_prompts = len(self.effects[()])
        units = [term[0] for term in self.effects if len(term) == 1]
        rest = -self.contexts.gradients.T
        if rest.shape[1] < n_prompts:  # all prompts are read as one
            rest = np.repeat(rest, n_prompts, axis=1)
        rest[units] = 0
        measured = np.array([self.effects[unit,] for unit in units]).reshape(-1, n_prompts)
        parts = np.zeros((len(deletions), n_prompts, 3))
        parts[:, :, 0] = deletions.astype(np.float32) @ rest
        parts[:, :, 1] = deletions[:, units].astype(float) @ measured
        for term in terms:
            within = deletions[:, list(term)].all(axis=1)
            parts[within, :, 2] += self.effects[term]
        return parts
