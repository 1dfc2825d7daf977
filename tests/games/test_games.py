"""The contract of planted games: their truth is what they say, in every basis, by brute force."""

from itertools import combinations

import numpy as np
import pytest
import torch

import circuitspex as cs
from circuitspex.errors import GameError, ResultError
from circuitspex.games import GAMES, Game, NoisyGame, PromptsGame, SparseGame

N_UNITS = 8
SEEDS = (0, 3)
NOISY = ["heads"]
DIFFERENTIABLE = [name for name in GAMES if name not in NOISY]
BASES = [
    ("moebius", "ablated", 0.5),
    ("moebius", "intact", 0.5),
    *(("fourier", None, keep_rate) for keep_rate in (0.3, 0.5, 0.9)),
]
LEAST = {"constant": 0, "additive": 0, "and": 3, "or": 3, "xor": 3, "redundant": 6, "gates": 4}
LEAST |= {"peak": 7, "hierarchy": 7, "heads": 3, "prompts": 6}
"""The fewest units with which each game can be made."""


def every_set(n_units=N_UNITS):
    return [s for order in range(n_units + 1) for s in combinations(range(n_units), order)]


def brute_force(game, basis, origin, keep_rate):
    """Return every coefficient by its definition: a mean over masks, or a sum over subsets."""
    sets = every_set(game.n_units)
    masks = cs.masks.keep_only(sets, game.n_units)
    values = dict(zip(sets, game.truth(masks).tolist(), strict=True))
    if basis == "fourier":
        kept = masks.double().numpy()
        law = (keep_rate**kept * (1 - keep_rate) ** (1 - kept)).prod(axis=1)
        standard = (kept - keep_rate) / (keep_rate * (1 - keep_rate)) ** 0.5
        weighted = law * np.array(list(values.values()))
        return {term: weighted @ standard[:, list(term)].prod(axis=1) for term in sets}
    found = {}
    for term in sets:
        parts = [p for order in range(len(term) + 1) for p in combinations(term, order)]
        others = lambda part: tuple(u for u in range(game.n_units) if u not in part)  # noqa: E731
        found[term] = sum(
            (-1) ** (len(term) - len(part)) * values[part if origin == "ablated" else others(part)]
            for part in parts
        )
    return found


def coefficients(interactions):
    """Return every coefficient that is not zero."""
    pairs = zip(interactions.support, interactions.coefficients.tolist(), strict=True)
    return {term: value for term, value in pairs if abs(value) > 1e-12}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", GAMES)
