"""The LASSO decoder: single units and pairs, in the Fourier basis of the keep rate."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitspex.decoders._regression import (
    Term,
    characters,
    prompt_offsets,
    solve,
    strongest_units,
)
from circuitspex.decoders._samples import Samples
from circuitspex.decoders._selection import Candidates
from circuitspex.decoders.sparse_regression import SparseRegression
from circuitspex.errors import DecoderError


@dataclass(frozen=True, kw_only=True)
class LassoDecoder(SparseRegression):
    """Screens pairs by how they covary with what single units leave over, then runs the LASSO.

    **Cost:** the whole budget, by default one evaluation per mask and prompt. Of the order of
    ``s log n`` masks find s terms.

    **Assumption:** the set function is sparse in terms of one and two units. ``max_order`` above 2
    is taken as 2. Among more units than ``max_units``, only those with the strongest effects of
    their own are considered, and pairs only among the strongest ``max_pair_units``.

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
    """1 or 2; more is taken as 2."""

    max_units: int = 1024
    """Most single units that the LASSO sees."""

    max_pairs: int = 1024
    """Most pairs that the LASSO sees."""

    max_pair_units: int = 2048
    """Most units among which pairs are screened."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            DecoderError: If one is outside its range.
        """
        super().__post_init__()
        if min(self.max_units, self.max_pairs, self.max_pair_units) < 1:
            raise DecoderError(
                "max_units, max_pairs and max_pair_units must be at least 1; got "
                f"{self.max_units}, {self.max_pairs} and {self.max_pair_units}."
            )

    def _search(self, samples: Samples, rng: np.random.Generator) -> Candidates:
        values = samples.values - prompt_offsets(
            samples.masks, samples.incidence, samples.values, self.keep_rate
        )
        units = strongest_units(samples.masks, values, self.keep_rate, self.max_units)
        terms: list[Term] = [(int(unit),) for unit in units]
        if self.max_order is None or self.max_order >= 2:
            residuals = _leftover(samples.masks, values, units, self.keep_rate)
            among = strongest_units(samples.masks, values, self.keep_rate, self.max_pair_units)
            terms += screen_pairs(samples.masks, residuals, among, self.keep_rate, self.max_pairs)
        return Candidates(terms, np.ones(len(terms)))


def _leftover(
    masks: Bool[np.ndarray, "rows units"],
    values: Float[np.ndarray, " rows"],
    units: Int[np.ndarray, " chosen"],
    keep_rate: float,
) -> Float[np.ndarray, " rows"]:
    """Return what a ridge on single units leaves of the values."""
    columns = characters(masks, [(int(unit),) for unit in units], keep_rate)
    penalties = np.full(len(units), float(len(units)))
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
    z = (masks[:, units].astype(np.float32) - np.float32(keep_rate)) / np.float32(
        np.sqrt(keep_rate * (1 - keep_rate))
    )
    covariances = np.abs((z * residuals[:, None].astype(np.float32)).T @ z / np.float32(len(z)))
    first, second = np.triu_indices(len(units), k=1)
    strengths = covariances[first, second]
    order = np.arange(len(strengths))
    if len(strengths) > n_pairs:  # sorting millions of pairs would take longest of all
        order = np.sort(np.argpartition(-strengths, n_pairs - 1)[:n_pairs])
    order = order[np.argsort(-strengths[order], kind="stable")]
    if len(strengths) > n_pairs:
        noise = residuals.std() * np.sqrt(2 * np.log(len(strengths)) / len(z))
        order = order[strengths[order] > noise / 2]
    chosen = units[np.stack([first[order], second[order]], axis=1)]
    return [(int(one), int(other)) for one, other in chosen]
