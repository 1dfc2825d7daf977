"""Searches on what a fit leaves over: fit, look at the residual, add what it shows, fit again.

Every search here proposes terms from residuals. What it proposes must covary with the residuals of
*all* rows by more than noise would, and stays only while its coefficient does in the joint fit.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import comb

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitspex.decoders._bins import complete_tables, decode_bins
from circuitspex.decoders._regression import Term, characters, solve_gram
from circuitspex.decoders._samples import Samples
from circuitspex.decoders.lasso import screen_pairs

_MAX_SHARE = 0.3  # of the rows that a fit may have terms
_LEAST_SCORE = 3.0  # standard errors that a covariance must be away from zero for a term to come in
_LEAST_T = 2.5  # standard errors that a coefficient must be away from zero for it to stay
_PRUNINGS = 3
_ROUNDS = 12
_MAX_FOUND = 200  # terms that one search may add in a round
_MAX_PARENTS = 96  # terms that are extended by a unit
_MAX_PAIRS = 512  # that are proposed in a round
_MAX_LISTED = 4096  # terms up to which all are proposed

Search = Callable[[Float[np.ndarray, " rows"], Mapping[Term, float]], list[Term]]
"""From residuals and the coefficients of the fit to further terms."""


class _Fit:
    """Least squares on a growing list of terms, of which those that look like noise are out."""

    def __init__(
        self,
        masks: Bool[np.ndarray, "rows units"],
        values: Float[np.ndarray, " rows"],
        keep_rate: float,
    ) -> None:
        self.masks, self.values, self.keep_rate = masks, values, keep_rate
        self.limit = max(1, int(_MAX_SHARE * len(values)))
        self.terms: list[Term] = []
        self.columns = np.ones((1, len(values)))  # one term a row; the first is the constant
        self.gram = np.array([[float(len(values))]])
        self.active = np.ones(1, dtype=bool)
        self.solution = np.array([values.mean()])
        self.residuals = values - values.mean()

    def scores(self, terms: Sequence[Term]) -> Float[np.ndarray, " terms"]:
        """Return how far covariances with the residuals are from zero, in standard errors."""
        columns = characters(self.masks, terms, self.keep_rate)
        spread = max(float(self.residuals.std()), np.finfo(float).tiny)
        return np.abs(self.residuals @ columns) / np.sqrt(len(self.values)) / spread

    def add(self, terms: Sequence[Term]) -> None:
        """Fit further terms along, then leave out what is not far enough from zero."""
        terms = list(terms)[: max(0, self.limit - int(self.active.sum()))]
        fresh = characters(self.masks, terms, self.keep_rate).T
        cross = self.columns @ fresh.T
        self.gram = np.block([[self.gram, cross], [cross.T, fresh @ fresh.T]])
        self.columns = np.concatenate([self.columns, fresh])
        self.terms += terms
        self.active = np.append(self.active, np.ones(len(terms), dtype=bool))
        for _ in range(_PRUNINGS):
            noise = self._solve()
            if not noise.any():
                return
            self.active[noise] = False
        self._solve()

    def _solve(self) -> Bool[np.ndarray, " all"]:
        """Return which of the terms that are in look like noise, having fitted them."""
        used = np.flatnonzero(self.active)
        block = self.gram[np.ix_(used, used)]
        block[np.diag_indices(len(used))] *= 1 + 1e-9
        self.solution = solve_gram(block, self.columns[used] @ self.values)
        self.residuals = self.values - self.solution @ self.columns[used]
        freedom = max(1, len(self.values) - len(used))
        errors = np.sqrt(np.square(self.residuals).sum() / freedom / np.diag(block))
        noise = np.zeros(len(self.active), dtype=bool)
        noise[used[1:]] = np.abs(self.solution[1:]) < _LEAST_T * errors[1:]
        return noise

    @property
    def chosen(self) -> dict[Term, float]:
        """Coefficients of the terms that are in."""
        which = np.flatnonzero(self.active)[1:] - 1
        return {
            self.terms[i]: float(value) for i, value in zip(which, self.solution[1:], strict=True)
        }


def grow(
    samples: Samples,
    values: Float[np.ndarray, " rows"],
    searches: Sequence[Search],
    keep_rate: float,
) -> dict[Term, float]:
    r"""Add terms that searches find in the residuals until they find no more.

    A term comes in if its covariance with the residuals of all rows passes
    :math:`\mathrm{sd}(r) \sqrt{2 \log(\text{proposed}) / m}`, which the largest of so many
    covariances with noise seldom does, and at least three standard errors.

    Args:
        samples: The rows.
        values: What is fitted: the rows' values without the effects of prompts.
        searches: Tried in turn.
        keep_rate: p of the characters.

    Returns:
        The terms of the last fit and their coefficients.
    """
    fit = _Fit(samples.masks, values, keep_rate)
    floor, tried = 1e-20 * float(values.var()), set[Term]()
    for _ in range(_ROUNDS):
        before = len(tried)
        for search in searches:
            if fit.residuals.var() <= floor:
                return fit.chosen
            proposed = [term for term in search(fit.residuals, fit.chosen) if term not in tried]
            if not proposed:
                continue
            scores = fit.scores(proposed)
            level = max(_LEAST_SCORE, np.sqrt(2 * np.log(len(proposed))))
            best = np.argsort(-scores, kind="stable")[:_MAX_FOUND]
            added = [proposed[i] for i in best if scores[i] > level]
            if added:
                tried.update(added)
                fit.add(added)
        if len(tried) == before:
            break
    return fit.chosen


def search_units(units: Int[np.ndarray, " units"]) -> Search:
    """Return the search that proposes single units.

    Args:
        units: Which.

    Returns:
        The search.
    """
    terms = [(int(unit),) for unit in units]
    return lambda residuals, fit: terms


def search_everything(n_units: int, max_order: int) -> Search:
    """Return the search that proposes every term up to an order, as far as there are not too many.

    Args:
        n_units: How many units.
        max_order: Most units in a term; fewer where terms of this order would be too many.

    Returns:
        The search.
    """
    orders = range(1, min(max_order, n_units) + 1)
    totals = np.cumsum([comb(n_units, order) for order in orders])
    affordable = [order for order, n in zip(orders, totals, strict=True) if n <= _MAX_LISTED]
    terms = [term for order in affordable for term in combinations(range(n_units), order)]
    return lambda residuals, fit: terms


def search_bins(samples: Samples, max_order: int) -> list[Search]:
    """Return the search that decodes the bins of coded masks, none if there are no such masks.

    Args:
        samples: The rows.
        max_order: Most units in a term.

    Returns:
        One search, or none.
    """
    tables = complete_tables(samples)
    return [lambda residuals, fit: decode_bins(tables, residuals, max_order)] if tables else []


def search_pairs(
    masks: Bool[np.ndarray, "rows units"], units: Int[np.ndarray, " chosen"], keep_rate: float
) -> Search:
    """Return the search for pairs that covary with the residuals.

    Args:
        masks: Keep-masks.
        units: Units among which to look.
        keep_rate: p of the characters.

    Returns:
        The search.
    """
    return lambda residuals, fit: screen_pairs(masks, residuals, units, keep_rate, _MAX_PAIRS)


def search_extensions(
    masks: Bool[np.ndarray, "rows units"],
    units: Int[np.ndarray, " chosen"],
    keep_rate: float,
    max_order: int,
) -> Search:
    """Return the search for terms that differ by one unit from a term of the fit.

    Args:
        masks: Keep-masks.
        units: Units that may be added.
        keep_rate: p of the characters.
        max_order: Most units in a term.

    Returns:
        The search.
    """
    z = characters(masks, [(int(unit),) for unit in units], keep_rate).astype(np.float32)

    def search(residuals: Float[np.ndarray, " rows"], fit: Mapping[Term, float]) -> list[Term]:
        largest = sorted(fit, key=lambda term: -abs(fit[term]))
        parents = [term for term in largest if len(term) < max_order][:_MAX_PARENTS]
        smaller = {term[:i] + term[i + 1 :] for term in largest for i in range(len(term))} - {()}
        if not parents:
            return sorted(smaller)
        columns = characters(masks, parents, keep_rate) * residuals[:, None]
        scores = np.abs(columns.T.astype(np.float32) @ z) / np.sqrt(len(residuals))
        level = residuals.std() * np.sqrt(2 * np.log(max(2, scores.size)))
        strong = zip(*np.nonzero(scores > level), strict=True)
        larger = {tuple(sorted({*parents[i], int(units[j])})) for i, j in strong}
        return sorted(larger | smaller)

    return search
