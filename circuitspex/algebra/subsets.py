r"""Inclusion–exclusion: what a set of units does beyond its parts, from the values of its subsets.

.. math:: e(T) = \sum_{S \subseteq T} (-1)^{|T| - |S|} \, v(S)

With v(S) the value where S alone is kept, or alone is ablated, this is the Möbius coefficient of T
at the ablated or at the intact origin. A table of *all* masks is transformed at once by
:func:`circuitspex.algebra.moebius`; here, a few sets have all of their own subsets measured.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitspex._shared import Interaction


def subsets(units: Iterable[int]) -> list[Interaction]:
    """Return all subsets of a set of units by size, the empty one first and the whole set last."""
    ordered = tuple(sorted(units))
    return [part for size in range(len(ordered) + 1) for part in combinations(ordered, size)]


def membership(sets: Iterable[Iterable[int]], n_units: int) -> Bool[np.ndarray, "sets units"]:
    """Return sets of units as rows of booleans, True where a unit is in the set."""
    rows = [list(units) for units in sets]
    members = np.zeros((len(rows), n_units), dtype=bool)
    for member, units in zip(members, rows, strict=True):
        member[units] = True
    return members


def alternating_signs(n_missing: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return the signs with which subsets count that lack so many units of a set."""
    return (-1.0) ** n_missing


def signs_of(parts: Sequence[Interaction]) -> Float[np.ndarray, " parts"]:
    """Return the signs with which subsets count in the effect of a set, which comes last."""
    sizes = np.array([len(part) for part in parts])
    return alternating_signs(sizes[-1] - sizes)


def alternating_sum(
    parts: Sequence[Interaction], values: Sequence[Float[np.ndarray, "..."]]
) -> Float[np.ndarray, "..."]:
    """Return the effect of a set beyond its parts, entry by entry of the values.

    Args:
        parts: Subsets of the set, which comes last; those left out count zero.
        values: The value of each.

    Returns:
        The effect.

    Example:
        Two heads that back each other up: only losing both costs anything.

        >>> alternating_sum(subsets([0, 1]), [np.array([v]) for v in (3.0, 3.0, 3.0, 1.0)])
        array([-2.])
    """
    signs = signs_of(parts).tolist()
    return np.sum([sign * value for sign, value in zip(signs, values, strict=True)], axis=0)


def inclusion_exclusion(parts: Sequence[Interaction]) -> Float[np.ndarray, "parts parts"]:
    """Return the matrix from the values of all subsets of a set to the effects of all of them."""
    within = np.array([[set(inner) <= set(outer) for inner in parts] for outer in parts])
    sizes = np.array([len(part) for part in parts])
    return within * alternating_signs(sizes[:, None] - sizes)
