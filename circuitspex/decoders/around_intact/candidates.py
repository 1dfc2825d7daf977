"""Which sets of units are worth measuring exactly, judged by gradients and by what was measured."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, combinations

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from circuitspex._shared import Interaction
from circuitspex.decoders.around_intact.neighbourhood import Neighbourhood
from circuitspex.decoders.regression import ridge

_FEWEST = 16  # verified terms of an order from which its estimates' errors are judged
_STRONG = 8  # one in so many verified terms is as strong as what is sought
_FLOOR = 0.01  # of the verified effects: less than that, an estimate is not trusted
_LOG_NORMAL = 0.635  # minus the mean logarithm of the size of a standard normal number
_EXTENDED = 64  # strongest terms of one order that single units are joined to for the next,
_JOINED = 1024  # which are those of so many strongest terms
# What spreads are guessed to be made of before any is known, and how firmly.
_OF_UNITS, _OF_UNSEEN, _OF_PARTS = (0.0, 3.0), (0.5, 1.0), (1.0, 3.0)


def rank(found: Neighbourhood, order: int, n_most: int) -> list[Interaction]:
    """Return candidates of an order, the most promising first.

    Candidates are what contexts show and, from order 3 on, the strongest smaller terms with one
    more unit: strong interactions have strong parts. At first the largest estimate counts, or the
    sum of the parts. Once some are verified, those most likely to be as strong as the strongest of
    them come first: around some units estimates are far off, and there even a small one may belong
    to a strong interaction.

    Args:
        found: What was measured.
        order: Units in a candidate.
        n_most: How many candidates can be of use.

    Returns:
        Sets that were not verified yet.
    """
    seen = _seen(found, order, n_most)
    inside = _strength_of_parts(found, order, seen) if order > 2 else {}
    new = sorted(term for term in seen if term not in found.verified)
    verified = sorted(term for term in seen if term in found.verified)
    if not new:
        return []
    if len(verified) >= _FEWEST:
        truth = np.array([found.verified[term].mean() for term in verified])
        promise = _Errors(verified, truth, seen, inside, found.n_units).promise(new)
    elif inside:
        promise = np.array([inside[term] for term in new])
    else:
        promise = np.array([max(map(abs, seen[term])) for term in new])
    return [new[i] for i in np.argsort(-promise, kind="stable")]


def _seen(found: Neighbourhood, order: int, n_most: int) -> dict[Interaction, list[float]]:
    """Return every estimate that contexts give of terms of an order."""
    seen: dict[Interaction, list[float]] = defaultdict(list)
    for context in found.contexts:
        if len(context) != order - 1:
            continue
        estimates = found.estimates(context)
        for unit in np.argsort(-np.abs(estimates), kind="stable")[: max(1, n_most)].tolist():
            if unit not in context and estimates[unit] != 0:
                seen[tuple(sorted((*context, unit)))].append(float(estimates[unit]))
    return seen


def _strength_of_parts(
    found: Neighbourhood, order: int, seen: dict[Interaction, list[float]]
) -> dict[Interaction, float]:
    """Return how strong each term's largest parts are together, and add what they suggest."""
    estimates = _seen(found, order - 1, found.n_units)
    size = {term: float(np.abs(some).mean()) for term, some in estimates.items()}
    size |= {t: abs(v) for t, v in found.measured().items() if len(t) == order - 1}
    strongest = sorted(size, key=lambda term: (-size[term], term))[:_JOINED]
    units = set(chain.from_iterable(strongest))
    for part in strongest[:_EXTENDED]:
        for unit in units - set(part):
            seen.setdefault(tuple(sorted((*part, unit))), [])
    parts = {term: combinations(term, order - 1) for term in seen}
    return {term: sum(size.get(part, 0.0) for part in own) for term, own in parts.items()}


class _Errors:
    """How far estimates are from the truth, learnt from the terms that were verified.

    A term's effect is normal around the mean of its estimates times a slope, one for each number of
    estimates. The logarithm of the standard deviation is a sum over the term's units and, from
    order 3 on, the strength of its parts and whether it was seen at all, by ridge regression.
    """

    def __init__(
        self,
        verified: Sequence[Interaction],
        truth: Float[np.ndarray, " verified"],
        seen: Mapping[Interaction, Sequence[float]],
        inside: Mapping[Interaction, float],
        n_units: int,
    ) -> None:
        self._seen, self._inside = seen, inside
        self._n_most = max(map(len, seen.values()))
        self._column = np.full(n_units, -1)  # of every unit, -1 for those of no verified term
        units = np.unique(np.array(verified))
        self._column[units] = np.arange(len(units))
        self._n_known = len(units)
        self._usual = np.log(np.mean([inside[t] for t in verified]) or 1.0) if inside else 0.0
        means = self._means(verified)
        self._slopes = np.linalg.lstsq(means, truth)[0]  # 0 for counts that no verified term has
        floor = _FLOOR * np.sqrt(np.square(truth).mean()) + np.finfo(float).tiny
        self._weights = self._fit(verified, np.log(np.abs(truth - means @ self._slopes) + floor))
        self._strong = np.sort(np.abs(truth))[-max(1, len(truth) // _STRONG)]

    def promise(self, terms: Sequence[Interaction]) -> Float[np.ndarray, " terms"]:
        """Return the log-probability that each term is as strong as the strongest verified ones."""
        spread = np.exp(self._features(terms) @ self._weights + _LOG_NORMAL)
        size = np.abs(self._means(terms) @ self._slopes)
        return np.logaddexp(
            norm.logsf((self._strong - size) / spread), norm.logsf((self._strong + size) / spread)
        )

    def _fit(
        self, terms: Sequence[Interaction], targets: Float[np.ndarray, " terms"]
    ) -> Float[np.ndarray, " features"]:
        features = self._features(terms)
        beside = [_OF_UNSEEN, _OF_PARTS] if self._inside else []
        guess, firmness = np.array([*[_OF_UNITS] * self._n_known, *beside, (0.0, 1e-6)]).T
        return guess + ridge(features, targets - features @ guess, firmness)

    def _means(self, terms: Sequence[Interaction]) -> Float[np.ndarray, "terms counts"]:
        """Return every term's mean estimate, in the column of how many estimates it has."""
        counts = np.array([len(self._seen[term]) for term in terms])
        table = np.zeros((len(terms), self._n_most + 1))
        sums = np.array([sum(self._seen[term]) for term in terms])
        table[np.arange(len(terms)), counts] = sums / np.maximum(counts, 1)
        return table

    def _features(self, terms: Sequence[Interaction]) -> Float[np.ndarray, "terms features"]:
        units = np.zeros((len(terms), self._n_known + 1))
        np.put_along_axis(units, self._column[np.array(terms)], 1, axis=1)
        parts = [units[:, :-1]]
        if self._inside:
            unseen = [float(not self._seen[term]) for term in terms]
            inside = np.array([self._inside[term] for term in terms])
            strength = np.log(inside + _FLOOR * np.exp(self._usual)) - self._usual
            parts += [np.array(unseen)[:, None], strength[:, None]]
        return np.hstack([*parts, np.ones((len(terms), 1))])
