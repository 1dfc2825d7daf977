"""Cross-fitting: fit, choose and report on different rows, without wasting any.

The rows are dealt into folds; masks that belong together stay together. For each fold the whole
search runs on the other folds and predicts it, at every support size and penalty. Then

* the returned fit uses the size and penalty that predicted best over all folds, on all rows;
* the report for a fold uses the size and penalty that predicted the *other* folds best. So no row
  is predicted by a fit that used it or scored by a choice that looked at its error.

The other folds' fits did use the row, so its value can sway the choice, though not by its own
error. A second layer of folds inside each fold would exclude that too, at several times the
searches; on pure noise, where it would show most, the reported R² is not above zero without it
(tests/decoders/test_decoder_statistics.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from circuitspex._shared import Interaction
from circuitspex.decoders.measuring import Samples
from circuitspex.decoders.regression.least_squares import characters
from circuitspex.decoders.regression.selection import (
    EMPTY_SUPPORT,
    LARGEST_SUPPORT,
    Candidates,
    Sweep,
    choice_of,
    sweep,
)

Search = Callable[[Samples, np.random.Generator], Candidates]

_MIN_GROUPS = 8  # below this, nothing is held out
_TOLERANCE = 0.002  # relative error given up for a smaller support
_MAX_BLOCKS = 6  # up to so many parts of a coded design are a fold each


@dataclass(frozen=True)
class Report:
    """What rows that were not fitted say about a search."""

    best: int
    """Which fit of a sweep to return."""

    residuals: Float[np.ndarray, " rows"] | None
    """Out-of-fold residual of every row; None if there were too few masks to hold any out."""

    r2: float | None
    """Held-out R² of the average game; None without held-out rows or variation."""

    r2_std_error: float | None
    """Its standard error over the masks it rests on."""

    folds: Int[np.ndarray, " rows"]
    """Fold of every row."""

    fits: tuple[dict[Interaction, float], ...] = ()
    """Coefficients of the fit that predicted each fold, without its intercept."""

    def estimate(
        self, samples: Samples, support: Sequence[Interaction], keep_rate: float
    ) -> Float[np.ndarray, " terms"] | None:
        r"""Estimate each fold's share of coefficients only for terms that the other folds chose.

        .. math:: \tilde F(T) = \sum_k 1[T \in S_{-k}] \sum_{x \in k} \chi_T(x)
                  \big(r(x) + \hat F_{-k}(T) \chi_T(x)\big) \Big/ \sum_x \chi_T(x)^2

        over folds k, S_{-k} being the terms that the other rows chose and r the residual of their
        fit. A term that some rows alone put there is small here; a term that most folds chose loses
        little. Where a fold's other rows did not choose T, it counts as 0, which errs towards
        finding nothing. What noise makes strong in all folds alike is not seen through. All folds
        share one denominator: at keep rates near 1 a fold may hold hardly a mask that ablates all
        of T, and a quotient of its own would be anything.

        Args:
            samples: All rows.
            support: Terms, none of them empty.
            keep_rate: p of the characters.

        Returns:
            One estimate per term; None if nothing was held out.

        References:
            Chernozhukov et al. (2018), "Double/debiased machine learning for treatment and
            structural parameters", The Econometrics Journal 21(1), for the form.
        """
        if self.residuals is None:
            return None
        estimates, squares = np.zeros(len(support)), np.zeros(len(support))
        for fold, fit in enumerate(self.fits):
            rows = np.flatnonzero(self.folds == fold)
            columns = characters(samples.masks[rows], support, keep_rate)
            lengths = np.square(columns).sum(axis=0)
            known = np.array([fit.get(term, 0.0) for term in support])
            parts = known * lengths + columns.T @ self.residuals[rows]
            estimates += np.where([term in fit for term in support], parts, 0.0)
            squares += lengths
        return estimates / np.maximum(squares, np.finfo(float).tiny)


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
    folds = _deal(samples, min(n_folds, n_groups), rng)
    n_folds = folds.max() + 1
    if n_groups < _MIN_GROUPS:
        return Report(LARGEST_SUPPORT, None, None, None, folds)
    sweeps: list[Sweep] = []
    for fold in range(n_folds):
        known = samples.take(np.flatnonzero(folds != fold))
        sweeps.append(sweep(known, search(known, rng.spawn(1)[0]), keep_rate))
    parts = [samples.take(np.flatnonzero(folds == fold)) for fold in range(n_folds)]
    errors = np.array(
        [_errors(fits, part, keep_rate) for fits, part in zip(sweeps, parts, strict=True)]
    )
    sizes = np.array([fits.sizes for fits in sweeps])
    floor = 1e-20 * np.square(samples.values).sum()
    others = [np.arange(n_folds) != fold for fold in range(n_folds)]
    used = tuple(
        fits.only(_best(errors[other], sizes[other], floor, returned=False))
        for fits, other in zip(sweeps, others, strict=True)
    )
    residuals, departures = np.zeros(samples.draws.shape), np.zeros(samples.draws.shape)
    for fold, (fit, part) in enumerate(zip(used, parts, strict=True)):
        left, above = _leftovers(fit, part, keep_rate)
        residuals[folds == fold], departures[folds == fold] = left[..., 0], above[..., 0]
    return Report(
        _best(errors, sizes, floor, returned=True),
        residuals.mean(axis=1),
        held_out_r2(samples, residuals, departures),
        r2_std_error(samples, residuals, departures),
        folds,
        tuple(dict(zip(fit.terms, fit.coefficients[:, 0].tolist(), strict=True)) for fit in used),
    )


def _errors(fits: Sweep, held_out: Samples, keep_rate: float) -> Float[np.ndarray, " fits"]:
    """Return the squared error of every fit, summed over rows."""
    residuals, _ = _leftovers(fits, held_out, keep_rate)
    return np.square(residuals.mean(axis=1)).sum(axis=0)


def _leftovers(
    fits: Sweep, held_out: Samples, keep_rate: float
) -> tuple[Float[np.ndarray, "rows drawn fits"], Float[np.ndarray, "rows drawn fits"]]:
    """Return every draw less what every fit predicts, and less its prompt's level alone."""
    levels = np.broadcast_to(fits.constants[0], (*held_out.draws.shape, len(fits.sizes)))
    if held_out.n_prompts > 1:
        levels = levels + fits.constants[1:][held_out.prompts]
    departures = held_out.draws[:, :, None] - levels
    return departures - fits.variation(held_out.masks, keep_rate)[:, None], departures


