r"""Indices of game theory, straight from sparse coefficients in any coordinates.

Every index here treats units alike and gives a set that holds an idle unit the value 0. So on a
product of unit functions over S it depends on sizes alone, and each index is a linear map

.. math:: I(T) = \sum_{S \supseteq T} w_{|S|, |T|} \, c(S),

a small table of weights per index and coordinates. Only subsets of up to the order of the index
are ever written down: Shapley values of a term of 30 units are 30 numbers, not 2**30.

The weights are rational numbers, times a square root in the Fourier basis, and are computed as
such: where they cancel, as every second one does for Shapley values at keep rate ½, they are
exactly zero and cost nothing.

==========  =====================================================================================
SV          Shapley value: mean gain from keeping a unit, over all orders of keeping one by one
BV          Banzhaf value: mean gain from keeping a unit, over all sets of the others
SII, BII    the same means of what a set adds beyond its parts
k-SII       SII of up to k units, corrected so that all values add up to the intact model's
STII        Shapley–Taylor: Möbius coefficients below the top order, which takes all that is above
FSII        Faith-Shap: the best approximation of that order under Shapley weights, exact at both
            ends
FBII        Faith-Banzhaf: the best approximation of that order over all masks alike
OR          coefficients of "at least one unit of the set is kept"
Moebius     coefficients of "all units of the set are kept"
==========  =====================================================================================

All count from the fully ablated model. The value of the empty set is that model's, but for SII
and BII, where it is the mean over masks, and FBII, where it is the approximation's intercept.

References:
    Shapley (1953), "A value for n-person games"; Banzhaf (1965), "Weighted voting doesn't work";
    Grabisch & Roubens (1999), "An axiomatic approach to the concept of interaction among players
    in cooperative games", Int. J. of Game Theory 28, for SII, BII and their Möbius form;
    Bordt & von Luxburg (2023), "From Shapley values to generalized additive models and back",
    AISTATS, for k-SII;
    Sundararajan, Dhamdhere & Agarwal (2020), "The Shapley Taylor interaction index", ICML;
    Tsai, Yeh & Ravikumar (2023), "Faith-Shap: the faithful Shapley interaction index", JMLR 24,
    for FSII and FBII.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from math import comb
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Float
from torch import Tensor

from circuitspex.algebra.term import Term, as_text, largest, rank, to_dataframe
from circuitspex.algebra.transforms import Conversion, Coordinates, expand
from circuitspex.errors import MissingExtraError, ResultError

if TYPE_CHECKING:
    import pandas as pd
    from shapiq import InteractionValues

_MAX_ENTRIES = 2**22


class Index(NamedTuple):
    """How an index weighs Möbius coefficients at the ablated origin."""

    weight: Callable[[int, int, int], Fraction]
    """Of a coefficient of ``size`` units in the value of ``of`` units, at a largest order."""
    default_order: int | None
    """The largest order where none is asked for; None for every order."""
    from_ablated: bool = True
    """Whether the empty set has the value of the fully ablated model."""


def _shapley(size: int, of: int, order: int) -> Fraction:
    return Fraction(1, size - of + 1)


def _banzhaf(size: int, of: int, order: int) -> Fraction:
    return Fraction(1, 2 ** (size - of))


def _k_shapley(size: int, of: int, order: int) -> Fraction:
    added = range(min(order, size) - of + 1)
    terms = (_bernoulli(n) * comb(size - of, n) * _shapley(size, of + n, order) for n in added)
    return sum(terms, start=Fraction(0))


def _shapley_taylor(size: int, of: int, order: int) -> Fraction:
    return Fraction(1, comb(size, order)) if of == order else Fraction(size == of)


def _faithful_shapley(size: int, of: int, order: int) -> Fraction:
    if size <= order:
        return Fraction(size == of)
    projected = Fraction(comb(size - 1, order), comb(size + order - 1, order + of))
    return (-1) ** (order - of) * Fraction(of, order + of) * comb(order, of) * projected


def _faithful_banzhaf(size: int, of: int, order: int) -> Fraction:
    if size <= order:
        return Fraction(size == of)
    projected = Fraction(comb(size - of - 1, order - of), 2 ** (size - of))
    return (-1) ** (order - of) * projected


def _either(size: int, of: int, order: int) -> Fraction:
    return Fraction(-((-1) ** of))


def _moebius(size: int, of: int, order: int) -> Fraction:
    return Fraction(size == of)


INDICES: dict[str, Index] = {
    "SV": Index(_shapley, 1),
    "BV": Index(_banzhaf, 1),
    "SII": Index(_shapley, 2, from_ablated=False),
    "BII": Index(_banzhaf, 2, from_ablated=False),
    "k-SII": Index(_k_shapley, 2),
    "STII": Index(_shapley_taylor, 2),
    "FSII": Index(_faithful_shapley, 2),
    "FBII": Index(_faithful_banzhaf, 2, from_ablated=False),
    "OR": Index(_either, None),
    "Moebius": Index(_moebius, None),
}
"""Every index by its name."""


@dataclass(frozen=True, eq=False, repr=False)
class IndexValues:
    """Values of an index with their errors, as an inert value.

    Sets of units that are not in the support have the value 0.
    """

    index: str
    """One of :data:`INDICES`."""
    max_order: int
    """Most units in one set; k of k-SII, and part of what STII, FSII and FBII mean."""
    n_units: int
    """How many units there are."""
    units: tuple[str, ...]
    """One label per unit."""
    support: tuple[tuple[int, ...], ...]
    """Sorted unit indices of every set, by order, then by indices."""
    values: Float[Tensor, " coefficients"]
    """One per set, in float64."""
    baseline: float
    """Value of the fully ablated model, from which the index counts."""
    std_errors: Float[Tensor, " coefficients"] | None = None
    """One per set, where known."""
    covariance: Float[Tensor, "coefficients coefficients"] | None = None
    """Of the values, where known."""
    exact: bool = False
    """Whether the coefficients behind it are exact, not estimates."""
    n_evaluations: int = 0
    """What the coefficients behind it took."""

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """All of them, the largest value first, equal ones in the order of the support."""
        return rank(self.units, self.support, self.values, self.std_errors, basis=self.index)

    def top(self, k: int, min_order: int = 1, max_order: int | None = None) -> list[Term]:
        """Rank sets of units by the size of their values.

        Args:
            k: How many to return at most.
            min_order: Smallest number of units.
            max_order: Largest number of units; any when None.

        Returns:
            The largest first; equal ones in the order of the support.
        """
        return largest(self.terms, k, min_order, max_order)

    def to_dataframe(self) -> "pd.DataFrame":
        """Lay the values out as a table, the largest first.

        Returns:
            As for :meth:`Interactions.to_dataframe
            <circuitspex.algebra.interactions.Interactions.to_dataframe>`, with ``value`` in place
            of ``coefficient``.
        """
        return to_dataframe(self.terms).rename(columns={"coefficient": "value"})

    def to_shapiq(self) -> "InteractionValues":
        """Convert to shapiq's result type, whose plots then work.

        Returns:
            ``shapiq.InteractionValues``. Its baseline is the fully ablated model; for FBII it is
            the intercept, as in shapiq itself, which also calls every Shapley index of order 1
            "SV" and every Banzhaf index of order 1 "BV".

        Raises:
            MissingExtraError: If shapiq is not installed.
            ResultError: If shapiq has no such index.
        """
        try:
            from shapiq import InteractionValues
        except ImportError as error:
            raise MissingExtraError(
                "to_shapiq needs shapiq; install it with: pip install 'circuitspex[shapiq]'"
            ) from error
        if self.index == "OR":
            raise ResultError(
                'shapiq has no index "OR"; convert "Moebius" or one of the others, or use '
                "to_dataframe()."
            )
        # its graphs place units by their own values, so each unit needs one
        values = dict.fromkeys([(), *((unit,) for term in self.support for unit in term)], 0.0)
        values |= dict(zip(self.support, self.values.tolist(), strict=True))
        return InteractionValues(
            values,
            index=self.index,
            n_players=self.n_units,
            min_order=0,
            max_order=self.max_order,
            baseline_value=values[()] if self.index == "FBII" else self.baseline,
            estimated=not self.exact,
            estimation_budget=self.n_evaluations,
        )

    def __repr__(self) -> str:
        """Return one line: which index, of which order, how many values."""
        return (
            f"IndexValues({self.index} up to order {self.max_order}; {self.n_units} units, "
            f"{len(self.support)} values; baseline {self.baseline:g})"
        )

    def __str__(self) -> str:
        """Return that line and the ten largest values."""
        headings = {"units": "units", "coefficient": "value", "interval": "95 % interval"}
        return f"{self!r}\n{as_text(self.terms, headings, 'no values')}"


def check_index(name: str, max_order: int | None) -> int | None:
    """Return the largest order of an index, if there is such an index.

    Args:
        name: One of :data:`INDICES`.
        max_order: The largest order asked for; the index's own default when None.

    Returns:
        The order; None for every order.

    Raises:
        ResultError: If there is no such index, or it has no such order.

    Example:
        >>> check_index("k-SII", None)
        2
    """
    if name not in INDICES:
        raise ResultError(f"there is no index {name!r}; use one of {', '.join(INDICES)}.")
    if max_order is None:
        return INDICES[name].default_order
    if isinstance(max_order, bool) or not isinstance(max_order, int) or max_order < 1:
        raise ResultError(f"max_order must be an integer >= 1; got {max_order!r}.")
    if name in ("SV", "BV") and max_order != 1:
        raise ResultError(
            f"{name} is of single units; got max_order={max_order}. For sets of units use "
            f'"{"k-SII" if name == "SV" else "FBII"}".'
        )
    return max_order


def index_conversion(
    name: str,
    support: Sequence[tuple[int, ...]],
    coordinates: Coordinates,
    max_order: int | None = None,
) -> Conversion:
    r"""Return an index as a linear map on sparse coefficients.

    A term over s units expands over its subsets of t ≤ ``max_order`` units. With the unit function
    :math:`(\alpha + \beta x) / \sqrt\gamma` and the weights :math:`w^*` of Möbius coefficients at
    the ablated origin,

    .. math:: w_{s, t} = \gamma^{-s/2} \sum_{u = t}^{s} \binom{s - t}{u - t}
              \alpha^{s - u} \beta^u w^*_{u, t}.

    Args:
        name: One of :data:`INDICES`.
        support: Sorted index tuples, each once.
        coordinates: Coordinates the coefficients are in.
        max_order: Most units in one set; the index's own default when None.

    Returns:
        The sets that have a value, and the matrix from coefficients to values. All other sets
        have the value 0.

    Raises:
        ResultError: If there is no such index, if the subsets number more than 2**22, or if a
            weight is larger than any float.

    Example:
        >>> conversion = index_conversion("SV", [(0, 1, 2)], Coordinates("moebius", "ablated"))
        >>> conversion.support
        ((0,), (1,), (2,))
        >>> conversion.matrix @ [3.0]
        array([1., 1., 1.])
    """
    order = check_index(name, max_order)
    n_terms = Counter(map(len, support))
    largest = max(n_terms, default=0)
    of_order = largest if order is None else order
    unit_function = _integers(coordinates.check())
    weights: dict[tuple[int, int], float] = {}
    n_entries = 0
    for of in range(min(largest, of_order) + 1):
        for size, n in n_terms.items():
            if size >= of:
                weight = _weight(INDICES[name], size, of, of_order, unit_function)
                weights[size, of] = weight
                n_entries += n * comb(size, of) if weight else 0
        if n_entries > _MAX_ENTRIES:
            raise ResultError(
                f"{name} up to order {of_order} of {len(support)} terms of up to {largest} units "
                f"would expand into more than {_MAX_ENTRIES} subsets. Pass a smaller max_order, "
                "or decode with one."
            )
    return expand(support, weights)


def _weight(
    index: Index, size: int, of: int, order: int, unit_function: tuple[int, int, int]
) -> float:
    """Return the weight of a coefficient of ``size`` units in the value of ``of`` units.

    Raises:
        ResultError: If it is larger than any float.
    """
    alpha, beta, gamma = unit_function
    total = Fraction(0)
    for u in range(of, size + 1) if alpha else [size]:
        if of == 0 and index.from_ablated:
            own = Fraction(u == 0)
        else:
            own = index.weight(u, of, order)
        total += comb(size - of, u - of) * alpha ** (size - u) * beta**u * own
    try:
        return float(total / gamma ** (size // 2)) / (math.sqrt(gamma) if size % 2 else 1.0)
    except OverflowError as error:
        raise ResultError(
            f"a term of {size} units would weigh more than any floating-point number can hold. "
            "Decode with a smaller max_order."
        ) from error


def _integers(coordinates: Coordinates) -> tuple[int, int, int]:
    """Return integers α, β, γ with the unit function (α + βx) / √γ."""
    if coordinates.basis == "moebius":
        return (0, 1, 1) if coordinates.origin == "ablated" else (1, -1, 1)
    # the shortest decimal that reads as this float: 0.2 is to mean a fifth, so that sums cancel
    kept, of = Fraction(str(float(coordinates.keep_rate))).as_integer_ratio()
    return -kept, of, kept * (of - kept)


@cache
def _bernoulli(n: int) -> Fraction:
    """Return the Bernoulli number of n, with −½ for n = 1."""
    if n == 0:
        return Fraction(1)
    lower = sum((comb(n + 1, i) * _bernoulli(i) for i in range(n)), start=Fraction(0))
    return -lower / (n + 1)
