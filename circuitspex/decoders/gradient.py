"""The gradient decoder: gradients find interactions, ablations verify them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Le

from circuitspex._shared import GRADIENT_COST, Interaction
from circuitspex.algebra import Interactions
from circuitspex.decoders.around_intact import Neighbourhood, describe_measured, explore
from circuitspex.decoders.measuring import (
    MIN_MASKS,
    Decoder,
    Meter,
    Samples,
    evaluate_round,
    is_worth_transforming,
    plan_rounds,
    prompts_to_draw,
    transform_all,
    unit_labels,
)
from circuitspex.decoders.process import (
    ExpansionMean,
    Gradients,
    LinearMean,
    ProcessFit,
    QuadraticMean,
    clip_lengths,
    fit_process,
    unit_weights,
)
from circuitspex.decoders.regression import Candidates, SparseRegression, combine
from circuitspex.designs import bernoulli_masks
from circuitspex.errors import BudgetError

_GRADIENT_SHARE = 0.3  # of what the search leaves; twice as much of the first few hundred
_FEW = 200
_LEAST_GRADIENTS = 8
_LEAST_SEARCH = 8  # gradients of the intact model that a search must be able to afford
_TRUST = (1.0, 0.3, 0.0)  # in what was measured around the intact model, the first near it
_NEAR = 14  # ablated units up to which a mask is near the intact model
_MAX_ROWS = 8192  # of the process, whose time grows with their cube
_PAIR_UNITS = 1024  # units whose pairs gradients may propose, by weight
_MAX_CANDIDATES = 512
_EXACT = 0.99  # held-out R² from which a regression counts as exact
_MAX_COVARIANCE = 1024
_ABOUT_ROWS = (
    "n_masks",
    "n_rows",
    "n_prompts",
    "prompts_per_mask",
    "variance_masks",
    "variance_masks_x_prompts",
)


@dataclass(frozen=True, kw_only=True)
class GradientDecoder(Decoder):
    r"""Finds interactions by gradients, verifies them by ablations, and fits everything measured.

    One backward pass gives the derivative of the value by every unit's gate, for the price of
    about two forward passes more. The budget is spent on

    1. *the neighbourhood of the intact model*: gradients with single units ablated, then pairs, …
       rank candidates; the best are measured exactly, by ablating every subset of them. Their
       Möbius coefficients are in ``diagnostics["verified"]``, with the standard error over prompts;
    2. *gradients at random masks* of the keep rate, which say what each unit, and pairs of units,
       do on average there;
    3. *values at random masks*.

    There are two fits. A Gaussian process whose prior is made of the gradients
    (``_process.py``) fits all values, those of the first part included; its mean is returned as the
    coefficients that make up all but 0.3 % of its variance. The relaxed LASSO that the other
    decoders share fits the third part, on the terms that gradients and verification propose; it is
    returned where held-out masks show it to be exact, as it is where these terms are all there are.

    **Cost:** the whole budget; a gradient counts three evaluations.

    **Assumption:** gradients say which units matter. Interactions are of order 3 at most beyond
    those that were verified.

    **When it fails:** where the value is flat in the gates but not in ablations; the held-out R²
    says so.
    """

    name: ClassVar[str] = "gradient"

    max_order: Annotated[int, Ge(1), Le(6)] = 3
    """Most units in one interaction."""

    search_share: Annotated[float, Ge(0), Le(1)] | None = None
    """Share of the budget for interactions around the intact model. None for 0.8 where every mask
    is evaluated on all prompts (or there is one), less in proportion where masks ablate more than
    14 units, far from that model, but at least 0.1. Where masks are evaluated on some prompts, 0.2
    near that model and nothing far from it. Nothing where it would verify next to nothing."""

    order_shares: tuple[Annotated[float, Ge(0)], ...] | None = None
    """Shares of the search for order 2, 3, …; nine tenths of it for order 2 when None."""

    def _disagreements(self) -> Iterator[str]:
        shares = self.order_shares
        if shares is not None and (
            len(shares) != self.max_order - 1 or abs(sum(shares) - 1) > 1e-6
        ):
            yield (
                f"order_shares must be one share for each order from 2 to max_order="
                f"{self.max_order}, which sum to 1; got {shares}"
            )

    def _decode(self, meter: Meter, rng: np.random.Generator) -> Interactions:
        n_drawn = prompts_to_draw(meter, self.prompts_per_mask)
        if is_worth_transforming(meter, n_drawn):
            return transform_all(self, meter)
        n_search, n_gradients = self._plan(meter, n_drawn)
        found = explore(meter, n_drawn, n_search, self._order_shares(), rng)
        masks = bernoulli_masks(n_gradients, meter.n_units, self.keep_rate, rng)
        measured = meter.gradients(masks, n_drawn, rng)
        parts = [part.reshape(-1, *part.shape[2:]) for part in measured]
        random = Gradients(masks.numpy().repeat(measured[0].shape[1], axis=0), *parts)
        samples = self._sample(meter, n_drawn, rng)
        return self._fit(meter, found, random, samples, rng)

    def _order_shares(self) -> tuple[float, ...]:
        if self.order_shares is not None:
            return self.order_shares
        higher = self.max_order - 2
        if higher <= 0:
            return (1.0,) * (self.max_order - 1)
        return (0.9, *(0.1 / higher,) * higher)

    def _plan(self, meter: Meter, n_drawn: int | None) -> tuple[int, int]:
        """Return how many evaluations the search gets, and how many random masks a gradient.

        Raises:
            BudgetError: If one of the parts gets too little.
        """
        cost = meter.n_prompts if n_drawn is None else n_drawn
        intact = GRADIENT_COST * meter.n_prompts
        least = cost * (GRADIENT_COST * _LEAST_GRADIENTS + MIN_MASKS)
        search = int((self.search_share or 0) * meter.budget)
        if self.search_share is None:
            share = self._default_share(meter.n_units, n_drawn is not None)
            search = min(int(share * meter.budget), meter.budget - least)
            search = 0 if search < _LEAST_SEARCH * intact else search
        if 0 < search < intact:
            raise BudgetError(
                f"the search needs the intact model's gradient, {intact} evaluations, but "
                f"search_share={self.search_share} leaves {search} of {meter.budget}. Raise the "
                "budget or the share, or set it to 0."
            )
        rest = meter.budget - search
        share = _GRADIENT_SHARE * (1 + _FEW / max(_FEW, rest // cost))
        n_gradients = int(share * rest) // (GRADIENT_COST * cost)
        n_gradients = max(_LEAST_GRADIENTS, min(n_gradients, _MAX_ROWS // 4))
        n_values = (rest - GRADIENT_COST * cost * n_gradients) // cost
        if n_values < MIN_MASKS:
            raise BudgetError(
                f"{meter.n_units} units need at least {MIN_MASKS} masks and {_LEAST_GRADIENTS} "
                f"gradients at {cost} prompt(s) each, {least} evaluations beside the {search} of "
                f"the search; the budget is {meter.budget}. Raise it, or lower search_share or "
                "prompts_per_mask."
            )
        return search, n_gradients

    def _default_share(self, n_units: int, few_prompts: bool) -> float:
        far = max(1.0, n_units * (1 - self.keep_rate) / _NEAR)
        if few_prompts:
            return 0.2 if far == 1 else 0.0
        return max(0.1, 0.8 / far)

    def _sample(self, meter: Meter, n_drawn: int | None, rng: np.random.Generator) -> Samples:
        cost = meter.n_prompts if n_drawn is None else n_drawn
        affordable = (meter.budget - meter.n_evaluations) // cost
        share = min(1.0, _MAX_ROWS // 2 / affordable)
        (planned,) = plan_rounds(meter, self.keep_rate, n_drawn, [share], rng)
        return evaluate_round(meter, planned, n_drawn, self.keep_rate, rng)

    def _fit(
        self,
        meter: Meter,
        found: Neighbourhood,
        random: Gradients,
        samples: Samples,
        rng: np.random.Generator,
    ) -> Interactions:
        labels = unit_labels(meter)
        clipped = clip_lengths(random.gradients, random.gradients)
        verified = found.measured()
        weights = unit_weights(clipped, verified, self.keep_rate)
        linear = LinearMean(clipped, self.keep_rate)
        near = np.array(found.gradients).reshape(-1, meter.n_units)
        near_masks = np.array(found.gradient_masks, dtype=bool).reshape(near.shape)
        is_near = meter.n_units * (1 - self.keep_rate) <= _NEAR
        quadratics = [
            QuadraticMean(
                linear,
                np.concatenate([random.masks, near_masks]),
                np.concatenate([clipped, clip_lengths(near, random.gradients)]),
                weights,
                verified,
                trust,
            )
            for trust in (_TRUST if is_near else _TRUST[::-1])
        ]
        expansion = ExpansionMean(found, self.keep_rate)
        proposed = self._propose(quadratics[0], expansion, weights)
        listed = _Listed(
            keep_rate=self.keep_rate, prompts_per_mask=self.prompts_per_mask, candidates=proposed
        )
        fitted = listed._fit(samples, labels, meter.n_evaluations, rng)
        if fitted.held_out_r2 is None:  # nothing varies
            return fitted
        process = fit_process(
            samples,
            found,
            random,
            [linear, *quadratics, *([expansion] if found.masks else [])],
            weights,
            self.keep_rate,
            self.max_order,
            expansion.support,
            rng,
        )
        result = _better(fitted, self._interactions(process, labels, meter))
        return replace(
            result,
            diagnostics={
                **result.diagnostics,
                "n_gradients": len(found.gradients) + len(random.gradients),
                "contexts": ["+".join(labels[i] for i in term) for term in found.contexts],
                "verified": describe_measured(found.verified, labels),
                "held_out_r2_process": process.r2,
                "held_out_r2_lasso": fitted.held_out_r2,
                "prior": process.prior,
            },
        )

    def _propose(
        self, quadratic: QuadraticMean, expansion: ExpansionMean, weights: np.ndarray
    ) -> Candidates:
        """Return all units, what was verified with its parts, and the pairs that gradients show."""
        order = np.argsort(-weights, kind="stable")
        units = [(int(unit),) for unit in order[:_MAX_CANDIDATES]]
        terms = [*units, *expansion.support]
        pairs: list[Interaction] = []
        if self.max_order > 1:
            pairs = list(combinations(sorted(order[:_PAIR_UNITS].tolist()), 2))
            sizes = np.abs(quadratic.coefficients(pairs))
            pairs = [pairs[i] for i in np.argsort(-sizes, kind="stable")[: _MAX_CANDIDATES // 2]]
        return combine([dict.fromkeys(terms, 1.0), dict.fromkeys([*terms, *pairs], 1.0)])

    def _interactions(
        self, process: ProcessFit, labels: tuple[str, ...], meter: Meter
    ) -> Interactions:
        variances = np.r_[0.0, np.diag(process.covariance).clip(min=0)]
        small = len(process.support) <= _MAX_COVARIANCE
        covariance = np.zeros((len(variances), len(variances)) if small else (0, 0))
        covariance[1:, 1:] = process.covariance if small else 0
        return Interactions(
            n_units=len(labels),
            units=labels,
            basis="fourier",
            origin=None,
            keep_rate=self.keep_rate,
            support=((), *process.support),
            coefficients=torch.from_numpy(np.r_[process.constant, process.coefficients]),
            std_errors=torch.from_numpy(np.sqrt(variances)),
            covariance=torch.from_numpy(covariance) if small else None,
            error_source="masks",
            n_evaluations=meter.n_evaluations,
            held_out_r2=process.r2,
            decoder=self.name,
            diagnostics={"held_out_r2_std_error": process.r2_std_error},
        )


@dataclass(frozen=True, kw_only=True)
class _Listed(SparseRegression):
    """The regression of the other decoders, on terms that are given."""

    name: ClassVar[str] = "gradient"

    candidates: Candidates

    def _search(self, samples: Samples, rng: np.random.Generator) -> Candidates:
        return self.candidates


def _better(regression: Interactions, process: Interactions) -> Interactions:
    """Return the regression where it is nearly exact and predicts better, else the process.

    Elsewhere the two are not told apart: which of them is luckier on few masks says little.
    """
    about = {k: regression.diagnostics[k] for k in _ABOUT_ROWS if k in regression.diagnostics}
    process = replace(process, diagnostics={**about, **process.diagnostics})
    if process.held_out_r2 is None or regression.held_out_r2 is None:
        return regression
    better = regression.held_out_r2 >= max(_EXACT, process.held_out_r2)
    return regression if better else process