def _deal(samples: Samples, n_folds: int, rng: np.random.Generator) -> Int[np.ndarray, " rows"]:
    """Return the fold of every row.

    Of coded masks, whole groups are held out, because a group is only decoded when complete; half
    groups, which decode like smaller ones, where there are fewer than four. Of other masks, rows
    that belong together stay together.
    """
    folds, blocks = np.zeros(len(samples.masks), dtype=np.int64), _blocks(samples)
    sizes = np.bincount(blocks[blocks >= 0])
    n_folds = len(sizes) if 4 <= len(sizes) <= _MAX_BLOCKS else n_folds
    filled = np.zeros(n_folds)
    for block in np.argsort(-sizes, kind="stable"):  # each to the fold with the fewest rows yet
        folds[blocks == block] = filled.argmin()
        filled[filled.argmin()] += sizes[block]
    rest = np.flatnonzero(blocks < 0)
    if len(rest):
        _, group = np.unique(samples.groups[rest], return_inverse=True)
        folds[rest] = rng.permutation(np.arange(group.max() + 1) % n_folds)[group]
    return folds


def _blocks(samples: Samples) -> Int[np.ndarray, " rows"]:
    """Return which complete part of a coded design each row is held out with, -1 for none."""
    if samples.cells is None:
        return np.full(len(samples.masks), -1)
    group, word = samples.cells[:, 0], samples.cells[:, 1]
    if 0 <= group.max(initial=-1) < 3:
        n_bits = [group.n_bits for design in samples.designs for group in design.groups]
        return np.where(group < 0, -1, 2 * group + (word >> np.array(n_bits)[group] - 1))
    return group


