r"""Games of logic gates, each sparse in the basis that fits it.

======================  ====================  =======================================
gate of T               basis                 coefficients
======================  ====================  =======================================
AND                     Möbius, ablated       m(T) = w
OR: one of T suffices   Möbius, intact        θ(∅) = w, θ(T) = −w
XOR: an odd number      Fourier at ½          F(∅) = w / 2, F(T) = −w (−1)^\|T\| / 2
======================  ====================  =======================================

In other bases they have a coefficient for every subset S of T, such as (−1)^(\|S\| − 1) w for OR at
the ablated origin, and (−2)^(\|S\| − 1) w for XOR.
"""

import itertools

import numpy as np

from circuitspex._shared import Interaction
from circuitspex.games.sparse import SparseGame, characters, random_terms


def and_gate(n_units: int, seed: int = 0, n_inputs: int = 3) -> SparseGame:
    """Return a game that is won only while all of a few units are kept: they need each other."""
    units, weight = _inputs(n_units, seed, n_inputs)
    return SparseGame(n_units, [units], np.array([weight]), basis="moebius", origin="ablated")


def or_gate(n_units: int, seed: int = 0, n_inputs: int = 3) -> SparseGame:
    """Return a game that is won while any of a few units is kept: they back each other up."""
    units, weight = _inputs(n_units, seed, n_inputs)
    weights = np.array([weight, -weight])
    return SparseGame(n_units, [(), units], weights, basis="moebius", origin="intact")


def xor_gate(n_units: int, seed: int = 0, n_inputs: int = 3) -> SparseGame:
    """Return a game that is won while an odd number of a few units is kept: they cancel."""
    units, weight = _inputs(n_units, seed, n_inputs)
    return SparseGame(n_units, [(), units], weight / 2 * np.array([1.0, -((-1) ** len(units))]))


def _inputs(n_units: int, seed: int, n_inputs: int) -> tuple[Interaction, float]:
    rng = np.random.default_rng(seed)
    return random_terms(n_units, 1, n_inputs, rng)[0], rng.uniform(0.5, 1.5)


def redundant(n_units: int, seed: int = 0, n_copies: int = 3, n_steps: int = 2) -> SparseGame:
    """Return a circuit whose every step can be done by any of several redundant units.

    The game is won while each step has a unit left. With one step it is an OR.

    Args:
        n_units: How many units there are in all.
        seed: Of the draw of units and of the weight w.
        n_copies: How many units can do a step.
        n_steps: How many steps are needed.

    Returns:
        The game. Its Möbius coefficients at the intact origin: θ(∅) = w, and of the units of any
        k whole steps together (−1)^k w; all others are 0. So no set of fewer than ``n_copies``
        units has an effect.
    """
    drawn, weight = _inputs(n_units, seed, n_copies * n_steps)
    steps = np.random.default_rng([seed, 1]).permutation(drawn).reshape(n_steps, n_copies)
    terms: dict[Interaction, float] = {}
    for lost in itertools.product([False, True], repeat=n_steps):
        units = steps[np.array(lost)].flatten()
        terms[tuple(sorted(units.tolist()))] = weight * (-1) ** sum(lost)
    coefficients = np.array(list(terms.values()))
    return SparseGame(n_units, list(terms), coefficients, basis="moebius", origin="intact")


def gates(n_units: int, seed: int = 0) -> SparseGame:
    """Return five ORs, five ANDs and five XORs of two to four units, each with its own weight.

    Hierarchical terms (of ORs and ANDs) beside terms with nothing below them (of XORs).
    """
    rng = np.random.default_rng(seed)
    spectrum: dict[Interaction, float] = {(): 0.0}
    for gate in (np.any, np.all, lambda kept, axis: kept.sum(axis=axis) % 2 == 1):
        for _ in range(5):
            units = random_terms(n_units, 1, int(rng.integers(2, 5)), rng)[0]
            weight = rng.uniform(0.5, 1.5)
            kept = np.array(list(itertools.product([False, True], repeat=len(units))))
            subsets = [tuple(np.flatnonzero(row).tolist()) for row in kept]
            shares = characters(kept, subsets, 0.5).T @ gate(kept, axis=1) / len(kept)
            for subset, share in zip(subsets, shares, strict=True):
                term = tuple(units[i] for i in subset)
                spectrum[term] = spectrum.get(term, 0.0) + weight * share
    kept_terms = [term for term, value in spectrum.items() if abs(value) > 1e-12]
    return SparseGame(n_units, kept_terms, np.array([spectrum[term] for term in kept_terms]))
