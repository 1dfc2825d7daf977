"""Cross-fitting: fit, choose and report on different rows, without wasting any.

The rows are dealt into folds; masks that belong together stay together. For each fold the whole
search runs on the other folds and predicts it, at every support size and penalty. Then

* the returned fit uses the size and penalty that predicted best over all folds, on all rows;
* the report for a fold uses the size and penalty that predicted the *other* folds best. So no row
  is predicted by a fit that used it or scored by a choice that looked at its error.

The other folds' fits did use the row, so its value can sway the choice, though not by its own
error. A second layer of folds inside each fold would exclude that too, at several times the
searches; on pure noise, where it would show most, the reported R² is not above zero without it
(tests/test_decoder_statistics.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from circuitspex.decoders._samples import Samples
from circuitspex.decoders._selection import LARGEST_SUPPORT, N_FITS, Candidates, sweep

Search = Callable[[Samples, np.random.Generator], Candidates]

_MIN_GROUPS = 8  # below this, nothing is held out
_TOLERANCE = 0.002  # relative error given up for a smaller support


@dataclass(frozen=True)
class Report:
    """What rows that were not fitted say about a search."""

    best: int
    """Which fit of a sweep to return."""

    residuals: Float[np.ndarray, " rows"] | None
    """Out-of-fold residual of every row; None if there were too few masks to hold any out."""

    r2: float | None
    """Held-out R² of the average game; None without held-out rows or variation."""


def crossfit(
    samples: Samples,
    search: Search,
    keep_rate: float,
    n_folds: int,
    rng: np.random.Generator,
) -> Report:
    """Choose the size and penalty of a fit, and report what it is worth.

    Args:
        samples: All rows.
        search: Finds candidates in some of them.
        keep_rate: p of the characters.
        n_folds: How many folds.
        rng: Deals the folds; its children go to the searches.

    Returns:
        Choice, residuals and R².
    """
    n_groups = len(np.unique(samples.groups))
    n_folds = min(n_folds, n_groups)
    folds = _deal(samples.groups, n_folds, rng)
    if n_groups < _MIN_GROUPS:
        return Report(LARGEST_SUPPORT, None, None)
    errors = np.zeros((n_folds, N_FITS))
    sizes = np.zeros((n_folds, N_FITS))
    residuals = np.zeros((*samples.draws.shape, N_FITS))
    departures = np.zeros_like(residuals)
    for fold in range(n_folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        held_out = samples.take(test)
        known = samples.take(train)
        fits = sweep(known, search(known, rng.spawn(1)[0]), keep_rate)
        levels = np.broadcast_to(fits.constants[0], residuals[test].shape)
        if samples.n_prompts > 1:
            levels = levels + fits.constants[1:][held_out.prompts]
        departures[test] = held_out.draws[:, :, None] - levels
        residuals[test] = departures[test] - fits.variation(held_out.masks, keep_rate)[:, None]
        errors[fold] = np.square(residuals[test].mean(axis=1)).sum(axis=0)
        sizes[fold] = fits.sizes
    total = errors.sum(axis=0)
    floor = 1e-20 * np.square(samples.values).sum()
    size = sizes.sum(axis=0)
    chosen = [
        _best(total - errors[i], size - sizes[i], floor, returned=False) for i in range(n_folds)
    ]
    own = np.array(chosen)[folds][:, None, None]
    reported = np.take_along_axis(residuals, own, axis=2)[..., 0]
    levelled = np.take_along_axis(departures, own, axis=2)[..., 0]
    return Report(
        _best(total, size, floor, returned=True),
        reported.mean(axis=1),
        held_out_r2(samples, reported, levelled),
    )


def _deal(
    groups: Int[np.ndarray, " rows"], n_folds: int, rng: np.random.Generator
) -> Int[np.ndarray, " rows"]:
    """Return the fold of every row, groups kept whole and folds equally many groups."""
    _, group = np.unique(groups, return_inverse=True)
    n_groups = group.max() + 1
    return rng.permutation(np.arange(n_groups) % n_folds)[group]


def _best(
    errors: Float[np.ndarray, " fits"],
    sizes: Float[np.ndarray, " fits"],
    floor: float,
    *,
    returned: bool,
) -> int:
    """Return the smallest fit whose error is about the least; errors below the floor are zero.

    Where many fits are exact, as in a noiseless game, the one that is returned has the size that
    most penalties agree on. The one that is reported is the largest: what is too much has
    coefficient zero, and no other fold could tell if something were missing.
    """
    good = np.flatnonzero(errors <= errors.min() * (1 + _TOLERANCE) + floor)
    if errors.min() > floor:
        return int(good[np.lexsort((errors[good], sizes[good]))[0]])
    if not returned:
        return int(good[sizes[good].argmax()])
    agreed, counts = np.unique(sizes[good], return_counts=True)
    exact = good[sizes[good] == agreed[counts.argmax()]]
    return int(exact[len(exact) // 2])


def held_out_r2(
    samples: Samples,
    residuals: Float[np.ndarray, "rows drawn"],
    departures: Float[np.ndarray, "rows drawn"],
) -> float | None:
    r"""Return the R² of the average game from residuals on few prompts per mask.

    With k of Q prompts per mask, the mean square of a mask's residual has a part that is not the
    fit's fault: its prompts are not all prompts. By the theory of sampling without replacement,

    .. math:: E[\bar r^2] = E[(\bar v - \hat v)^2] + \frac{E[s^2]}{k} \Big(1 - \frac{k}{Q}\Big),

    s² being the variance between prompts under one mask. It is taken off, mask by mask, from the
    residuals and from the departures, which also frees both of the error of prompt effects. Masks
    evaluated on a single prompt have no s² and are left out, which is why some masks always get
    more. With k = Q this is the ordinary R².

    Args:
        samples: The rows.
        residuals: Out-of-fold residual of every draw, prompt effects taken off.
        departures: Every draw less its prompt's level, which must come from other rows.

    Returns:
        R², cut off at 1; None if the average game does not vary.

    References:
        Cochran (1977), "Sampling Techniques", 3rd edition, theorem 2.2, Wiley.
    """
    if samples.n_prompts == 1:
        departures = samples.draws - samples.draws.mean()
    error = _mean_square(samples, residuals)
    total = _mean_square(samples, departures)
    if total <= 1e-20 * np.square(samples.values).mean():
        return None
    return float(min(1.0, 1 - error / total))


def _mean_square(samples: Samples, draws: Float[np.ndarray, "rows drawn"]) -> float:
    """Return the mean square over masks of the mean over all prompts, of which a few are drawn."""
    if samples.n_prompts == 1:
        return float(np.square(draws.mean(axis=1)).mean())
    _, mask = np.unique(samples.mask_ids, return_inverse=True)
    counts = np.bincount(mask) * draws.shape[1]
    means = np.bincount(mask, weights=draws.sum(axis=1)) / counts
    squares = np.bincount(mask, weights=np.square(draws - means[mask][:, None]).sum(axis=1))
    several = counts > 1
    counts, means, squares = counts[several], means[several], squares[several]
    unseen = np.maximum(0.0, 1 - counts / samples.n_prompts)
    return float((means**2 - squares / (counts - 1) / counts * unseen).mean())
