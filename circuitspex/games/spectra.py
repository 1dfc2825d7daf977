"""Games made of terms: additive ones, peaks and hierarchies."""

import numpy as np

from circuitspex._shared import Interaction
from circuitspex.games.sparse import SparseGame, random_terms


def constant(n_units: int, seed: int = 0) -> SparseGame:
    """Return one normal number whatever is ablated: there is nothing to find."""
    return SparseGame(n_units, [()], np.random.default_rng(seed).normal(size=1))


def additive(n_units: int, seed: int = 0) -> SparseGame:
    """Return a normal effect of ablating each unit, which simply add up: there are no pairs."""
    singles = [(unit,) for unit in range(n_units)]
    effects = np.random.default_rng(seed).normal(size=1 + n_units)
    return SparseGame(n_units, [(), *singles], effects, basis="moebius", origin="intact")


def peak(n_units: int, seed: int = 0) -> SparseGame:
    """Return ten terms of order 5 and nothing below them (ProxySPEX, "Synthetic-Peak")."""
    rng = np.random.default_rng(seed)
    support = random_terms(n_units, 10, 5, rng)
    return SparseGame(n_units, support, rng.uniform(-1, 1, len(support)))


def hierarchy(n_units: int, seed: int = 0) -> SparseGame:
    """Return ten terms of order 5 and all below (ProxySPEX, "Synthetic-Complete-Hierarchy")."""
    rng = np.random.default_rng(seed)
    terms: dict[Interaction, None] = {}
    for top in random_terms(n_units, 10, 5, rng):
        for bits in range(2 ** len(top)):
            terms[tuple(unit for i, unit in enumerate(top) if bits >> i & 1)] = None
    return SparseGame(n_units, list(terms), rng.uniform(-1, 1, len(terms)))
