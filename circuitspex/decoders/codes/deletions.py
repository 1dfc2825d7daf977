r"""Adaptive group tests around the intact model: which units do something when ablated together?

A deletion pool D is tested by the residual game, what ablating D does beyond the terms known so
far, :math:`r(D) = v(N \setminus D) - \sum_{known\ T \subseteq D} \hat\theta_T`. Where that is
significant, a search looks for an unknown term inside D. Units are put in random order; halving,
which follows the larger change, finds a position where r jumps, and the unit there is pinned.
Among prefixes before it, the differences over the pinned units are the terms that hold all of
these; where the background before the jump is silent, one evaluation does for the difference. This
goes on until the pinned units alone make the difference. Their term, and all its parts, are then
measured.

Searches run side by side, and each step of all of them is one call of the set function.
"""

from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from circuitspex._shared import Interaction
from circuitspex.algebra import inclusion_exclusion, membership, signs_of, subsets
from circuitspex.decoders.measuring import Reader, rounding_of
from circuitspex.decoders.regression import Rows

Steps = Generator[np.ndarray, np.ndarray, Interaction | None]
"""A search: yields sets to ablate, is sent their residuals, returns a term."""


class SpentError(Exception):
    """The next evaluations would pass the budget; caught where the search is driven."""


@dataclass
class Residuals:
    """The residual game: evaluations so far, and the terms that they are corrected for."""

    reader: Reader
    limit: int
    """Evaluations after which no more may be asked for."""
    n_units: int
    rows: dict[bytes, int] = field(default_factory=dict)
    sums: list[np.ndarray] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    known: dict[Interaction, float] = field(default_factory=dict)
    n_calls: int = 0
    largest: float = 0.0
    """Largest size of any value."""
    relative_rounding: float = 1e-6
    """Relative error of the values."""
    _members: sparse.csr_array | None = None

    def look_up(
        self, deletions: Bool[np.ndarray, "sets units"], repeats: int = 1, reserve: int = 0
    ) -> Int[np.ndarray, " sets"]:
        """Evaluate sets to ablate where that is still to be done.

        Args:
            deletions: The sets.
            repeats: How often each must have been read.
            reserve: Evaluations that must be left afterwards.

        Returns:
            The rows where their sums and counts are.

        Raises:
            SpentError: If the budget does not allow it; nothing is evaluated then.
        """
        keys = [row.tobytes() for row in np.packbits(deletions, axis=1)]
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        missing = {
            key: repeats - (self.counts[self.rows[key]] if key in self.rows else 0)
            for key in dict.fromkeys(keys)
        }
        missing = {key: count for key, count in missing.items() if count > 0}
        cost = sum(missing.values()) * self.reader.cost
        if missing and self.reader.meter.n_evaluations + cost > self.limit - reserve:
            raise SpentError
        if missing:
            order = np.repeat([first[key] for key in missing], list(missing.values()))
            read = self.reader.read(~deletions[order])
            self.relative_rounding = min(self.relative_rounding, rounding_of(read))
            self.largest = max(self.largest, float(np.abs(read).max()))
            values = iter(read)
            self.n_calls += 1
            for key, count in missing.items():
                self._add(key, [next(values) for _ in range(count)])
        return np.array([self.rows[key] for key in keys], dtype=np.int64)

    def _add(self, key: bytes, values: list[np.ndarray]) -> None:
        if key not in self.rows:
            self.rows[key] = len(self.sums)
            self.sums.append(np.zeros_like(values[0]))
            self.counts.append(0)
        self.sums[self.rows[key]] += sum(values)
        self.counts[self.rows[key]] += len(values)

    def take(self, rows: list[int]) -> Rows:
        """Return some of the evaluations, each mask's averaged."""
        keys = list(self.rows)
        packed = np.frombuffer(b"".join(keys[row] for row in rows), dtype=np.uint8)
        bits = np.unpackbits(packed.reshape(len(rows), -1), axis=1, count=self.n_units)
        counts = np.array([self.counts[row] for row in rows], dtype=float)
        values = np.array([self.sums[row].mean() for row in rows]) / counts
        return Rows(bits.astype(bool), values, counts)

    def all_rows(self) -> Rows:
        """Return all evaluations, each mask's averaged."""
        return self.take(list(range(len(self.sums))))

    def columns(self, rows: Int[np.ndarray, " sets"]) -> Float[np.ndarray, "sets columns"]:
        """Return the mean values of rows, prompt by prompt where prompts are read."""
        return np.stack([self.sums[row] / self.counts[row] for row in rows.tolist()])

    def of(
        self, deletions: Bool[np.ndarray, "sets units"], repeats: int = 1, reserve: int = 0
    ) -> Float[np.ndarray, " sets"]:
        """Return what ablating sets does beyond the known terms.

        Args:
            deletions: The sets.
            repeats: How often each must have been read.
            reserve: Evaluations that must be left afterwards.

        Returns:
            The residuals.
        """
        values = self.columns(self.look_up(deletions, repeats, reserve)).mean(axis=1)
        return values - self.explained(deletions)

    def explained(self, deletions: Bool[np.ndarray, "sets units"]) -> Float[np.ndarray, " sets"]:
        """Return what the known terms say about sets."""
        if self._members is None:
            units = [unit for term in self.known for unit in term]
            bounds = np.cumsum([0, *map(len, self.known)])
            shape = (len(self.known), self.n_units)
            ones = np.ones(len(units), dtype=np.float32)
            self._members = sparse.csr_array((ones, units, bounds), shape=shape)
        orders = np.array([len(term) for term in self.known])
        within = self._members @ deletions.T.astype(np.float32) == orders[:, None]
        return np.array(list(self.known.values())) @ within

    def correct_for(self, known: dict[Interaction, float]) -> None:
        """Set the known terms."""
        self.known, self._members = known, None

    def effects(
        self, term: Interaction, repeats: int = 1
    ) -> tuple[list[Interaction], Float[np.ndarray, "parts columns"]]:
        """Measure a term and all its parts by ablating every subset.

        Args:
            term: The term.
            repeats: How often each subset must have been read.

        Returns:
            The parts, the empty one and the term itself among them, and their effects.
        """
        parts = subsets(term)
        values = self.columns(self.look_up(membership(parts, self.n_units), repeats))
        return parts, inclusion_exclusion(parts) @ values

    def effect(self, term: Interaction) -> Float[np.ndarray, " columns"]:
        """Return the effect of a term all of whose subsets were ablated, prompt by prompt."""
        parts = subsets(term)
        values = self.columns(self.look_up(membership(parts, self.n_units)))
        return signs_of(parts) @ values


