r"""A Gaussian process over masks whose prior is made of gradients.

With :math:`z_i = (x_i - p)/\sqrt{p(1-p)}`, the set function of prompt q is modelled as

.. math:: v_q(x) = m(x) + c_q + f(x) + f_q(x) + \varepsilon,
    \quad \operatorname{cov}(f(x), f(x')) = \sum_{d \le 3} a_d\, e_d(w_1 z_1 z'_1, w_2 z_2 z'_2, …),

:math:`e_d` being the elementary symmetric polynomial: an interaction T has the prior variance
:math:`a_{|T|} \prod_{i \in T} w_i`. The weight of a unit is the mean square of its gradient, so
what the value says is spread over interactions as the gradients say is likely. The prior mean m is
made of gradients too. f_q is what prompt q adds, zero on average over prompts.

Amplitudes, the prior mean and the noise are chosen by how well held-out masks are predicted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg import cho_factor, cho_solve

from circuitspex._shared import Interaction

MAX_ORDER = 3
"""Largest order that the prior holds."""

_SLOPES_ORDER_2 = 0.3  # how much less prompts differ in interactions than in single units
_FLAT = 0.1  # share of the weights that is the same for all units
_LEVEL = 100.0  # prior variance of a prompt's level, in variances of the values
_CHOICE_ROWS = 1200  # rows that amplitudes are chosen on


@dataclass(frozen=True)
class Prior:
    """What is chosen by held-out masks."""

    amplitudes: tuple[float, float, float] = (0.1, 0.3, 0.15)
    """Of orders 1, 2 and 3, in variances of what the mean leaves."""
    noise: float = 0.06
    slopes: float = 0.0
    """How much prompts differ."""
    mean: int = 1
    """Which of the prior means."""


_AMPLITUDES = ((0.4, 0.2, 0.0), (0.1, 0.3, 0.1), (0.1, 0.3, 0.3), (0.03, 0.1, 0.03))
_NOISE = (0.003, 0.02, 0.06, 0.2, 0.6)
_SLOPES = (0.1, 0.3, 0.8)


@dataclass(frozen=True)
class Rows:
    """Evaluations: one mask on one prompt each, or on the mean over all."""

    masks: Bool[np.ndarray, "rows units"]
    values: Float[np.ndarray, " rows"]
    prompts: Int[np.ndarray, " rows"]
    """Which prompt each is of; zeros if each is the mean over all."""
    n_prompts: int
    """1 if each row is the mean over all prompts."""
    folds: Int[np.ndarray, " rows"]
    """With which other rows each is held out; -1 for never."""
    means: Float[np.ndarray, "means rows"]
    """What each prior mean says of each row."""

    def take(self, rows: Int[np.ndarray, " taken"]) -> "Rows":
        """Return some of the rows."""
        return Rows(
            self.masks[rows],
            self.values[rows],
            self.prompts[rows],
            self.n_prompts,
            self.folds[rows],
            self.means[:, rows],
        )


def unit_weights(
    gradients: Float[np.ndarray, "rows units"],
    verified: Mapping[Interaction, float],
    keep_rate: float,
) -> Float[np.ndarray, " units"]:
    """Return w: each unit's share of the squared gradients, and a little for those without.

    A unit whose gradient is small may still interact: an interaction T changes what its members do
    wherever the rest of it is ablated, in a share (1 - p)^(|T| - 1) of the masks.

    Args:
        gradients: At masks of the keep rate.
        verified: Möbius coefficients at the intact origin.
        keep_rate: p of the masks.

    Returns:
        Weights that sum to 1.
    """
    n_units = gradients.shape[1]
    squares = np.square(gradients).mean(axis=0)
    for term, value in verified.items():
        squares[list(term)] += value**2 * (1 - keep_rate) ** (len(term) - 1)
    total = squares.sum()
    share = squares / total if total > 0 else np.full(n_units, 1 / n_units)
    return _FLAT / n_units + (1 - _FLAT) * share


def characters_of_units(
    masks: Bool[np.ndarray, "rows units"], keep_rate: float
) -> Float[np.ndarray, "rows units"]:
    """Return z, the characters of single units."""
    return (masks - keep_rate) / np.sqrt(keep_rate * (1 - keep_rate))


def inverse_of(kernel: Float[np.ndarray, "rows rows"]) -> Float[np.ndarray, "rows rows"]:
    """Return the inverse of a covariance of values with noise: what leaving rows out reads off."""
    return cho_solve(cho_factor(kernel, lower=True), np.eye(len(kernel)))


def symmetric_polynomials(
    left: Float[np.ndarray, "rows units"],
    right: Float[np.ndarray, "others units"],
    weights: Float[np.ndarray, " units"],
) -> list[Float[np.ndarray, "rows others"]]:
    """Return e_1, e_2, e_3 of w_i z_i z'_i, from power sums by Newton's identities."""
    power = [(left**k * weights**k) @ (right**k).T for k in (1, 2, 3)]
    first = power[0]
    second = (first * power[0] - power[1]) / 2
    third = (second * power[0] - first * power[1] + power[2]) / 3
    return [first, second, third]


class Process:
    """The process given its prior and its rows."""

    def __init__(
        self, rows: Rows, weights: Float[np.ndarray, " units"], keep_rate: float, prior: Prior
    ) -> None:
        self.rows, self.weights, self.keep_rate, self.prior = rows, weights, keep_rate, prior
        self.z = characters_of_units(rows.masks, keep_rate)
        self._symmetric = symmetric_polynomials(self.z, self.z, weights)
        self._same = rows.prompts[:, None] == rows.prompts

    def with_prior(self, prior: Prior) -> "Process":
        """Return the process with another prior, kernels shared."""
        other = object.__new__(Process)
        other.rows, other.weights, other.keep_rate = self.rows, self.weights, self.keep_rate
        other.z, other._symmetric, other._same = self.z, self._symmetric, self._same
        other.prior = prior
        return other

    @cached_property
    def departures(self) -> Float[np.ndarray, " rows"]:
        """Values less the prior mean."""
        return self.rows.values - self.rows.means[self.prior.mean]

    @cached_property
    def scale(self) -> float:
        """Variance that amplitudes are in: that of the departures of held-out rows."""
        random = self.rows.folds >= 0
        departures = self.departures[random if random.any() else slice(None)]
        tiny = 1e-12 * float(np.square(self.rows.values).mean()) + np.finfo(float).tiny
        return max(float(departures.var()), tiny)

    @cached_property
    def common(self) -> Float[np.ndarray, "rows rows"]:
        """Covariance of f between rows."""
        return self._weigh(self._symmetric)

    def _weigh(self, symmetric: list[np.ndarray]) -> Float[np.ndarray, "some rows"]:
        (a, b, c), (first, second, third) = self.prior.amplitudes, symmetric
        return self.scale * (a * first + b * second + c * third)

    def variation(self, masks: Bool[np.ndarray, "some units"]) -> Float[np.ndarray, " some"]:
        """Return the mean of f, the average game beyond its prior mean, under other masks."""
        z = characters_of_units(masks, self.keep_rate)
        return self._weigh(symmetric_polynomials(z, self.z, self.weights)) @ self.dual

    @cached_property
    def inverse(self) -> Float[np.ndarray, "rows rows"]:
        """Inverse of the covariance of the values."""
        total = self.common + _LEVEL * self.scale * self._same
        if self.rows.n_prompts > 1:
            shape = self._symmetric[0] + _SLOPES_ORDER_2 * self._symmetric[1]
            total += self.prior.slopes * self.scale * shape * (self._same - 1 / self.rows.n_prompts)
        total[np.diag_indices_from(total)] += self.prior.noise * self.scale
        return inverse_of(total)

    @cached_property
    def dual(self) -> Float[np.ndarray, " rows"]:
        """The inverse times the departures."""
        return self.inverse @ self.departures

    def held_out(self) -> Iterator[tuple[Int[np.ndarray, " held"], np.ndarray, np.ndarray]]:
        """Leave out one fold after the other.

        Yields:
            Rows held out, their residuals, and the dual of the process without them.
        """
        for fold in range(self.rows.folds.max(initial=-1) + 1):
            out = np.flatnonzero(self.rows.folds == fold)
            residuals = np.linalg.solve(self.inverse[np.ix_(out, out)], self.dual[out])
            yield out, residuals, self.dual - self.inverse[:, out] @ residuals

    def fold_errors(self) -> Float[np.ndarray, " folds"]:
        """Return the squared error of every fold, predicted without it."""
        return np.array([np.square(residuals).sum() for _, residuals, _ in self.held_out()])

    def level(self, dual: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " prompts"]:
        """Return every prompt's level."""
        sums = np.bincount(self.rows.prompts, weights=dual, minlength=self.rows.n_prompts)
        return _LEVEL * self.scale * sums


