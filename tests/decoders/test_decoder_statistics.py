"""What decoders say about their own errors is true on average."""

import numpy as np
import pytest
import torch

from circuitspex import decoders
from circuitspex.decoders.measuring import Meter, evaluate_round, plan_rounds, prompts_to_draw
from circuitspex.decoders.regression import held_out_r2, r2_std_error
from circuitspex.games import PromptsGame, SparseGame, random_terms

pytestmark = pytest.mark.slow


class Noisy:
    """A game seen through normal noise."""

    def __init__(self, game, sd, seed):
        self.n_units, self.game, self.sd = game.n_units, game, sd
        self.rng = np.random.default_rng([seed, 1])

    def __call__(self, masks):
        return self.game(masks) + torch.from_numpy(self.rng.normal(0.0, self.sd, len(masks)))


def draw_game(seed, keep_rate):
    rng = np.random.default_rng(seed)
    support = [(), *random_terms(20, 6, 1, rng)]
    support += [tuple(sorted(support[i] + support[i + 1])) for i in (1, 3)]
    return SparseGame(20, support, rng.uniform(0.3, 1.0, len(support)), keep_rate)


@pytest.mark.parametrize("keep_rate", [0.5, 0.9])
@pytest.mark.parametrize(("name", "n_games"), [("lasso", 40), ("proxyspex", 20)])
def test_nominal_95_percent_intervals_cover_90_to_98(name, n_games, keep_rate):
    """Of true terms; one that was not found counts as not covered."""
    covered = []
    for seed in range(n_games):
        game = draw_game(seed, keep_rate)
        options = {"n_trees": 100} if name == "proxyspex" else {}
        decoder = decoders.get(name, keep_rate=keep_rate, **options)
        found = decoder.decode(Noisy(game, 1.0, seed), budget=300, seed=seed)
        assert found.std_errors is not None
        where = {term: index for index, term in enumerate(found.support)}
        for term, truth in zip(game.support, game.coefficients, strict=True):
            index = where.get(term)
            half = 1.96 * found.std_errors[index] if index is not None else 0.0
            covered.append(index is not None and abs(found.coefficients[index] - truth) <= half)
    assert 0.90 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize("prompts_per_mask", [1, 2, 4, 16, "all"])
def test_r2_of_the_average_game_is_unbiased_at_any_number_of_prompts(prompts_per_mask):
    """A fixed wrong prediction, so that nothing but the formula is tested."""
    estimates, truths, errors = [], [], []
    for seed in range(40):
        game = PromptsGame(20, 16, seed, spread=0.5)
        meter, rng = Meter(game, 1600), np.random.default_rng(seed)
        n_drawn = prompts_to_draw(meter, prompts_per_mask)
        (only,) = plan_rounds(meter, 0.5, n_drawn, [1.0], rng)
        samples = evaluate_round(meter, only, n_drawn, 0.5, rng)
        wrong = SparseGame(20, game.support, game.coefficients.mean(axis=0) * 0.5)
        wrong.coefficients[0] = 0.0
        effects = game.coefficients[:, 0]
        slips = rng.normal(0.0, 0.3, 16)  # prompt effects are known badly, their mean well
        effects = effects + slips - slips.mean()
        effects = effects[samples.prompts] if samples.n_prompts > 1 else effects.mean()
        departures = samples.draws - effects
        predicted = wrong.truth(torch.from_numpy(samples.masks))
        estimates.append(held_out_r2(samples, departures - predicted[:, None], departures))
        errors.append(r2_std_error(samples, departures - predicted[:, None], departures))
        truths.append(0.75)
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - np.mean(truths)) < 3 * error + 0.01
    assert error < 0.02
    assert 0.6 < np.mean(errors) / np.std(estimates) < 1.6  # what it says of itself is so


@pytest.mark.parametrize("name", ["lasso", "proxyspex"])
def test_noise_has_no_held_out_r2(name):
    estimates = []
    for seed in range(8):
        noise = Noisy(SparseGame(30, [()], np.zeros(1)), 1.0, seed)
        options = {"n_trees": 60} if name == "proxyspex" else {}
        found = decoders.get(name, **options).decode(noise, budget=150, seed=seed)
        estimates.append(found.held_out_r2)
    assert -0.1 < np.mean(estimates) < 0.03


@pytest.mark.parametrize("name", ["lasso", "proxyspex"])
def test_few_prompts_on_many_masks_beat_all_prompts_on_few(name):
    errors = {}
    masks = torch.from_numpy(np.random.default_rng(0).random((500, 40)) < 0.5)
    for prompts_per_mask in (1, 4, "all"):
        decoder = decoders.get(name, prompts_per_mask=prompts_per_mask)
        residuals = []
        for seed in range(3):
            game = PromptsGame(40, 16, seed, spread=0.2)
            found = decoder.decode(game, budget=480, seed=seed)
            residuals.append(found.predict(masks).numpy() - game.truth(masks))
        errors[prompts_per_mask] = np.mean(np.square(residuals))
    assert errors[1] < errors["all"]
    assert errors[4] < errors["all"]


def test_prompts_that_differ_in_level_do_not_blur_the_game():
    """Fixed effects: offsets of any size leave coefficients and the average level exact."""
    game = PromptsGame(20, 8, seed=3, spread=0.0)
    game.coefficients[:, 0] += 100.0 * np.arange(8)
    decoder = decoders.get("lasso", prompts_per_mask=1)
    found = decoder.decode(game, budget=400, seed=0)
    truth = dict(zip(game.support, game.coefficients.mean(axis=0), strict=True))
    kept = {
        term: value.item() for term, value in zip(found.support, found.coefficients, strict=True)
    }
    assert kept == pytest.approx(truth, abs=1e-4)
