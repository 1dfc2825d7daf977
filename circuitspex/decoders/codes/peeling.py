"""Searches on what a fit leaves over: fit, look at the residual, add what it shows, fit again.

Every search here proposes terms from residuals. What it proposes must covary with the residuals of
*all* rows by more than noise would, and stays only while its coefficient does in the joint fit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitspex._shared import Interaction
from circuitspex.decoders.codes.bins import complete_tables, decode_bins, n_words_of
from circuitspex.decoders.measuring import Samples
from circuitspex.decoders.regression import characters, scores, solve_gram, strongest_pairs

_MAX_SHARE = 0.3  # of the rows that a fit may have terms
_LEAST_SCORE = 3.0  # standard errors of a covariance from zero for its term to come in
_LEAST_T = 2.5  # standard errors that a coefficient must be away from zero for it to stay
_PRUNINGS = 3
_MAX_FITS = 40
_MAX_FOUND = 200  # terms that one search may add in a round
_MAX_PARENTS = 96  # terms that are extended by a unit
_MAX_PAIRS = 512  # that are proposed in a round
_MAX_LISTED = 4096  # terms up to which all are proposed


@dataclass(frozen=True)
class Search:
    """A way to find terms in residuals."""

    n_looked_at: int
    """Among how many terms it chooses what it proposes: what a chance find must be rarer than."""

    propose: Callable[[Float[np.ndarray, " rows"], Mapping[Interaction, float]], list[Interaction]]
    """From residuals and the coefficients of the fit to terms."""

    def __call__(
        self, residuals: Float[np.ndarray, " rows"], fit: Mapping[Interaction, float]
    ) -> list[Interaction]:
        """Return what it proposes."""
        return self.propose(residuals, fit)


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
        self.terms: list[Interaction] = []
        self.columns = np.ones((1, len(values)))  # one term a row; the first is the constant
        self.gram = np.array([[float(len(values))]])
        self.active = np.ones(1, dtype=bool)
        self.solution = np.array([values.mean()])
        self.residuals = values - values.mean()

    def add(self, terms: Sequence[Interaction]) -> None:
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
    def chosen(self) -> dict[Interaction, float]:
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
) -> dict[Interaction, float]:
    r"""Add terms that searches find in the residuals until they find no more.

    A term comes in if its covariance with the residuals of all rows passes
    :math:`\mathrm{sd}(r) \sqrt{2 \log(\text{looked at}) / m}`, which the largest of so many
    covariances with noise seldom does, and at least three standard errors.

    Args:
        samples: The rows.
        values: What is fitted: the rows' values without the effects of prompts.
        searches: A later one is asked only when those before it find no more: on coded masks,
            some small term looks like a part of every large one, until that is in the fit.
        keep_rate: p of the characters.

    Returns:
        The terms of the last fit and their coefficients.
    """
    fit = _Fit(samples.masks, values, keep_rate)
    floor, tried = 1e-20 * float(values.var()), set[Interaction]()
    for _ in range(_MAX_FITS):
        added = []
        for search in searches:
            if fit.residuals.var() > floor:
                added = _significant(search, fit, tried)
            if added:
                break
        if not added:
            break
        tried.update(added)
        fit.add(added)
    return fit.chosen


def _significant(search: Search, fit: _Fit, tried: set[Interaction]) -> list[Interaction]:
    """Return what a search proposes and the residuals of all rows confirm, strongest first."""
    proposed = [term for term in search(fit.residuals, fit.chosen) if term not in tried]
    if not proposed:
        return []
    sizes = scores(fit.masks, fit.residuals, proposed, fit.keep_rate)
    level = max(_LEAST_SCORE, np.sqrt(2 * np.log(search.n_looked_at)))
    best = np.argsort(-sizes, kind="stable")[:_MAX_FOUND]
    return [proposed[i] for i in best if sizes[i] > level]


def search_units(units: Int[np.ndarray, " chosen"], n_units: int) -> Search:
    """Return the search that proposes single units.

    Args:
        units: Which.
        n_units: Among how many they were chosen.

    Returns:
        The search.
    """
    terms = [(int(unit),) for unit in units]
    return Search(n_units, lambda residuals, fit: terms)


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
    return Search(len(terms), lambda residuals, fit: terms)


def search_bins(samples: Samples, max_order: int) -> list[Search]:
    """Return the search that decodes the bins of coded masks, none if there are no such masks.

    Args:
        samples: The rows.
        max_order: Most units in a term.

    Returns:
        One search, or none.
    """
    tables = complete_tables(samples)
    if not tables:
        return []
    n_words = sum(n_words_of(table) for table in tables)
    return [Search(n_words, lambda residuals, fit: decode_bins(tables, residuals, max_order))]


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
    n_pairs = len(units) * (len(units) - 1) // 2
    return Search(
        max(1, n_pairs),
        lambda residuals, fit: strongest_pairs(masks, residuals, units, keep_rate, _MAX_PAIRS),
    )


def search_parts(max_order: int) -> Search:
    """Return the search for what is left of a term of the fit without one of its units.

    Args:
        max_order: Most units in a term of the fit.

    Returns:
        The search.
    """

    def propose(
        residuals: Float[np.ndarray, " rows"], fit: Mapping[Interaction, float]
    ) -> list[Interaction]:
        parts = {term[:i] + term[i + 1 :] for term in fit for i in range(len(term))}
        return sorted(parts - {()})

    return Search(max_order, propose)


def search_extensions(
    masks: Bool[np.ndarray, "rows units"],
    units: Int[np.ndarray, " chosen"],
    keep_rate: float,
    max_order: int,
) -> Search:
    """Return the search for terms of one unit more than a term of the fit.

    Args:
        masks: Keep-masks.
        units: Units that may be added.
        keep_rate: p of the characters.
        max_order: Most units in a term.

    Returns:
        The search.
    """
    z = characters(masks, [(int(unit),) for unit in units], keep_rate).astype(np.float32)

    def propose(
        residuals: Float[np.ndarray, " rows"], fit: Mapping[Interaction, float]
    ) -> list[Interaction]:
        largest = sorted(fit, key=lambda term: -abs(fit[term]))
        parents = [term for term in largest if len(term) < max_order][:_MAX_PARENTS]
        if not parents:
            return []
        columns = characters(masks, parents, keep_rate) * residuals[:, None]
        sizes = np.abs(columns.T.astype(np.float32) @ z) / np.sqrt(len(residuals))
        level = residuals.std() * np.sqrt(2 * np.log(max(2, sizes.size)))
        strong = zip(*np.nonzero(sizes > level), strict=True)
        found = {tuple(sorted({*parents[i], int(units[j])})) for i, j in strong}
        return sorted(found - set(parents))

    return Search(len(units), propose)
