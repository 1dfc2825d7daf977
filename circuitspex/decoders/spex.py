"""The SPEX decoder: coded masks, on which every interaction signs its name."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Le

from circuitspex._shared import Count
from circuitspex.decoders.codes import grow, search_bins, search_everything, search_units
from circuitspex.decoders.measuring import Samples
from circuitspex.decoders.regression import (
    Candidates,
    SparseRegression,
    combine,
    scores,
    strongest_units,
)
from circuitspex.designs import MAX_UNITS
from circuitspex.errors import DecoderError


@dataclass(frozen=True, kw_only=True)
class SpexDecoder(SparseRegression):
    r"""Decodes interactions from bins of coded masks, then fits them on all rows.

    1. Masks are an affine design: three or more groups of :math:`2^b` words, each at the delays of
       a BCH code. A transform of each group drops every Fourier term into one of :math:`2^b` bins.
    2. A bin that holds a single large term shows, over the delays, the check bits of its units.
       They are decoded hard and soft, and what comes back must belong into that bin.
    3. Terms that the rows of all groups confirm are fitted together by least squares and taken
       off; what they hid in other bins is decoded in the next round.
    4. A relaxed LASSO on these terms and the single units that show at all, chosen by cross-fitting
       on held-out groups, gives the result.

    It departs from the published code where that is better: reference signs are decoded like any
    other, terms are confirmed by all rows instead of one bin, residuals come from a joint fit, the
    final fit on all rows is made, bins of all words are decoded at once, and a budget is used up:
    more groups where they fit, random masks for the rest.

    **Cost:** the whole budget, by default one evaluation per mask and prompt. The code costs about
    :math:`t \log_2 n` masks per word, t being ``max_errors``; with t = 5, 984 masks for 96 units
    and 1,344 for 1,000 are the least that tell terms of order 5, in 24 bins.

    **Assumption:** keep rate ½, and sparse in its Fourier basis: fewer large terms than about
    twice the bins of a group, of whatever order up to ``max_order``. Parts of an interaction need
    no effect of their own.

    **When it fails:** a dense spectrum fills every bin, nothing is decoded, and what is left is a
    LASSO on single units, which the held-out R² shows. So does a language model of which half the
    heads are gone: restrict the units with ``among``, or use ``hybrid`` at a higher keep rate.

    References:
        Kang et al. (2025), "SPEX: Scaling feature interaction explanations for LLMs",
        arXiv:2502.13870; Amrollahi et al. (2019), "Efficiently learning Fourier sparse set
        functions", NeurIPS.
    """

    name: ClassVar[str] = "spex"
    model_keep_rate: ClassVar[float] = 0.5

    keep_rate: Annotated[float, Ge(0.5), Le(0.5)] = 0.5
    """Half of the units: only there are coded masks random. Use it on few units, chosen with
    ``among``, or the decoder ``hybrid`` at another rate."""

    max_order: Annotated[int, Ge(1), Le(12)] = 5
    """Most units in one interaction."""

    max_errors: Count | None = None
    """t: how many units and wrong signs together the code corrects; None for ``max_order``. Less
    if the budget is too small for it."""

    max_units: Count = 1024
    """Most single units that the LASSO sees."""

    def _disagreements(self) -> Iterator[str]:
        if self.max_errors is not None and self.max_errors < self.max_order:
            yield f"max_errors must be at least max_order={self.max_order}; got {self.max_errors}"

    def _check_units(self, n_units: int) -> None:
        if n_units > MAX_UNITS:
            raise DecoderError(
                f"spex takes at most {MAX_UNITS} units, the longest code it has; got {n_units}. "
                "Restrict the units, join them into blocks, or use the decoder 'proxyspex'."
            )

    def _code_errors(self) -> int | None:
        return self.max_errors or self.max_order

    def _search(self, samples: Samples, rng: np.random.Generator) -> Candidates:
        values = self._level(samples)
        scale = values.std()
        if scale <= 1e-14 * np.abs(values).max(initial=0.0):
            return Candidates([], np.zeros(0))
        units = strongest_units(samples.masks, values, self.keep_rate, self.max_units)
        searches = search_bins(samples, self.max_order)
        if not searches:  # too few masks or units for coded ones, or rows from elsewhere
            searches = [search_everything(samples.masks.shape[1], self.max_order)]
        searches.append(search_units(units, samples.masks.shape[1]))
        grown = grow(samples, values, searches, self.keep_rate)
        found = {term: np.sqrt(abs(value) / scale) for term, value in grown.items()}
        faint = 0.5 * min(found.values(), default=1.0)
        alone = [(int(unit),) for unit in units]
        sizes = scores(samples.masks, values, alone, self.keep_rate)
        singles = {term: faint for term, size in zip(alone, sizes, strict=True) if size > 1}
        return combine([{**singles, **found}])
