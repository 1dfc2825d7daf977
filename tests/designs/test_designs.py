"""Designs choose the masks they say they choose."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from circuitspex.algebra import enumerate_masks
from circuitspex.designs import (
    AffineDesign,
    AffineGroup,
    affine_design,
    affine_size,
    bernoulli_masks,
    exhaustive_masks,
)
from circuitspex.designs.affine import _full_rank, _rank
from circuitspex.designs.bch import bch_code
from circuitspex.errors import BudgetError, DecoderError
from circuitspex.games import characters


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


# ------------------------------------------------------------------------------------------------
# The affine design


def words_of(n_bits):
    """Return the bits of every word, bit i of a word's number being bit i of the word."""
    return np.array([[word >> bit & 1 for bit in range(n_bits)] for word in range(2**n_bits)])


def as_parts(design):
    """Return the masks of every group, words times delays times units."""
    masks, parts = design.masks().numpy(), []
    for group in design.groups:
        n = 2**group.n_bits * design.n_delays
        part, masks = masks[:n], masks[n:]
        parts.append(part.reshape(2**group.n_bits, design.n_delays, -1))
    assert len(masks) == 0
    return parts


def small_design(n_units, n_bits, seed, max_errors=2):
    rng = np.random.default_rng(seed)
    groups = [
        AffineGroup(_full_rank(n_units, bits, rng), rng.random(n_units) < 0.5) for bits in n_bits
    ]
    return AffineDesign(bch_code(n_units, max_errors), tuple(groups))


@settings(max_examples=40)
@given(st.integers(3, 60), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 999))
def test_coded_masks_are_words_times_delays_as_written(n_units, n_bits, seed):
    """Mask by mask: unit i is ablated if <M_i, 1 - word> + delay_i + s_i is odd."""
    design = small_design(n_units, n_bits, seed)
    checks, masks, cells = design.code.checks, design.masks().numpy(), design.cells()
    assert design.n_delays == checks.shape[1] + 1
    assert len(masks) == len(cells) == design.n_masks
    assert design.n_masks == sum(2**bits for bits in n_bits) * design.n_delays
    row = 0
    for number, group in enumerate(design.groups):
        for word in range(2**group.n_bits):
            absent = [bit for bit in range(group.n_bits) if not word >> bit & 1]
            odd = (group.directions[:, absent].sum(axis=1) + group.shift) % 2 == 1
            for delay in range(design.n_delays):
                assert cells[row].tolist() == [number, word, delay]
                ablated = odd ^ checks[:, delay - 1] if delay else odd
                assert masks[row].tolist() == (~ablated).tolist()
                row += 1


@pytest.mark.parametrize(("n_units", "n_masks"), [(14, 800), (96, 1264), (300, 2000)])
def test_no_coded_mask_comes_twice_within_a_group(n_units, n_masks):
    for seed in range(5):
        design = affine_design(n_units, n_masks, 5, np.random.default_rng(seed))
        for part, group in zip(as_parts(design), design.groups, strict=True):
            of_one_delay = part[:, 0]
            assert len(np.unique(of_one_delay, axis=0)) == 2**group.n_bits
            if n_units > 60:  # with fewer units, delays may coincide with sums of directions
                flat = part.reshape(-1, n_units)
                assert len(np.unique(flat, axis=0)) == len(flat)


def test_every_coded_mask_keeps_every_unit_half_the_time():
    """Over seeds, at each place of the design: what lets coded masks serve as random ones."""
    n_seeds = 1500
    total = np.zeros((sum((4, 4, 4)) * 21, 8))
    for seed in range(n_seeds):
        total += small_design(8, (2, 2, 2), seed, 5).masks().numpy()
    assert np.abs(total / n_seeds - 0.5).max() < 6 * 0.5 / np.sqrt(n_seeds)


def test_coded_masks_of_different_groups_are_independent():
    agree = np.zeros((2, 10))
    for seed in range(1500):
        first, second = as_parts(small_design(10, (2, 2), seed))
        agree += [first[1, 3] == second[1, 3], first[0, 0] == second[3, 5]]
    assert np.abs(agree / 1500 - 0.5).max() < 6 * 0.5 / np.sqrt(1500)


