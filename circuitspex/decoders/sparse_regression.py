"""The path that decoders by regression share: sample, search, cross-fit, refit, report."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitspex._checks import check_masks
from circuitspex.decoders._crossfit import Report, crossfit
from circuitspex.decoders._regression import characters, covariance
from circuitspex.decoders._samples import MIN_MASKS, Meter, Samples, draw_samples, gather
from circuitspex.decoders._selection import Candidates, Sweep, penalties_of, sweep
from circuitspex.decoders.base import Decoder, unit_labels
from circuitspex.decoders.exact import transform_all
from circuitspex.errors import DecoderError, NonFiniteError
from circuitspex.interactions import Interactions


@dataclass(frozen=True, kw_only=True)
class SparseRegression(Decoder):
    """A decoder that searches for terms and fits them by least squares.

    Masks are Bernoulli at the keep rate. A search, which is all that a method adds, proposes
    candidate terms; a relaxed LASSO orders them; cross-fitting chooses how many to keep and
    measures the held-out R²; the returned coefficients are fitted on all rows. Standard errors are
    the sandwich's with out-of-fold residuals, clustered by mask; where the diagnostics name a ridge
    penalty above 0, coefficients are also shrunk, which the errors leave out.

    With 16 masks or fewer in all and the budget to evaluate each, there is nothing to estimate,
    and the exact transform is returned instead.
    """

    n_folds: int = 5
    """How many parts the rows are dealt into for cross-fitting."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            DecoderError: If one is outside its range.
        """
        super().__post_init__()
        if self.n_folds < 2:
            raise DecoderError(f"n_folds must be at least 2 to hold rows out; got {self.n_folds}.")

    def fit(
        self,
        masks: Bool[Tensor, "masks units"],
        values: Float[Tensor, " values"],
        rng: np.random.Generator,
    ) -> Interactions:
        """Fit masks and values that have been measured already, by any Bernoulli design.

        What :meth:`decode` does after sampling.

        Args:
            masks: Keep-masks drawn at this decoder's keep rate.
            values: One value per mask.
            rng: Source of every draw: the folds and the search.

        Returns:
            The interactions; each mask counts as one evaluation.

        Raises:
            DecoderError: If there are no masks, or not one value for each.
            NonFiniteError: If a value is NaN or infinite.
        """
        check_masks(masks, masks.shape[-1])
        draws = values.detach().cpu().numpy().astype(np.float64)[:, None]
        if len(draws) != len(masks) or len(masks) < 1:
            raise DecoderError(
                f"fit needs one value per mask; got {len(draws)} for {len(masks)} mask(s)."
            )
        if not np.isfinite(draws).all():
            bad = int((~np.isfinite(draws)).sum())
            raise NonFiniteError(f"{bad} of {len(draws)} values are NaN or infinite; drop them.")
        samples = gather(masks.cpu().numpy(), draws, None, 1, self.keep_rate)
        labels = tuple(map(str, range(masks.shape[1])))
        return self._fit(samples, labels, len(masks), rng)

    def _decode(self, meter: Meter, rng: np.random.Generator) -> Interactions:
        if 2 ** min(meter.n_units, 60) * meter.n_prompts <= meter.budget and (
            2**meter.n_units <= MIN_MASKS and self.prompts_per_mask in ("all", meter.n_prompts)
        ):
            return transform_all(self, meter)
        samples = draw_samples(meter, self.keep_rate, self.prompts_per_mask, rng)
        return self._fit(samples, unit_labels(meter), meter.n_evaluations, rng)

    @abstractmethod
    def _search(self, samples: Samples, rng: np.random.Generator) -> Candidates:
        """Propose candidate terms for these rows."""

    def _fit(
        self,
        samples: Samples,
        labels: tuple[str, ...],
        n_evaluations: int,
        rng: np.random.Generator,
    ) -> Interactions:
        report = crossfit(samples, self._search, self.keep_rate, self.n_folds, rng)
        candidates = self._search(samples, rng.spawn(1)[0])
        fits = sweep(samples, candidates, self.keep_rate)
        kept = np.flatnonzero(fits.coefficients[:, report.best])
        support = ((), *(candidates.terms[i] for i in kept))
        errors = self._covariance(samples, support[1:], report)
        coefficients = np.r_[fits.constants[0, report.best], fits.coefficients[kept, report.best]]
        return Interactions(
            n_units=len(labels),
            units=labels,
            basis="fourier",
            origin=None,
            keep_rate=self.keep_rate,
            support=support,
            coefficients=torch.from_numpy(coefficients),
            std_errors=None if errors is None else errors.diagonal().clamp(min=0).sqrt(),
            covariance=errors,
            error_source="none" if errors is None else "masks",
            n_evaluations=n_evaluations,
            held_out_r2=report.r2,
            decoder=self.name,
            diagnostics=self._diagnostics(samples, fits, report),
        )

    def _covariance(
        self, samples: Samples, support: tuple[tuple[int, ...], ...], report: Report
    ) -> Tensor | None:
        if report.residuals is None:
            return None
        columns = characters(samples.masks, support, self.keep_rate)
        ridge = penalties_of(report.best)[2] * len(columns)
        return torch.from_numpy(
            covariance(
                columns,
                samples.incidence,
                np.full(len(support), ridge),
                report.residuals,
                samples.groups,
            )
        )

    def _diagnostics(self, samples: Samples, fits: Sweep, report: Report) -> dict[str, Any]:
        emphasis, penalty, ridge = penalties_of(report.best)
        return {
            "design": "bernoulli",
            "n_masks": len(np.unique(samples.mask_ids)),
            "n_rows": len(samples.masks),
            "n_prompts": samples.n_prompts,
            "prompts_per_mask": self.prompts_per_mask,
            "n_candidates": len(fits.terms),
            "held_out": report.residuals is not None,
            "emphasis": emphasis,
            "lasso_penalty": penalty,
            "ridge": ridge,
        }