class TestEveryGame:
    def test_is_a_set_function_of_its_units(self, name, seed):
        game = cs.games.make(name, N_UNITS, seed)
        masks = cs.masks.enumerate_masks(N_UNITS)
        assert isinstance(game, Game)
        assert game.n_units == N_UNITS
        assert game(masks).shape == game.truth(masks).shape == (256,)
        assert game(masks).dtype == torch.float64
        assert game(masks[:0]).shape == (0,)

    def test_says_its_truth_unless_it_is_noisy(self, name, seed):
        game = cs.games.make(name, N_UNITS, seed)
        masks = cs.masks.enumerate_masks(N_UNITS)
        difference = np.abs(game(masks).numpy() - game.truth(masks)).max()
        assert difference > 0.01 if name in NOISY else difference < 1e-12

    def test_knows_its_coefficients_in_every_basis(self, name, seed):
        game = cs.games.make(name, N_UNITS, seed)
        truth = game.interactions()
        assert truth.error_source == "none"
        for basis, origin, keep_rate in BASES:
            found = coefficients(truth.to(basis, origin, keep_rate))
            expected = brute_force(game, basis, origin, keep_rate)
            expected = {s: value for s, value in expected.items() if abs(value) > 1e-12}
            assert found == pytest.approx(expected, abs=1e-10)

    def test_is_predicted_by_its_coefficients(self, name, seed):
        game = cs.games.make(name, N_UNITS, seed)
        masks = cs.masks.enumerate_masks(N_UNITS)
        predicted = game.interactions().predict(masks)
        np.testing.assert_allclose(predicted, game.truth(masks), atol=1e-12)

    def test_is_the_same_for_the_same_seed_alone(self, name, seed):
        masks = cs.masks.enumerate_masks(N_UNITS)
        first, again = (cs.games.make(name, N_UNITS, seed) for _ in range(2))
        other = cs.games.make(name, N_UNITS, seed + 1)
        assert torch.equal(first(masks), again(masks))
        assert not np.array_equal(first.truth(masks), other.truth(masks))

    def test_leaves_masks_as_they_are(self, name, seed):
        masks = cs.masks.enumerate_masks(N_UNITS)
        before = masks.clone()
        game = cs.games.make(name, N_UNITS, seed)
        game(masks)
        if name in DIFFERENTIABLE:
            game.value_and_gradient(masks)  # pyright: ignore[reportAttributeAccessIssue]
        assert torch.equal(masks, before)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_the_differences_that_one_unit_makes(name, seed):
    game = cs.games.make(name, N_UNITS, seed)
    masks = cs.masks.enumerate_masks(N_UNITS)
    values, gradient = game.value_and_gradient(masks)  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(values, game.truth(masks), atol=1e-12)
    for unit in range(N_UNITS):
        kept, ablated = masks.clone(), masks.clone()
        kept[:, unit], ablated[:, unit] = True, False
        difference = game.truth(kept) - game.truth(ablated)
        np.testing.assert_allclose(gradient[:, unit], difference, atol=1e-10)


def test_games_without_gradients_do_not_claim_any():
    for name in GAMES:
        game = cs.games.make(name, N_UNITS)
        assert hasattr(game, "value_and_gradient") == (name in DIFFERENTIABLE)


