"""From coded masks to interactions: bins, growing fits, folds, and the decoders on top of them."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import in_a_process_of_its_own, peak_memory

from circuitspex import decoders
from circuitspex.algebra import fourier
from circuitspex.decoders.codes import (
    grow,
    search_bins,
    search_everything,
    search_extensions,
    search_pairs,
    search_units,
)
from circuitspex.decoders.codes.bins import complete_tables, decode_bins
from circuitspex.decoders.measuring import Meter, Samples, evaluate_round, gather, join, plan_rounds
from circuitspex.decoders.regression.crossfit import _blocks, _deal
from circuitspex.designs import AffineDesign, affine_design
from circuitspex.games import (
    PromptsGame,
    SparseGame,
    characters,
    gates,
    hierarchy,
    peak,
    random_terms,
)


def coded_samples(game, n_masks, seed=0, max_errors=5, sd=0.0):
    """Evaluate a game on coded masks, and on random ones where there is room for more."""
    rng = np.random.default_rng(seed)
    meter = Meter(game, n_masks)
    (only,) = plan_rounds(meter, 0.5, None, [1.0], rng, max_errors)
    samples = evaluate_round(meter, only, None, 0.5, rng)
    noisy = samples.draws + rng.normal(0.0, sd, samples.draws.shape) if sd else samples.draws
    return Samples(**{**vars(samples), "draws": noisy})


def as_truth(game):
    return dict(zip(game.support, game.coefficients.tolist(), strict=True))


def as_dict(interactions, tolerance=1e-9):
    pairs = zip(interactions.support, interactions.coefficients.tolist(), strict=True)
    return {term: value for term, value in pairs if abs(value) > tolerance}


# ------------------------------------------------------------------------------------------------
# Bins


@pytest.mark.slow
@settings(max_examples=40)
@given(
    st.integers(14, 1500),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True),
    st.sampled_from([1e-9, -1.0, 1e9]),
    st.integers(0, 999),
)
def test_a_single_term_is_read_from_its_bin(n_units, draws, coefficient, seed):
    term = tuple(sorted({draw % n_units for draw in draws}))
    rng = np.random.default_rng(seed)
    design = affine_design(n_units, 2_000, 5, rng)
    assert design.code.max_errors == 5 or n_units < 20
    term = term[: design.code.max_errors]
    values = characters(design.masks().numpy(), [term], 0.5)[:, 0] * coefficient
    samples = gather(
        design.masks().numpy(), values[:, None], None, 1, 0.5, (design,), design.cells()
    )
    tables = complete_tables(samples)
    assert len(tables) == len(design.groups)
    for table in tables:  # each group alone shows it
        assert decode_bins([table], values, max_order=5) == [term]
        if len(term) > 1:
            shorter = decode_bins([table], values, max_order=len(term) - 1)
            assert all(len(other) < len(term) for other in shorter)
    assert decode_bins(tables, values, 5) == [term]


def test_bins_hold_what_the_dense_transform_adds_up():
    """On a few units, where every coefficient is known: what aliases into a bin, at every delay."""
    n_units, rng = 8, np.random.default_rng(0)
    subsets = [t for size in range(n_units + 1) for t in combinations(range(n_units), size)]
    game = SparseGame(n_units, subsets, rng.normal(size=len(subsets)))
    samples = coded_samples(game, 10**4, max_errors=1)
    assert samples.designs
    design = samples.designs[0]
    padded = np.array([[-1] * (n_units - len(term)) + list(term) for term in subsets])
    flips = np.where(design.flips(padded), -1, 1)
    for table in complete_tables(samples):
        measured = fourier(torch.from_numpy(samples.values[table.rows])).numpy()
        expected = np.zeros_like(measured)
        bins = table.group.bins(padded).tolist()
        for term, place, value, flip in zip(subsets, bins, game.coefficients, flips, strict=True):
            sign = (-1) ** int(table.group.shift[list(term)].sum())
            expected[place] += sign * value * flip
        np.testing.assert_allclose(measured, expected, atol=1e-9)


def test_nothing_is_read_from_nothing_or_from_a_constant():
    samples = coded_samples(peak(96), 1264)
    tables = complete_tables(samples)
    assert decode_bins(tables, np.zeros(1264), 5) == []
    assert decode_bins(tables, np.full(1264, 3.0), 5) == []


def test_terms_that_fit_their_bins_best_come_first():
    rng = np.random.default_rng(1)
    game = SparseGame(96, [(3,), (10, 20, 30)], np.array([1.0, 0.05]))
    samples = coded_samples(game, 4000)
    values = samples.values + rng.normal(0.0, 0.05, len(samples.values))
    found = decode_bins(complete_tables(samples), values, 5)
    assert found[:2] == [(3,), (10, 20, 30)]


def test_signs_that_noise_has_turned_are_tried_both_ways():
    """With as many units as the code corrects, one wrong sign is one too many for it alone."""
    rng, n_right, n_wrong = np.random.default_rng(2), 0, 0
    for trial in range(8):
        term = random_terms(96, 1, 5, rng)[0]
        samples = coded_samples(SparseGame(96, [term], np.ones(1)), 984, seed=trial)
        (table, *_) = complete_tables(samples)
        flip, words = table.design.flips(np.array([term])), len(table.rows)
        values = samples.values.copy()
        damaged = [0, 7] if trial % 2 else [11]  # delay 0 is what all signs are told from
        values[table.rows[:, damaged]] *= -0.1
        n_wrong += words * len(damaged)
        assert flip.shape == (1, 41)
        n_right += decode_bins([table], values, 5) == [term]
    assert n_wrong > 0
    assert n_right == 8


# ------------------------------------------------------------------------------------------------
# Tables


def assert_is_part_of(table, samples):
    """Check mask by mask that a table's rows are the group that it names."""
    alone = AffineDesign(table.design.code, (table.group,))
    np.testing.assert_array_equal(samples.masks[table.rows.reshape(-1)], alone.masks().numpy())


