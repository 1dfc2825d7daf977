"""Designs choose the masks they say they choose."""

import numpy as np
import pytest
import torch

from circuitspex.designs import bernoulli_masks, exhaustive_masks
from circuitspex.errors import BudgetError, DecoderError
from circuitspex.masks import enumerate_masks


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("keep_rate", [0.2, 0.5, 0.8])
def test_units_are_kept_independently_at_the_keep_rate(keep_rate, complementary):
    rng = np.random.default_rng(0)
    masks = bernoulli_masks(20_000, 96, keep_rate, rng, complementary=complementary).numpy()
    sd = np.sqrt(keep_rate * (1 - keep_rate) / len(masks))
    assert np.abs(masks.mean(axis=0) - keep_rate).max() < 5 * sd
    correlations = np.corrcoef(masks.T) - np.eye(96)
    assert np.abs(correlations).max() < 6 / np.sqrt(len(masks))


def test_pairs_are_complements_at_one_half():
    masks = bernoulli_masks(100, 40, 0.5, np.random.default_rng(1), complementary=True)
    torch.testing.assert_close(masks[0::2], ~masks[1::2])


def test_pairs_ablate_disjoint_sets_above_one_half():
    masks = bernoulli_masks(100, 40, 0.9, np.random.default_rng(1), complementary=True)
    assert not (~masks[0::2] & ~masks[1::2]).any()


@pytest.mark.parametrize(("n_units", "keep_rate"), [(8, 0.95), (8, 0.5), (16, 0.99), (30, 0.9)])
def test_rows_are_distinct_while_masks_last(n_units, keep_rate):
    masks = bernoulli_masks(200, n_units, keep_rate, np.random.default_rng(2))
    assert len(torch.unique(masks, dim=0)) == 200


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("n_units", [1, 2, 3])
def test_more_masks_than_there_are_give_each_one_and_repeats(n_units, complementary):
    rng = np.random.default_rng(3)
    masks = bernoulli_masks(21, n_units, 0.8, rng, complementary=complementary)
    assert masks.shape == (21, n_units)
    assert len(torch.unique(masks, dim=0)) == 2**n_units


def test_extreme_keep_rates_repeat_rather_than_search_forever():
    masks = bernoulli_masks(500, 40, 1 - 1e-9, np.random.default_rng(4))
    assert masks.shape == (500, 40)


def test_a_design_repeats_with_its_seed():
    first, second = (bernoulli_masks(99, 50, 0.7, np.random.default_rng(5)) for _ in range(2))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    ("n_masks", "n_units", "keep_rate"), [(0, 3, 0.5), (3, 0, 0.5), (3, 3, 0.0), (3, 3, 1.0)]
)
def test_impossible_designs_are_refused(n_masks, n_units, keep_rate):
    with pytest.raises(DecoderError, match="needs n_masks >= 1, n_units >= 1 and 0 < keep_rate"):
        bernoulli_masks(n_masks, n_units, keep_rate, np.random.default_rng(0))


def test_the_exhaustive_design_is_every_mask_within_the_budget():
    torch.testing.assert_close(exhaustive_masks(4, budget=16), enumerate_masks(4))
    with pytest.raises(BudgetError, match="cost 48 evaluations; the budget is 47"):
        exhaustive_masks(4, budget=47, evaluations_per_mask=3)
