"""From candidate terms to fits of every size: a LASSO path, refitted without its shrinkage.

The LASSO orders the candidates: as its penalty falls, terms enter. Each support on the way is then
refitted by ridge regression at a few penalties, the smallest being none (the relaxed LASSO), which
removes the bias that made the LASSO small. The LASSO's own coefficients are a fit as well: they
predict best where very many terms have small effects, as in a language model.

There are three paths. On the first all terms are penalised alike. But candidates of several units
are so many that the strongest of them owe their place to noise, and where single units carry most
of the effect, as near the intact model, they crowd out single units that are real. So on the second
path terms of several units are penalised more, and on the third they are left out. Which path,
which support and which ridge penalty are best is not decided here but on rows that had no part in
it (:mod:`circuitspex.decoders.regression.crossfit`).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitspex._shared import Interaction
from circuitspex.decoders.measuring import Samples
from circuitspex.decoders.regression.least_squares import characters, normal_equations, solve_gram

PENALTIES = np.geomspace(1.0, 0.003, 30)
"""LASSO penalties, as shares of the smallest one that leaves no term."""

RIDGES = (0.0, 0.03, 0.2, 1.0)
"""Ridge penalties of the refit, per row; the characters have variance 1, so the last one halves
coefficients, which predicts best where hardly anything can be told from noise."""

N_SHRINKAGES = len(RIDGES) + 1
"""Fits of one support: a refit for each ridge penalty, and the LASSO's own coefficients."""

EMPHASES = (1.0, 0.4, 0.0)
"""Weight of terms of several units against single ones, one path each."""

EMPTY_SUPPORT = 0
"""The fit without terms, at the largest penalty."""

LARGEST_SUPPORT = (len(PENALTIES) - 1) * N_SHRINKAGES
"""The fit with the largest support on the first path, without ridge."""

_MAX_SHARE = 0.5  # of the rows that a support may hold
_MAX_ITERATIONS = 300
_LASSO_TOLERANCE = 3e-4
_STRIDE = 3  # penalties solved before looking whether the support has grown too large


@dataclass(frozen=True)
class Candidates:
    """Terms that a search found, none of them empty."""

    terms: list[Interaction]
    """The terms, without repetition."""

    weights: Float[np.ndarray, " candidates"]
    """How much the search trusts each: the LASSO's penalty is divided by it. Positive."""

    families: tuple[Float[np.ndarray, " candidates"], ...] = ()
    """Where candidates come from several searches: the weights of each search alone, zero for what
    it did not find. The search that predicts best then has them to itself. ``weights`` are the
    only ones when empty; a decoder always gives as many families."""


def combine(families: Sequence[Mapping[Interaction, float]]) -> Candidates:
    """Make candidates of what several searches found.

    Args:
        families: The terms of each search with their weights.

    Returns:
        All terms, one family per search.
    """
    terms = list(dict.fromkeys(term for family in families for term in family))
    weights = [np.array([family.get(term, 0.0) for term in terms]) for family in families]
    return Candidates(terms, np.max(weights, axis=0), tuple(weights))


@dataclass(frozen=True)
class Sweep:
    """Fits of one set of rows: families outermost, then emphases, LASSO penalties, shrinkages."""

    terms: list[Interaction]
    """The candidates."""

    constants: Float[np.ndarray, "free fits"]
    """Intercept and prompt effects of every fit."""

    coefficients: Float[np.ndarray, "candidates fits"]
    """Coefficient of every candidate in every fit; zero outside the support."""

    sizes: Int[np.ndarray, " fits"]
    """How many terms each support has."""

    def only(self, fit: int) -> "Sweep":
        """Return one of the fits, with the terms of its support."""
        kept = np.flatnonzero(self.coefficients[:, fit])
        return Sweep(
            [self.terms[i] for i in kept],
            self.constants[:, [fit]],
            self.coefficients[kept][:, [fit]],
            self.sizes[[fit]],
        )

    def variation(
        self, masks: Bool[np.ndarray, "rows units"], keep_rate: float
    ) -> Float[np.ndarray, "rows fits"]:
        """Return what every fit predicts beyond its intercept."""
        used = np.flatnonzero(self.coefficients.any(axis=1))
        columns = characters(masks, [self.terms[i] for i in used], keep_rate)
        return columns @ self.coefficients[used]


