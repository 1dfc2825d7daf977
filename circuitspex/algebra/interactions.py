"""The result of decoding: a sparse set function with errors, as an inert value.

Every result says which basis and origin its coefficients belong to. It is fitted in the Fourier
basis, whose columns are orthogonal under the masks that were drawn, and reported in the Möbius
basis, whose coefficients answer questions about ablations; :meth:`Interactions.to` changes one
into the other and carries the errors along.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import sparse
from torch import Tensor

from circuitspex._shared import (
    check_masks,
    pack_matrix,
    read_document,
    unpack_matrix,
    write_document,
)
from circuitspex.algebra.indices import IndexValues, check_index, index_conversion
from circuitspex.algebra.term import Term, as_text, largest, rank, to_dataframe
from circuitspex.algebra.transforms import BasisName, Coordinates, Origin, convert, evaluate
from circuitspex.errors import ResultError

if TYPE_CHECKING:
    import pandas as pd
    from shapiq import InteractionValues

ErrorSource: TypeAlias = Literal["masks", "prompts", "none"]

_MAX_COVARIANCE_TERMS = 4096
_OPTIONAL = ("std_errors", "covariance", "held_out_coefficients", "prompt_coefficients")
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
    "held_out_coefficients": list[float] | None,
    "prompt_coefficients": list[list[float]] | None,
    "error_source": ErrorSource,
    "n_evaluations": int,
    "held_out_r2": float | None,
    "decoder": str,
    "diagnostics": dict[str, Any],
}


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
    held_out_coefficients: Float[Tensor, " coefficients"] | None = None
    """Cross-fitted estimates: every fold estimates only the terms that the *other* rows chose, and
    zero for the rest. A term that some rows alone put there is small here, which is what
    :attr:`p_values` are made of. ``coefficients`` predict better."""
    prompt_coefficients: Float[Tensor, "coefficients prompts"] | None = None
    """The same terms in every prompt's own game, where all prompts were evaluated on every mask;
    ``coefficients`` are their mean."""
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
        for name in ("coefficients", *_OPTIONAL):
            tensor = getattr(self, name)
            if tensor is not None:
                checked = _check_tensor(name, tensor, _shape(name, tensor, len(support)))
                arranged = checked[np.ix_(order, order)] if name == "covariance" else checked[order]
                self._set(**{name: arranged})
        if self.std_errors is None and self.covariance is not None:
            self._set(std_errors=self.covariance.diagonal().clamp(min=0).sqrt())

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """All of them, the largest coefficient first, equal ones in the order of the support."""
        columns = self.support, self.coefficients, self.std_errors, self.p_values
        return rank(self.units, *columns, basis=self.basis, origin=self.origin)

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
        held_out, each_prompt = self.held_out_coefficients, self.prompt_coefficients
        return replace(
            self,
            basis=target.basis,
            origin=target.origin,
            keep_rate=target.keep_rate,
            support=support,
            coefficients=torch.from_numpy(matrix @ self.coefficients.numpy()),
            std_errors=std_errors,
            covariance=covariance,
            held_out_coefficients=None
            if held_out is None
            else torch.from_numpy(matrix @ held_out.numpy()),
            prompt_coefficients=None
            if each_prompt is None
            else torch.from_numpy(matrix @ each_prompt.numpy()),
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

    def top(self, k: int, min_order: int = 1, max_order: int | None = None) -> list[Term]:
        """Rank interactions by the size of their coefficients.

        Args:
            k: How many to return at most.
            min_order: Smallest number of units.
            max_order: Largest number of units; any when None.

        Returns:
            The largest first; equal ones in the order of the support.
        """
        return largest(self.terms, k, min_order, max_order)

    @property
    def p_values(self) -> Float[Tensor, " coefficients"] | None:
        """Two-sided p-values of every term, by the normal law, from cross-fitted estimates.

        None where there are none, or no errors.
        """
        if self.held_out_coefficients is None or self.std_errors is None:
            return None
        exact = self.std_errors == 0
        scores = self.held_out_coefficients / torch.where(exact, 1.0, self.std_errors)
        values = torch.special.erfc(scores.abs() / 2**0.5)
        return torch.where(exact, (self.held_out_coefficients == 0).double(), values)

    def significant(
        self,
        false_discovery_rate: float = 0.05,
        min_order: int = 1,
        max_order: int | None = None,
        *,
        any_dependence: bool = False,
    ) -> list[Term]:
        """List the terms that stand out from chance, with control over the whole list.

        Of the terms listed, at most the given share is expected to be zero in truth. A 95 %
        interval that leaves out zero promises nothing of the kind: among many terms, one in twenty
        does so by chance. Nothing is listed where the held-out R² is not above zero.

        Args:
            false_discovery_rate: The share.
            min_order: Smallest number of units; the control is over this range of orders.
            max_order: Largest number of units; any when None.
            any_dependence: Control under any dependence between terms (Benjamini–Yekutieli), at
                the price of a shorter list. Otherwise Benjamini–Hochberg.

        Returns:
            The terms, largest coefficient first.

        Raises:
            ResultError: If there are no p-values, or the rate is not between 0 and 1.

        References:
            Benjamini & Hochberg (1995), "Controlling the false discovery rate", JRSS B 57(1);
            Benjamini & Yekutieli (2001), Annals of Statistics 29(4).
        """
        if not 0 < false_discovery_rate < 1:
            raise ResultError(
                f"false_discovery_rate must lie between 0 and 1; got {false_discovery_rate}."
            )
        p_values = self.p_values
        if p_values is None:
            raise ResultError(
                f"these interactions (decoder {self.decoder or 'unknown'}) have no p-values: they "
                "need rows that were held out. Use a regression decoder with a larger budget."
            )
        if self.held_out_r2 is not None and self.held_out_r2 <= 0:
            return []
        longest = self.n_units if max_order is None else max_order
        family = [i for i, t in enumerate(self.support) if t and min_order <= len(t) <= longest]
        ranks = torch.arange(1, len(family) + 1, dtype=torch.float64)
        penalty = (1 / ranks).sum() if any_dependence else 1.0
        ordered, order = p_values[family].sort()
        below = (ordered <= false_discovery_rate * ranks / (len(family) * penalty)).nonzero()
        n_passed = int(below.max()) + 1 if len(below) else 0
        passed = {self.support[family[i]] for i in order[:n_passed].tolist()}
        return [term for term in self.terms if term.indices in passed]

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
        for name in ("std_errors", "held_out_coefficients", "prompt_coefficients"):
            fields[name] = None if fields[name] is None else fields[name].tolist()
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
        for name in (
            "coefficients",
            "std_errors",
            "held_out_coefficients",
            "prompt_coefficients",
        ):
            if fields[name] is not None:
                tensor = torch.tensor(fields[name], dtype=torch.float64)
                fields[name] = _check_tensor(name, tensor, _shape(name, tensor, n_terms))
        if fields["covariance"] is not None:
            fields["covariance"] = unpack_matrix(fields["covariance"], n_terms, path)
        return cls(**fields)

    def to_dataframe(self) -> "pd.DataFrame":
        """Lay the terms out as a table, the largest coefficient first.

        Returns:
            The columns of :meth:`Term.numbers <circuitspex.algebra.term.Term.numbers>` that say
            anything; ``units`` are such as "L0H3 + L1H2", "∅" for the constant.
        """
        return to_dataframe(self.terms)

    def index(self, name: str, max_order: int | None = None) -> IndexValues:
        """Distribute the set function over sets of units by an index of game theory.

        Computed exactly from the sparse coefficients, as one linear map that carries the full
        covariance along; terms are never expanded beyond subsets of ``max_order`` units. Indices
        are defined from the fully ablated model up, whatever basis and origin these
        coefficients have.

        Args:
            name: ``"SV"`` (Shapley values), ``"BV"`` (Banzhaf values), ``"SII"``, ``"BII"``,
                ``"k-SII"``, ``"STII"``, ``"FSII"``, ``"FBII"``, ``"OR"`` or ``"Moebius"``; see
                :data:`circuitspex.algebra.indices.INDICES`.
            max_order: Most units in one set. When None, 1 for values; every order for ``"OR"`` and
                ``"Moebius"``; 2 for the rest.

        Returns:
            The index. Sets that are not in its support have the value 0.

        Raises:
            ResultError: If there is no such index, or too many subsets would be needed.
        """  # noqa: DOC502
        order = check_index(name, max_order)
        support, matrix = index_conversion(name, self.support, self.coordinates, order)
        std_errors, covariance = self._carry_errors(matrix)
        largest = max(map(len, support), default=0)
        ablated = torch.zeros(1, self.n_units, dtype=torch.bool)
        return IndexValues(
            index=name,
            max_order=largest if order is None else order,
            n_units=self.n_units,
            units=self.units,
            support=support,
            values=torch.from_numpy(matrix @ self.coefficients.numpy()),
            std_errors=std_errors,
            covariance=covariance,
            baseline=float(self.predict(ablated)),
            exact=self.error_source == "none",
            n_evaluations=self.n_evaluations,
        )

    def to_shapiq(
        self, index: str = "Moebius", max_order: int | None = None
    ) -> "InteractionValues":
        """Convert to shapiq's result type, whose plots then work.

        Args:
            index: As for :meth:`index`, without ``"OR"``, which shapiq does not know.
            max_order: As for :meth:`index`.

        Returns:
            ``shapiq.InteractionValues``.

        Raises:
            MissingExtraError: If shapiq is not installed.
            ResultError: As for :meth:`index`.
        """  # noqa: DOC502
        return self.index(index, max_order).to_shapiq()

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
        headings = {"units": "units", "coefficient": "coefficient", "interval": "95 % interval"}
        return f"{self!r}\n{as_text(self.terms, headings, 'no terms')}"


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


def _shape(name: str, tensor: Tensor, n_terms: int) -> tuple[int, ...]:
    """Return the shape that a field of this name must have."""
    if name == "covariance":
        return n_terms, n_terms
    if name == "prompt_coefficients":
        return n_terms, tensor.shape[-1] if tensor.ndim else 0
    return (n_terms,)


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
