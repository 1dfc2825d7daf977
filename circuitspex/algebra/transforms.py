r"""Exact transforms between a set function and its coefficients, dense and sparse.

Every basis of this package is a product over units of one affine function of x_i (1 where unit i
is kept, 0 where it is ablated):

==================  ==============================  ==========================================
basis               function of one unit            coefficient of T
==================  ==============================  ==========================================
Möbius, ablated     x                               what keeping all of T adds beyond its parts
Möbius, intact      1 − x                           what ablating all of T does beyond its parts
Fourier at rate p   (x − p) / √(p(1 − p))           covariance of v with the product over T
==================  ==============================  ==========================================

So one butterfly transforms any table of ``2**n`` values in O(n 2**n), and one expansion converts
a sparse set function between any two bases. Tables are ordered as in
:func:`circuitspex.masks.enumerate_masks`: bit i of an index is unit i, so entry 0 is the fully
ablated model and the last entry the intact one. The index of a coefficient names its set T in the
same way, whatever the origin.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor

from circuitspex.errors import MaskError, ResultError

BasisName: TypeAlias = Literal["fourier", "moebius"]
Origin: TypeAlias = Literal["ablated", "intact"]

_MAX_EXPANDED_ORDER = 20
_MAX_EXPANDED_TERMS = 2**22
_BLOCK_ENTRIES = 2**22


class Coordinates(NamedTuple):
    """Which products of units a set function's coefficients belong to.

    Example:
        >>> Coordinates("moebius", "intact").unit_function
        (1.0, -1.0)
    """

    basis: BasisName
    """Fourier or Möbius."""
    origin: Origin | None = None
    """The model that a Möbius expansion starts from; None in the Fourier basis."""
    keep_rate: float = 0.5
    """Rate at which masks keep a unit; the Möbius basis does not depend on it."""

    @property
    def unit_function(self) -> tuple[float, float]:
        """Offset a and slope b of the basis function a + b x of a single unit."""
        if self.basis == "fourier":
            scale = math.sqrt(self.keep_rate * (1 - self.keep_rate))
            return -self.keep_rate / scale, 1 / scale
        return (0.0, 1.0) if self.origin == "ablated" else (1.0, -1.0)

    def check(self) -> "Coordinates":
        """Return these coordinates unchanged if they exist.

        Returns:
            The same coordinates.

        Raises:
            ResultError: If basis, origin and keep rate do not name one of the three bases.
        """
        if self.basis not in {"fourier", "moebius"}:
            raise ResultError(f'there is no basis {self.basis!r}; use "fourier" or "moebius".')
        if self.basis == "moebius" and self.origin not in {"ablated", "intact"}:
            raise ResultError(
                f"Möbius coefficients need an origin; got {self.origin!r}. Pass "
                'origin="intact" (what ablating does) or origin="ablated" (what keeping adds).'
            )
        if self.basis == "fourier" and self.origin is not None:
            raise ResultError(
                f"the Fourier basis has no origin; got {self.origin!r}. Leave origin out, or use "
                'basis="moebius".'
            )
        if not 0 < self.keep_rate < 1:
            raise ResultError(
                f"keep_rate must lie strictly between 0 and 1; got {self.keep_rate}. The Fourier "
                "basis is undefined where every mask keeps, or ablates, everything."
            )
        return self


class Conversion(NamedTuple):
    """A change of coordinates as a linear map on the coefficients."""

    support: tuple[tuple[int, ...], ...]
    """The terms after conversion, sorted by order, then by indices."""
    matrix: sparse.csr_array
    """New coefficients are ``matrix @ old``; a covariance V becomes ``matrix @ V @ matrix.T``."""


def moebius(
    values: Float[Tensor, "masks ..."], *, origin: Origin = "ablated"
) -> Float[Tensor, "masks ..."]:
    r"""Transform tables of values into Möbius coefficients.

    .. math:: m(T) = \sum_{R \subseteq T} (-1)^{|T| - |R|} v(R), \qquad
              \theta(T) = \sum_{R \subseteq T} (-1)^{|T| - |R|} v(N \setminus R)

    for the origins ``"ablated"`` and ``"intact"``.

    Args:
        values: Value of every mask, ``2**n`` along the first axis; further axes (prompts, say)
            are transformed independently. Left unchanged.
        origin: The model the expansion starts from.

    Returns:
        Coefficient of every T, same shape, dtype and order.

    Example:
        Two heads that matter only together have one coefficient, of order 2:

        >>> moebius(torch.tensor([0.0, 0.0, 0.0, 3.0]))
        tensor([0., 0., 0., 3.])

        Seen from the intact model, ablating either loses everything, and both no more than that:

        >>> moebius(torch.tensor([0.0, 0.0, 0.0, 3.0]), origin="intact")
        tensor([ 3., -3., -3.,  3.])

    References:
        Grabisch, Marichal & Roubens (2000), "Equivalent representations of set functions",
        Mathematics of Operations Research 25(2).
    """
    return _analyse(values, Coordinates("moebius", origin).check())


def inverse_moebius(
    coefficients: Float[Tensor, "masks ..."], *, origin: Origin = "ablated"
) -> Float[Tensor, "masks ..."]:
    """Undo :func:`moebius`.

    Args:
        coefficients: Coefficient of every T, ``2**n`` along the first axis.
        origin: The origin they belong to.

    Returns:
        Value of every mask, same shape.
    """
    return _synthesise(coefficients, Coordinates("moebius", origin).check())


def fourier(
    values: Float[Tensor, "masks ..."], keep_rate: float = 0.5
) -> Float[Tensor, "masks ..."]:
    r"""Transform tables of values into Fourier coefficients.

    .. math:: F(T) = \mathbb{E}_{x \sim p} \Big[ v(x) \prod_{i \in T}
              \frac{x_i - p}{\sqrt{p (1 - p)}} \Big]

    The products are orthonormal under masks that keep each unit at rate p, so the squared
    coefficients of order 1 and more sum to the variance of v under such masks.

    Args:
        values: Value of every mask, ``2**n`` along the first axis; further axes are transformed
            independently. Left unchanged.
        keep_rate: The rate p.

    Returns:
        Coefficient of every T, same shape, dtype and order.

    Note:
        At p = ½ these are Walsh–Hadamard coefficients times (−1)^|T|: kept counts as +1.

    Example:
        >>> fourier(torch.tensor([1.0, 3.0]))
        tensor([2., 1.])

    References:
        O'Donnell (2014), Analysis of Boolean Functions, chapter 8.
    """
    return _analyse(values, Coordinates("fourier", None, keep_rate).check())


def inverse_fourier(
    coefficients: Float[Tensor, "masks ..."], keep_rate: float = 0.5
) -> Float[Tensor, "masks ..."]:
    """Undo :func:`fourier`.

    Args:
        coefficients: Coefficient of every T, ``2**n`` along the first axis.
        keep_rate: The rate they belong to.

    Returns:
        Value of every mask, same shape.
    """
    return _synthesise(coefficients, Coordinates("fourier", None, keep_rate).check())


def convert(
    support: Sequence[tuple[int, ...]], source: Coordinates, target: Coordinates
) -> Conversion:
    r"""Write sparse coefficients in other coordinates, as a linear map.

    With :math:`\varphi_i = \alpha + \beta \varphi'_i` between the old and the new function of one
    unit, a term expands over its subsets:

    .. math:: c'(R) = \sum_{T \supseteq R} \alpha^{|T| - |R|} \beta^{|R|} c(T).

    Args:
        support: Sorted index tuples, each once.
        source: Coordinates the coefficients are in.
        target: Coordinates to write them in.

    Returns:
        The new support, which holds every subset of every term unless the coordinates are the
        same, and the matrix from old to new coefficients. Coefficients that cancel stay in.

    Raises:
        ResultError: If a term has more than 20 units, or the subsets of all terms number more
            than 2**22.

    Example:
        >>> support, matrix = convert(
        ...     [(0, 1)], Coordinates("moebius", "ablated"), Coordinates("moebius", "intact")
        ... )
        >>> support
        ((), (0,), (1,), (0, 1))
        >>> matrix @ [2.0]
        array([ 2., -2., -2.,  2.])

    References:
        Grabisch, Marichal & Roubens (2000), as for :func:`moebius`.
    """
    (a, b), (a_new, b_new) = source.check().unit_function, target.check().unit_function
    slope = b / b_new
    offset = a - slope * a_new
    groups = _by_order(support)
    largest = max((terms.shape[1] for _, terms in groups), default=0)
    n_subsets = sum(len(terms) * 2 ** terms.shape[1] for _, terms in groups)
    if offset != 0 and (largest > _MAX_EXPANDED_ORDER or n_subsets > _MAX_EXPANDED_TERMS):
        raise ResultError(
            f"converting {len(support)} terms of up to {largest} units would expand into "
            f"{n_subsets} subsets; at most {_MAX_EXPANDED_TERMS} subsets and "
            f"{_MAX_EXPANDED_ORDER} units a term are converted. Keep the coordinates, or decode "
            "with a smaller max_order."
        )
    weights = {
        (order, size): offset ** (order - size) * slope**size
        for order in (terms.shape[1] for _, terms in groups)
        for size in range(order + 1)
    }
    return expand(support, weights)


def expand(
    support: Sequence[tuple[int, ...]], weights: Mapping[tuple[int, int], float]
) -> Conversion:
    """Write every term as a sum over its subsets, weighted by the sizes of both.

    Args:
        support: Sorted index tuples, each once.
        weights: Weight of a subset, by the order of the term and the size of the subset. Sizes
            that are not listed, or weigh exactly 0, are left out.

    Returns:
        The subsets that were reached, and the matrix from coefficients of terms to theirs.

    Example:
        >>> expand([(0, 1, 4)], {(3, 1): 0.5}).support
        ((0,), (1,), (4,))
    """
    # (new terms, columns, value) of the matrix's entries, gathered by the order of the new term
    pieces: dict[int, list[tuple[np.ndarray, np.ndarray, float]]] = {}
    for positions, terms in _by_order(support):
        order = terms.shape[1]
        for size in range(order + 1):
            weight = weights.get((order, size), 0.0)
            if weight == 0:
                continue
            chosen = np.array(list(combinations(range(order), size)), dtype=np.intp)
            subsets = terms[:, chosen].reshape(len(terms) * len(chosen), size)
            columns = np.repeat(positions, len(chosen))
            pieces.setdefault(size, []).append((subsets, columns, weight))
    return _assemble(pieces, len(support))


def basis_functions(
    masks: Bool[Tensor, "masks units"],
    support: Sequence[tuple[int, ...]],
    coordinates: Coordinates,
) -> Float[Tensor, "masks coefficients"]:
    """Evaluate every term's product on every mask: the dense design matrix of a regression.

    Args:
        masks: Keep-masks.
        support: Sorted index tuples.
        coordinates: Basis, origin and keep rate of the products.

    Returns:
        One column per term, in float64.
    """
    groups = [(torch.from_numpy(p), torch.from_numpy(t)) for p, t in _by_order(support)]
    return _products(masks, groups, coordinates.check()).T


def evaluate(
    masks: Bool[Tensor, "masks units"],
    support: Sequence[tuple[int, ...]],
    coefficients: Float[Tensor, " coefficients"],
    coordinates: Coordinates,
) -> Float[Tensor, " masks"]:
    """Evaluate a sparse set function, some masks at a time so that memory stays bounded.

    Args:
        masks: Keep-masks.
        support: Sorted index tuples.
        coefficients: One per term, in float64.
        coordinates: Basis, origin and keep rate of the coefficients.

    Returns:
        Value of every mask, in float64.
    """
    groups = [(torch.from_numpy(p), torch.from_numpy(t)) for p, t in _by_order(support)]
    rows = max(1, _BLOCK_ENTRIES // max(1, len(support), masks.shape[1]))
    blocks = [
        coefficients @ _products(block, groups, coordinates.check())
        for block in masks.cpu().split(rows)
    ]
    return torch.cat(blocks) if blocks else torch.zeros(0, dtype=torch.float64)


def _analyse(values: Tensor, coordinates: Coordinates) -> Tensor:
    """Return the solution of c0 + c1 φ(x) = v(x), found for one unit after the other."""
    offset, slope = coordinates.unit_function
    table = values.clone()
    for unit in range(_n_units(values)):
        # an index with bit `unit` clear, then set: the pair that differs in this unit alone
        pairs = table.view(-1, 2, 2**unit, *values.shape[1:])
        ablated, kept = pairs[:, 0].clone(), pairs[:, 1].clone()
        pairs[:, 0] = kept * (-offset / slope) + ablated * (1 + offset / slope)
        pairs[:, 1] = (kept - ablated) / slope
    return table


def _synthesise(coefficients: Tensor, coordinates: Coordinates) -> Tensor:
    """Return c0 + c1 φ(x) at x = 0 and x = 1, for one unit after the other."""
    offset, slope = coordinates.unit_function
    table = coefficients.clone()
    for unit in range(_n_units(coefficients)):
        pairs = table.view(-1, 2, 2**unit, *coefficients.shape[1:])
        constant, linear = pairs[:, 0].clone(), pairs[:, 1].clone()
        pairs[:, 0] = constant + offset * linear
        pairs[:, 1] = constant + (offset + slope) * linear
    return table


def _n_units(table: Tensor) -> int:
    n_units = table.shape[0].bit_length() - 1
    if table.shape[0] != 2**n_units:
        raise MaskError(
            f"a table must hold one entry per mask, so a power of two; got {table.shape[0]}. "
            "Evaluate all of enumerate_masks(n_units), or use a sparse decoder for a sample."
        )
    return n_units


def _by_order(
    support: Sequence[tuple[int, ...]],
) -> list[tuple[Int[np.ndarray, " terms"], Int[np.ndarray, "terms order"]]]:
    """Return the terms of each order as one array, with their places in the support."""
    orders = np.array([len(term) for term in support], dtype=np.intp)
    groups = []
    for order in np.unique(orders):
        positions = np.flatnonzero(orders == order)
        terms = np.array([support[i] for i in positions.tolist()], dtype=np.intp)
        groups.append((positions, terms.reshape(len(positions), order)))
    return groups


def _assemble(
    pieces: dict[int, list[tuple[np.ndarray, np.ndarray, float]]], n_columns: int
) -> Conversion:
    support: list[tuple[int, ...]] = []
    rows, columns, values = [], [], []
    for size in sorted(pieces):
        subsets = np.concatenate([subset for subset, _, _ in pieces[size]])
        if size == 0:
            unique, inverse = subsets[:1], np.zeros(len(subsets), dtype=np.intp)
        else:
            unique, inverse = np.unique(subsets, axis=0, return_inverse=True)
        rows.append(inverse.reshape(-1) + len(support))
        columns.extend(column for _, column, _ in pieces[size])
        values.extend(np.full(len(column), weight) for _, column, weight in pieces[size])
        support.extend(map(tuple, unique.tolist()))
    shape = (len(support), n_columns)
    if not support:
        return Conversion((), sparse.csr_array(shape))
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return Conversion(tuple(support), sparse.csr_array(entries, shape=shape))


def _products(
    masks: Tensor, groups: list[tuple[Tensor, Tensor]], coordinates: Coordinates
) -> Tensor:
    """Return products of shape (terms, masks): in this layout gathering copies whole rows."""
    offset, slope = coordinates.unit_function
    ablated = torch.tensor(offset, dtype=torch.float64)
    kept = torch.tensor(offset + slope, dtype=torch.float64)
    by_unit = masks.cpu().T.contiguous()
    products = torch.empty(sum(len(p) for p, _ in groups), len(masks), dtype=torch.float64)
    for positions, terms in groups:
        product = torch.ones(len(terms), len(masks), dtype=torch.float64)
        for units in terms.T:
            product *= torch.where(by_unit[units], kept, ablated)
        products[positions] = product
    return products