def choose_prior(
    rows: Rows, weights: Float[np.ndarray, " units"], keep_rate: float, rng: np.random.Generator
) -> tuple[Prior, list[tuple[Prior, Float[np.ndarray, " folds"]]]]:
    """Choose amplitudes, mean and noise by the error on held-out masks, one after the other.

    A change must help by more than two standard errors, as folds differ: with few masks to hold
    out, the least error is luck more often than not.

    Args:
        rows: The evaluations.
        weights: Of the units.
        keep_rate: p of the characters.
        rng: Chooses the rows that are used where there are many.

    Returns:
        The best prior, and every prior tried with its error by fold.
    """
    if len(rows.values) > _CHOICE_ROWS:
        rows = rows.take(np.sort(rng.choice(len(rows.values), _CHOICE_ROWS, replace=False)))
    several = rows.n_prompts > 1
    best = Prior(slopes=0.3 if several else 0.0)
    process = Process(rows, weights, keep_rate, best)
    tried = {best: process.fold_errors()}
    options = {"mean": range(len(rows.means)), "amplitudes": _AMPLITUDES, "noise": _NOISE}
    if several:
        options["slopes"] = _SLOPES
    for _ in range(2):
        before = best
        for name, values in options.items():
            priors = [replace(best, **{name: value}) for value in values]
            for prior in priors:
                if prior not in tried:
                    tried[prior] = process.with_prior(prior).fold_errors()
            least = min(priors, key=lambda prior: tried[prior].sum())
            gains = tried[best] - tried[least]
            if gains.mean() > 2 * gains.std(ddof=1) / np.sqrt(len(gains)):
                best = least
        if best == before:
            break
    return best, list(tried.items())
