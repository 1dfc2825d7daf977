"""From everything measured to the coefficients of a Gaussian process, and what they are worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitspex._shared import Interaction
from circuitspex.decoders.around_intact import Neighbourhood
from circuitspex.decoders.measuring import Samples
from circuitspex.decoders.process.gradient_means import Mean
from circuitspex.decoders.process.process import Prior, Process, Rows, choose_prior
from circuitspex.decoders.regression import characters, held_out_r2, r2_std_error
from circuitspex.designs import bernoulli_masks

_PAIR_UNITS = 1024  # units whose pairs are listed, by weight
_TRIPLE_UNITS = 64
_LEFT_OUT = 0.003  # share of the variance that terms which are not listed may carry
_MAX_TERMS = 4096
_N_FOLDS = 10
_FRESH = 512  # masks on which the listed terms are compared with the process


@dataclass(frozen=True)
class Gradients:
    """Values and gradients at random masks, one row for each prompt drawn."""

    masks: Bool[np.ndarray, "rows units"]
    values: Float[np.ndarray, " rows"]
    gradients: Float[np.ndarray, "rows units"]
    prompts: Int[np.ndarray, " rows"]


@dataclass(frozen=True)
class ProcessFit:
    """The process's mean as Fourier coefficients."""

    support: tuple[Interaction, ...]
    """Terms, none of them empty."""
    constant: float
    coefficients: Float[np.ndarray, " terms"]
    covariance: Float[np.ndarray, "terms terms"]
    """Of the coefficients, given the values."""
    r2: float | None
    """Held-out R² of the average game."""
    r2_std_error: float | None
    prior: dict[str, Any]
    """What was chosen, in plain values."""
    n_rows: int


def fit_process(
    samples: Samples,
    found: Neighbourhood,
    random: Gradients,
    means: Sequence[Mean],
    weights: Float[np.ndarray, " units"],
    keep_rate: float,
    max_order: int,
    more: Sequence[Interaction],
    rng: np.random.Generator,
) -> ProcessFit:
    """Fit a process to all values, choosing its prior by held-out masks.

    Args:
        samples: Values at random masks: what is held out.
        found: Values around the intact model.
        random: Values and gradients at random masks.
        means: Prior means to choose from.
        weights: Of the units.
        keep_rate: p of the characters.
        max_order: Largest order to list.
        more: Terms to consider beside those of the units that weigh most.
        rng: Deals the folds.

    Returns:
        The fit.
    """
    rows = _rows(samples, found, random, means, rng)
    prior, tried = choose_prior(rows, weights, keep_rate, rng)
    spectrum = _Spectrum(Process(rows, weights, keep_rate, prior), means[prior.mean])
    support, coefficients = spectrum.strongest(max_order, more)
    residuals, departures = _residuals(spectrum.process, tried, samples)
    process = spectrum.process
    r2 = held_out_r2(samples, residuals, departures)
    left_out = spectrum.left_out(support, coefficients, rng)
    return ProcessFit(
        support,
        float(process.level(process.dual).mean()),
        coefficients,
        spectrum.covariance(support),
        None if r2 is None else r2 - max(0.0, r2) * left_out,
        r2_std_error(samples, residuals, departures),
        {
            "mean": means[prior.mean].name,
            "amplitudes": list(prior.amplitudes),
            "noise": prior.noise,
            "slopes": prior.slopes,
            "variance_not_listed": left_out,
        },
        len(rows.values),
    )


def _rows(
    samples: Samples,
    found: Neighbourhood,
    random: Gradients,
    means: Sequence[Mean],
    rng: np.random.Generator,
) -> Rows:
    """Return all evaluations; only values that no gradient was taken with are held out."""
    drawn = samples.draws.shape[1]
    _, group = np.unique(samples.groups, return_inverse=True)
    n_groups = group.max() + 1
    folds = rng.permutation(np.arange(n_groups) % min(_N_FOLDS, n_groups))[group]
    near = np.array(found.masks, dtype=bool).reshape(-1, samples.masks.shape[1])
    masks = np.concatenate([samples.masks.repeat(drawn, axis=0), random.masks, near])
    others = len(random.values) + len(found.values)
    which = np.concatenate(
        [samples.prompts.reshape(-1), random.prompts, np.array(found.prompts, dtype=np.int64)]
    )
    return Rows(
        masks=masks,
        values=np.concatenate([samples.draws.reshape(-1), random.values, found.values]),
        prompts=which if samples.n_prompts > 1 else np.zeros(len(masks), dtype=np.int64),
        n_prompts=samples.n_prompts,
        folds=np.concatenate([folds.repeat(drawn), np.full(others, -1)]),
        means=np.stack([mean.predict(masks) for mean in means]),
    )


