"""Sets of two and three units whose characters covary most with what is left over."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitspex._shared import Interaction
from circuitspex.decoders.regression.least_squares import characters, solve


def leftover(
    masks: Bool[np.ndarray, "rows units"],
    values: Float[np.ndarray, " rows"],
    terms: list[Interaction],
    keep_rate: float,
) -> Float[np.ndarray, " rows"]:
    """Return what a ridge on a few terms leaves of the values."""
    columns = characters(masks, terms, keep_rate)
    penalties = np.full(len(terms), float(len(terms)))
    solution = solve(columns, np.zeros((len(values), 0)), values, penalties)
    return values - solution[0] - columns @ solution[1:]


def strongest_pairs(
    masks: Bool[np.ndarray, "rows units"],
    residuals: Float[np.ndarray, " rows"],
    units: Int[np.ndarray, " chosen"],
    keep_rate: float,
    n_pairs: int,
) -> list[Interaction]:
    r"""Return the pairs of units whose characters covary most with residuals.

    All covariances are one matrix product, :math:`Z^T \mathrm{diag}(r) Z / m`. If there are more
    pairs than asked for, those below half the level that pure noise would hardly reach anywhere,
    :math:`\mathrm{sd}(r) \sqrt{2 \log(\text{pairs}) / m}`, are left out.

    Args:
        masks: Keep-masks.
        residuals: What single units do not explain.
        units: Units among which to look.
        keep_rate: p of the characters.
        n_pairs: How many to return at most.

    Returns:
        Pairs, the strongest first.
    """
    if len(units) < 2:
        return []
    z = _single_characters(masks, units, keep_rate)
    covariances = np.abs((z * residuals[:, None].astype(np.float32)).T @ z / np.float32(len(z)))
    first, second = np.triu_indices(len(units), k=1)
    order = _strongest(covariances[first, second], residuals, n_pairs)
    return _as_terms(units[np.stack([first[order], second[order]], axis=1)])


def strongest_triples(
    masks: Bool[np.ndarray, "rows units"],
    residuals: Float[np.ndarray, " rows"],
    core: Int[np.ndarray, " core"],
    pairs: Sequence[Interaction],
    units: Int[np.ndarray, " chosen"],
    keep_rate: float,
    n_triples: int,
) -> list[Interaction]:
    """Return the triples of units whose characters covary most with residuals.

    What is looked at is every triple of core units, and every pair with every unit. How many are
    returned is decided as in :func:`strongest_pairs`.

    Args:
        masks: Keep-masks.
        residuals: What smaller terms do not explain.
        core: Units all triples of which are looked at, in ascending order.
        pairs: Pairs to extend.
        units: Units to extend them by.
        keep_rate: p of the characters.
        n_triples: How many to return at most.

    Returns:
        Triples, the strongest first.
    """
    z = _single_characters(masks, core, keep_rate)
    weighted = z * (residuals[:, None] / len(z)).astype(np.float32)
    found, strengths = [np.zeros((0, 3), dtype=np.int64)], [np.zeros(0, dtype=np.float32)]
    for i in range(len(core) - 2):
        later = z[:, i + 1 :]
        covariances = np.abs((later * weighted[:, i : i + 1]).T @ later)
        first, second = np.triu_indices(later.shape[1], k=1)
        others = core[i + 1 :]
        smallest = np.full(len(first), core[i])
        found.append(np.stack([smallest, others[first], others[second]], axis=1))
        strengths.append(covariances[first, second])
    if pairs:
        z = _single_characters(masks, units, keep_rate)
        weighted = characters(masks, pairs, keep_rate) * (residuals[:, None] / len(z))
        covariances = np.abs(weighted.astype(np.float32).T @ z).reshape(-1)
        extended = np.repeat(np.array(pairs), len(units), axis=0)
        triples = np.column_stack([extended, np.tile(units, len(pairs))])
        distinct = (triples[:, 2:] != triples[:, :2]).all(axis=1)
        found.append(np.sort(triples[distinct], axis=1))
        strengths.append(covariances[distinct])
    triples, strength = np.concatenate(found), np.concatenate(strengths)
    if pairs:  # a triple may extend several pairs, and lie in the core too
        keys = (triples * masks.shape[1] ** np.array([2, 1, 0])).sum(axis=1)
        once = np.unique(keys, return_index=True)[1]
        triples, strength = triples[once], strength[once]
    return _as_terms(triples[_strongest(strength, residuals, n_triples)])


def covariances(
    masks: Bool[np.ndarray, "rows units"],
    residuals: Float[np.ndarray, " rows"],
    terms: Sequence[Interaction],
    keep_rate: float,
) -> Float[np.ndarray, " terms"]:
    """Return how strongly every term's character covaries with residuals."""
    return np.abs(characters(masks, terms, keep_rate).T @ residuals) / len(residuals)


def noise_level(residuals: Float[np.ndarray, " rows"], n_terms: int) -> float:
    """Return the level that covariances of so many terms with pure noise would hardly reach."""
    return float(residuals.std() * np.sqrt(2 * np.log(max(1, n_terms)) / len(residuals)))


def _strongest(
    strengths: Float[np.ndarray, " terms"], residuals: Float[np.ndarray, " rows"], n_terms: int
) -> Int[np.ndarray, " chosen"]:
    """Return where the largest covariances are, the largest first."""
    order = np.arange(len(strengths))
    if len(strengths) > n_terms:  # sorting millions of terms would take longest of all
        order = np.sort(np.argpartition(-strengths, n_terms - 1)[:n_terms])
    order = order[np.argsort(-strengths[order], kind="stable")]
    if len(strengths) > n_terms:
        order = order[strengths[order] > noise_level(residuals, len(strengths)) / 2]
    return order


def _single_characters(
    masks: Bool[np.ndarray, "rows units"], units: Int[np.ndarray, " chosen"], keep_rate: float
) -> Float[np.ndarray, "rows chosen"]:
    """Return the characters of single units in single precision, enough to compare."""
    scale = np.float32(np.sqrt(keep_rate * (1 - keep_rate)))
    return (masks[:, units].astype(np.float32) - np.float32(keep_rate)) / scale


def _as_terms(units: Int[np.ndarray, "terms order"]) -> list[Interaction]:
    return [tuple(term) for term in units.tolist()]
