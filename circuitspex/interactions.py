"""The result of decoding: a sparse set function with errors, as an inert value.

Every result says which basis and origin its coefficients belong to. It is fitted in the Fourier
basis, whose columns are orthogonal under the masks that were drawn, and reported in the Möbius
basis, whose coefficients answer questions about ablations; :meth:`Interactions.to` changes one
into the other and carries the errors along.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import sparse
from torch import Tensor

from circuitspex._checks import check_masks
from circuitspex._documents import pack_matrix, read_document, unpack_matrix, write_document
from circuitspex.errors import MissingExtraError, ResultError
from circuitspex.transforms import BasisName, Coordinates, Origin, convert, evaluate

if TYPE_CHECKING:
    import pandas as pd
    from shapiq import InteractionValues

ErrorSource: TypeAlias = Literal["masks", "prompts", "none"]

NORMAL_95 = 1.959963984540054
"""Standard errors from an estimate to either end of its 95 % interval."""
_MAX_COVARIANCE_TERMS = 4096
_FIELDS = {
    "n_units": int,
    "units": list[str],
    "basis": BasisName,
    "origin": Origin | None,
    "keep_rate": float,
    "support": list[list[int]],
    "coefficients": list[float],
    "std_errors": list[float] | None,
    "covariance": str | None,
    "error_source": ErrorSource,
    "n_evaluations": int,
    "held_out_r2": float | None,
    "decoder": str,
    "diagnostics": dict[str, Any],
}


class RankedInteraction(NamedTuple):
    """One interaction of a ranking."""

    units: tuple[str, ...]
    """Labels of the units that act together."""
    coefficient: float
    """Its coefficient, in the units of the value (logits)."""
    interval: tuple[float, float] | None
    """95 % interval of the coefficient; None where no errors are known."""


@dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """A sparse set function: coefficients of sets of units in a named basis.

    Terms are sorted by order and then by indices, whatever order they are passed in.

    Example:
        >>> pair = Interactions(
        ...     n_units=3,
        ...     units=("L0H0", "L0H1", "L1H0"),
        ...     basis="moebius",
        ...     origin="intact",
        ...     keep_rate=0.9,
        ...     support=((), (0,), (0, 2)),
        ...     coefficients=torch.tensor([4.0, -1.0, -2.5]),
        ... )
        >>> pair.top(1, min_order=2)[0].units
        ('L0H0', 'L1H0')
        >>> pair.predict(torch.tensor([[False, True, False]]))
        tensor([0.5000], dtype=torch.float64)
        >>> pair.to("moebius", origin="ablated").support
        ((), (0,), (2,), (0, 2))
    """

    n_units: int
    """How many units a mask covers."""
    units: tuple[str, ...]
    """Label of every unit, in mask order."""
    basis: BasisName
    """Which products the coefficients multiply."""
    origin: Origin | None
    """The model that a Möbius expansion starts from; None in the Fourier basis."""
    keep_rate: float
    """Rate at which the fitted masks kept a unit; the Fourier basis refers to it."""
    support: tuple[tuple[int, ...], ...]
    """Sorted unit indices of every term; ``()`` is the constant."""
    coefficients: Float[Tensor, " coefficients"]
    """One per term, in float64."""
    std_errors: Float[Tensor, " coefficients"] | None = None
    """One per term; the square roots of the covariance's diagonal where only that is given."""
    covariance: Float[Tensor, "coefficients coefficients"] | None = None
    """Of the estimated coefficients, where known."""
    error_source: ErrorSource = "none"
    """What the errors are about: the masks drawn, the prompts drawn, or nothing (exact)."""
    n_evaluations: int = 0
    """Prompts times masks it took, a gradient counted three times."""
    held_out_r2: float | None = None
    """How well masks never used in the fit are predicted."""
    decoder: str = ""
    """Name of the method."""
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    """What else the method reports; plain JSON values."""

    def __post_init__(self) -> None:
        """Check the fields and bring the terms in order."""
        support = [tuple(sorted(map(int, term))) for term in self.support]
        order = sorted(range(len(support)), key=lambda i: (len(support[i]), support[i]))
        self._set(support=tuple(support[i] for i in order), units=tuple(self.units))
        self._set(diagnostics=dict(self.diagnostics))
        _check_terms(self)
        for name, n_axes in (("coefficients", 1), ("std_errors", 1), ("covariance", 2)):
            tensor = getattr(self, name)
            if tensor is not None:
                checked = _check_tensor(name, tensor, (len(support),) * n_axes)
                self._set(**{name: checked[np.ix_(*[order] * n_axes)]})
        if self.std_errors is None and self.covariance is not None:
            self._set(std_errors=self.covariance.diagonal().clamp(min=0).sqrt())

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def coordinates(self) -> Coordinates:
        """Basis, origin and keep rate in one."""
        return Coordinates(self.basis, self.origin, self.keep_rate)

    def predict(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, " masks"]:
        """Evaluate the sparse set function.

        Args:
            masks: Keep-masks.

        Returns:
            Predicted value of every mask, in float64.
        """
        checked = check_masks(masks, self.n_units)
        return evaluate(checked, self.support, self.coefficients, self.coordinates)

    def to(
        self, basis: BasisName, origin: Origin | None = None, keep_rate: float | None = None
    ) -> "Interactions":
        """Write the same set function in another basis; predictions stay what they are.

        Errors are carried exactly through the full covariance V, as A V Aᵀ. The covariance itself
        stays with the result up to 4,096 terms, its diagonal always. Without a covariance,
        std_errors survive only where no new coefficient mixes two old ones, and become None
        otherwise: errors of different coefficients are correlated, so they cannot be added up.

        Args:
            basis: The basis to write it in.
            origin: Needed for Möbius, absent for Fourier.
            keep_rate: Rate the Fourier basis refers to; the present one when None.

        Returns:
            A new value. Terms that cancel stay in it with coefficients near zero.
        """
        rate = self.keep_rate if keep_rate is None else keep_rate
        target = Coordinates(basis, origin, rate).check()
        if target == self.coordinates:
            return self
        support, matrix = convert(self.support, self.coordinates, target)
        std_errors, covariance = self._carry_errors(matrix)
        return replace(
            self,
            basis=target.basis,
            origin=target.origin,
            keep_rate=target.keep_rate,
            support=support,
            coefficients=torch.from_numpy(matrix @ self.coefficients.numpy()),
            std_errors=std_errors,
            covariance=covariance,
        )

    def _carry_errors(self, matrix: sparse.csr_array) -> tuple[Tensor | None, Tensor | None]:
        if self.covariance is None:
            mixes = bool((abs(matrix).sign().sum(axis=1) > 1).any())
            if self.std_errors is None or mixes:
                return None, None
            return torch.from_numpy(abs(matrix) @ self.std_errors.numpy()), None
        covariance = self.covariance.numpy()
        n_terms = matrix.indptr.size - 1
        variances = np.zeros(n_terms)
        for start in range(0, n_terms, _MAX_COVARIANCE_TERMS):
            block = matrix[start : start + _MAX_COVARIANCE_TERMS]
            half = block @ covariance
            variances[start : start + block.shape[0]] = block.multiply(half).sum(axis=1)
        std_errors = torch.from_numpy(np.sqrt(variances.clip(min=0)))
        fits = n_terms <= _MAX_COVARIANCE_TERMS
        return std_errors, torch.from_numpy(matrix @ (matrix @ covariance).T) if fits else None

    def top(
        self, k: int, min_order: int = 1, max_order: int | None = None
    ) -> list[RankedInteraction]:
        """Rank interactions by the size of their coefficients.

        Args:
            k: How many to return at most.
            min_order: Smallest number of units.
            max_order: Largest number of units; any when None.

        Returns:
            The largest first; equal ones in the order of the support.
        """
        orders = range(min_order, 1 + (self.n_units if max_order is None else max_order))
        ranked = [i for i in self._ranking() if len(self.support[i]) in orders]
        return [
            RankedInteraction(self._labels(i), float(self.coefficients[i]), self._interval(i))
            for i in ranked[:k]
        ]

    def _ranking(self) -> list[int]:
        return self.coefficients.abs().argsort(descending=True, stable=True).tolist()

    def _labels(self, index: int) -> tuple[str, ...]:
        return tuple(self.units[unit] for unit in self.support[index])

    def _interval(self, index: int) -> tuple[float, float] | None:
        if self.std_errors is None:
            return None
        centre, error = float(self.coefficients[index]), float(self.std_errors[index])
        return centre - NORMAL_95 * error, centre + NORMAL_95 * error

    def energy_by_order(self) -> dict[int, float]:
        """Split the variance of the set function by how many units act together.

        Returns:
            For each order from 1 that has terms, the sum of its squared Fourier coefficients at
            this result's keep rate: the variance it contributes under such masks.
        """
        spectrum = self.to("fourier")
        energy: dict[int, float] = {}
        for term, square in zip(spectrum.support, spectrum.coefficients.square(), strict=True):
            if term:
                energy[len(term)] = energy.get(len(term), 0.0) + float(square)
        return energy

    def save(self, path: str | Path) -> None:
        """Write the result to a JSON file, in one step: never a half-written file.

        Args:
            path: Where to; an existing file is replaced.
        """
        fields = {name: getattr(self, name) for name in _FIELDS}
        fields["coefficients"] = self.coefficients.tolist()
        if self.std_errors is not None:
            fields["std_errors"] = self.std_errors.tolist()
        if self.covariance is not None:
            fields["covariance"] = pack_matrix(self.covariance)
        write_document(path, "interactions", fields)

    @classmethod
    def load(cls, path: str | Path) -> "Interactions":
        """Read what :meth:`save` wrote; floats come back bit by bit.

        Args:
            path: The file.

        Returns:
            The result.
        """
        fields = read_document(path, "interactions", _FIELDS)
        fields["units"] = tuple(fields["units"])
        fields["support"] = tuple(map(tuple, fields["support"]))
        n_terms = len(fields["support"])
        for name in ("coefficients", "std_errors"):
            if fields[name] is not None:
                tensor = torch.tensor(fields[name], dtype=torch.float64)
                fields[name] = _check_tensor(name, tensor, (n_terms,))
        if fields["covariance"] is not None:
            fields["covariance"] = unpack_matrix(fields["covariance"], n_terms, path)
        return cls(**fields)

    def to_dataframe(self) -> "pd.DataFrame":
        """Lay the terms out as a table, the largest coefficient first.

        Returns:
            Columns ``units`` (such as "L0H3 + L1H2"; "∅" for the constant), ``order``,
            ``coefficient``, ``std_error``, ``low``, ``high`` (95 % interval; missing values
            where no errors are known).
        """
        import pandas as pd  # takes longer to import than all the rest of this package

        ranking = self._ranking()
        unknown = torch.full_like(self.coefficients, math.nan)
        errors = (unknown if self.std_errors is None else self.std_errors)[ranking]
        coefficients = self.coefficients[ranking]
        return pd.DataFrame(
            {
                "units": [" + ".join(self._labels(i)) or "∅" for i in ranking],
                "order": [len(self.support[i]) for i in ranking],
                "coefficient": coefficients.numpy(),
                "std_error": errors.numpy(),
                "low": (coefficients - NORMAL_95 * errors).numpy(),
                "high": (coefficients + NORMAL_95 * errors).numpy(),
            }
        )

    def to_shapiq(self) -> "InteractionValues":
        """Convert to shapiq's result type, Möbius coefficients at the ablated origin.

        Returns:
            ``shapiq.InteractionValues`` with index "Moebius".

        Raises:
            MissingExtraError: If shapiq is not installed.
        """
        try:
            from shapiq import InteractionValues
        except ImportError as error:
            raise MissingExtraError(
                "to_shapiq needs shapiq; install it with: pip install 'circuitspex[shapiq]'"
            ) from error
        terms = self.to("moebius", "ablated")
        values = dict(zip(terms.support, terms.coefficients.tolist(), strict=True))
        return InteractionValues(
            values,
            index="Moebius",
            n_players=self.n_units,
            min_order=0,
            max_order=max(map(len, terms.support), default=0),
            baseline_value=values.get((), 0.0),
            estimated=self.error_source != "none",
            estimation_budget=self.n_evaluations,
        )

    def __repr__(self) -> str:
        """Return one line: where the coefficients live, how many there are, how well they fit."""
        counts = Counter(map(len, self.support))
        orders = ", ".join(f"{n} of order {order}" for order, n in sorted(counts.items()))
        place = f"{self.origin} origin" if self.origin else f"keep rate {self.keep_rate:g}"
        r2 = "unknown" if self.held_out_r2 is None else f"{self.held_out_r2:.3f}"
        return (
            f"Interactions({self.n_units} units, {self.basis}, {place}; {len(self.support)} terms: "
            f"{orders or 'none'}; held-out R² {r2}; errors about {self.error_source}; "
            f"decoder {self.decoder or 'unknown'}, {self.n_evaluations} evaluations)"
        )

    def __str__(self) -> str:
        """Return that line and the ten largest terms."""
        rows = self.to_dataframe().head(10)
        return f"{self!r}\n{rows.to_string(index=False) if len(rows) else 'no terms'}"