def _best(
    errors: Float[np.ndarray, "folds fits"],
    sizes: Int[np.ndarray, "folds fits"],
    floor: float,
    *,
    returned: bool,
) -> int:
    """Return the smallest fit whose error is about the least; errors below the floor are zero.

    A fit that beats the constant alone by less than a standard error, as folds differ, has hardly
    found anything: then the constant is returned.

    Where many fits are exact, as in a noiseless game, it has the size that most penalties agree on.
    Of these, those of the first family are preferred, and the one that is reported has the smallest
    penalty: no other fold could tell if something were missing.
    """
    total, size = errors.sum(axis=0), sizes.sum(axis=0)
    good = np.flatnonzero(total <= total.min() * (1 + _TOLERANCE) + floor)
    if total.min() > floor:
        best = int(good[np.lexsort((total[good], size[good]))[0]])
        gains = errors[:, EMPTY_SUPPORT] - errors[:, best]
        doubt = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else 0.0
        return best if gains.mean() >= doubt else EMPTY_SUPPORT
    agreed, counts = np.unique(size[good], return_counts=True)
    exact = good[size[good] == agreed[counts.argmax()]]
    families = np.array([choice_of(int(fit)).family for fit in exact])
    exact = exact[families == families[0]]
    return int(exact[len(exact) // 2 if returned else -1])


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
        R², cut off at 1; None if the average game does not vary, or no mask is told apart from its
        prompts.

    References:
        Cochran (1977), "Sampling Techniques", 3rd edition, theorem 2.2, Wiley.
    """
    if samples.n_prompts == 1:
        departures = samples.draws - samples.draws.mean()
    errors, totals = _squares(samples, residuals)[0], _squares(samples, departures)[0]
    if len(totals) == 0:
        return None
    error, total = errors.mean(), totals.mean()
    if total <= 1e-20 * np.square(samples.values).mean():
        return None
    return float(min(1.0, 1 - error / total))


def r2_std_error(
    samples: Samples,
    residuals: Float[np.ndarray, "rows drawn"],
    departures: Float[np.ndarray, "rows drawn"],
) -> float | None:
    """Return the standard error of :func:`held_out_r2`, by linearisation of the ratio.

    Masks that were not drawn independently, such as complements, are one draw together.

    Args:
        samples: The rows.
        residuals: As there.
        departures: As there.

    Returns:
        The standard error; None where there is no R², or a single group of masks.
    """
    if samples.n_prompts == 1:
        departures = samples.draws - samples.draws.mean()
    (errors, groups), (totals, _) = _squares(samples, residuals), _squares(samples, departures)
    _, group = np.unique(groups, return_inverse=True)
    n_groups = len(np.unique(groups))
    if n_groups < 2 or (total := totals.mean()) <= 1e-20 * np.square(samples.values).mean():
        return None
    influence = np.bincount(group, weights=(errors - errors.mean() / total * totals) / total)
    return float(influence.std(ddof=1) * np.sqrt(n_groups) / len(errors))


def _squares(
    samples: Samples, draws: Float[np.ndarray, "rows drawn"]
) -> tuple[Float[np.ndarray, " masks"], Int[np.ndarray, " masks"]]:
    """Return the square of the mean over all prompts, a few of them drawn, and the group of masks.

    Masks of a single prompt, of which that cannot be told, are left out.
    """
    if samples.n_prompts == 1:
        return np.square(draws.mean(axis=1)), samples.groups
    _, first, mask = np.unique(samples.mask_ids, return_index=True, return_inverse=True)
    counts = np.bincount(mask) * draws.shape[1]
    means = np.bincount(mask, weights=draws.sum(axis=1)) / counts
    squares = np.bincount(mask, weights=np.square(draws - means[mask][:, None]).sum(axis=1))
    several = counts > 1
    counts, means, squares = counts[several], means[several], squares[several]
    unseen = np.maximum(0.0, 1 - counts / samples.n_prompts)
    return means**2 - squares / (counts - 1) / counts * unseen, samples.groups[first[several]]
