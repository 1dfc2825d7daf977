"""Exact Fourier coefficients of regression trees on keep-masks, at any keep rate."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from circuitspex._shared import Interaction


@dataclass(frozen=True)
class Tree:
    """One binary regression tree; split s sends ablated units left and kept units right.

    Children are numbered as LightGBM does: splits 0, 1, …, the root being 0, and leaf l as
    ``-1 - l``. A tree without splits is a single leaf.
    """

    units: Int[np.ndarray, " splits"]
    """Which unit each split looks at."""

    left: Int[np.ndarray, " splits"]
    """Child for ablated."""

    right: Int[np.ndarray, " splits"]
    """Child for kept."""

    values: Float[np.ndarray, " leaves"]
    """Value of every leaf."""


def tree_fourier(
    trees: list[Tree], keep_rate: float, max_order: int, n_units: int
) -> tuple[Int[np.ndarray, "coefficients order"], Float[np.ndarray, " coefficients"]]:
    r"""Sum the Fourier coefficients of trees, exactly, up to an order.

    A leaf is its value times a product of indicators, one for each split above it, and each
    indicator is linear in its unit's character:

    .. math:: 1[x_i = 1] = p + \sigma z_i, \quad 1[x_i = 0] = (1 - p) - \sigma z_i, \quad
              \sigma = \sqrt{p (1 - p)}.

    So a leaf under d different units has :math:`2^d` coefficients, all leaves of all trees are
    expanded at once, one subset of path positions at a time, and equal terms are added up. A unit
    met twice on a path counts once; a leaf it contradicts cannot be reached and has no value.

    Args:
        trees: The trees, whose sum is transformed.
        keep_rate: p of the characters.
        max_order: Terms of higher order are left out.
        n_units: How many units the trees can split on.

    Returns:
        The terms, one a row, padded in front with -1 (see :func:`as_terms`), and the coefficient
        of each. Not as tuples, because there are many and few of them matter.

    References:
        Gorji, Amrollahi & Krause (2024), "SHAP values via sparse Fourier representation",
        arXiv:2410.06300, for p = ½.
    """
    units, kept, values = _paths(trees)
    depth = units.shape[1]
    sigma = np.sqrt(keep_rate * (1 - keep_rate))
    real = units >= 0
    means = np.where(real, np.where(kept, keep_rate, 1 - keep_rate), 1.0)
    slopes = np.where(real, np.where(kept, sigma, -sigma), 0.0)
    order = min(max_order, depth)
    keys, parts = [np.full((1, order), -1)], [np.zeros(1)]
    for subset in range(2**depth):
        chosen = np.array([bool(subset >> i & 1) for i in range(depth)], dtype=bool)
        if chosen.sum() > max_order:
            continue
        part = values * np.where(chosen, slopes, means).prod(axis=1)
        some = np.flatnonzero(real[:, chosen].all(axis=1))
        key = np.full((len(some), order), -1)
        key[:, order - chosen.sum() :] = np.sort(units[some][:, chosen], axis=1)
        keys.append(key)
        parts.append(part[some])
    return _add_up(np.concatenate(keys), np.concatenate(parts), n_units)


def _paths(
    trees: list[Tree],
) -> tuple[Int[np.ndarray, "leaves depth"], np.ndarray, Float[np.ndarray, " leaves"]]:
    """Return every reachable leaf's path: units (padded with -1), what they must be, its value."""
    paths: list[tuple[dict[int, bool], float]] = []
    for tree in trees:
        unit, left, right = tree.units.tolist(), tree.left.tolist(), tree.right.tolist()
        stack: list[tuple[int, dict[int, bool]]] = [(0 if unit else -1, {})]
        while stack:
            node, path = stack.pop()
            if node < 0:
                paths.append((path, float(tree.values[-1 - node])))
                continue
            for child, kept in ((left[node], False), (right[node], True)):
                if path.get(unit[node], kept) == kept:
                    stack.append((child, {**path, unit[node]: kept}))
    depth = max((len(path) for path, _ in paths), default=0)
    units = np.full((len(paths), depth), -1)
    kept = np.zeros((len(paths), depth), dtype=bool)
    for row, (path, _) in enumerate(paths):
        units[row, : len(path)] = list(path)
        kept[row, : len(path)] = list(path.values())
    return units, kept, np.array([value for _, value in paths], dtype=float)


def as_terms(rows: Int[np.ndarray, "coefficients order"]) -> list[Interaction]:
    """Return rows of :func:`tree_fourier` as tuples without their padding.

    Args:
        rows: Unit indices, padded in front with -1.

    Returns:
        One tuple per row.
    """
    padding = (rows < 0).sum(axis=1).tolist()
    return [tuple(row[skip:]) for row, skip in zip(rows.tolist(), padding, strict=True)]


def _add_up(
    keys: Int[np.ndarray, "parts order"], parts: Float[np.ndarray, " parts"], n_units: int
) -> tuple[Int[np.ndarray, "coefficients order"], Float[np.ndarray, " coefficients"]]:
    """Return the different terms and the sum of the parts of each."""
    order = keys.shape[1]
    if (n_units + 1) ** order < 2**62:  # a term fits into one integer, which sorts much faster
        packed = (keys + 1) @ ((n_units + 1) ** np.arange(order)[::-1].astype(np.int64))
        _, first, inverse = np.unique(packed, return_index=True, return_inverse=True)
        kinds = keys[first]
    else:
        kinds, inverse = np.unique(keys, axis=0, return_inverse=True)
    return kinds, np.bincount(inverse.reshape(-1), weights=parts, minlength=len(kinds))