def kind(
    coefficient: float, order: int, origin: Origin | None, basis: BasisName = "moebius"
) -> Literal["synergistic", "redundant"] | None:
    """Say whether units need each other or back each other up, as far as a sign can tell.

    ==========================  ==================  ===================
    coefficient of all k units  AND of the k units  OR of the k units
    ==========================  ==================  ===================
    origin ablated              +1                  (−1)^(k + 1)
    origin intact               (−1)^k              −1
    ==========================  ==================  ===================

    For even k the two differ at either origin: positive is synergistic, negative redundant. For
    odd k they agree, so the sign of one coefficient says nothing; look at the pairs inside it.

    Args:
        coefficient: Möbius coefficient, of a value for which higher is better.
        order: How many units it is of.
        origin: Its origin.
        basis: Its basis.

    Returns:
        "synergistic" (the units need each other, or cancel), "redundant" (they back each other
        up), or None for odd orders, the constant, zero, and Fourier coefficients, which average
        over all masks.
    """
    if basis == "fourier" or origin is None or order < 2 or order % 2 == 1 or coefficient == 0:
        return None
    return "synergistic" if coefficient > 0 else "redundant"


def _check_terms(result: Interactions) -> None:
    result.coordinates.check()
    if len(result.units) != result.n_units:
        raise ResultError(
            f"units must hold one label per unit; got {len(result.units)} for "
            f"n_units={result.n_units}."
        )
    if result.error_source not in get_args(ErrorSource):
        raise ResultError(
            f"error_source must be one of {get_args(ErrorSource)}; got {result.error_source!r}."
        )
    for term in result.support:
        if len(set(term)) < len(term) or (term and not 0 <= term[0] <= term[-1] < result.n_units):
            raise ResultError(
                f"a term must name distinct units in 0..{result.n_units - 1}; got {term}."
            )
    if len(set(result.support)) < len(result.support):
        twice = next(term for term, n in Counter(result.support).items() if n > 1)
        raise ResultError(f"each term may occur once; {twice} occurs more often. Add them up.")


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise ResultError(
            f"{name} must have shape {shape}, one entry per term of the support; "
            f"got {tuple(tensor.shape)}."
        )
    checked = tensor.detach().to("cpu", torch.float64)
    if name == "std_errors" and (checked < 0).any():
        raise ResultError("std_errors must not be negative; pass square roots of variances.")
    if not checked.isfinite().all():
        raise ResultError(
            f"{name} must be finite; {int((~checked.isfinite()).sum())} entries are not. "
            "Drop the values that were not finite before fitting."
        )
    return checked
