"""The LASSO decoder: single units, pairs and triples, in the Fourier basis of the keep rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitspex.decoders._regression import (
    Term,
    characters,
    solve,
    strongest_units,
)
from circuitspex.decoders._samples import Samples
from circuitspex.decoders._selection import Candidates
from circuitspex.decoders.sparse_regression import SparseRegression
from circuitspex.errors import DecoderError


@dataclass(frozen=True, kw_only=True)
class LassoDecoder(SparseRegression):
    """Screens sets of units by how they covary with what smaller ones leave, then runs the LASSO.

    **Cost:** the whole budget, by default one evaluation per mask and prompt. Of the order of
    ``s log n`` masks find s terms.

    **Assumption:** the set function is sparse in terms of one and two units, and of three with
    ``max_order=3``. Among more units than ``max_units``, only those with the strongest effects of
    their own are considered, and pairs only among the strongest ``max_pair_units``. Among up to
    ``max_triple_units`` units all triples are screened. Among more, those within so many units,
    taken from the strongest pairs and the strongest units, and those that add any unit to one of
    so many strongest pairs: a triple of other units is missed if no pair or unit in it has an
    effect of its own.

    **When it fails:** higher orders act as noise. They widen the standard errors and show as a
    held-out R² that more budget does not raise; ``proxyspex`` looks for them.

    References:
        Tibshirani (1996), "Regression shrinkage and selection via the lasso", JRSS B 58(1);
        Meinshausen (2007), "Relaxed Lasso", Computational Statistics & Data Analysis 52(1);
        Eskenazis & Ivanisvili (2022), "Learning low-degree functions from a logarithmic number
        of random queries", STOC, for the threshold of the screen.
    """

    name: ClassVar[str] = "lasso"

    max_order: int | None = 2
    """1, 2 or 3."""

    max_units: int = 1024
    """Most single units that the LASSO sees."""

    max_pairs: int = 1024
    """Most pairs that the LASSO sees."""

    max_pair_units: int = 2048
    """Most units among which pairs are screened."""

    max_triples: int = 1024
    """Most triples that the LASSO sees."""

    max_triple_units: int = 128
    """Most units among which all triples are screened; the work grows with its third power."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            DecoderError: If one is outside its range.
        """
        super().__post_init__()
        if self.max_order is None or self.max_order > 3:
            raise DecoderError(
                f"lasso needs max_order from 1 to 3; got {self.max_order}. For larger sets of "
                "units use proxyspex."
            )
        if min(self.max_units, self.max_pairs, self.max_pair_units) < 1:
            raise DecoderError(
                "max_units, max_pairs and max_pair_units must be at least 1; got "
                f"{self.max_units}, {self.max_pairs} and {self.max_pair_units}."
            )
        if min(self.max_triples, self.max_triple_units) < 1:
            raise DecoderError(
                "max_triples and max_triple_units must be at least 1; got "
                f"{self.max_triples} and {self.max_triple_units}."
            )

    def _search(self, samples: Samples, rng: np.random.Generator) -> Candidates:
        values = self._level(samples)
        terms = self._screen(samples.masks, values)
        return Candidates(terms, np.ones(len(terms)))

    def _screen(
        self, masks: Bool[np.ndarray, "rows units"], values: Float[np.ndarray, " rows"]
    ) -> list[Term]:
        units = strongest_units(masks, values, self.keep_rate, self.max_units)
        singles: list[Term] = [(int(unit),) for unit in units]
        if self.max_order == 1:
            return singles
        among = strongest_units(masks, values, self.keep_rate, self.max_pair_units)
        left = _leftover(masks, values, singles, self.keep_rate)
        pairs = screen_pairs(masks, left, among, self.keep_rate, self.max_pairs)
        if self.max_order == 2:
            return singles + pairs
        strengths = _strengths(masks, left, pairs, self.keep_rate)
        level = _noise(left, comb(len(among), 2))
        strong = [pair for pair, strength in zip(pairs, strengths, strict=True) if strength > level]
        left = _leftover(masks, values, singles + strong, self.keep_rate)
        core, extended = among, []
        if len(among) > self.max_triple_units:
            paired = list(dict.fromkeys(unit for pair in pairs for unit in pair))
            paired = paired[: self.max_triple_units // 2]
            n_others = self.max_triple_units - len(paired)
            core = np.union1d(
                np.array(paired, dtype=np.int64),
                strongest_units(masks, values, self.keep_rate, n_others),
            )
            extended = pairs[: self.max_triple_units]
        triples = screen_triples(
            masks, left, core, extended, among, self.keep_rate, self.max_triples
        )
        return singles + pairs + triples


def _leftover(
    masks: Bool[np.ndarray, "rows units"],
    values: Float[np.ndarray, " rows"],
    terms: list[Term],
    keep_rate: float,
) -> Float[np.ndarray, " rows"]:
    """Return what a ridge on a few terms leaves of the values."""
    columns = characters(masks, terms, keep_rate)
    penalties = np.full(len(terms), float(len(terms)))
    solution = solve(columns, np.zeros((len(values), 0)), values, penalties)
    return values - solution[0] - columns @ solution[1:]


def screen_pairs(
    masks: Bool[np.ndarray, "rows units"],
    residuals: Float[np.ndarray, " rows"],
    units: Int[np.ndarray, " chosen"],
    keep_rate: float,
    n_pairs: int,
) -> list[Term]:
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


def screen_triples(
    masks: Bool[np.ndarray, "rows units"],
    residuals: Float[np.ndarray, " rows"],
    core: Int[np.ndarray, " core"],
    pairs: Sequence[Term],
    units: Int[np.ndarray, " chosen"],
    keep_rate: float,
    n_triples: int,
) -> list[Term]:
    """Return the triples of units whose characters covary most with residuals.

    What is looked at is every triple of core units, and every pair with every unit. How many are
    returned is decided as in :func:`screen_pairs`.

    Args:
        masks: Keep-masks.
        residuals: What smaller terms do not explain.
        core: Units all triples of which are screened, in ascending order.
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


def _strengths(
    masks: Bool[np.ndarray, "rows units"],
    residuals: Float[np.ndarray, " rows"],
    terms: Sequence[Term],
    keep_rate: float,
) -> Float[np.ndarray, " terms"]:
    return np.abs(characters(masks, terms, keep_rate).T @ residuals) / len(residuals)


def _noise(residuals: Float[np.ndarray, " rows"], n_terms: int) -> float:
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
        order = order[strengths[order] > _noise(residuals, len(strengths)) / 2]
    return order


def _single_characters(
    masks: Bool[np.ndarray, "rows units"], units: Int[np.ndarray, " chosen"], keep_rate: float
) -> Float[np.ndarray, "rows chosen"]:
    """Return the characters of single units in single precision, which screens need not exceed."""
    scale = np.float32(np.sqrt(keep_rate * (1 - keep_rate)))
    return (masks[:, units].astype(np.float32) - np.float32(keep_rate)) / scale


def _as_terms(units: Int[np.ndarray, "terms order"]) -> list[Term]:
    return [tuple(term) for term in units.tolist()]