def sweep(samples: Samples, candidates: Candidates, keep_rate: float) -> Sweep:
    """Fit supports of every size at every ridge penalty.

    Args:
        samples: Rows to fit.
        candidates: Terms to choose from.
        keep_rate: p of the characters.

    Returns:
        One fit for every family, emphasis, LASSO penalty and shrinkage.
    """
    columns = characters(samples.masks, candidates.terms, keep_rate)
    values, n_rows = samples.values, len(samples.values)
    n_free = 1 + samples.incidence.shape[1]
    design, gram = normal_equations(columns, samples.incidence, np.zeros(columns.shape[1]))
    right = design.T @ values
    steps = _emphasised_steps(gram, right, n_free, values, candidates)
    solutions = np.zeros((len(gram), len(steps), N_SHRINKAGES))
    solved: dict[bytes, int] = {}
    free = gram[:n_free, :n_free]
    for i, (support, own) in enumerate(steps):
        solutions[n_free + support, i, -1] = own
        fixed = right[:n_free] - gram[:n_free, n_free + support] @ own
        solutions[:n_free, i, -1] = solve_gram(free, fixed)
        same = solved.setdefault(support.tobytes(), i)
        if same != i:
            solutions[:, i, :-1] = solutions[:, same, :-1]
            continue
        index = np.concatenate([np.arange(n_free), n_free + support])
        block = gram[np.ix_(index, index)]
        penalised = np.arange(n_free, len(index))
        for j, ridge in enumerate(RIDGES):
            shrunk = block.copy()
            shrunk[penalised, penalised] += ridge * n_rows
            solutions[index, i, j] = solve_gram(shrunk, right[index])
    flat = solutions.reshape(len(gram), -1)
    sizes = np.repeat([len(support) for support, _ in steps], N_SHRINKAGES)
    return Sweep(candidates.terms, flat[:n_free], flat[n_free:], sizes)


class Choice(NamedTuple):
    """What distinguishes a fit of a sweep."""

    family: int
    """Which family of candidates."""
    emphasis: float
    """Weight of terms of several units."""
    lasso: float
    """LASSO penalty."""
    ridge: float | None
    """Ridge penalty of the refit, per row; None for the LASSO's own coefficients."""


def choice_of(fit: int) -> Choice:
    """Return what a fit of a sweep stands for."""
    shape = (-1, len(EMPHASES), len(PENALTIES), N_SHRINKAGES)
    n_families = fit // np.prod(shape[1:]) + 1
    family, emphasis, lasso, shrinkage = np.unravel_index(fit, (n_families, *shape[1:]))
    ridge = (*RIDGES, None)[shrinkage]
    return Choice(int(family), EMPHASES[emphasis], float(PENALTIES[lasso]), ridge)


class _Step(NamedTuple):
    """One penalty of a LASSO path."""

    support: Int[np.ndarray, " support"]
    """Which candidates are in."""
    coefficients: Float[np.ndarray, " support"]
    """The LASSO's own coefficients of them."""


