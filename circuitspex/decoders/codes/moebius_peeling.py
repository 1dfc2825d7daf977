"""Peeling: finding sets that are alone in a bin, and taking them out of all others.

Without noise a bin's values are one coefficient or zero, to rounding, if a single set is in it.
With noise the bins are read by two filters. The plain Möbius transform keeps sets apart but adds up
the noise of 2^|j| samples in bin j; the superset sums average the noise of 2^(b - |j|) samples but
mix sets, less so the more have been peeled. What is found is refitted to all samples in each round.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.linalg import cho_factor, solve_triangular

from circuitspex._shared import Interaction
from circuitspex.algebra import inverse_moebius, membership
from circuitspex.decoders.codes.aliasing import Aliasing, as_terms, bit_counts
from circuitspex.decoders.codes.group_tests import definite_sets, likeliest_sets, smallest_sets
from circuitspex.decoders.measuring import rounding_of
from circuitspex.decoders.regression import solve_gram, without_weaker_half
from circuitspex.designs import aliased_masks

_ROUNDS = 200
_NOISY_ROUNDS = 40
_TRIES = 3  # how often a term may come and be dropped again
_STEPS = 3  # of sparse Bayesian learning in one round
_SPREAD = 4.0  # standard deviations by which a bin's squares may exceed those of noise


Bins = list[tuple[np.ndarray, np.ndarray]]
"""For each group the values held by its bins, (bins, delays), and their noise, (bins,)."""


@dataclass
class Fit:
    """Terms, their least-squares coefficients on all samples, and what these leave over."""

    terms: list[Interaction]
    coefficients: Float[np.ndarray, " coefficients"]
    inverse: Float[np.ndarray, "coefficients coefficients"]
    """Inverse of the Gram matrix: covariance of the coefficients at unit noise."""
    residuals: Float[np.ndarray, "groups bins delays"]


@dataclass(frozen=True)
class BinSamples:
    """The values of all samples of a design, some of which may share a mask."""

    aliasing: Aliasing
    values: Float[np.ndarray, "groups bins delays"]
    which: Int[np.ndarray, "groups bins delays"]
    masks: Bool[np.ndarray, "distinct units"]

    def fit(self, terms: list[Interaction]) -> Fit:
        """Fit terms by least squares, every distinct mask counted once.

        Args:
            terms: What to fit.

        Returns:
            The fit.
        """
        sets = membership(terms, self.aliasing.n_units)
        gram = self.aliasing.gram(sets)
        right = self.aliasing.project(self.values, sets)
        counts = np.bincount(self.which.reshape(-1), minlength=len(self.masks))
        repeated = np.flatnonzero(counts > 1)
        if len(repeated):
            within = ((~self.masks[repeated]).astype(np.float32) @ sets.T.astype(np.float32)) == 0
            weighted = within * (counts[repeated, None] - 1.0)
            gram -= weighted.T @ within
            first = np.zeros(len(self.masks))
            first[self.which.reshape(-1)] = self.values.reshape(-1)
            right -= weighted.T @ first[repeated]
        inverse = solve_gram(gram, np.eye(len(terms)))
        coefficients = solve_gram(gram, right)
        bins = np.zeros(self.values.shape)
        self.aliasing.subtract(bins, sets, -coefficients)
        return Fit(terms, coefficients, inverse, self.values - self.aliasing.synthesise(bins))

    def variance(self, fit: Fit) -> float:
        """Return the mean square of a fit's residuals over distinct masks, freed of the fit."""
        first = np.unique(self.which.reshape(-1), return_index=True)[1]
        squares = np.square(fit.residuals.reshape(-1)[first])
        return float(squares.sum() / max(1, len(squares) - len(fit.terms)))


def peel_exactly(samples: BinSamples, max_order: int) -> tuple[list[Interaction], int]:
    """Find all sets of a set function without noise.

    Args:
        samples: Its values.
        max_order: Most units in a set.

    Returns:
        The sets, and how many bins hold something that could not be told apart.
    """
    aliasing = samples.aliasing
    bins = aliasing.analyse(samples.values)
    rounding = _rounding(samples)
    found: dict[Interaction, float] = {}
    for _ in range(_ROUNDS):
        fresh = _singletons(aliasing, bins, rounding, max_order, by_program=False)
        fresh = fresh or _singletons(aliasing, bins, rounding, max_order, by_program=True)
        if not fresh:
            break
        sets = membership(list(fresh), aliasing.n_units)
        aliasing.subtract(bins, sets, np.array(list(fresh.values())))
        for term, value in fresh.items():
            found[term] = found.get(term, 0.0) + value
    left = (np.abs(bins).max(axis=2) > rounding).sum()
    largest = max(map(abs, found.values()), default=0.0)
    return [term for term, value in found.items() if abs(value) > 1e-10 * largest], int(left)


