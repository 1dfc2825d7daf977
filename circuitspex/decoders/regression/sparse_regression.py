"""The path that decoders by regression share: sample, search, cross-fit, refit, report."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex._shared import check_masks
from circuitspex.algebra import Interactions
from circuitspex.decoders.measuring import (
    Decoder,
    Meter,
    Samples,
    StoppingRule,
    describe_designs,
    evaluate_round,
    gather,
    is_worth_transforming,
    join,
    plan_rounds,
    prompts_to_draw,
    transform_all,
    unit_labels,
    variance_components,
)
from circuitspex.decoders.regression.crossfit import Report, crossfit
from circuitspex.decoders.regression.least_squares import (
    characters,
    covariance,
    prompt_offsets,
    solve,
)
from circuitspex.decoders.regression.selection import Candidates, Sweep, choice_of, sweep
from circuitspex.errors import DecoderError, NonFiniteError

_MAX_ROUNDS = 8
_MAX_CODED_ROUNDS = 4  # fewer, because the bins of a round are as many as it has masks for
_LEAST_ROUND = 32  # masks


@dataclass(frozen=True, kw_only=True)
class SparseRegression(Decoder):
    """A decoder that searches for terms and fits them by least squares.

    Masks are Bernoulli at the keep rate. A search, which is all that a method adds, proposes
    candidate terms; a relaxed LASSO orders them; cross-fitting chooses how many to keep and
    measures the held-out R²; the returned coefficients are fitted on all rows. Standard errors are
    the sandwich's with out-of-fold residuals and leverages, clustered by mask; what shrinkage
    (named in the diagnostics) took from a coefficient is added as an error.

    With 16 masks or fewer in all and the budget to evaluate each, there is nothing to estimate,
    and the exact transform is returned instead.
    """

    n_folds: Annotated[int, Ge(2), Lt(2**31)] = 5
    """How many parts the rows are dealt into for cross-fitting."""

    tolerance: Annotated[float, Gt(0), Lt(1)] | None = None
    """Stop before the budget is spent when twice in a row neither the held-out R² has risen by more
    than this nor the ten largest terms have changed by more than one in ten; None to spend all."""

    def fit(
        self,
        masks: Bool[Tensor, "rows units"],
        values: Float[Tensor, "..."],
        rng: np.random.Generator,
        *,
        prompts: Int[Tensor, "rows drawn"] | None = None,
        n_prompts: int = 1,
        groups: Int[Tensor, " rows"] | None = None,
    ) -> Interactions:
        """Fit masks and values that have been measured already, by any Bernoulli design.

        What :meth:`decode` does after sampling.

        Args:
            masks: Keep-masks drawn at this decoder's keep rate.
            values: One value per mask; with ``prompts``, one column for each prompt drawn.
            rng: Source of every draw: the folds and the search.
            prompts: Which prompt each value is of; None if values are means over all prompts.
            n_prompts: How many prompts the average game averages.
            groups: Rows with the same number were not drawn independently, as those of
                :func:`~circuitspex.designs.forked_masks`: they are held out together, and are one
                cluster of the standard errors. Rows of one mask always are.

        Returns:
            The interactions; each value counts as one evaluation.

        Raises:
            DecoderError: If there are no masks, not one value or group for each, or prompts that do
                not fit.
            NonFiniteError: If a value is NaN or infinite.
        """
        if self.among is not None:
            raise DecoderError(
                "fit takes masks over the units to be decoded and cannot restrict them; leave "
                "among out, and pass only the columns of these units."
            )
        check_masks(masks, masks.shape[-1])
        self._check_units(masks.shape[1])
        draws = values.detach().cpu().numpy().astype(np.float64)
        if len(draws) != len(masks) or len(masks) < 1:
            raise DecoderError(
                f"fit needs one value per mask; got {len(draws)} for {len(masks)} mask(s)."
            )
        if prompts is None and draws.ndim > 1:
            raise DecoderError(
                f"values of shape {draws.shape} need prompts=..., which prompt each is of. Give "
                "means over all prompts, one value per mask, where none were drawn."
            )
        if not np.isfinite(draws).all():
            bad = int((~np.isfinite(draws)).sum())
            raise NonFiniteError(f"{bad} of {draws.size} values are NaN or infinite; drop them.")
        which = None if prompts is None else _check_prompts(prompts, draws.shape, n_prompts)
        columns = draws.reshape(len(draws), -1)
        samples = gather(masks.cpu().numpy(), columns, which, n_prompts, self.keep_rate)
        if groups is not None:
            if groups.shape != (len(masks),):
                raise DecoderError(
                    f"groups must hold one number per mask, shape ({len(masks)},); got "
                    f"{tuple(groups.shape)}."
                )
            samples = samples.keep_together(groups.cpu().numpy())
        labels = tuple(map(str, range(masks.shape[1])))
        return self._fit(samples, labels, draws.size, rng)

    def _decode(self, meter: Meter, rng: np.random.Generator) -> Interactions:
        self._check_units(meter.n_units)
        n_drawn = prompts_to_draw(meter, self.prompts_per_mask)
        if is_worth_transforming(meter, n_drawn):
            return transform_all(self, meter)
        n_rounds, errors = 1, self._code_errors()
        if self.tolerance is not None:
            n_rounds = _MAX_ROUNDS if errors is None else _MAX_CODED_ROUNDS
            cost = meter.n_prompts if n_drawn is None else n_drawn
            n_rounds = max(1, min(n_rounds, meter.budget // (cost * _LEAST_ROUND)))
        rounds = plan_rounds(meter, self.keep_rate, n_drawn, [1 / n_rounds] * n_rounds, rng, errors)
        labels, samples = unit_labels(meter), []
        stopping = StoppingRule(self.tolerance, n_rounds)
        for planned in rounds:
            samples.append(evaluate_round(meter, planned, n_drawn, self.keep_rate, rng))
            found = self._fit(join(samples, self.keep_rate), labels, meter.n_evaluations, rng)
            if stopping.settles(found):
                break
        if self.tolerance is None:
            return found
        return replace(found, diagnostics={**found.diagnostics, "stopping": stopping.describe()})

    def _check_units(self, n_units: int) -> None:
        """Raise an error if the method does not take so many units."""

    def _code_errors(self) -> int | None:
        """Return what the code of coded masks corrects; None for Bernoulli masks alone."""
        return None

    def _level(self, samples: Samples) -> Float[np.ndarray, " rows"]:
        """Return the rows' values without what their prompts add to them."""
        return samples.values - prompt_offsets(
            samples.masks, samples.incidence, samples.values, self.keep_rate
        )

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
        coefficients = np.r_[fits.constants[0, report.best], fits.coefficients[kept, report.best]]
        columns = characters(samples.masks, support[1:], self.keep_rate)
        exact = _least_squares(samples, columns)
        shrinkage = exact[:, 0] - coefficients
        errors = None
        if report.residuals is not None:
            errors = torch.from_numpy(
                covariance(
                    columns, samples.incidence, shrinkage[1:], report.residuals, samples.groups
                )
            )
        estimates = report.estimate(samples, support[1:], self.keep_rate)
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
            held_out_coefficients=None
            if estimates is None
            else torch.from_numpy(np.r_[coefficients[:1], estimates]),
            prompt_coefficients=None
            if samples.table is None
            else torch.from_numpy(exact[:, 1:] - shrinkage[:, None]),
            error_source="none" if errors is None else "masks",
            n_evaluations=n_evaluations,
            held_out_r2=report.r2,
            decoder=self.name,
            diagnostics=self._diagnostics(samples, fits, report),
        )

    def _diagnostics(self, samples: Samples, fits: Sweep, report: Report) -> dict[str, Any]:
        choice = choice_of(report.best)
        return {
            **describe_designs(samples),
            "n_masks": len(np.unique(samples.mask_ids)),
            "n_rows": len(samples.masks),
            "n_prompts": samples.n_prompts,
            "prompts_per_mask": self.prompts_per_mask,
            **variance_components(samples),
            "n_candidates": len(fits.terms),
            "held_out": report.residuals is not None,
            "held_out_r2_std_error": report.r2_std_error,
            "family": choice.family,
            "emphasis": choice.emphasis,
            "lasso_penalty": choice.lasso,
            "ridge": choice.ridge,
        }


