"""Which set is it? Decoding many group tests at once.

Every case is one hidden set of units; a test is positive if its pool hits the set. Without noise
the outcomes decide: units in negative pools are out (COMP), and the only candidate left in a
positive pool is in (DD). With noise every case has a value per pool instead, which is the set's
coefficient where the pool misses it, and zero where it hits.
"""

import numpy as np
from jaxtyping import Bool, Float

_MAX_PROGRAMS = 64  # linear programs solved at most in one call


def definite_sets(
    positive: Bool[np.ndarray, "cases tests"], pools: Bool[np.ndarray, "tests units"]
) -> tuple[Bool[np.ndarray, "cases units"], Bool[np.ndarray, " cases"]]:
    """Decode outcomes without noise by definite defectives.

    Args:
        positive: Which pools hit the set.
        pools: Units of every pool.

    Returns:
        Units that are certainly in the set, and whether they explain every positive test.

    References:
        Aldridge, Baldassini & Johnson (2014), "Group testing algorithms: bounds and simulations",
        IEEE Transactions on Information Theory 60(6).
    """
    table = pools.astype(np.float32)
    candidates = ~((~positive).astype(np.float32) @ table > 0)
    alone = positive & (candidates.astype(np.float32) @ table.T == 1)
    definite = candidates & (alone.astype(np.float32) @ table > 0)
    explained = definite.astype(np.float32) @ table.T > 0
    return definite, (explained >= positive).all(axis=1)


def smallest_sets(
    positive: Bool[np.ndarray, "cases tests"], pools: Bool[np.ndarray, "tests units"]
) -> tuple[Bool[np.ndarray, "cases units"], Bool[np.ndarray, " cases"]]:
    """Decode outcomes without noise by the linear program of the fewest units.

    Only candidates enter: units in no negative pool. For what :func:`definite_sets` leaves open.

    Args:
        positive: Which pools hit the set.
        pools: Units of every pool.

    Returns:
        Units of the set, and whether the program's answer was integral, so that it is a set.
    """
    from scipy.optimize import linprog

    found = np.zeros((len(positive), pools.shape[1]), dtype=bool)
    solved = np.zeros(len(positive), dtype=bool)
    for case, outcomes in enumerate(positive[:_MAX_PROGRAMS]):
        candidates = np.flatnonzero(~pools[~outcomes].any(axis=0))
        cover = pools[np.ix_(outcomes, candidates)].astype(float)
        if not cover.any(axis=1).all():
            continue
        answer = linprog(np.ones(len(candidates)), -cover, -np.ones(len(cover)), bounds=(0, 1))
        chosen = answer.x > 0.5
        solved[case] = bool(np.abs(answer.x - chosen).max(initial=0.0) < 1e-6)
        found[case, candidates[chosen]] = True
    return found, solved


def likeliest_sets(
    values: Float[np.ndarray, "cases tests"],
    pools: Bool[np.ndarray, "tests units"],
    allowed: Bool[np.ndarray, "cases units"],
    max_order: int,
    penalty: float,
    noise: Float[np.ndarray, " cases"],
) -> Bool[np.ndarray, "cases units"]:
    r"""Decode values with Gaussian noise by greedy maximum likelihood.

    For a set that misses m pools whose values sum to s, the likeliest coefficient s / m explains
    s² / m of the squares. Units are added one at a time while that gains more than the penalty:
    one of the set loses nothing of s and makes m smaller; another one loses its share of s.
    One linear program per case does no better and takes seconds.

    Args:
        values: One value per pool; the set's coefficient where it is missed.
        pools: Units of every pool; a first pool without units is the value itself.
        allowed: Units that may be in the set of each case.
        max_order: Most units in a set.
        penalty: Gain that one more unit must bring, in units of the noise's variance.
        noise: Standard deviation of the values of each case.

    Returns:
        Units of the sets.
    """
    outside = (~pools).astype(np.float32)
    missed = np.ones(values.shape, dtype=np.float32)
    scaled = (values / np.maximum(noise, np.finfo(float).tiny)[:, None]).astype(np.float32)
    chosen = np.zeros(allowed.shape, dtype=bool)
    best = np.square(scaled.sum(axis=1)) / scaled.shape[1]
    going = np.ones(len(values), dtype=bool)
    for _ in range(max_order):
        rows = np.flatnonzero(going)
        if not len(rows):
            break
        sums = (scaled[rows] * missed[rows]) @ outside
        counts = missed[rows] @ outside
        gains = np.square(sums) / np.maximum(counts, 1)
        gains[~(allowed[rows] & ~chosen[rows] & (counts > 0))] = -np.inf
        unit = gains.argmax(axis=1)
        gain = gains[np.arange(len(rows)), unit]
        better = gain > best[rows] + penalty
        going[rows[~better]] = False
        rows, unit = rows[better], unit[better]
        chosen[rows, unit] = True
        missed[rows] *= outside[:, unit].T
        best[rows] = gain[better]
    return chosen