def test_whole_groups_are_found_wherever_their_rows_are():
    samples = coded_samples(peak(96), 1300)
    order = np.random.default_rng(0).permutation(1300)
    shuffled = samples.take(order)
    tables = complete_tables(shuffled)
    assert [len(table.rows) for table in tables] == [8, 8, 8]
    for table in tables:
        assert_is_part_of(table, shuffled)


@pytest.mark.parametrize("upper", [False, True])
def test_half_groups_are_found_when_rows_are_missing(upper):
    samples = coded_samples(peak(96), 1300)
    assert samples.cells is not None
    group, word, delay = samples.cells.T
    in_half = (word >= 4) == upper
    # all of group 0; of group 1 one half and most of the other; of group 2 neither half
    lost = (group == 1) & ~in_half & (word % 4 == 2) & (delay == 40)
    lost |= (group == 2) & (word % 4 == 1) & (delay == 0)
    kept = samples.take(np.flatnonzero(~lost))
    assert kept.cells is not None
    tables = complete_tables(kept)
    assert [len(table.rows) for table in tables] == [8, 4]
    for table in tables:
        assert_is_part_of(table, kept)
    np.testing.assert_array_equal(
        kept.cells[tables[1].rows[:, 0], 1], np.arange(4) + (4 if upper else 0)
    )
    term = (5, 50, 95)
    values = characters(kept.masks, [term], 0.5)[:, 0]
    assert decode_bins([tables[1]], values, 5) == [term]


def test_tables_of_several_rounds_are_all_found():
    game, parts = peak(96), []
    meter, rng = Meter(game, 2 * 1200), np.random.default_rng(0)
    for planned in plan_rounds(meter, 0.5, None, [0.5, 0.5], rng, 5):
        parts.append(evaluate_round(meter, planned, None, 0.5, rng))
    samples = join(parts, 0.5)
    tables = complete_tables(samples)
    assert len(tables) == 6
    for table in tables:
        assert_is_part_of(table, samples)


def test_random_masks_have_no_tables():
    masks = np.random.default_rng(0).random((50, 20)) < 0.5
    assert complete_tables(gather(masks, np.zeros((50, 1)), None, 1, 0.5)) == []
    assert search_bins(gather(masks, np.zeros((50, 1)), None, 1, 0.5), 5) == []


