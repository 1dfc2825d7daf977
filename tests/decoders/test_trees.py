"""Trees are transformed exactly, against the dense transform of what they predict."""

import numpy as np
import pytest
import torch

from circuitspex.algebra import enumerate_masks, fourier
from circuitspex.decoders.regression import Tree, as_terms, tree_fourier


def random_tree(n_units, n_splits, rng):
    """Grow a tree by splitting random leaves on random units, the same one twice or not."""
    units, left, right = [], [], []
    leaves = [(-1, "")]
    for split in range(n_splits):
        parent, side = leaves.pop(int(rng.integers(len(leaves))))
        if parent >= 0:
            (left if side == "left" else right)[parent] = split
        units.append(int(rng.integers(n_units)))
        left.append(None)
        right.append(None)
        leaves += [(split, "left"), (split, "right")]
    for leaf, (parent, side) in enumerate(leaves):
        if parent >= 0:
            (left if side == "left" else right)[parent] = -1 - leaf
    split = [np.array(entry, dtype=np.int64) for entry in (units, left, right)]
    return Tree(split[0], split[1], split[2], rng.normal(size=len(leaves)))


def predict(tree, masks):
    """Walk down the tree, one mask at a time."""
    values = []
    for mask in masks.tolist():
        node = 0 if len(tree.units) else -1
        while node >= 0:
            node = int((tree.right if mask[tree.units[node]] else tree.left)[node])
        values.append(tree.values[-1 - node])
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("keep_rate", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("n_splits", [0, 1, 3, 9])
@pytest.mark.parametrize("seed", [0, 1])
def test_coefficients_agree_with_the_dense_transform(keep_rate, n_splits, seed):
    rng = np.random.default_rng([seed, n_splits])
    n_units = 5  # fewer than splits on a path, so that units repeat
    trees = [random_tree(n_units, n_splits, rng) for _ in range(4)]
    masks = enumerate_masks(n_units)
    table = torch.stack([predict(tree, masks) for tree in trees]).sum(dim=0)
    dense = fourier(table, keep_rate=keep_rate)
    rows, coefficients = tree_fourier(trees, keep_rate, n_units, n_units)
    terms = as_terms(rows)
    found = torch.zeros(2**n_units, dtype=torch.float64)
    found[[sum(1 << unit for unit in term) for term in terms]] = torch.from_numpy(coefficients)
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-12)
    assert len(set(terms)) == len(terms)
    assert all(list(term) == sorted(set(term)) for term in terms)


def test_order_is_cut_and_the_rest_unchanged():
    trees = [random_tree(8, 12, np.random.default_rng(seed)) for seed in range(5)]
    spectra = []
    for max_order in (8, 2):
        rows, coefficients = tree_fourier(trees, 0.7, max_order, 8)
        spectra.append(dict(zip(as_terms(rows), coefficients, strict=True)))
    full, cut = spectra
    assert cut == {term: value for term, value in full.items() if len(term) <= 2}


def test_many_units_do_not_overflow_the_packed_terms():
    tree = Tree(
        np.array([46_079, 46_078, 46_077, 46_076, 46_075]),
        np.array([1, 2, 3, 4, -1]),
        np.array([-2, -3, -4, -5, -6]),
        np.arange(6.0),
    )
    rows, coefficients = tree_fourier([tree], 0.5, 5, 46_080)
    small = Tree(tree.units - 46_075, tree.left, tree.right, tree.values)
    small_rows, expected = tree_fourier([small], 0.5, 5, 5)
    np.testing.assert_array_equal(np.where(rows < 0, -1, rows - 46_075), small_rows)
    np.testing.assert_allclose(coefficients, expected, atol=1e-15)
