"""Weighted least squares of deletion effects on evaluations that do not repeat."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from circuitspex._shared import Interaction
from circuitspex.algebra import Coordinates, basis_functions
from circuitspex.decoders.regression.least_squares import solve_gram, without_weaker_half


class Rows(NamedTuple):
    """Evaluations to fit."""

    deletions: Bool[np.ndarray, "rows units"]
    values: Float[np.ndarray, " rows"]
    counts: Float[np.ndarray, " rows"]
    """How many evaluations each value is the mean of."""


@dataclass(frozen=True)
class RowFit:
    """Weighted least squares of terms on all evaluations."""

    terms: list[Interaction]
    coefficients: Float[np.ndarray, " coefficients"]
    inverse: Float[np.ndarray, "coefficients coefficients"]
    """Covariance at unit noise of one evaluation."""
    variance: float
    """Of one evaluation, from the residuals."""


def fit_rows(rows: Rows, terms: list[Interaction], noise: float) -> RowFit:
    """Fit terms to evaluations, and drop those that are not significantly there.

    Args:
        rows: The evaluations.
        terms: What to fit.
        noise: Standard deviation of one evaluation.

    Returns:
        The fit of the terms that are left, the constant in any case.
    """
    masks = torch.from_numpy(~rows.deletions)
    terms = list(dict.fromkeys([(), *terms]))
    while True:
        columns = basis_functions(masks, terms, Coordinates("moebius", "intact")).numpy()
        weighted = columns * rows.counts[:, None]
        inverse = solve_gram(columns.T @ weighted, np.eye(len(terms)))
        coefficients = inverse @ (weighted.T @ rows.values)
        kept = without_weaker_half(terms, coefficients, inverse, noise)
        if len(kept) == len(terms):
            break
        terms = kept
    squares = rows.counts * np.square(rows.values - columns @ coefficients)
    variance = float(squares.sum() / max(1, len(rows.values) - len(terms)))
    return RowFit(terms, coefficients, inverse, variance)