def _least_squares(
    samples: Samples, columns: Float[np.ndarray, "rows coefficients"]
) -> Float[np.ndarray, "terms columns"]:
    """Return the constant and coefficients of the rows' values, without shrinkage.

    Further columns are of every prompt's own values, where all prompts were evaluated.
    """
    values = samples.values[:, None]
    if samples.table is not None:
        values = np.concatenate([values, samples.table], axis=1)
    solution = solve(columns, samples.incidence, values, np.zeros(columns.shape[1]))
    return np.delete(solution, np.s_[1 : 1 + samples.incidence.shape[1]], axis=0)


def _check_prompts(
    prompts: Int[Tensor, "rows drawn"], shape: tuple[int, ...], n_prompts: int
) -> Int[np.ndarray, "rows drawn"]:
    """Return which prompt each draw is of.

    Raises:
        DecoderError: If there is not one for each draw, or one does not exist.
    """
    if tuple(prompts.shape) != shape:
        raise DecoderError(
            f"prompts must have the shape of the values, {shape}; got {tuple(prompts.shape)}."
        )
    which = prompts.cpu().numpy()
    if which.min() < 0 or which.max() >= n_prompts:
        raise DecoderError(
            f"prompts must be indices from 0 to n_prompts - 1 = {n_prompts - 1}; got "
            f"{which.min()} to {which.max()}."
        )
    return which.reshape(len(which), -1)
