"""The LASSO decoder: single units, pairs and triples, in the Fourier basis of the keep rate."""

from dataclasses import dataclass
from math import comb
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Le
from jaxtyping import Bool, Float

from circuitspex._shared import Count, Interaction
from circuitspex.decoders.measuring import Samples
from circuitspex.decoders.regression import (
    Candidates,
    SparseRegression,
    covariances,
    leftover,
    noise_level,
    strongest_pairs,
    strongest_triples,
    strongest_units,
)


@dataclass(frozen=True, kw_only=True)
class LassoDecoder(SparseRegression):
    """Ranks sets of units by how they covary with what smaller ones leave, then runs the LASSO.

    **Cost:** the whole budget, by default one evaluation per mask and prompt. Of the order of
    ``s log n`` masks find s terms.

    **Assumption:** the set function is sparse in terms of one and two units, and of three with
    ``max_order=3``. Among more units than ``max_units``, only those with the strongest effects of
    their own are considered, and pairs only among the strongest ``max_pair_units``. Among up to
    ``max_triple_units`` units all triples are looked at. Among more, those within so many units,
    taken from the strongest pairs and the strongest units, and those that add any unit to one of
    so many strongest pairs: a triple of other units is missed if no pair or unit in it has an
    effect of its own.

    **When it fails:** higher orders act as noise. They widen the standard errors and show as a
    held-out R² that more budget does not raise; ``proxyspex`` looks for them.

    References:
        Tibshirani (1996), "Regression shrinkage and selection via the lasso", JRSS B 58(1);
        Meinshausen (2007), "Relaxed Lasso", Computational Statistics & Data Analysis 52(1);
        Eskenazis & Ivanisvili (2022), "Learning low-degree functions from a logarithmic number
        of random queries", STOC, for the threshold.
    """

    name: ClassVar[str] = "lasso"

    max_order: Annotated[int, Ge(1), Le(3)] = 2
    """Most units in one interaction; for larger sets of units use proxyspex."""

    max_units: Count = 1024
    """Most single units that the LASSO sees."""

    max_pairs: Count = 1024
    """Most pairs that the LASSO sees."""

    max_pair_units: Count = 2048
    """Most units among which pairs are looked at."""

    max_triples: Count = 1024
    """Most triples that the LASSO sees."""

    max_triple_units: Count = 128
    """Most units among which all triples are looked at; the work grows with its third power."""

    def _search(self, samples: Samples, rng: np.random.Generator) -> Candidates:
        values = self._level(samples)
        terms = self._propose(samples.masks, values)
        return Candidates(terms, np.ones(len(terms)))

    def _propose(
        self, masks: Bool[np.ndarray, "rows units"], values: Float[np.ndarray, " rows"]
    ) -> list[Interaction]:
        units = strongest_units(masks, values, self.keep_rate, self.max_units)
        singles: list[Interaction] = [(int(unit),) for unit in units]
        if self.max_order == 1:
            return singles
        among = strongest_units(masks, values, self.keep_rate, self.max_pair_units)
        left = leftover(masks, values, singles, self.keep_rate)
        pairs = strongest_pairs(masks, left, among, self.keep_rate, self.max_pairs)
        if self.max_order == 2:
            return singles + pairs
        strengths = covariances(masks, left, pairs, self.keep_rate)
        level = noise_level(left, comb(len(among), 2))
        strong = [pair for pair, strength in zip(pairs, strengths, strict=True) if strength > level]
        left = leftover(masks, values, singles + strong, self.keep_rate)
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
        triples = strongest_triples(
            masks, left, core, extended, among, self.keep_rate, self.max_triples
        )
        return singles + pairs + triples