def _rounding(samples: BinSamples) -> Float[np.ndarray, " bins"]:
    """Return below what a bin's values are rounding errors."""
    counts = bit_counts(samples.aliasing.bits.shape[1])
    largest = np.abs(samples.values).max(initial=0.0)
    return rounding_of(samples.values) * largest * 2.0 ** (1 + counts)


def _singletons(
    aliasing: Aliasing,
    bins: Float[np.ndarray, "groups bins delays"],
    rounding: Float[np.ndarray, " bins"],
    max_order: int,
    *,
    by_program: bool,
) -> dict[Interaction, float]:
    """Return the sets that are alone in some bin, with their coefficients."""
    found: dict[Interaction, float] = {}
    decode = smallest_sets if by_program else definite_sets
    for group, (held, bits) in enumerate(zip(bins, aliasing.bits, strict=True)):
        value, limit = held[:, 0], 8 * rounding
        hit = np.abs(held) < np.abs(held - value[:, None])
        alone = np.abs(value) > limit
        alone &= (np.abs(held - ~hit * value[:, None]) <= limit[:, None]).all(axis=1)
        places = np.flatnonzero(alone)
        in_bin = (places[:, None] >> np.arange(len(bits)) & 1) == 1
        tests = np.concatenate([aliasing.pools[1:], bits])
        sets, solved = decode(np.concatenate([hit[places, 1:], in_bin], axis=1), tests)
        solved &= sets.sum(axis=1) <= max_order
        solved &= (aliasing.missed(sets) == ~hit[places]).all(axis=1)
        solved &= aliasing.places(sets)[group] == places
        averages = held[places].sum(axis=1) / np.maximum((~hit[places]).sum(axis=1), 1)
        for row in np.flatnonzero(solved):
            found.setdefault(as_terms(sets[row : row + 1])[0], float(averages[row]))
    return found


def peel_noisily(samples: BinSamples, max_order: int, sigma: float, fit: Fit) -> Fit:
    """Find the sets of a set function with noise.

    Args:
        samples: Its values.
        max_order: Most units in a set.
        sigma: Standard deviation of the noise of one value.
        fit: Where to start.

    Returns:
        The fit of the sets that are significantly there.
    """
    powers = np.zeros(samples.values.shape[:2])
    tries: Counter[Interaction] = Counter()
    for _ in range(_NOISY_ROUNDS):
        groups = zip(fit.residuals, powers, strict=True)
        bins = [_filter_bins(left, sigma, power) for left, power in groups]  # powers change
        corrected = _reread(samples, fit, max_order, bins)
        scores = _candidates(samples, max_order, bins)
        known = set(corrected)
        scores = {t: z for t, z in scores.items() if t not in known and tries[t] < _TRIES}
        best = max(scores.values(), default=0.0)
        fresh = [term for term, score in scores.items() if score >= best / 2]
        tries.update(fresh)
        if (not fresh and corrected == fit.terms) or len(known) > samples.values.size // 8:
            break
        fit = _prune(samples, samples.fit([*corrected, *fresh]), sigma)
    return fit


def _reread(samples: BinSamples, fit: Fit, max_order: int, bins: Bins) -> list[Interaction]:
    """Return the terms of a fit, each read again from its bins in all groups, without the others.

    A first reading is of a single bin, at the noise of that bin, and may have a unit wrong.
    """
    aliasing = samples.aliasing
    sets = membership(fit.terms, aliasing.n_units)
    own = fit.coefficients[:, None] * aliasing.missed(sets)
    total, weights = np.zeros(own.shape), np.zeros(len(sets))
    allowed = np.ones(sets.shape, dtype=bool)
    for (held, noise), bits, places in zip(bins, aliasing.bits, aliasing.places(sets), strict=True):
        weight = 1 / np.maximum(noise[places], np.finfo(float).tiny) ** 2
        total += weight[:, None] * (held[places] + own)
        weights += weight
        allowed &= aliased_masks(bits)[places]
    penalty = 2 * np.log(aliasing.n_units)
    read = likeliest_sets(
        total / weights[:, None], aliasing.pools, allowed, max_order, penalty, weights**-0.5
    )
    return list(dict.fromkeys([(), *as_terms(read)]))


