"""The hybrid decoder: every way of finding interactions, on the same masks."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Le, Lt

from circuitspex._shared import Count
from circuitspex.decoders.codes import (
    grow,
    search_bins,
    search_extensions,
    search_pairs,
    search_parts,
    search_units,
)
from circuitspex.decoders.lasso import LassoDecoder
from circuitspex.decoders.measuring import Samples
from circuitspex.decoders.proxyspex import ProxySpexDecoder
from circuitspex.decoders.regression import Candidates, SparseRegression, combine, strongest_units


@dataclass(frozen=True, kw_only=True)
class HybridDecoder(SparseRegression):
    r"""Lets trees, codes and covariances search the same rows, and held-out rows choose among them.

    Trees find hierarchies and miss interactions whose parts have no effect; codes find sparse
    terms of any kind and drown in dense spectra; a LASSO on pairs often predicts best when there
    is little data. At keep rate ½ the coded masks of ``spex`` are marginally random, so they serve
    all three. Candidates are searched

    * by the boosted trees of ``proxyspex``,
    * by growing a fit from its own residuals: single units, decoded bins (at keep rate ½), pairs,
      and terms that differ by one unit from a term already in,
    * by the LASSO's look at all pairs,

    and four families compete on held-out rows: trees, trees and grown terms together, grown terms,
    and the LASSO's. Joining all candidates into one family predicts worse than the best of them.

    **Cost:** the whole budget, by default one evaluation per mask and prompt. About
    ``2 n log2 n`` masks are a good start.

    **Assumption:** sparse in the Fourier basis of the keep rate.

    **When it fails:** where all of its parts do; the held-out R² says so. It takes three to five
    times as long to decode as ``proxyspex``.

    References:
        Butler et al. (2025), "ProxySPEX", arXiv:2505.17495; Kang et al. (2025), "SPEX",
        arXiv:2502.13870.
    """

    name: ClassVar[str] = "hybrid"

    max_order: Annotated[int, Ge(1), Le(12)] = 5
    """Most units in one interaction."""

    max_units: Count = 1024
    """Most units that are extended by, and that the LASSO sees."""

    n_threads: Annotated[int, Ge(0), Lt(2**31)] = 0
    """Threads of the trees; 0 for OpenMP's default."""

    def _code_errors(self) -> int | None:
        return self.max_order if self.keep_rate == 0.5 else None

    def _search(self, samples: Samples, rng: np.random.Generator) -> Candidates:
        masks, p, values = samples.masks, self.keep_rate, self._level(samples)
        scale = values.std()
        if scale <= 1e-14 * np.abs(values).max(initial=0.0):
            return combine([{}] * 4)
        # The parts would estimate the prompts' effects again.
        levelled = samples.with_values(values)
        trees = ProxySpexDecoder(
            keep_rate=p,
            max_order=self.max_order,
            max_units=self.max_units,
            n_threads=self.n_threads,
        )._search(levelled, rng)
        strongest = LassoDecoder(
            keep_rate=p, max_order=min(2, self.max_order), max_units=self.max_units
        )._search(levelled, rng)
        units = strongest_units(masks, values, p, self.max_units)
        searches = [*search_bins(samples, self.max_order), search_units(units, masks.shape[1])]
        if self.max_order > 1:
            searches += [search_parts(self.max_order), search_pairs(masks, units, p)]
            searches.append(search_extensions(masks, units, p, self.max_order))
        fit = grow(samples, values, searches, p)
        grown = {term: float(np.sqrt(abs(value) / scale)) for term, value in fit.items()}
        split = dict(zip(trees.terms, trees.weights.tolist(), strict=True))
        both = {term: max(split.get(term, 0), grown.get(term, 0)) for term in {**split, **grown}}
        return combine([split, both, grown, dict.fromkeys(strongest.terms, 1.0)])