def _emphasised_steps(
    gram: Float[np.ndarray, "all all"],
    right: Float[np.ndarray, " all"],
    n_free: int,
    values: Float[np.ndarray, " rows"],
    candidates: Candidates,
) -> list[_Step]:
    """Return the steps of all paths, one after the other."""
    joint = np.array([len(term) > 1 for term in candidates.terms], dtype=bool)
    families = candidates.families or (candidates.weights,)
    steps: list[_Step] = []
    for (number, family), emphasis in product(enumerate(families), EMPHASES):
        several = joint[family > 0]
        if emphasis < 1 and (several.all() or not several.any()):
            steps += steps[-len(PENALTIES) :]
            continue
        weights = family * np.where(joint, emphasis, 1.0)
        chosen = np.flatnonzero(weights)
        index = np.concatenate([np.arange(n_free), n_free + chosen])
        path = _lasso_steps(
            gram[np.ix_(index, index)],
            right[index],
            n_free,
            values,
            weights[chosen],
            every=1 if emphasis == 1 and number == 0 else 2,
        )
        steps += [_Step(chosen[step.support], step.coefficients) for step in path]
    return steps


def _lasso_steps(
    gram: Float[np.ndarray, "all all"],
    right: Float[np.ndarray, " all"],
    n_free: int,
    values: Float[np.ndarray, " rows"],
    weights: Float[np.ndarray, " candidates"],
    every: int,
) -> list[_Step]:
    """Return the LASSO at every penalty, after projecting out intercept and prompts.

    Only each ``every``-th penalty is solved, and supports end at so many times fewer terms; the
    penalties between keep the step before them.

    Frisch & Waugh: regressing on what is left of columns and values after the free columns are
    projected out gives the same coefficients as regressing on all of them. Inner products of what
    is left are a Schur complement of the Gram matrix.
    """
    scale = weights / weights.max(initial=1e-300)
    free = gram[:n_free, :n_free]
    projector = solve_gram(free, gram[:n_free, n_free:])
    left = (gram[n_free:, n_free:] - gram[n_free:, :n_free] @ projector) * scale * scale[:, None]
    covariances = (right[n_free:] - projector.T @ right[:n_free]) * scale
    energy = float(values @ values - right[:n_free] @ solve_gram(free, right[:n_free]))
    largest = np.abs(covariances).max(initial=0.0) / len(values)
    steps = [_Step(np.zeros(0, dtype=np.int64), np.zeros(0))] * len(PENALTIES)
    if largest <= 1e-14 * np.abs(values).max(initial=0.0):
        return steps
    start = np.zeros(len(scale))
    solved = np.arange(1, len(PENALTIES), every)
    for first in range(0, len(solved), _STRIDE):
        among = solved[first : first + _STRIDE]
        penalties = largest * PENALTIES[among]
        path = _lasso_path(left, covariances, energy, len(values), penalties, start)
        for i, column in zip(among, path.T, strict=True):
            support = np.flatnonzero(column)
            if len(support) > max(1, _MAX_SHARE / every * len(values)):
                return steps
            own = _Step(support, (column * scale)[support])
            steps[i:] = [own] * (len(PENALTIES) - i)
        start = path[:, -1]
    return steps


def _lasso_path(
    gram: Float[np.ndarray, "candidates candidates"],
    covariances: Float[np.ndarray, " candidates"],
    energy: float,
    n_rows: int,
    penalties: Float[np.ndarray, " penalties"],
    start: Float[np.ndarray, " candidates"],
) -> Float[np.ndarray, "candidates penalties"]:
    """Return LASSO coefficients for falling penalties, from inner products alone."""
    # Not at the top of the file: scikit-learn takes a second to import.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lasso_path

    target = np.zeros(n_rows)
    target[0] = np.sqrt(max(0.0, energy))  # only its length matters, and only to the stopping rule
    with warnings.catch_warnings():  # a support need not be polished to be refitted
        warnings.simplefilter("ignore", ConvergenceWarning)
        return lasso_path(
            np.empty((n_rows, len(gram)), order="F"),  # only its shape matters
            target,
            alphas=penalties,  # pyright: ignore[reportArgumentType]
            precompute=np.ascontiguousarray(gram),  # pyright: ignore[reportArgumentType]
            Xy=covariances,
            coef_init=start,
            max_iter=_MAX_ITERATIONS,
            tol=_LASSO_TOLERANCE,
            check_input=False,
        )[1]
