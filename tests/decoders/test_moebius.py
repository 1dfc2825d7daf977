"""The Möbius decoder: exact where it claims to be, from either origin, and honest where not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitspex import decoders
from circuitspex.algebra import (
    Coordinates,
    basis_functions,
    enumerate_masks,
    evaluate,
    membership,
    moebius,
)
from circuitspex.decoders.codes.aliasing import Aliasing
from circuitspex.decoders.codes.group_tests import definite_sets, likeliest_sets, smallest_sets
from circuitspex.decoders.codes.moebius_bins import plan_samples
from circuitspex.decoders.codes.moebius_peeling import BinSamples
from circuitspex.designs import aliased_masks, bin_matrix, pool_matrix, pools_needed
from circuitspex.errors import BudgetError, DecoderError
from circuitspex.games import PromptsGame, random_terms


class MoebiusGame:
    """A sum of Möbius products, with noise or without."""

    def __init__(self, n_units, support, coefficients, origin, noise=0.0, seed=0):
        self.n_units, self.support = n_units, support
        self.coefficients = torch.as_tensor(coefficients, dtype=torch.float64)
        self.place = Coordinates("moebius", origin)
        self.noise, self.rng = noise, np.random.default_rng([seed, 7])
        self.calls = []

    def __call__(self, masks):
        self.calls.append(len(masks))
        values = evaluate(masks, self.support, self.coefficients, self.place)
        return values + torch.from_numpy(self.rng.normal(0.0, self.noise, len(masks)))


def planted(n_units, counts, origin="intact", noise=0.0, seed=0):
    """Draw a game with so many terms of each order and coefficients of 0.5 to 1.5."""
    rng = np.random.default_rng(seed)
    support = [term for order, k in counts.items() for term in random_terms(n_units, k, order, rng)]
    coefficients = rng.uniform(0.5, 1.5, len(support)) * rng.choice([-1, 1], len(support))
    return MoebiusGame(n_units, support, coefficients, origin, noise, seed)


def terms_of(found, tolerance=1e-9):
    pairs = zip(found.support, found.coefficients.tolist(), strict=True)
    return {term: value for term, value in pairs if abs(value) > tolerance}


def assert_exact(found, game, tolerance=1e-9):
    truth = dict(zip(game.support, game.coefficients.tolist(), strict=True))
    assert terms_of(found, tolerance).keys() == truth.keys()
    assert terms_of(found, tolerance) == pytest.approx(truth, abs=tolerance)


# Designs


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_every_unit_is_in_as_many_pools(n_pools, n_units, order, seed):
    pools = pool_matrix(n_pools, n_units, order, np.random.default_rng(seed))
    weight = min(n_pools, max(1, round(n_pools * np.log(2) / order)))
    assert pools.shape == (n_pools, n_units)
    assert (pools.sum(axis=0) == weight).all()


@pytest.mark.parametrize("order", [1, 3, 10])
def test_pools_hit_sets_about_half_the_time(order):
    rng = np.random.default_rng(order)
    pools = pool_matrix(400, 200, order, rng)
    hit = [pools[:, rng.choice(200, order, False)].any(axis=1).mean() for _ in range(200)]
    expected = 1 - (1 - np.log(2) / order) ** order  # 0.69, 0.55, 0.52: tends to a half
    assert np.mean(hit) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("n_units", "order"), [(100, 4), (500, 10), (1000, 3)])
def test_as_many_pools_as_are_said_to_be_needed_tell_sets_apart(n_units, order):
    rng = np.random.default_rng(0)
    pools = pool_matrix(pools_needed(n_units, order), n_units, order, rng)
    sets = membership(random_terms(n_units, 500, order, rng), n_units)
    positive = sets.astype(int) @ pools.T.astype(int) > 0
    found, solved = definite_sets(positive, pools)
    assert (found == sets).all(axis=1).mean() > 0.98
    assert solved.mean() > 0.98
    assert pools_needed(7, 7) <= 7


@settings(max_examples=25)
@given(st.integers(0, 4), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_bins_are_ors_of_bits(n_bits, n_units, seed):
    """Subsampled transforms alias as claimed: against the dense transform, written out."""
    rng = np.random.default_rng(seed)
    bits = bin_matrix(n_bits, n_units, 2, rng)
    pools = np.concatenate([np.zeros((1, n_units), bool), pool_matrix(3, n_units, 2, rng)])
    table = torch.from_numpy(rng.normal(size=2**n_units))
    weights = 2 ** np.arange(n_units)
    masks = aliased_masks(bits)[:, None] & ~pools
    aliasing = Aliasing(bits[None], pools)
    bins = aliasing.analyse(table.numpy()[masks @ weights][None])[0]
    expected = np.zeros(bins.shape)
    dense = moebius(table).numpy()
    for index, subset in enumerate(enumerate_masks(n_units).numpy()):
        place = sum(2**k for k in range(n_bits) if (bits[k] & subset).any())
        assert aliasing.places(subset[None])[0, 0] == place
        expected[place] += dense[index] * ~(pools & subset).any(axis=1)
    np.testing.assert_allclose(bins, expected, atol=1e-10)


def test_pools_refuse_nothing():
    with pytest.raises(DecoderError, match="n_pools, n_units and order of at least 1; got 0, 3"):
        pool_matrix(0, 3, 2, np.random.default_rng(0))


# Group tests and least squares


def test_programs_and_likelihood_find_what_rules_leave_open():
    rng = np.random.default_rng(1)
    pools = pool_matrix(34, 60, 3, rng)  # too few for the rules
    sets = membership(random_terms(60, 60, 3, rng), 60)
    positive = sets.astype(int) @ pools.T.astype(int) > 0
    by_rule = definite_sets(positive, pools)[1].mean()
    programs, integral = smallest_sets(positive, pools)
    assert (programs == sets)[integral].all(axis=1).mean() > 0.9
    assert by_rule < integral.mean()
    values = 2.0 * ~positive + rng.normal(0.0, 0.1, positive.shape)
    allowed = np.ones(sets.shape, bool)
    likely = likeliest_sets(values, pools, allowed, 3, 8.0, np.full(len(sets), 0.1))
    assert (likely == sets).all(axis=1).mean() > 0.8


def test_least_squares_without_a_matrix_are_least_squares():
    rng = np.random.default_rng(2)
    n_units = 12
    bits = np.stack([bin_matrix(4, n_units, order, rng) for order in (3, 2)])
    pools = np.concatenate([np.zeros((1, n_units), bool), pool_matrix(9, n_units, 3, rng)])
    aliasing = Aliasing(bits, pools)
    masks, which = aliasing.masks()
    assert len(masks) < which.size  # some samples share a mask
    values = rng.normal(size=len(masks))
    terms = [(), *random_terms(n_units, 4, 1, rng), *random_terms(n_units, 6, 3, rng)]
    samples = BinSamples(aliasing, values[which], which, masks)
    fit = samples.fit(terms)
    place = Coordinates("moebius", "ablated")
    columns = basis_functions(torch.from_numpy(masks), terms, place).numpy()
    expected = np.linalg.lstsq(columns, values, rcond=None)[0]
    np.testing.assert_allclose(fit.coefficients, expected, atol=1e-8)
    np.testing.assert_allclose(fit.inverse, np.linalg.pinv(columns.T @ columns), atol=1e-8)
    left = values - columns @ expected
    assert samples.variance(fit) == pytest.approx(left @ left / (len(masks) - len(terms)))


# Exactness


@pytest.mark.parametrize("origin", ["ablated", "intact"])
@pytest.mark.parametrize("prompts", [False, True])
def test_small_games_are_transformed_densely(origin, prompts):
    rng = np.random.default_rng(0)
    table = torch.from_numpy(rng.normal(size=(64, 5)))

    class Table:
        n_units = 6

        def __call__(self, masks):
            return self.per_prompt(masks).mean(dim=1)

        def per_prompt(self, masks):
            return table[(masks * 2 ** torch.arange(6)).sum(dim=1)]

    class Prompts(Table):
        n_prompts = 5

        def sample(self, masks, prompts_per_mask, rng):
            raise NotImplementedError

    game = Prompts() if prompts else Table()
    decoder = decoders.get("moebius", origin=origin, max_order=6)
    found = decoder.decode(game, budget=1000, seed=0)
    dense = moebius(table, origin=origin)
    for index, subset in enumerate(enumerate_masks(6)):
        term = tuple(subset.nonzero().flatten().tolist())
        place = found.support.index(term)
        assert found.coefficients[place] == pytest.approx(dense[index].mean().item(), abs=1e-10)
        if prompts:
            expected = dense[index].std().item() / 5**0.5
            assert found.std_errors is not None
            assert found.std_errors[place] == pytest.approx(expected)
    assert found.error_source == ("prompts" if prompts else "none")
    assert (found.basis, found.origin) == ("moebius", origin)


@pytest.mark.parametrize("origin", ["ablated", "intact"])
@pytest.mark.parametrize("seed", range(4))
def test_sparse_games_of_some_units_are_decoded_exactly(origin, seed):
    """Against brute force: the budget is a fourteenth of all masks."""
    game = planted(13, {0: 1, 1: 3, 2: 3, 3: 2}, origin, seed=seed)
    dense = moebius(game(enumerate_masks(13)), origin=origin)
    found = decoders.get("moebius", origin=origin, max_order=3).decode(game, budget=600, seed=seed)
    assert_exact(found, game)
    for term, value in terms_of(found).items():
        assert dense[sum(2**unit for unit in term)] == pytest.approx(value, abs=1e-9)
    assert found.n_evaluations <= 600


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_units", "counts", "max_order", "budget"),
    [
        (100, {4: 400}, 4, 105_000),
        (500, {10: 500}, 10, 3 * 512 * 201),
        (1000, {5: 500}, 5, 3 * 512 * 125),
        (300, {0: 1, 1: 60, 2: 60, 3: 60, 5: 40}, 6, 3 * 512 * 130),
        (100, {0: 1, 1: 20, 2: 20, 3: 10}, 4, 20_000),
    ],
)
def test_the_sparse_moebius_transform_is_exact_at_published_sizes(
    n_units, counts, max_order, budget
):
    game = planted(n_units, counts, "ablated")
    decoder = decoders.get("moebius", origin="ablated", max_order=max_order)
    found = decoder.decode(game, budget=budget, seed=0)
    assert_exact(found, game, 1e-8)
    assert found.n_evaluations <= budget
    assert found.diagnostics["n_unresolved_bins"] == 0
    assert found.error_source == "none"
    if found.held_out_r2 is not None:
        assert found.held_out_r2 == pytest.approx(1.0, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_units", "counts", "limit"),
    [
        (270, {2: 10}, 1200),
        (270, {3: 8}, 1200),
        (270, {1: 20, 2: 10, 3: 5}, 1800),
        (1000, {1: 100, 2: 100, 3: 50}, 7500),
        (500, {1: 100, 2: 300, 3: 100}, 14_000),
    ],
)
def test_the_adaptive_search_is_exact_within_few_evaluations(n_units, counts, limit):
    """Singles measured, held-out masks and the final look for more are all in the limit."""
    game = planted(n_units, counts)
    found = decoders.get("moebius", max_order=3).decode(game, budget=limit, seed=0)
    assert_exact(found, game)
    assert found.n_evaluations == sum(game.calls) <= limit
    assert found.held_out_r2 == pytest.approx(1.0, abs=1e-9)
    assert found.diagnostics["stopped"] == "finished"


def test_units_that_need_each_other_and_units_that_back_each_other_up_are_found():
    """AND, OR and backup among 270 units, in 1,100 evaluations, singles included."""
    rng = np.random.default_rng(5)
    units = rng.permutation(270)
    pairs, triples = units[:20].reshape(10, 2), units[20:35].reshape(5, 3)

    def values(masks):
        kept = masks.numpy()
        total = np.zeros(len(kept))
        for index, group in enumerate([*pairs, *triples]):
            combine = np.any if index % 2 else np.all
            total += (1 + 0.1 * index) * combine(kept[:, group], axis=1)
        return torch.from_numpy(total)

    values.n_units = 270  # pyright: ignore[reportFunctionMemberAccess]
    found = terms_of(decoders.get("moebius").decode(values, budget=1100, seed=0))  # pyright: ignore
    for index, group in enumerate([*pairs, *triples]):
        sign = -1 if index % 2 else (-1) ** len(group)
        assert found[tuple(sorted(group.tolist()))] == pytest.approx(sign * (1 + 0.1 * index))
    n_ands = sum(2 ** len(group) - 1 for group in [*pairs, *triples][0::2])
    assert len(found) == 1 + n_ands + len([*pairs, *triples][1::2])


@pytest.mark.slow
def test_thousands_of_units_are_searched_without_measuring_each():
    game = planted(20_000, {1: 5, 2: 5})
    found = decoders.get("moebius", max_order=2).decode(game, budget=1500, seed=0)
    assert_exact(found, game)


def test_rounds_are_batched():
    game = planted(270, {2: 40})
    decoders.get("moebius", max_order=2).decode(game, budget=3000, seed=0)
    assert np.mean(game.calls) > 8


# What is not sparse, not exact, not enough


@pytest.mark.slow
def test_a_dense_tail_leaves_the_strongest_and_spends_the_budget():
    rng = np.random.default_rng(0)
    game = planted(120, {2: 6})
    tail = [*random_terms(120, 120, 1, rng), *random_terms(120, 700, 2, rng)]
    tail = [term for term in tail if term not in game.support]
    strong, game.support = game.support, game.support + tail
    small = torch.from_numpy(rng.normal(0.0, 0.02, len(tail)))
    game.coefficients = torch.cat([game.coefficients, small])
    found = decoders.get("moebius", max_order=2).decode(game, budget=5000, seed=0)
    top = [tuple(map(int, rank.units)) for rank in found.top(6, min_order=2)]
    assert len(set(top) & set(strong)) >= 5
    assert found.diagnostics["stopped"] == "budget"
    assert 4500 < found.n_evaluations <= 5000
    truth = dict(zip(game.support, game.coefficients.tolist(), strict=True))
    for term, value in terms_of(found).items():  # what is listed is measured, not estimated
        assert value == pytest.approx(truth.get(term, 0.0), abs=1e-9)


@pytest.mark.parametrize("origin", ["ablated", "intact"])
def test_noise_is_met_by_repeats_and_least_squares(origin):
    scores, errors = [], []
    for seed in range(3):
        game = planted(60, {1: 6, 2: 6, 3: 2}, origin, noise=0.1, seed=seed)
        decoder = decoders.get("moebius", origin=origin, max_order=3)
        found = decoder.decode(game, budget=12_000, seed=seed)
        truth = dict(zip(game.support, game.coefficients.tolist(), strict=True))
        terms = {term for term in found.support if term}
        scores.append(2 * len(terms & truth.keys()) / (len(terms) + len(truth)))
        assert found.error_source == "masks"
        assert found.std_errors is not None
        for term, value, error in zip(
            found.support, found.coefficients.tolist(), found.std_errors.tolist(), strict=True
        ):
            if term in truth:
                errors.append((value - truth[term]) / error)
    assert min(scores) > 0.95
    assert 0.7 < np.std(errors) < 1.4


def test_a_threshold_ends_the_search():
    game = planted(100, {1: 10, 2: 10})
    small = game.coefficients.abs() < 1.0
    game.coefficients[small] *= 1e-3
    found = decoders.get("moebius", max_order=2, threshold=0.1).decode(game, budget=4000, seed=0)
    pairs = {term for term in terms_of(found) if len(term) == 2}
    big = {t for t, little in zip(game.support, small.tolist(), strict=True) if not little}
    assert {term for term in big if len(term) == 2} <= pairs
    assert found.diagnostics["stopped"] == "finished"


@pytest.mark.parametrize("prompts_per_mask", ["all", 2])
def test_prompts_are_read_one_by_one(prompts_per_mask):
    game = PromptsGame(12, 6, spread=0.2)
    decoder = decoders.get("moebius", max_order=2, prompts_per_mask=prompts_per_mask)
    found = decoder.decode(game, budget=6000, seed=0)
    truth = SpreadTruth(game)
    assert found.n_evaluations == game.n_evaluations <= 6000
    if prompts_per_mask == 2:
        assert found.error_source == "masks"
        return
    assert found.error_source == "prompts"
    assert found.std_errors is not None
    for term, value, error in zip(
        found.support, found.coefficients.tolist(), found.std_errors.tolist(), strict=True
    ):
        assert value == pytest.approx(truth.mean(term), abs=1e-9)
        assert error == pytest.approx(truth.error(term), abs=1e-9)


class SpreadTruth:
    """Each prompt's Möbius coefficients at the intact origin, from its whole table."""

    def __init__(self, game):
        table = game.per_prompt(enumerate_masks(game.n_units))
        game.n_evaluations -= 2**game.n_units * game.n_prompts
        self.spectrum = moebius(table, origin="intact").numpy()

    def mean(self, term):
        return self.spectrum[sum(2**unit for unit in term)].mean()

    def error(self, term):
        row = self.spectrum[sum(2**unit for unit in term)]
        return row.std(ddof=1) / len(row) ** 0.5