class _Spectrum:
    """The process's mean, as Fourier coefficients."""

    def __init__(self, process: Process, mean: Mean) -> None:
        self.process, self.mean = process, mean

    def coefficients(
        self, terms: Sequence[Interaction], dual: Float[np.ndarray, " rows"]
    ) -> Float[np.ndarray, " terms"]:
        """Return the coefficients of terms of one order."""
        return self.mean.coefficients(terms) + dual @ self._covariances(terms)

    def _covariances(self, terms: Sequence[Interaction]) -> Float[np.ndarray, "rows terms"]:
        """Return the prior covariance of coefficients with the rows' values."""
        columns = characters(self.process.rows.masks, terms, self.process.keep_rate)
        return columns * self._variances(terms)

    def _variances(self, terms: Sequence[Interaction]) -> Float[np.ndarray, " terms"]:
        amplitudes = (*self.process.prior.amplitudes, *(0.0,) * 20)
        weights = self.process.weights
        return self.process.scale * np.array(
            [amplitudes[len(term) - 1] * np.prod(weights[list(term)]) for term in terms]
        )

    def strongest(
        self, max_order: int, more: Sequence[Interaction]
    ) -> tuple[tuple[Interaction, ...], Float[np.ndarray, " terms"]]:
        """Return the terms that make up nearly all of the variance, and their coefficients.

        Args:
            max_order: Largest order.
            more: Terms to consider beside the units that weigh most.
        """
        n_units = len(self.process.weights)
        order = np.argsort(-self.process.weights, kind="stable")
        n_strong = {1: n_units, 2: _PAIR_UNITS, 3: _TRIPLE_UNITS}
        terms: list[Interaction] = []
        values: list[np.ndarray] = []
        for size in range(1, max_order + 1):
            strong = np.sort(order[: n_strong.get(size, 0)]).tolist()
            extra = {term for term in more if len(term) == size}
            candidates = list(dict.fromkeys([*combinations(strong, size), *sorted(extra)]))
            for start in range(0, len(candidates), _MAX_TERMS):
                part = candidates[start : start + _MAX_TERMS]
                terms += part
                values.append(self.coefficients(part, self.process.dual))
        sizes = np.concatenate(values) if values else np.zeros(0)
        energy = np.square(sizes)
        ranked = np.argsort(-energy, kind="stable")
        n = int(np.searchsorted(np.cumsum(energy[ranked]), (1 - _LEFT_OUT) * energy.sum())) + 1
        chosen = np.sort(ranked[: min(n, _MAX_TERMS)])
        chosen = chosen[energy[chosen] > 0]
        return tuple(terms[i] for i in chosen), sizes[chosen]

    def left_out(
        self,
        support: Sequence[Interaction],
        coefficients: Float[np.ndarray, " terms"],
        rng: np.random.Generator,
    ) -> float:
        """Return the share of the mean's variance over fresh masks that the terms do not hold."""
        rate, n_units = self.process.keep_rate, len(self.process.weights)
        masks = bernoulli_masks(_FRESH, n_units, rate, rng).numpy()
        whole = self.process.variation(masks) + self.mean.predict(masks)
        listed = characters(masks, support, rate) @ coefficients
        total = float(whole.var())
        return min(1.0, float((whole - listed).var()) / total) if total > 0 else 0.0

    def covariance(self, support: Sequence[Interaction]) -> Float[np.ndarray, "terms terms"]:
        """Return the posterior covariance of coefficients."""
        with_rows = self._covariances(support)
        return np.diag(self._variances(support)) - with_rows.T @ self.process.inverse @ with_rows


def _residuals(
    process: Process,
    tried: Sequence[tuple[Prior, Float[np.ndarray, " folds"]]],
    samples: Samples,
) -> tuple[Float[np.ndarray, "rows drawn"], Float[np.ndarray, "rows drawn"]]:
    """Return what held-out draws are above the prediction, and above their prompt's level.

    A fold is predicted by the prior that is best on the others.
    """
    n = samples.draws.size
    errors = np.array([error for _, error in tried])
    total = errors.sum(axis=0)
    best = (errors.sum(axis=1)[:, None] - errors).argmin(axis=0) if len(total) else []
    residuals, departures = np.zeros(n), np.zeros(n)
    for choice in np.unique(best):
        other = process.with_prior(tried[choice][0])
        for fold, (out, _, dual) in enumerate(other.held_out()):
            if best[fold] == choice:
                level = other.level(dual)[process.rows.prompts[out]]
                mean = process.rows.means[other.prior.mean, out]
                departures[out] = process.rows.values[out] - level
                residuals[out] = departures[out] - mean - other.common[out] @ dual
    shape = samples.draws.shape
    return residuals.reshape(shape), departures.reshape(shape)