@pytest.mark.parametrize(("basis", "origin"), [("fourier", None), ("moebius", "ablated")])
def test_sparse_games_take_gates_and_are_linear_in_each(basis, origin):
    game = SparseGame(4, [(0, 1), (1, 2, 3)], np.array([1.0, -2.0]), 0.7, basis, origin)
    gates = torch.rand(5, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    _, gradient = game.value_and_gradient(gates)
    for unit in range(4):
        further = gates.clone()
        further[:, unit] += 0.25
        change = game.truth(further) - game.truth(gates)
        np.testing.assert_allclose(change, 0.25 * gradient[:, unit], atol=1e-12)


# ---- closed forms ----


def only(game, basis, origin=None):
    return coefficients(game.interactions().to(basis, origin))


def test_an_and_is_one_term_of_what_keeping_adds():
    game = cs.games.and_gate(9, seed=1, n_inputs=4)
    ((units, weight),) = only(game, "moebius", "ablated").items()
    assert len(units) == 4
    kept = cs.masks.keep_only([units, units[1:], range(9)], 9)
    assert game(kept).tolist() == pytest.approx([weight, 0.0, weight])
    intact = only(game, "moebius", "intact")
    assert intact == pytest.approx(
        {s: weight * (-1) ** len(s) for k in range(5) for s in combinations(units, k)}
    )


def test_an_or_is_one_term_of_what_ablating_does():
    game = cs.games.or_gate(9, seed=1, n_inputs=4)
    intact = only(game, "moebius", "intact")
    (units,) = (term for term in intact if term)
    weight = intact[()]
    assert intact == pytest.approx({(): weight, units: -weight})
    lost = cs.masks.ablate_only([units, units[1:], range(9)], 9)
    assert game(lost).tolist() == pytest.approx([0.0, weight, 0.0])
    assert only(game, "moebius", "ablated") == pytest.approx(
        {s: weight * (-1) ** (len(s) - 1) for k in range(1, 5) for s in combinations(units, k)}
    )


def test_an_xor_is_one_character():
    game = cs.games.xor_gate(9, seed=1, n_inputs=4)
    spectrum = only(game, "fourier")
    (units,) = (term for term in spectrum if term)
    weight = 2 * spectrum[()]
    assert spectrum == pytest.approx({(): weight / 2, units: -weight / 2})
    kept = cs.masks.keep_only([[], units[:1], units[:2], units[:3], units], 9)
    assert game(kept).tolist() == pytest.approx([0.0, weight, 0.0, weight, 0.0])
    assert only(game, "moebius", "ablated") == pytest.approx(
        {s: weight * (-2) ** (len(s) - 1) for k in range(1, 5) for s in combinations(units, k)}
    )


def test_redundant_units_show_only_when_all_copies_are_lost():
    game = cs.games.redundant(12, seed=2, n_copies=3, n_steps=2)
    intact = only(game, "moebius", "intact")
    weight = intact.pop(())
    first, second = sorted((term for term in intact if len(term) == 3), key=str)
    assert not set(first) & set(second)
    together = tuple(sorted(first + second))
    assert intact == pytest.approx({first: -weight, second: -weight, together: weight})
    lost = [(), first[:2] + second[:2], first, second, together]
    values = game(cs.masks.ablate_only(lost, 12)).tolist()
    assert values == pytest.approx([weight, weight, 0.0, 0.0, 0.0])


def test_one_step_of_redundant_units_is_an_or():
    single = cs.games.redundant(10, seed=4, n_copies=5, n_steps=1)
    either = cs.games.or_gate(10, seed=4, n_inputs=5)
    assert only(single, "moebius", "intact") == pytest.approx(only(either, "moebius", "intact"))


def test_additive_games_have_no_pairs_and_constants_no_effects():
    additive = only(cs.games.additive(7, seed=1), "fourier")
    assert additive.keys() == {(), *((unit,) for unit in range(7))}
    assert only(cs.games.constant(7, seed=1), "moebius", "intact").keys() == {()}


def test_peaks_have_nothing_below_them_and_hierarchies_everything():
    peaks = cs.games.peak(30, seed=1).support
    assert [len(term) for term in peaks] == [5] * 10
    terms = set(cs.games.hierarchy(30, seed=1).support)
    tops = [term for term in terms if len(term) == 5]
    assert len(tops) == 10
    assert terms == {s for top in tops for k in range(6) for s in combinations(top, k)}


def test_prompts_differ_around_the_average_that_is_the_truth():
    game = PromptsGame(N_UNITS, 5, seed=1, spread=0.7)
    masks = cs.masks.enumerate_masks(N_UNITS)
    each = game.per_prompt(masks)
    np.testing.assert_allclose(each.mean(dim=1), game.truth(masks), atol=1e-12)
    assert float(each.std(dim=1).min()) > 0.1
    truth = game.interactions().to("moebius", "intact")
    assert truth.prompt_coefficients is not None
    dense = cs.transforms.moebius(each, origin="intact")
    rows = [sum(2**unit for unit in term) for term in truth.support]
    torch.testing.assert_close(truth.prompt_coefficients, dense[rows])
    assert not torch.allclose(truth.coefficients, truth.prompt_coefficients[:, 0])


def test_prompts_count_evaluations_and_deal_prompts_evenly():
    game, masks = PromptsGame(N_UNITS, 5, seed=1), cs.masks.enumerate_masks(N_UNITS)[:100]
    each, rng = game.per_prompt(masks), np.random.default_rng(0)
    assert game.n_evaluations == 500
    values, prompts = game.sample(masks, 1, rng)
    assert game.n_evaluations == 600
    assert prompts.flatten().bincount().tolist() == [20] * 5
    assert torch.equal(values, each.gather(1, prompts))
    values, gradients, prompts = game.sample_gradients(masks, 2, rng)
    assert game.n_evaluations == 600 + 3 * 200
    assert torch.equal(values, each.gather(1, prompts))
    assert (prompts[:, 0] != prompts[:, 1]).all()
    assert gradients.shape == (100, 2, N_UNITS)
    before = game.n_evaluations
    _, average = game.value_and_gradient(masks)
    assert game.n_evaluations == before + 3 * 500
    every = game.sample_gradients(masks, 5, rng)[1]
    torch.testing.assert_close(every.mean(dim=1), average)


# ---- noise ----


def test_noise_has_the_spread_it_was_given_around_the_truth():
    quiet = cs.games.gates(N_UNITS)
    masks = cs.masks.all_kept(N_UNITS).repeat(4000, 1)
    noise = NoisyGame(quiet, 2.0, np.random.default_rng(0))(masks).numpy() - quiet.truth(masks)
    assert noise.std() == pytest.approx(2.0, rel=0.05)
    assert noise.mean() == pytest.approx(0.0, abs=0.1)
    noisy = NoisyGame(quiet, 2.0, np.random.default_rng(0))
    np.testing.assert_array_equal(noisy.truth(masks), quiet.truth(masks))
    assert coefficients(noisy.interactions()) == coefficients(quiet.interactions())


def test_noise_may_depend_on_the_mask():
    quiet, masks = cs.games.gates(N_UNITS), cs.masks.enumerate_masks(N_UNITS)
    noisy = NoisyGame(
        quiet, lambda masks: (~masks[:, 3]).double().numpy(), np.random.default_rng(0)
    )
    wrong = noisy(masks).numpy() != quiet.truth(masks)
    assert wrong.tolist() == (~masks[:, 3]).tolist()


# ---- bad arguments ----


@pytest.mark.parametrize("name", GAMES)
def test_games_say_how_many_units_they_need(name):
    least = LEAST[name]
    assert cs.games.make(name, least).n_units == least
    if least:
        with pytest.raises(GameError, match=r"(Use more units|at least \d units; got)"):
            cs.games.make(name, least - 1)


def test_the_messages_of_games_say_what_to_do():
    with pytest.raises(GameError, match=r"no game 'peek'; choose one of .*did you mean 'peak'"):
        cs.games.make("peek", 8)
    with pytest.raises(GameError, match=r"6 units have 6 different terms of order 5.*needs 10"):
        cs.games.make("peak", 6)
    with pytest.raises(GameError, match=r"at least 6 units; got n_units=5"):
        cs.games.make("prompts", 5)
    with pytest.raises(GameError, match=r"one coefficient for each .* got 2 for 1"):
        SparseGame(3, [(0,)], np.ones(2))
    with pytest.raises(GameError, match=r"and at least one; got 0 for 0"):
        SparseGame(3, [], np.ones(0))
    with pytest.raises(GameError, match=r"must name units in 0\.\.2; got \(1, 3\)"):
        SparseGame(3, [(0,), (1, 3)], np.ones(2))
    with pytest.raises(ResultError, match="Möbius coefficients need an origin"):
        SparseGame(3, [(0,)], np.ones(1), basis="moebius")
    with pytest.raises(
        GameError, match=r"HeadsGame have no closed form.* at most 16 units; got 17"
    ):
        cs.games.make("heads", 17).interactions()


@pytest.mark.parametrize("name", ["exact", "lasso"])
def test_decoders_find_a_game_made_by_a_user(name):
    class Pair(Game):
        n_units = 5

        def truth(self, masks):
            return 1.0 + 2.0 * (masks[:, 1] & masks[:, 3]).double().numpy()

    found = cs.decoders.get(name).decode(Pair(), budget=64, seed=0)
    assert only(Pair(), "moebius", "ablated") == {(): 1.0, (1, 3): 2.0}
    pair = found.to("moebius", "ablated").top(1, min_order=2)[0]
    assert (pair.units, pair.coefficient) == (("1", "3"), pytest.approx(2.0))
