"""The coarse-to-fine decoder: gradients for very many units, ablations for the few that matter."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Le, Lt
from jaxtyping import Float

from circuitspex._shared import Count, Interaction
from circuitspex.algebra import Coordinates, Interactions, convert, evaluate
from circuitspex.decoders.around_intact import Search, Weights, describe_measured, fit_weights
from circuitspex.decoders.measuring import (
    Decoder,
    Meter,
    Reader,
    errors_over_prompts,
    explained_share,
    transform_all,
    unit_labels,
)
from circuitspex.designs import bernoulli_masks
from circuitspex.errors import BudgetError, DecoderError

_FEWEST_MASKS = 16
_MOST_HELD_OUT = 256
_EXHAUSTIBLE = 20  # units; more are never transformed exactly
_SHARES = {"blocks": 0.12, "units": 0.2, "split": 0.04, "interactions": 0.46, "fit": 0.08}
"""Of what the intact model leaves of the budget, stage by stage; the rest is held out."""
_SHARES_OF_UNITS = {"blocks": 0.28, "units": 0.55, "fit": 0.1}
"""The same where single units are all that is wanted."""


@dataclass(frozen=True, kw_only=True)
class CoarseToFineDecoder(Decoder):
    r"""Tests all units by gradients in ablated blocks, then measures what stands out.

    Among tens of thousands of units, single ablations and random masks are hopeless, but one
    backward pass through the gates differentiates by all of them. For most neurons of a language
    model the derivative *is* the effect of an ablation; a few dozen, whose derivative changes when
    they are ablated or when others are, carry most of what it misses. So:

    1. *Blocks.* Gradients of the intact model, and with random blocks ablated, each unit in one
       block a round, several rounds: how does a unit's derivative change where it is itself
       ablated, and where others are?
    2. *Units.* Those with the largest of either change, in turns, are ablated one by one.
    3. *Split.* Blocks that do more than all of this explains are halved until the units that do it
       are found: some are silent under every derivative.
    4. *Interactions.* Gradients with single units ablated rank all pairs that hold one of them,
       gradients with pairs ablated all triples, and so on. The best are verified: all subsets are
       ablated, on every prompt.
    5. *Fit.* Values at the keep rate tell how much of the gradients, of the measured units and of
       the measured interactions around the intact model is left there, prompt by prompt.

    The result is the expansion around the intact model with these weights. Its diagnostics hold the
    verified θ themselves, as measured.

    **Cost:** the budget, which the stages share: 12 % blocks, 20 % units, 4 % split, 46 %
    interactions, 8 % fit, the rest is held out. A gradient counts three evaluations. If all masks
    cost no more than the budget, all are evaluated.

    **Assumption:** near the intact model most units act on their own; interactions are among units
    whose derivatives change. Values repeat; nothing is averaged but prompts.

    **Prompts:** what is measured is measured on every prompt. Contexts and fitted masks are read on
    ``prompts_per_mask`` of them, ``"auto"`` for one, and compared with the same prompts intact.

    **When it fails:** at keep rates so low that an expansion around the intact model says little;
    the held-out R² tells. A pair whose derivatives are flat at both ends and whose units influence
    nobody is found only if a block that holds both is split.

    **Errors:** over prompts (``error_source="prompts"``): not how far a derivative is from an
    effect. Without prompts there are none.

    References:
        Nanda (2023), "Attribution patching"; Kramár et al. (2024), "AtP*", arXiv:2403.00745, for
        what derivatives by gates miss.
    """

    name: ClassVar[str] = "coarse_to_fine"
    auto_prompts: ClassVar[Literal["all", "fewest", "one"]] = "one"

    max_order: Annotated[int, Ge(1), Le(6)] = 3
    """Most units in one interaction, whose subsets are all ablated; 1 spends on units what
    interactions would cost."""

    n_blocks: Annotated[int, Ge(2), Lt(2**31)] = 64
    """Blocks of a round, fewer where the budget is small."""

    n_rounds: Count = 3
    """How often blocks are drawn anew, fewer where the budget is small."""

    def _decode(self, meter: Meter, rng: np.random.Generator) -> Interactions:
        labels = unit_labels(meter)
        Reader(meter, self.prompts_per_mask, "intact", rng)  # refuses prompts there are not
        n_units, cost = meter.n_units, meter.n_prompts
        if n_units <= _EXHAUSTIBLE and 2**n_units * cost <= meter.budget:
            return transform_all(self, meter)
        if not meter.differentiable:
            raise DecoderError(
                "coarse_to_fine needs a set function with value_and_gradient(); "
                f"{type(meter.set_function).__name__} has none. Use a decoder that needs values "
                "only, such as 'hybrid' or 'moebius'."
            )
        if meter.budget < _FEWEST_MASKS * cost:
            raise BudgetError(
                f"{n_units} units need at least {_FEWEST_MASKS} masks at {cost} evaluation(s) "
                f"each, {_FEWEST_MASKS * cost} in all; the budget is {meter.budget}. Raise it, or "
                "take fewer prompts."
            )
        search = Search(meter, self._n_drawn(meter), min(self.max_order, n_units), rng)
        evaluations, fit_limit = self._run(search)
        n_masks = (fit_limit - meter.n_evaluations) // (search.n_drawn or 1)
        before = meter.n_evaluations
        weights = fit_weights(search.expansion, search.n_drawn, n_masks, self.keep_rate)
        evaluations["fit"] = meter.n_evaluations - before
        expansion = search.expansion
        measured = {term: expansion.effects[term] for term in expansion.interactions()}
        report = {
            "design": "coarse to fine",
            "evaluations": evaluations,
            **search.report,
            "n_contexts": search.contexts.n_read,
            "n_masks": max(0, n_masks) + search.n_masks,
            "weights": asdict(weights),
            "prompts_per_mask": self.prompts_per_mask,
            "verified": describe_measured(measured, labels),
        }
        return self._assemble(search, weights, labels, report)

    def _run(self, search: Search) -> tuple[dict[str, int], int]:
        """Return what each stage of the search spent, and the limit of what the fit may spend."""
        stages = {
            "blocks": partial(search.blocks, n_blocks=self.n_blocks, n_rounds=self.n_rounds),
            "units": search.units,
            "split": search.split,
            "interactions": search.interactions,
        }
        meter, shares = search.meter, _SHARES if search.max_order > 1 else _SHARES_OF_UNITS
        first, limit, evaluations = meter.n_evaluations, 0, {"intact": meter.n_evaluations}
        for stage, spent in zip(shares, np.cumsum(list(shares.values())), strict=True):
            before, limit = meter.n_evaluations, first + int(spent * (meter.budget - first))
            if stage in stages:
                stages[stage](limit)
                evaluations[stage] = meter.n_evaluations - before
        return evaluations, limit

    def _n_drawn(self, meter: Meter) -> int | None:
        """Return on how many prompts contexts and fitted masks are read; None without prompts."""
        if meter.sampled is None:
            return None
        if self.prompts_per_mask == "all":
            return meter.n_prompts
        return 1 if self.prompts_per_mask == "auto" else int(self.prompts_per_mask)

    def _assemble(
        self, search: Search, weights: Weights, labels: tuple[str, ...], report: dict[str, Any]
    ) -> Interactions:
        """Return the weighted expansion in the Fourier basis, held against fresh masks."""
        terms, effects = weights.apply(search.expansion)
        place = Coordinates("moebius", "intact", self.keep_rate)
        before = search.meter.n_evaluations
        r2, n_held_out = self._held_out_r2(search, terms, effects.mean(axis=1), place)
        report["evaluations"]["held_out"] = search.meter.n_evaluations - before
        report["n_masks"] += n_held_out
        support, matrix = convert(terms, place, Coordinates("fourier", None, self.keep_rate))
        spectrum = torch.from_numpy(matrix @ effects)
        errors = covariance = None
        if spectrum.shape[1] > 1:
            errors, covariance = errors_over_prompts(spectrum)
        return Interactions(
            n_units=search.meter.n_units,
            units=labels,
            basis="fourier",
            origin=None,
            keep_rate=self.keep_rate,
            support=support,
            coefficients=spectrum.mean(dim=1),
            std_errors=errors,
            covariance=covariance,
            error_source="none" if errors is None else "prompts",
            n_evaluations=search.meter.n_evaluations,
            held_out_r2=r2,
            decoder=self.name,
            diagnostics=report,
        )

    def _held_out_r2(
        self,
        search: Search,
        terms: list[Interaction],
        effects: Float[np.ndarray, " terms"],
        place: Coordinates,
    ) -> tuple[float | None, int]:
        """Return how well fresh masks are predicted, None if unknown, and their number."""
        meter = search.meter
        n_masks = min(_MOST_HELD_OUT, (meter.budget - meter.n_evaluations) // meter.n_prompts)
        if n_masks < _FEWEST_MASKS:
            return None, 0
        masks = bernoulli_masks(n_masks, meter.n_units, self.keep_rate, search.rng)
        values = meter.values(masks)
        predicted = evaluate(masks, terms, torch.from_numpy(effects), place).numpy()
        return explained_share(values, predicted), n_masks