@settings(max_examples=60)
@given(st.integers(6, 40), st.lists(st.integers(1, 4), min_size=1, max_size=2), st.data())
def test_a_character_is_its_bins_character_with_a_sign_for_every_delay(n_units, n_bits, data):
    design = small_design(n_units, n_bits, data.draw(st.integers(0, 999)))
    terms = [
        sorted(data.draw(st.sets(st.integers(0, n_units - 1), min_size=1, max_size=6)))
        for _ in range(3)
    ]
    longest = max(map(len, terms))
    padded = np.array([[-1] * (longest - len(term)) + term for term in terms])
    flips = design.flips(padded)
    assert flips.shape == (3, design.n_delays)
    for part, group in zip(as_parts(design), design.groups, strict=True):
        bins = group.bins(padded)
        assert bins.shape == (3,)
        words = words_of(group.n_bits)
        for term, found, flip in zip(terms, bins.tolist(), flips, strict=True):
            sign = (-1) ** group.shift[term].sum()
            bits = [found >> bit & 1 for bit in range(group.n_bits)]
            pattern = (-1) ** ((1 - words) @ bits)  # the bin against the complement of the word
            wanted = sign * np.outer(pattern, np.where(flip, -1, 1))
            flat = part.reshape(-1, n_units)
            actual = characters(flat, [tuple(term)], 0.5).reshape(wanted.shape)
            np.testing.assert_allclose(actual, wanted)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("n_bits", [1, 2, 4])
def test_half_a_group_is_the_group_that_half_of_the_words_form(n_bits, upper):
    design = small_design(20, (n_bits,), 3)
    halved = AffineDesign(design.code, (design.groups[0].half(upper),))
    (whole,), (half,) = as_parts(design), as_parts(halved)
    np.testing.assert_array_equal(half, np.split(whole, 2)[int(upper)])


def sizes_that_fit(n_units, n_masks, errors):
    """Return bits and groups of all designs within a budget, with three to five groups."""
    delays = bch_code(n_units, errors).n_checks + 1
    return [
        (bits, groups)
        for bits in range(2, 12)
        for groups in (3, 4, 5)
        if groups * 2**bits * delays <= n_masks
    ]


@settings(max_examples=200)
@given(st.integers(1, 400), st.integers(1, 20_000), st.integers(1, 7))
@example(96, 983, 5)
@example(96, 984, 5)
@example(9, 300, 5)
def test_a_design_is_the_largest_that_fits(n_units, n_masks, max_errors):
    allowed = min(n_masks, 2**n_units // 4)
    size = affine_size(n_units, n_masks, max_errors)
    least = min(2, max_errors)
    if size is None:
        assert not any(
            sizes_that_fit(n_units, allowed, errors) for errors in range(least, max_errors + 1)
        )
        return
    errors, n_bits, n_groups = size
    # fewer errors only where not even the smallest design fits, then bits, then groups
    assert least <= errors <= max_errors
    for more in range(errors + 1, max_errors + 1):
        assert not sizes_that_fit(n_units, allowed, more)
    assert (n_bits, n_groups) == max(sizes_that_fit(n_units, allowed, errors))
    design = affine_design(n_units, n_masks, max_errors, np.random.default_rng(0))
    assert design.code.max_errors == errors
    assert [group.n_bits for group in design.groups] == [n_bits] * n_groups
    assert design.n_masks <= allowed
    # what is left over is too little for one more group of this size
    assert design.n_masks + 2**n_bits * design.n_delays > allowed


def test_coded_masks_repeat_with_their_seed():
    first, second, other = (
        affine_design(96, 1000, 5, np.random.default_rng(seed)).masks() for seed in (5, 5, 6)
    )
    torch.testing.assert_close(first, second)
    assert (first != other).any()


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32))
def test_rank_counts_columns_that_are_no_sum_of_others(n_rows, n_columns, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.random((n_rows, n_columns)) < rng.uniform(0.1, 0.9)
    sums = {
        tuple((matrix[:, chosen].sum(axis=1) % 2).tolist())
        for size in range(n_columns + 1)
        for chosen in map(list, combinations(range(n_columns), size))
    }
    assert 2 ** _rank(matrix) == len(sums)  # as many sums as a space of this dimension has elements


@pytest.mark.parametrize(
    ("n_units", "n_masks", "least"), [(96, 179, 180), (1000, 251, 252), (6, 10_000, 108)]
)
def test_budgets_too_small_for_coded_masks_are_refused(n_units, n_masks, least):
    with pytest.raises(
        BudgetError,
        match=rf"coded masks for {n_units} units need a budget of at least {least} masks, and at "
        rf"most a quarter of all masks there are; got {n_masks}\. Raise the budget, or use a",
    ):
        affine_design(n_units, n_masks, 5, np.random.default_rng(0))
