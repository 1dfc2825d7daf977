"""The Möbius decoder: group tests in bins from the ablated model, searches from the intact."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Gt
from jaxtyping import Float

from circuitspex._shared import Count, Interaction
from circuitspex.algebra import (
    Coordinates,
    Interactions,
    Origin,
    enumerate_masks,
    evaluate,
    moebius,
)
from circuitspex.decoders.codes import Adaptive, Residuals, decode_bins
from circuitspex.decoders.measuring import (
    Decoder,
    Meter,
    Reader,
    errors_over_prompts,
    explained_share,
    unit_labels,
)
from circuitspex.designs import bernoulli_masks
from circuitspex.errors import BudgetError

_FEWEST_MASKS = 16
_HELD_OUT_SHARE = 20  # one in so many masks is held out
_MOST_HELD_OUT = 256
_LARGEST_POOL = 0.75  # of all units; as large as this only where pools are silent
_NEGLIGIBLE = 1e-10  # of the largest coefficient: rounding, not signal


@dataclass(frozen=True)
class Decoded:
    """Terms with coefficients and what is known about their errors."""

    terms: list[Interaction]
    coefficients: Float[np.ndarray, " coefficients"]
    diagnostics: dict[str, Any]
    covariance: Float[np.ndarray, "coefficients coefficients"] | None = None
    """About the masks drawn, of noisy values."""
    prompts: Float[np.ndarray, "coefficients prompts"] | None = None
    """Each prompt's own coefficients."""


