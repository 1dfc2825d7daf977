"""The exact decoder: every mask, and the dense transform."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from circuitspex.algebra import Interactions
from circuitspex.decoders.measuring import Decoder, Meter, transform_all


@dataclass(frozen=True, kw_only=True)
class ExactDecoder(Decoder):
    """Evaluates all masks and transforms them, so nothing is estimated.

    **Cost:** ``2**n_units`` evaluations on every prompt, at most 20 units.

    **Assumption:** none. Terms of every order are kept unless ``max_order`` is given; what that
    leaves out is then missing from predictions. Coefficients below 1e-12 of the largest are
    rounding and dropped.

    **Errors:** if the set function is a mean over prompts, its standard errors say how far the
    coefficients of this mean may be from those of the population the prompts are drawn from
    (``error_source="prompts"``). Otherwise they are zero (``"none"``). Nothing is held out, so
    there is no held-out R².
    """

    name: ClassVar[str] = "exact"
    model_keep_rate: ClassVar[float] = 0.5
    auto_prompts: ClassVar[Literal["all", "fewest", "one"]] = "all"

    prompts_per_mask: Literal["all", "auto"] = "auto"
    """All of them; a sparse decoder takes fewer."""

    def _decode(self, meter: Meter, rng: np.random.Generator) -> Interactions:
        return transform_all(self, meter)