def test_more_budget_is_not_wasted_on_powers_of_two():
    spent = []
    for budget in range(20_000, 40_001, 2_500):
        plan = plan_samples(budget, 100, 4, noisy=False)
        spent.append(plan.n_groups * 2**plan.n_bits * (plan.n_pools + 1) / budget)
        assert plan.n_groups >= 3
    assert min(spent) > 0.88  # the rest is for what three groups leave over
    assert max(spent) <= 1


def test_budgets_that_are_too_small_say_what_is_needed():
    game = planted(50, {2: 2}, "ablated")
    with pytest.raises(BudgetError, match=r"need at least 50 masks for a single bin; the budget"):
        decoders.get("moebius", origin="ablated").decode(game, budget=40, seed=0)
    with pytest.raises(BudgetError, match=r"50 units need at least 16 masks at 1 evaluation"):
        decoders.get("moebius").decode(game, budget=15, seed=0)


@pytest.mark.usefixtures("unchecked")
def test_options_are_checked():
    with pytest.raises(DecoderError, match=r"origin must be 'ablated' or 'intact'; got 'full'"):
        decoders.get("moebius", origin="full")
    with pytest.raises(DecoderError, match=r"threshold must be a number above 0 or None; got 0.0"):
        decoders.get("moebius", threshold=0.0)