def search(
    order: Int[np.ndarray, " pool"], n_units: int, max_order: int, needed: float, silent: float
) -> Steps:
    """Search a pool for a term.

    Args:
        order: The pool's units, in the order in which prefixes are formed.
        n_units: How many units there are.
        max_order: Most units in the term.
        needed: Change of the residual that counts as significant.
        silent: Residual that counts as none: noise, or rounding.

    Yields:
        Sets to ablate.

    Returns:
        The term; None if the residual is spread over terms that are too small, or of more units.
    """
    pinned: list[int] = []
    end, single = len(order), False
    while True:
        signs, parts = _differences(pinned, single)
        low, high = 0, end
        at = yield _prefixes(order, [low, high], parts, n_units)
        at_low, at_high = at.reshape(2, -1) @ signs
        if pinned and abs(at_low) >= needed:
            return tuple(sorted(pinned))
        if len(pinned) == max_order or abs(at_high - at_low) < needed:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            value = float((yield _prefixes(order, [middle], parts, n_units)) @ signs)
            before, after = abs(value - at_low), abs(at_high - value)
            if before >= after:
                high, at_high = middle, value
            else:
                low, at_low = middle, value
            if max(before, after) < needed / 2:
                return None
        single = bool(abs(at_low) <= silent) and (single or not pinned)
        pinned.append(int(order[high - 1]))
        end = low


def _differences(pinned: list[int], single: bool) -> tuple[np.ndarray, list[Interaction]]:
    """Return which sets are added to a prefix, and the signs with which their values count."""
    if single:
        return np.ones(1), [tuple(pinned)]
    parts = subsets(pinned)
    return signs_of(parts), parts


def _prefixes(
    order: Int[np.ndarray, " pool"], lengths: list[int], parts: list[Interaction], n_units: int
) -> Bool[np.ndarray, "sets units"]:
    deletions = np.zeros((len(lengths), len(parts), n_units), dtype=bool)
    for row, length in enumerate(lengths):
        deletions[row][:, order[:length]] = True
    for column, part in enumerate(parts):
        deletions[:, column, list(part)] = True
    return deletions.reshape(-1, n_units)


def run_side_by_side(
    searches: list[Steps], residuals: Residuals, repeats: int, reserve: int
) -> list[Interaction | None]:
    """Run searches in step, every step of all of them one call of the set function.

    Where the budget does not cover a step of all, the later half of them is given up.

    Args:
        searches: The searches.
        residuals: Answers them.
        repeats: How often every set is read.
        reserve: Evaluations to leave for measuring what is found.

    Returns:
        What each found.
    """
    found: list[Interaction | None] = [None] * len(searches)
    asked = {index: next(steps) for index, steps in enumerate(searches)}
    while asked:
        try:
            answers = residuals.of(np.concatenate(list(asked.values())), repeats, reserve)
        except SpentError:
            asked = dict(list(asked.items())[: len(asked) // 2])
            continue
        start, following = 0, {}
        for index, sets in asked.items():
            try:
                following[index] = searches[index].send(answers[start : start + len(sets)])
            except StopIteration as stop:
                found[index] = stop.value
            start += len(sets)
        asked = following
    return found
