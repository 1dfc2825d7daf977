"""The strategy around the searches: how large pools are, what counts as significant, when to stop.

The threshold starts at half the largest single effect and is halved when nothing of its size is
left, so the strongest interactions come first and a budget that runs out has bought these. Where
most units do nothing at all, the game is sparse, and the threshold starts at its floor.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitspex._shared import Interaction
from circuitspex.algebra import membership
from circuitspex.decoders.codes.deletions import (
    Residuals,
    SpentError,
    run_side_by_side,
    search,
)
from circuitspex.decoders.regression import RowFit, Rows, fit_rows

_NEEDED_NOISE = 4.0  # standard deviations of noise in half a threshold
_SPREAD_PROMPTS = 4.0  # median standard errors over prompts that a term must reach
_MOST_REPEATS = 1024
_MOST_SEARCHES = 64


@dataclass
class Adaptive:
    """One adaptive decoding around the intact model."""

    residuals: Residuals
    """What searches ask, and what they are corrected for."""
    fresh: Residuals
    """What measurements ask. With noise these are read anew: what a search has seen was chosen
    for being large. Without noise it is the same object."""
    rng: np.random.Generator
    max_order: int
    largest_pool: int
    threshold: float | None
    noise: float
    """Standard deviation of one value: of replicates at first, then of what fits leave over."""
    measured: dict[Interaction, float] = field(default_factory=dict)
    """Effects measured by inclusion and exclusion."""
    repeats: int = 1
    level: float = 0.0
    """The present threshold: the smallest effect that is sought."""
    floor: float = 0.0
    size: float = 2.0
    """Typical number of units in a pool."""
    width: int = 8
    """How many searches run side by side."""
    n_fruitless: int = 0
    """Pools read since the last new term."""
    covered: float = 0.0
    """How many of these a given term of ``max_order`` units was in, on average."""
    largest_residual: float = 0.0
    """Largest residual of these pools."""
    counts: dict[str, int] = field(default_factory=dict)
    stopped: str = "finished"
    """Why the search ended: nothing more was found, or the budget is spent."""
    first_noise: float = 0.0
    """The noise as replicates told it."""
    drawn: list[bytes] = field(default_factory=list)
    """All pools, packed."""

    def run(self) -> None:
        """Search until nothing above the floor is left, or the budget is spent."""
        self.first_noise = self.noise
        self.counts = dict.fromkeys(("pools", "searches", "found", "repeated", "failed"), 0)
        try:
            self._start()
            while self._next_level():
                self._round()
        except SpentError:
            self.stopped = "budget"

    @property
    def rounding(self) -> float:
        """Return below what residuals are rounding errors."""
        return self.residuals.relative_rounding * max(self.residuals.largest, self.fresh.largest)

    @property
    def needed(self) -> float:
        """Return the change of a residual that counts as significant."""
        return max(self.level / 2, 2 * self.rounding, np.finfo(float).tiny)

    def _start(self) -> None:
        """Measure every unit alone if that is cheap, and set the threshold."""
        n_units, reader = self.residuals.n_units, self.residuals.reader
        left = self.residuals.limit - reader.meter.n_evaluations
        self._learn([()])
        spread = dense = 0.0
        if (n_units * reader.cost) <= left // 2:
            effects = self._learn([(unit,) for unit in range(n_units)])
            sizes = np.abs(effects.mean(axis=1))
            if effects.shape[1] > 1:
                errors = effects.std(axis=1, ddof=1) / np.sqrt(effects.shape[1])
                spread = _SPREAD_PROMPTS * float(np.median(errors))
            dense = np.median(sizes) > max(self.rounding, 2 * self.noise)
        self.floor = max(spread, 2 * _NEEDED_NOISE * self.noise)
        if self.threshold is not None:
            self.floor = self.threshold
            wanted = (2 * _NEEDED_NOISE * self.noise / self.floor) ** 2
            self.repeats = int(np.clip(np.ceil(wanted), 1, _MOST_REPEATS))
        self.size = min(max(2.0, n_units**0.5), self.largest_pool)
        self.level = self.floor
        if dense:
            sizes = np.abs(self.residuals.of(self._pools(16), self.repeats))
            self.level = max(self.floor, float(sizes.max()))

    def _learn(self, terms: list[Interaction]) -> Float[np.ndarray, "terms columns"]:
        """Return the effects of units or of the constant, measured in one call."""
        n_units = self.fresh.n_units
        sets = membership([*terms, ()], n_units)
        values = self.fresh.columns(self.fresh.look_up(sets, self.repeats))
        effects = values[:-1] - (values[-1] if terms != [()] else 0.0)
        self.measured.update(zip(terms, effects.mean(axis=1).tolist(), strict=True))
        self._revise(terms)
        return effects

    def _next_level(self) -> bool:
        """Return whether to go on, with the threshold lowered if nothing of its size is left."""
        above = self.level > self.floor
        final = not above and self.noise == 0
        if self.covered < (12 if final else 4) and self.n_fruitless < (1024 if final else 128):
            return True
        largest = self.largest_residual
        self.n_fruitless, self.largest_residual, self.covered = 0, 0.0, 0.0
        if above:
            self.level = max(self.floor, min(self.level / 2, largest))
            return True
        if self.noise > 0 and self.threshold is None and self.repeats < _MOST_REPEATS:
            self.repeats, self.floor = self.repeats * 4, self.floor / 2
            self.level = self.floor
            return True
        return False

    def _round(self) -> None:
        """Draw pools, search those that do something, and learn what is found."""
        pools = self._pools(max(16, 2 * self.width))
        values = np.abs(self.residuals.of(pools, self.repeats, self._reserve()))
        self.drawn += [row.tobytes() for row in np.packbits(pools, axis=1)]
        hit = values >= self.needed
        self.counts["pools"] += len(pools)
        self.n_fruitless += len(pools)
        share = pools.sum(axis=1) / self.residuals.n_units
        self.covered += float((share ** min(self.max_order, 6)).sum())
        self.largest_residual = max(self.largest_residual, float(values.max()))
        self.size *= float(np.exp(0.8 * (0.5 - hit.mean())))
        chosen = np.flatnonzero(hit)[: self.width]
        if len(chosen):
            self._search(pools[chosen])
        self.size = float(np.clip(self.size, min(2, self.largest_pool), self.largest_pool))

    def _pools(self, n_pools: int) -> Bool[np.ndarray, "pools units"]:
        """Return random pools of about the present size."""
        n_units = self.residuals.n_units
        sizes = self.size * np.exp(self.rng.uniform(-0.35, 0.35, n_pools))
        sizes = np.clip(np.round(sizes), 1, self.largest_pool).astype(int)
        ranks = np.argsort(np.argsort(self.rng.random((n_pools, n_units)), axis=1), axis=1)
        return ranks < sizes[:, None]

    def _search(self, pools: Bool[np.ndarray, "pools units"]) -> None:
        n_units = self.residuals.n_units
        silent = float(max(self.rounding, 3 * self.noise / np.sqrt(self.repeats)))
        searches = [
            search(
                self.rng.permutation(np.flatnonzero(pool)),
                n_units,
                self.max_order,
                self.needed,
                silent,
            )
            for pool in pools
        ]
        found = run_side_by_side(searches, self.residuals, self.repeats, self._reserve())
        terms = [term for term in found if term is not None]
        fresh = [term for term in dict.fromkeys(terms) if term not in self.residuals.known]
        self.counts["searches"] += len(pools)
        self.counts["failed"] += len(pools) - len(terms)
        self.counts["repeated"] += len(terms) - len(fresh)
        measured: list[Interaction] = []
        for term in fresh:
            parts, effects = self.fresh.effects(term, self.repeats)
            self.measured.update(zip(parts, effects.mean(axis=1).tolist(), strict=True))
            measured += parts
        if fresh:
            self._revise(measured)
        known = self.residuals.known
        new = [term for term in fresh if abs(known.get(term, 0.0)) >= self.needed]
        self.counts["found"] += len(new)
        if new:
            self.n_fruitless, self.largest_residual, self.covered = 0, 0.0, 0.0
        elif len(pools) > 1:
            self.size *= 0.85  # all of it was spread over terms that are too small
        distinct = len(fresh) / max(1, len(terms))
        self.width = int(np.clip(self.width * (2 if distinct > 0.8 else 0.5), 4, self._widest()))

    def _reserve(self) -> int:
        """Return what measuring four terms costs, but no more than a tenth of the budget."""
        each = 2**self.max_order * self.repeats * self.residuals.reader.cost
        return min(4 * each, self.residuals.limit // 10)

    def _widest(self) -> int:
        """Return how many searches the rest of the budget pays at most, and a few more times."""
        left = self.residuals.limit - self.residuals.reader.meter.n_evaluations
        each = self.residuals.reader.cost * self.repeats * 20
        return int(np.clip(left // (4 * each), 4, _MOST_SEARCHES))

    def _revise(self, terms: list[Interaction]) -> None:
        """Set the known terms, some of which are new.

        As measured, or fitted to all measurements where these are noisy: a fit knows that most
        parts of a term do nothing, inclusion and exclusion adds up the noise of all of them.
        """
        if self.noise == 0:
            limit = self.rounding
            known = {term: value for term, value in self.measured.items() if abs(value) > limit}
        else:
            fit = fit_rows(self.fresh.all_rows(), [*self.residuals.known, *terms], self.noise)
            known = dict(zip(fit.terms, fit.coefficients.tolist(), strict=True))
            self.noise = float(
                np.clip(fit.variance**0.5, 0.7 * self.first_noise, 1.5 * self.first_noise)
            )
        self.residuals.correct_for({(): self.measured.get((), 0.0), **known})

    def fit(self) -> RowFit:
        """Return the fit of what is known to all measurements and all pools.

        What was read while searching is left out: it was chosen by its values.
        """
        measured = self.fresh.all_rows()
        rows = [self.residuals.rows[key] for key in dict.fromkeys(self.drawn)]
        pools = self.residuals.take(rows)
        both = Rows(*(np.concatenate(pair) for pair in zip(measured, pools, strict=True)))
        return fit_rows(both, list(self.residuals.known), self.noise)

    def diagnostics(self) -> dict[str, Any]:
        """Return what was done, as plain values."""
        return {
            "threshold": float(self.level),
            "stopped": self.stopped,
            "noise": float(self.noise),
            "repeats": self.repeats,
            "n_calls": self.residuals.n_calls
            + (self.fresh is not self.residuals) * self.fresh.n_calls,
            "n_masks": len(self.residuals.rows.keys() | self.fresh.rows.keys()),
            "pool_size": float(self.size),
            **{f"n_{name}": count for name, count in self.counts.items()},
        }
