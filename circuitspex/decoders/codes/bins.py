"""From the values on coded masks to the interactions that stand alone in their bins."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from circuitspex._shared import Interaction
from circuitspex.algebra import fourier
from circuitspex.decoders.measuring import Samples
from circuitspex.designs import AffineDesign, AffineGroup

_UNSURE = 10  # least reliable checks that are tried both ways
_MAX_WORDS = 200_000  # that are decoded at once; of more bins, the strongest


@dataclass(frozen=True)
class Table:
    """A group whose rows are all there: the whole group, or one half of it."""

    design: AffineDesign
    """The design it is of."""

    group: AffineGroup
    """The group."""

    rows: Int[np.ndarray, "words delays"]
    """Which row of the samples each of its masks is."""


def complete_tables(samples: Samples) -> list[Table]:
    """Find the groups, or halves of groups, that samples hold in full.

    Args:
        samples: Rows, some of them on coded masks.

    Returns:
        One table per group; none for a group neither half of which is complete.
    """
    if samples.cells is None:
        return []
    tables: list[Table] = []
    pairs = [(design, group) for design in samples.designs for group in design.groups]
    for number, (design, group) in enumerate(pairs):
        rows = np.flatnonzero(samples.cells[:, 0] == number)
        table = np.full((2**group.n_bits, design.n_delays), -1)
        table[samples.cells[rows, 1], samples.cells[rows, 2]] = rows
        lower, upper = np.split(table, 2)
        if (table >= 0).all():
            tables.append(Table(design, group, table))
        elif (lower >= 0).all() or (upper >= 0).all():
            is_upper = bool((upper >= 0).all())
            tables.append(Table(design, group.half(is_upper), upper if is_upper else lower))
    return tables


def decode_bins(
    tables: list[Table],
    residuals: Float[np.ndarray, " rows"],
    max_order: int,
) -> list[Interaction]:
    r"""Decode every bin as if it held a single term, and keep what lies in its bin.

    Of the bin's entries :math:`U_i = F(T) (-1)^{\langle d_i, 1_T \rangle}` plus noise, the signs
    are check bits. They are decoded as they are and with the least reliable ones flipped, alone
    and in pairs (Chase's second algorithm with patterns of weight up to 2); the sign of entry 0,
    on which all checks depend, is one of them. Of what the code gives back, the set whose pattern
    correlates best with the entries wins.

    Args:
        tables: Complete groups.
        residuals: What is left to explain on every row.
        max_order: Most units in a term.

    Returns:
        Different terms, those from bins that fit best first.

    References:
        Chase (1972), "A class of algorithms for decoding block codes with channel measurement
        information", IEEE Transactions on Information Theory 18(1).
    """
    best: dict[Interaction, float] = {}
    for table in tables:
        values = torch.from_numpy(np.ascontiguousarray(residuals[table.rows]))
        bins = fourier(values).numpy()
        energies = np.square(bins).sum(axis=1)
        limit = max(1, _MAX_WORDS // _n_patterns(bins.shape[1]))
        chosen = np.argsort(-energies, kind="stable")[:limit]
        chosen = chosen[energies[chosen] > 1e-20 * np.square(residuals).sum()]
        units, fits = _decode_words(bins[chosen], chosen, table, max_order)
        for row, fit in zip(units.tolist(), fits.tolist(), strict=True):
            term = tuple(unit for unit in row if unit >= 0)
            if term:
                best[term] = max(fit, best.get(term, 0.0))
    return sorted(best, key=lambda term: -best[term])


def _decode_words(
    bins: Float[np.ndarray, "bins delays"],
    numbers: Int[np.ndarray, " bins"],
    table: Table,
    max_order: int,
) -> tuple[Int[np.ndarray, "found errors"], Float[np.ndarray, " found"]]:
    """Return the best term of each bin that has one, and the share of the bin it explains."""
    patterns = _patterns(bins)
    _, n_patterns, n_delays = patterns.shape
    signs = (bins[:, None] < 0) ^ patterns
    words = signs[..., 1:] ^ signs[..., :1]
    units, decoded = table.design.code.decode(words.reshape(-1, n_delays - 1))
    orders = (units >= 0).sum(axis=1)
    kept = np.flatnonzero(decoded & (orders > 0) & (orders <= max_order))
    found = np.unique(np.column_stack([kept // n_patterns, units[kept]]), axis=0)
    found = found[table.group.bins(found[:, 1:]) == numbers[found[:, 0]]]
    which, units = found[:, 0], found[:, 1:]
    signature = np.where(table.design.flips(units), -1, 1)
    correlations = np.einsum("wd,wd->w", signature, bins[which]) ** 2
    fits = correlations / np.square(bins[which]).sum(axis=1) / n_delays
    order = np.lexsort((-fits, which))
    first = order[np.unique(which[order], return_index=True)[1]]
    return units[first], fits[first]


def n_words_of(table: Table) -> int:
    """Return how many words of check bits are decoded for a table, at most.

    Args:
        table: The table.

    Returns:
        Bins times patterns of signs.
    """
    n_bins, n_delays = table.rows.shape
    return min(_MAX_WORDS, n_bins * _n_patterns(n_delays))


def _n_patterns(n_delays: int) -> int:
    unsure = min(_UNSURE, n_delays)
    return 1 + unsure + unsure * (unsure - 1) // 2


def _patterns(bins: Float[np.ndarray, "bins delays"]) -> Bool[np.ndarray, "b patterns delays"]:
    """Return which signs to flip: none, and every one and two of the least reliable."""
    unsure = np.argsort(np.abs(bins), axis=1, kind="stable")[:, :_UNSURE]
    places = range(unsure.shape[1])
    flipped = [(), *((i,) for i in places), *combinations(places, 2)]
    patterns = np.zeros((len(bins), len(flipped), bins.shape[1]), dtype=bool)
    for number, chosen in enumerate(flipped):
        for place in chosen:
            patterns[np.arange(len(bins)), number, unsure[:, place]] = True
    return patterns