# ------------------------------------------------------------------------------------------------
# Growing


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_growing_recovers_planted_games_of_any_order(order):
    rng = np.random.default_rng(order)
    support = random_terms(96, 10, order, rng)
    signs = rng.choice([-1, 1], 10)
    game = SparseGame(96, [(), *support], np.r_[3.0, signs * rng.uniform(0.3, 1.0, 10)])
    samples = coded_samples(game, 1264)
    found = grow(samples, samples.values, search_bins(samples, 5), 0.5)
    truth = as_truth(game)
    del truth[()]
    assert {t for t, v in found.items() if abs(v) > 1e-9} == truth.keys()
    for term, value in truth.items():
        assert found[term] == pytest.approx(value, abs=1e-8)


def searches_of(samples, n_units):
    units = np.arange(n_units)
    return {
        "bins": search_bins(samples, 5)[0],
        "units": search_units(units, n_units),
        "everything": search_everything(n_units, 2),
        "pairs": search_pairs(samples.masks, units, 0.5),
        "extensions": search_extensions(samples.masks, units, 0.5, 5),
    }


@pytest.mark.parametrize("kind", ["bins", "units", "everything", "pairs", "extensions", "all"])
def test_growing_does_next_to_nothing_on_noise(kind):
    """A term in every few seeds, out of the thousands that are proposed each time."""
    counts = []
    for seed in range(15):
        samples = coded_samples(SparseGame(40, [()], np.zeros(1)), 700, seed, sd=1.0)
        searches = searches_of(samples, 40)
        chosen = list(searches.values()) if kind == "all" else [searches[kind]]
        counts.append(len(grow(samples, samples.values, chosen, 0.5)))
    assert np.mean(counts) < (1.5 if kind == "all" else 0.75)


def test_growing_recovers_what_only_extensions_see():
    """Without coded masks: a chain of terms, each one unit longer, from its single unit up."""
    rng = np.random.default_rng(0)
    chain = [(4,), (4, 9), (4, 9, 21), (4, 9, 21, 33)]
    game = SparseGame(40, chain, np.array([1.0, -0.8, 0.7, 0.9]))
    masks = rng.random((400, 40)) < 0.5
    samples = gather(masks, game.truth(torch.from_numpy(masks))[:, None], None, 1, 0.5)
    units = np.arange(40)
    searches = [search_units(units, masks.shape[1]), search_extensions(masks, units, 0.5, 4)]
    found = grow(samples, samples.values, searches, 0.5)
    assert {t: round(v, 9) for t, v in found.items() if abs(v) > 1e-9} == pytest.approx(
        as_truth(game)
    )
    assert all(len(t) <= 4 for t in found)
    shorter = grow(samples, samples.values, [search_units(units, masks.shape[1])], 0.5)
    assert set(shorter) <= {(unit,) for unit in range(40)}


def test_terms_that_turn_out_to_be_noise_leave_the_fit():
    samples = coded_samples(SparseGame(20, [(3,), (5, 6)], np.ones(2)), 400, sd=0.3)
    fit = grow(samples, samples.values, [search_everything(20, 2)], 0.5)
    columns = characters(samples.masks, list(fit), 0.5)
    design = np.column_stack([np.ones(400), columns])
    wanted, *_ = np.linalg.lstsq(design, samples.values, rcond=None)
    np.testing.assert_allclose(list(fit.values()), wanted[1:], atol=1e-6)
    residuals = samples.values - design @ wanted
    spread = np.sqrt(residuals @ residuals / (400 - design.shape[1]) / 400)
    assert {(3,), (5, 6)} <= fit.keys()
    assert (np.abs(wanted[1:]) > 2 * spread).all()


def test_everything_is_listed_as_far_as_it_is_not_too_much():
    listed = search_everything(5, 3)(np.zeros(1), {})
    assert sorted(listed) == sorted(t for size in (1, 2, 3) for t in combinations(range(5), size))
    assert max(map(len, search_everything(100, 5)(np.zeros(1), {}))) == 1
    assert max(map(len, search_everything(90, 5)(np.zeros(1), {}))) == 2


# ------------------------------------------------------------------------------------------------
# Folds