@dataclass(frozen=True, kw_only=True)
class MoebiusDecoder(Decoder):
    r"""Finds sparse Möbius coefficients by group testing.

    **Origin "intact"** (v of what is left after ablating D is the sum of θ(T) over T ⊆ D). Pools of
    units are ablated together. A pool that does more than the terms known so far explain is
    searched by halving for the units that do it; these are pinned one after the other, and the
    term they make is measured by ablating all its subsets. Pools are sized so that half of them
    show something. The strongest effects come first. It finds units that need each other (AND)
    and units that back each other up (OR) alike, whether or not their parts have an effect.

    **Origin "ablated"** (v(S) is the sum of m(T) over T ⊆ S): the sparse Möbius transform. Samples
    are laid out so that transforms of a few bits alias all sets into bins; in each bin, ablating
    one more pool of units is a group test of the set that is alone there. Found sets are peeled
    from all bins, and all are refitted by least squares on all samples. Under noise, bins are read
    by the linear filter that passes least noise and interference, and sets by maximum likelihood.

    **Cost:** intact, one evaluation per unit where that is at most half of the budget, then about
    2 to 3 times ``|T| log2(n_units)`` for each term T among silent units, ``2**|T|`` times
    ``log2(n_units)`` among many small effects. Ablated, about
    ``6 n_terms (1 + 2.5 log2(n_units choose max_order))``, all of them chosen beforehand. If all
    masks cost no more than the budget, all are evaluated and nothing is searched.

    **Assumption:** few coefficients are not zero (ablated), or stand out (intact), and none of
    those has more than ``max_order`` units. The ablated origin visits masks that keep few units.

    ``prompts_per_mask="auto"`` reads every prompt, because measured differences of single masks
    cannot average prompts away as a regression does; a number of prompts counts as noise.

    **When it fails:** ablated, with a dense tail of small terms or noise comparable with the
    coefficients, where each bin holds the noise of many samples; the diagnostics then count
    unresolved bins, and the held-out R² is low. Intact, terms smaller than the sum of the small
    ones in a pool are not found; a term that cancels with others in every pool is not either.

    **Errors:** intact and with every prompt under every mask, over prompts
    (``error_source="prompts"``). With values that do not repeat, of the least squares
    (``"masks"``). Otherwise the coefficients are measured exactly (``"none"``). The held-out R² is
    of masks at the keep rate that neither search nor fit has seen.

    **Noise:** around the intact model, effects of eight standard deviations are sought at first,
    then of half that with four times the repeats, until the budget is spent. What a search has
    seen is not used to measure what it found.

    References:
        Kang et al. (2024), "Learning to Understand: Identifying Interactions via the Möbius
        Transform", arXiv:2402.02631, for the ablated origin;
        Erginbas, Kang, Polito & Ramchandran (2026), "Adaptive Sparse Möbius Transforms for
        Learning Polynomials", arXiv:2602.06246, for searching by halving, without noise;
        Wipf & Rao (2007), "An empirical Bayesian strategy for solving the simultaneous sparse
        approximation problem", IEEE Transactions on Signal Processing 55(7), for the filter.
    """

    name: ClassVar[str] = "moebius"
    auto_prompts: ClassVar[Literal["all", "fewest", "one"]] = "all"

    max_order: Count | None = 4
    """Most units in one interaction; None for no limit."""

    origin: Origin = "intact"
    """The model that coefficients start from."""

    threshold: Annotated[float, Gt(0)] | None = None
    """Smallest effect that is sought around the intact model. None: as small as noise, or the
    spread over prompts, and the budget allow."""

    def _decode(self, meter: Meter, rng: np.random.Generator) -> Interactions:
        labels = unit_labels(meter)
        reader = Reader(meter, self.prompts_per_mask, self.origin, rng)
        max_order = min(self.max_order or meter.n_units, meter.n_units)
        n_all = 2 ** min(meter.n_units, 40)
        if (
            reader.n_drawn is None
            and n_all <= _FEWEST_MASKS
            and n_all * reader.cost <= meter.budget
        ):
            return self._assemble(meter, labels, self._transform(reader, max_order), None)
        self._check_budget(reader)
        reader.prepare()
        n_held_out = (meter.budget - reader.overhead) // (_HELD_OUT_SHARE * reader.cost)
        n_held_out = 0 if n_held_out < _FEWEST_MASKS else min(n_held_out, _MOST_HELD_OUT)
        noise = self._noise(reader, rng)
        limit = meter.budget - n_held_out * reader.cost
        if noise == 0 and n_all * reader.cost <= meter.budget - meter.n_evaluations:
            return self._assemble(meter, labels, self._transform(reader, max_order), None)
        decode = self._search if self.origin == "intact" else self._peel
        decoded = decode(reader, limit, noise, max_order, rng)
        r2 = self._held_out_r2(reader, decoded, n_held_out, rng)
        return self._assemble(meter, labels, decoded, r2)

    def _check_budget(self, reader: Reader) -> None:
        """Refuse budgets that allow nothing."""  # noqa: DOC501
        budget = reader.meter.budget
        n_masks = min(_FEWEST_MASKS, 2 ** min(reader.meter.n_units, 40))
        if budget < n_masks * reader.cost + reader.overhead:
            raise BudgetError(
                f"{reader.meter.n_units} units need at least {n_masks} masks at {reader.cost} "
                f"evaluation(s) each, {n_masks * reader.cost + reader.overhead} in all; the "
                f"budget is {budget}. Raise it, or lower prompts_per_mask."
            )

    def _noise(self, reader: Reader, rng: np.random.Generator) -> float:
        """Return how much values of one mask differ, from a twentieth of the budget."""
        n_masks = min(16, reader.meter.budget // (40 * reader.cost))
        if reader.reads_prompts or n_masks < 1:
            return 0.0
        rate = max(self.keep_rate, 0.5)
        return reader.noise(bernoulli_masks(n_masks, reader.meter.n_units, rate, rng).numpy())

    def _transform(self, reader: Reader, max_order: int) -> Decoded:
        """Return the transform of all masks."""
        masks = enumerate_masks(reader.meter.n_units)
        table = torch.from_numpy(reader.read(masks.numpy()))
        spectrum = moebius(table, origin=self.origin).numpy()
        sizes = np.abs(spectrum.mean(axis=1))
        kept = (sizes > _NEGLIGIBLE * sizes.max()) & (masks.sum(dim=1).numpy() <= max_order)
        kept[0] = True
        terms = [tuple(masks[row].nonzero().flatten().tolist()) for row in np.flatnonzero(kept)]
        prompts = spectrum[kept] if reader.reads_prompts else None
        diagnostics = {"design": "exhaustive", "n_masks": len(masks)}
        return Decoded(terms, spectrum[kept].mean(axis=1), diagnostics, prompts=prompts)

    def _search(
        self, reader: Reader, limit: int, noise: float, max_order: int, rng: np.random.Generator
    ) -> Decoded:
        """Return what an adaptive search around the intact model finds."""
        n_units = reader.meter.n_units
        residuals = Residuals(reader, limit, n_units)
        largest = min(n_units, max(max_order, round(_LARGEST_POOL * n_units)))
        fresh = residuals if noise == 0 else Residuals(reader, limit, n_units)
        search = Adaptive(residuals, fresh, rng, max_order, largest, self.threshold, noise)
        search.run()
        diagnostics = {"design": "adaptive deletions", **search.diagnostics()}
        if noise > 0:
            fit = search.fit()
            covariance = fit.variance * fit.inverse
            return Decoded(fit.terms, fit.coefficients, diagnostics, covariance)
        terms = [()] + [
            term for term, value in search.measured.items() if term and abs(value) > search.rounding
        ]
        columns = np.stack([residuals.effect(term) for term in terms])
        prompts = columns if reader.reads_prompts else None
        return Decoded(terms, columns.mean(axis=1), diagnostics, prompts=prompts)

    def _peel(
        self, reader: Reader, limit: int, noise: float, max_order: int, rng: np.random.Generator
    ) -> Decoded:
        """Return what is peeled from the bins of subsampled transforms from the ablated model."""
        found = decode_bins(reader, limit, noise, max_order, rng)
        diagnostics = {"design": "subsampled transforms", **found.diagnostics}
        covariance = found.variance * found.fit.inverse if found.variance > 0 else None
        return Decoded(found.fit.terms, found.fit.coefficients, diagnostics, covariance)

    def _held_out_r2(
        self, reader: Reader, decoded: Decoded, n_masks: int, rng: np.random.Generator
    ) -> float | None:
        """Return how well fresh masks at the keep rate are predicted; None where none vary."""
        if n_masks == 0:
            return None
        masks = bernoulli_masks(n_masks, reader.meter.n_units, self.keep_rate, rng)
        values = reader.read(masks.numpy()).mean(axis=1)
        coefficients = torch.from_numpy(decoded.coefficients)
        place = Coordinates("moebius", self.origin)
        return explained_share(values, evaluate(masks, decoded.terms, coefficients, place).numpy())

    def _assemble(
        self, meter: Meter, labels: tuple[str, ...], decoded: Decoded, r2: float | None
    ) -> Interactions:
        covariance, source = decoded.covariance, "none" if decoded.covariance is None else "masks"
        covariance = None if covariance is None else torch.from_numpy(covariance)
        std_errors = torch.zeros(len(decoded.terms), dtype=torch.float64)
        if decoded.prompts is not None and decoded.prompts.shape[1] > 1:
            source = "prompts"
            std_errors, covariance = errors_over_prompts(torch.from_numpy(decoded.prompts))
        elif covariance is not None:
            std_errors = covariance.diagonal().clamp(min=0).sqrt()
        return Interactions(
            n_units=meter.n_units,
            units=labels,
            basis="moebius",
            origin=self.origin,
            keep_rate=self.keep_rate,
            support=tuple(decoded.terms),
            coefficients=torch.from_numpy(decoded.coefficients),
            std_errors=std_errors,
            covariance=covariance,
            error_source=source,
            n_evaluations=meter.n_evaluations,
            held_out_r2=r2,
            decoder=self.name,
            diagnostics={**decoded.diagnostics, "prompts_per_mask": self.prompts_per_mask},
        )
