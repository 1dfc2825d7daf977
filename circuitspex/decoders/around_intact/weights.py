"""How much of the expansion around the intact model is left at the keep rate.

Away from the intact model effects shrink, grow or saturate. A constant and one weight each, for all
gradients, all measured units and all measured interactions, are fitted to values at the keep rate.
Every value is compared with what is known of the very prompts it is of: that takes away most of
what prompts differ by, so that few values do.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitspex._shared import Interaction
from circuitspex.decoders.around_intact.expansion import Expansion
from circuitspex.decoders.regression import ridge
from circuitspex.designs import bernoulli_masks

_PRIOR_SD = 0.5  # of a weight, about 1


@dataclass(frozen=True)
class Weights:
    """What the parts of the expansion count at the keep rate."""

    shift: float = 0.0
    gradients: float = 1.0
    units: float = 1.0
    interactions: float = 1.0

    def apply(
        self, expansion: Expansion
    ) -> tuple[list[Interaction], Float[np.ndarray, "terms prompts"]]:
        """Return the terms of an expansion with their weighted effects, prompt by prompt."""
        effects, slopes = expansion.effects, expansion.contexts.gradients
        measured = [term for term in effects if len(term) == 1 and expansion.is_more(term)]
        rest = np.abs(slopes).max(axis=0) > 0
        rest[[term[0] for term in effects if len(term) == 1]] = False
        gradients = np.zeros((int(rest.sum()), len(effects[()])))
        gradients -= slopes.T[rest]
        rows = [
            (effects[()] + self.shift)[None],
            self.gradients * gradients,
            *(self.units * effects[term][None] for term in measured),
            *(self.interactions * effects[term][None] for term in expansion.interactions()),
        ]
        unmeasured = [(unit,) for unit in np.flatnonzero(rest).tolist()]
        return [(), *unmeasured, *measured, *expansion.interactions()], np.concatenate(rows)


def fit_weights(
    expansion: Expansion, n_drawn: int | None, n_masks: int, keep_rate: float
) -> Weights:
    """Fit the weights to values at the keep rate.

    Args:
        expansion: What is known.
        n_drawn: Prompts per mask; None without prompts.
        n_masks: Masks to evaluate; with none of them, all weights are 1.
        keep_rate: At which units are kept.

    Returns:
        The weights.
    """
    if n_masks < 1:
        return Weights()
    meter, rng = expansion.contexts.meter, expansion.contexts.rng
    intact = expansion.effects[()]
    masks = bernoulli_masks(n_masks, meter.n_units, keep_rate, rng)
    known = expansion.parts_of(~masks.numpy(), expansion.interactions())
    if n_drawn is None:
        return _weigh(meter.values(masks) - intact.mean(), known.mean(axis=1))
    values, prompts = meter.sample(masks, n_drawn, rng)
    chosen = np.take_along_axis(known, prompts[:, :, None], axis=1)
    return _weigh((values - intact[prompts]).mean(axis=1), chosen.mean(axis=1))


def _weigh(values: Float[np.ndarray, " masks"], parts: Float[np.ndarray, "masks 3"]) -> Weights:
    """Return a constant and a weight per part, drawn towards 1, by ridge regression."""
    missed = values - parts.sum(axis=1)
    variance = max(float(missed.var()), np.finfo(float).tiny)
    columns = parts - parts.mean(axis=0)
    beyond = ridge(columns, missed - missed.mean(), np.full(3, variance / _PRIOR_SD**2))
    shift = missed.mean() - parts.mean(axis=0) @ beyond
    return Weights(float(shift), *(1 + beyond).tolist())