def _prune(samples: BinSamples, fit: Fit, sigma: float) -> Fit:
    """Return a fit of the terms that are significantly there, dropping the weaker half first."""
    while True:
        kept = without_weaker_half(fit.terms, fit.coefficients, fit.inverse, sigma)
        if len(kept) == len(fit.terms):
            return fit
        fit = samples.fit(kept)


def _candidates(samples: BinSamples, max_order: int, bins: Bins) -> dict[Interaction, float]:
    """Return the likeliest set of every bin, if it is significant, with its score."""
    found: dict[Interaction, float] = {}
    for (held, noise), bits in zip(bins, samples.aliasing.bits, strict=True):
        sets, scores = _read(held, noise, bits, samples.aliasing, max_order)
        for term, score in zip(as_terms(sets), scores.tolist(), strict=True):
            found[term] = max(score, found.get(term, 0.0))
    return found


def _filter_bins(
    values: Float[np.ndarray, "bins delays"], sigma: float, powers: Float[np.ndarray, " bins"]
) -> tuple[Float[np.ndarray, "bins delays"], Float[np.ndarray, " bins"]]:
    r"""Return what every bin holds, with the least noise and interference, and how much of these.

    The samples y = Z u have covariance :math:`\Sigma = \sigma^2 I + Z \Gamma Z^T`, with the powers
    of the bins in Γ. Sparse Bayesian learning finds the powers; the linear estimate that passes
    bin j unchanged and everything else least is :math:`z_j^T \Sigma^{-1} y` over its value at
    :math:`y = z_j` (Capon's beamformer).
    """
    n_bins = len(values)
    zeta = inverse_moebius(torch.eye(n_bins, dtype=torch.float64)).numpy()
    if not powers.any():
        powers[:] = np.square(values).mean() / 1.5 ** (n_bins.bit_length() - 1)
    for _ in range(_STEPS):
        covariance = (zeta * powers) @ zeta.T
        covariance[np.diag_indices(n_bins)] += sigma**2
        factor = cho_factor(covariance, lower=True, check_finite=False)
        whitened = solve_triangular(factor[0], zeta, lower=True, check_finite=False)
        strengths = np.square(whitened).sum(axis=0)
        seen = whitened.T @ solve_triangular(factor[0], values, lower=True, check_finite=False)
        held = seen / strengths[:, None]
        noise = np.sqrt(np.maximum(1 / strengths - powers, 1e-12 / strengths))
        means = powers[:, None] * seen
        powers[:] = np.square(means).mean(axis=1) + powers * np.maximum(1 - powers * strengths, 0)
    return held, noise


def _read(
    held: Float[np.ndarray, "bins delays"],
    noise: Float[np.ndarray, " bins"],
    bits: Bool[np.ndarray, "bits units"],
    aliasing: Aliasing,
    max_order: int,
) -> tuple[Bool[np.ndarray, "sets units"], Float[np.ndarray, " sets"]]:
    """Return the sets that explain most of a bin each, and how many standard errors they are."""
    n_delays, log_units = held.shape[1], np.log(aliasing.n_units)
    full = np.square(held).sum(axis=1)
    rows = np.flatnonzero(full > noise**2 * n_delays)
    held, noise, full = held[rows], noise[rows], full[rows]
    allowed = aliased_masks(bits)[rows]
    sets = likeliest_sets(held, aliasing.pools, allowed, max_order, 2 * log_units, noise)
    missed = aliasing.missed(sets)
    sums, counts = (held * missed).sum(axis=1), np.maximum(missed.sum(axis=1), 1)
    explained = np.square(sums) / counts
    excess = full - explained - noise**2 * n_delays
    scores = np.sqrt(explained) / noise
    needed = 1 + np.sqrt(2 * (np.log(len(bits) + held.size) + sets.sum(axis=1) * log_units))
    clear = excess <= np.maximum(_SPREAD * np.sqrt(2 * n_delays) * noise**2, explained / 3)
    good = clear & (scores > needed)
    return sets[good], scores[good]