@pytest.mark.parametrize(
    ("n_groups", "shares", "n_folds"),
    [(3, [1.0], 6), (4, [1.0], 4), (5, [1.0], 5), (3, [0.5, 0.5], 6), (3, [0.3, 0.3, 0.4], 5)],
)
def test_folds_keep_coded_groups_whole(n_groups, shares, n_folds):
    n_masks = round(n_groups * 4 * 41 / min(shares)) + 60
    rng = np.random.default_rng(0)
    meter, parts = Meter(peak(96), n_masks), []
    for planned in plan_rounds(meter, 0.5, None, shares, rng, 5):
        parts.append(evaluate_round(meter, planned, None, 0.5, rng))
    samples = join(parts, 0.5)
    folds = _deal(samples, 5, rng)
    assert folds.shape == (len(samples.masks),)
    assert set(folds.tolist()) == set(range(n_folds))
    assert samples.cells is not None
    group, word, _ = samples.cells.T
    n_all_groups = sum(len(design.groups) for design in samples.designs)
    for number in range(n_all_groups):
        rows = group == number
        if n_all_groups == 3:  # halves of groups
            top = word[rows] >= (word[rows].max() + 1) // 2
            assert len(set(folds[rows][top])) == len(set(folds[rows][~top])) == 1
            assert set(folds[rows][top]) != set(folds[rows][~top])
        else:
            assert len(set(folds[rows])) == 1
    # rows that are random come in pairs of complements, and each pair stays together
    rest = np.flatnonzero(group < 0)
    assert len(rest) >= 30
    for pair in np.unique(samples.groups[rest]):
        assert len(set(folds[rest][samples.groups[rest] == pair])) == 1
    # what is left in each fold's complement can still be decoded
    for fold in range(n_folds):
        known = samples.take(np.flatnonzero(folds != fold))
        assert len(complete_tables(known)) >= (3 if n_all_groups < 4 else n_all_groups // 2)
        assert len(_blocks(known)) == len(known.masks)


def test_folds_of_random_masks_share_pairs_of_complements_evenly():
    rng = np.random.default_rng(0)
    half = rng.random((50, 20)) < 0.5
    masks = np.concatenate([half, ~half])
    folds = _deal(gather(masks, np.zeros((100, 1)), None, 1, 0.5), 5, rng)
    np.testing.assert_array_equal(folds[:50], folds[50:])
    assert np.bincount(folds).tolist() == [20] * 5


# ------------------------------------------------------------------------------------------------
# Decoders


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spex", "hybrid"])
def test_peaks_are_decoded_exactly(name):
    game = peak(96)
    found = decoders.get(name).decode(game, budget=1264, seed=0)
    assert as_dict(found) == pytest.approx(as_truth(game), abs=1e-9)
    assert found.held_out_r2 is not None
    assert found.held_out_r2 > 0.9  # folds have half the bins, and may miss a term
    assert found.n_evaluations == 1264


@pytest.mark.slow
def test_spex_decodes_a_thousand_units():
    game = peak(1000)
    found = decoders.get("spex").decode(game, budget=2688, seed=0)
    assert as_dict(found) == pytest.approx(as_truth(game), abs=1e-9)
    assert found.diagnostics["n_coded_rows"] == found.n_evaluations == 2688


@pytest.mark.slow
def test_spex_decodes_peaks_through_noise():
    class Noisy(SparseGame):
        def __call__(self, masks):
            rng = np.random.default_rng(7)
            sd = 0.3 * np.linalg.norm(self.coefficients)
            return super().__call__(masks) + torch.from_numpy(rng.normal(0.0, sd, len(masks)))

    plain = peak(96, seed=2)
    game = Noisy(96, plain.support, plain.coefficients)
    found = decoders.get("spex", max_errors=6).decode(game, budget=3000, seed=0)
    large = {t: v for t, v in as_truth(game).items() if abs(v) > 0.2}
    assert large.keys() <= set(found.support)
    assert found.held_out_r2 == pytest.approx(1 / 1.09, abs=0.05)
    where = dict(zip(found.support, found.coefficients.tolist(), strict=True))
    assert all(abs(where[term] - value) < 0.15 for term, value in large.items())


@pytest.mark.slow
def test_hybrid_finds_hierarchies_and_gates_that_spex_does_not():
    for game, least in ((hierarchy(20), 0.5), (gates(20), 0.9)):
        hybrid, spex = (
            decoders.get(name).decode(game, budget=800, seed=0) for name in ("hybrid", "spex")
        )
        assert hybrid.held_out_r2 is not None
        assert spex.held_out_r2 is not None
        assert hybrid.held_out_r2 > max(least, spex.held_out_r2 - 0.02)


@pytest.mark.slow
def test_hybrid_uses_no_codes_away_from_one_half():
    game = SparseGame(30, [(), (1,), (1, 2)], np.array([1.0, 2.0, 1.5]), 0.8)
    found = decoders.get("hybrid", keep_rate=0.8).decode(game, budget=400, seed=0)
    assert found.diagnostics["design"] == "bernoulli"
    assert found.diagnostics["n_coded_rows"] == 0
    assert as_dict(found) == pytest.approx(as_truth(game), abs=1e-9)


@pytest.mark.parametrize("prompts_per_mask", ["all", 1, 2])
@pytest.mark.parametrize("budget", [901, 1500])
def test_budgets_are_used_up(budget, prompts_per_mask):
    """Coded masks as far as they fit; at most one more group's worth of random ones."""
    game = PromptsGame(96, 3)
    decoder = decoders.get("spex", max_order=2, prompts_per_mask=prompts_per_mask)
    found = decoder.decode(game, budget=budget, seed=0)
    cost = {"all": 3}.get(prompts_per_mask, prompts_per_mask)
    assert game.n_evaluations == found.n_evaluations
    assert found.n_evaluations == budget // cost * cost
    (code,) = found.diagnostics["codes"]
    assert code["errors"] == 2
    group = 2 ** code["bits"][0] * code["delays"]
    assert found.diagnostics["n_coded_rows"] == len(code["bits"]) * group
    if prompts_per_mask != 1:  # where a fifth of the budget is random masks, for the noise
        assert 0 <= found.diagnostics["n_masks"] - found.diagnostics["n_coded_rows"] < group
    else:
        assert found.diagnostics["n_coded_rows"] >= 0.4 * budget


@settings(max_examples=60)
@given(st.integers(6, 300), st.integers(16, 6000), st.integers(1, 5))
def test_every_planned_mask_is_paid_for_and_placed(n_units, budget, max_errors):
    meter = Meter(SparseGame(n_units, [()], np.ones(1)), budget)
    rng = np.random.default_rng(0)
    rounds = plan_rounds(meter, 0.5, None, [0.25] * 4, rng, max_errors)
    n_masks = min(budget, 2 ** min(n_units, 40))
    assert sum(len(planned.masks) for planned in rounds) == n_masks
    sizes = [len(planned.masks) for planned in rounds]
    assert max(sizes) - min(sizes) <= 1
    for planned in rounds:
        coded = planned.cells[:, 0] >= 0
        n_coded = 0 if planned.design is None else planned.design.n_masks
        assert coded.sum() == n_coded
        if planned.design is not None:
            np.testing.assert_array_equal(planned.masks[coded], planned.design.masks().numpy())
            np.testing.assert_array_equal(planned.cells[coded], planned.design.cells())


def memory_to_decode_every_neuron():
    """Be a process of its own: decode, and return how many bytes more that took at its peak."""
    n_units, rng = 46_080, np.random.default_rng(0)
    game = SparseGame(n_units, [(), *random_terms(n_units, 2, 2, rng)], np.array([1.0, 2.0, 1.5]))
    before = peak_memory()
    found = decoders.get("spex", max_order=2, max_units=32).decode(game, budget=1056, seed=0)
    assert as_dict(found) == pytest.approx(as_truth(game), abs=1e-9)
    return peak_memory() - before


@pytest.mark.slow
def test_spex_on_every_neuron_of_a_model_stays_within_memory():
    """46,080 units: a float matrix of the masks takes 221 MB, one of all pairs of units 8 GB."""
    assert 50 * 2**20 < in_a_process_of_its_own(memory_to_decode_every_neuron) < 800 * 2**20
