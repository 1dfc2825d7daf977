"""Coarse to fine on planted games with thousands of units, whose truth and gradients are known."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from circuitspex import decoders
from circuitspex.decoders.around_intact.contexts import Contexts
from circuitspex.decoders.measuring import Meter
from circuitspex.errors import BudgetError, DecoderError
from circuitspex.games import PromptsGame

Interaction = tuple[int, ...]


@dataclass
class DeletionGame:
    """Singles of every unit, and a few sets that do something more when all of them are ablated."""

    n_units: int
    planted: dict[Interaction, float]
    seed: int = 0
    weak: float = 0.01
    gated: dict[int, float] = field(default_factory=dict)
    """Units whose effect sets in between the gates 0 and 1, without a slope at either end."""
    n_evaluations: int = 0

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        self.singles = rng.normal(0.0, self.weak, self.n_units)

    def _ablated(self, masks):
        self.n_evaluations += len(masks)
        return 1.0 - masks.numpy().astype(float)

    def _values(self, ablated):
        values = 1.0 + ablated @ self.singles
        for term, effect in self.planted.items():
            values += effect * ablated[:, list(term)].prod(axis=1)
        for unit, effect in self.gated.items():
            values += effect * (3 * ablated[:, unit] ** 2 - 2 * ablated[:, unit] ** 3)
        return values

    def __call__(self, masks):
        return torch.from_numpy(self._values(self._ablated(masks)))

    def value_and_gradient(self, masks):
        ablated = self._ablated(masks)
        self.n_evaluations += 2 * len(masks)
        gradient = np.tile(-self.singles, (len(masks), 1))
        for term, effect in self.planted.items():
            for unit in term:
                others = [other for other in term if other != unit]
                gradient[:, unit] -= effect * ablated[:, others].prod(axis=1)
        for unit, effect in self.gated.items():
            gradient[:, unit] -= effect * 6 * ablated[:, unit] * (1 - ablated[:, unit])
        return torch.from_numpy(self._values(ablated)), torch.from_numpy(gradient)


def verified(found):
    """Return what the diagnostics say was measured, by unit indices."""
    return {
        tuple(map(int, entry["units"])): entry["coefficient"]
        for entry in found.diagnostics["verified"]
    }


def draw_terms(n_units, orders, rng):
    """Draw disjoint terms of given orders."""
    units = iter(rng.permutation(n_units).tolist())
    return [tuple(sorted(next(units) for _ in range(order))) for order in orders]


@pytest.mark.slow
@pytest.mark.parametrize(("n_units", "budget"), [(500, 1500), (2_000, 2_000), (20_000, 3_000)])
def test_planted_pairs_among_weak_singles_are_found_and_verified(n_units, budget):
    rng = np.random.default_rng(n_units)
    terms = draw_terms(n_units, [2] * 8, rng)
    planted = dict(zip(terms, rng.uniform(0.3, 1.0, 8) * rng.choice([-1, 1], 8), strict=True))
    game = DeletionGame(n_units, planted)
    decoder = decoders.get("coarse_to_fine", keep_rate=0.98, max_order=2)
    found = decoder.decode(game, budget=budget, seed=0)
    assert verified(found) == pytest.approx(planted, abs=1e-9)
    assert found.held_out_r2 == pytest.approx(1.0, abs=1e-6)
    assert found.n_evaluations == game.n_evaluations <= budget


def test_triples_with_and_without_pairs_inside_are_found():
    rng = np.random.default_rng(1)
    terms = draw_terms(800, [3, 3, 2], rng)
    planted = dict(zip(terms, [0.8, -1.0, 0.5], strict=True))
    planted |= {terms[0][:2]: -0.4, terms[1][1:]: 0.7}
    found = decoders.get("coarse_to_fine", keep_rate=0.95).decode(
        DeletionGame(800, planted), budget=3000, seed=0
    )
    assert verified(found) == pytest.approx(planted, abs=1e-9)


def test_a_sparse_game_is_recovered_term_by_term():
    planted = {(3,): 2.0, (7,): -1.0, (3, 40): 1.5, (90, 91): -0.5}
    game = DeletionGame(1_000, planted, weak=0.0)
    found = decoders.get("coarse_to_fine", keep_rate=0.9).decode(game, budget=1000, seed=0)
    spectrum = found.to("moebius", origin="intact")
    pairs = zip(spectrum.support, spectrum.coefficients.tolist(), strict=True)
    assert {t: v for t, v in pairs if abs(v) > 1e-9} == pytest.approx(
        {(): 1.0, **planted}, abs=1e-9
    )
    assert found.held_out_r2 == pytest.approx(1.0, abs=1e-9)


def test_units_that_cancel_inside_a_block_are_told_apart():
    game = DeletionGame(64, {(0,): 3.0, (1,): -3.0, (2, 3): 2.0, (4, 5): -2.0}, weak=0.0)
    decoder = decoders.get("coarse_to_fine", keep_rate=0.9, n_blocks=2, n_rounds=2)
    found = decoder.decode(game, budget=400, seed=3)
    assert verified(found) == pytest.approx({(2, 3): 2.0, (4, 5): -2.0}, abs=1e-9)
    assert found.held_out_r2 == pytest.approx(1.0, abs=1e-9)


def test_a_mate_of_a_strong_unit_is_not_taken_for_one():
    """Whatever shares a block with unit 0 once looks like its partner's partner."""
    planted = {(0,): 5.0, (0, 1): -4.0}
    found = decoders.get("coarse_to_fine", keep_rate=0.98).decode(
        DeletionGame(3_000, planted), budget=1200, seed=0
    )
    assert verified(found) == pytest.approx({(0, 1): -4.0}, abs=1e-9)


def test_silent_units_are_found_by_splitting_their_block():
    game = DeletionGame(8_000, {}, gated={17: 2.0, 600: -1.5})
    decoder = decoders.get("coarse_to_fine", keep_rate=0.98)
    found = decoder.decode(game, budget=3000, seed=0)
    assert found.diagnostics["n_found_by_splitting"] == 2
    singles = found.to("moebius", origin="intact")
    truth = dict(zip(range(8_000), game.singles.tolist(), strict=True))
    for unit, effect in game.gated.items():
        place = singles.support.index((unit,))
        assert float(singles.coefficients[place]) == pytest.approx(effect + truth[unit], abs=1e-3)
    assert found.held_out_r2 == pytest.approx(1.0, abs=1e-6)


def test_what_was_done_is_reported():
    game = DeletionGame(500, {(1, 2): 1.0, (3, 4, 5): -1.0})
    found = decoders.get("coarse_to_fine", keep_rate=0.95).decode(game, budget=1500, seed=0)
    report = found.diagnostics
    stages = ("intact", "blocks", "units", "split", "interactions", "fit", "held_out")
    assert tuple(report["evaluations"]) == stages
    assert sum(report["evaluations"].values()) == found.n_evaluations
    assert report["n_blocks"] == 19
    assert report["n_rounds"] == 3
    assert set(report["weights"]) == {"shift", "gradients", "units", "interactions"}


def test_order_one_spends_everything_on_units():
    game = DeletionGame(300, {(1, 2): 1.0})
    decoder = decoders.get("coarse_to_fine", keep_rate=0.95, max_order=1)
    found = decoder.decode(game, budget=400, seed=0)
    assert max(map(len, found.support)) == 1
    assert found.diagnostics["n_units_measured"] >= 190


def test_set_functions_without_gradients_are_refused():
    def values(masks):
        return masks.sum(dim=1).double()

    values.n_units = 40  # pyright: ignore[reportFunctionMemberAccess]
    with pytest.raises(DecoderError, match=r"needs a set function with value_and_gradient\(\); fu"):
        decoders.get("coarse_to_fine").decode(values, budget=500, seed=0)  # pyright: ignore[reportArgumentType]


def test_budgets_and_options_are_checked():
    with pytest.raises(BudgetError, match=r"500 units need at least 16 masks .* the budget is 15"):
        decoders.get("coarse_to_fine").decode(DeletionGame(500, {}), budget=15, seed=0)
    with pytest.raises(DecoderError, match=r"max_order must be a whole number from 1 to 6; got 7"):
        decoders.get("coarse_to_fine", max_order=7)
    with pytest.raises(
        DecoderError, match=r"n_blocks must be a whole number of at least 2 .*; got 1"
    ):
        decoders.get("coarse_to_fine", n_blocks=1)


@pytest.mark.parametrize("budget", range(16, 60, 3))
def test_every_small_budget_gives_a_result(budget):
    game = DeletionGame(500, {(1, 2): 1.0})
    found = decoders.get("coarse_to_fine", keep_rate=0.95).decode(game, budget=budget, seed=0)
    assert found.n_evaluations == game.n_evaluations <= budget


@pytest.mark.parametrize("prompts_per_mask", ["all", "auto", 1, 3])
def test_prompts_are_averaged_where_it_matters(prompts_per_mask):
    game = PromptsGame(40, 5, seed=2, keep_rate=0.9)
    decoder = decoders.get(
        "coarse_to_fine", keep_rate=0.9, max_order=2, prompts_per_mask=prompts_per_mask
    )
    found = decoder.decode(game, budget=2500, seed=0)
    assert found.n_evaluations == game.n_evaluations <= 2500
    spectrum = dict(zip(found.support, found.coefficients.tolist(), strict=True))
    for term, coefficient in zip(game.support, game.coefficients.mean(axis=0), strict=True):
        assert spectrum[term] == pytest.approx(coefficient, abs=1e-6)
    assert found.error_source == "prompts"
    assert found.std_errors is not None
    errors = dict(zip(found.support, found.std_errors.tolist(), strict=True))
    spread = game.coefficients.std(axis=0, ddof=1) / 5**0.5
    for term, error in zip(game.support, spread, strict=True):
        assert errors[term] == pytest.approx(error, abs=1e-6)


def test_prompts_without_gradients_of_their_own_are_read_together():
    class Together:
        def __init__(self, game):
            self.game, self.n_units, self.n_prompts = game, game.n_units, game.n_prompts
            self.per_prompt, self.sample = game.per_prompt, game.sample
            self.value_and_gradient = game.value_and_gradient

        def __call__(self, masks):
            return self.game(masks)

    game = PromptsGame(40, 5, seed=2, keep_rate=0.9)
    decoder = decoders.get("coarse_to_fine", keep_rate=0.9, max_order=2, prompts_per_mask="auto")
    found = decoder.decode(Together(game), budget=2500, seed=0)
    assert found.n_evaluations == game.n_evaluations <= 2500
    assert found.held_out_r2 == pytest.approx(1.0, abs=1e-6)


def test_the_same_seed_asks_for_the_same_masks():
    results = []
    for _ in range(2):
        game = DeletionGame(600, {(1, 2): 1.0, (3, 4): -0.5}, gated={9: 1.0})
        decoder = decoders.get("coarse_to_fine", keep_rate=0.95)
        results.append(decoder.decode(game, budget=900, seed=5))
    first, second = results
    assert first.support == second.support
    torch.testing.assert_close(first.coefficients, second.coefficients, rtol=0, atol=0)
    assert first.diagnostics == second.diagnostics


def test_a_search_among_some_units_keeps_the_others():
    game = DeletionGame(600, {(1, 2): 1.0, (1, 400): 3.0})
    decoder = decoders.get("coarse_to_fine", keep_rate=0.95, among=tuple(range(100)))
    found = decoder.decode(game, budget=900, seed=0)
    assert verified(found) == pytest.approx({(1, 2): 1.0}, abs=1e-9)
    assert found.n_units == 600


# ---- prompts, in whatever order they are drawn ----


class AdditivePrompts(PromptsGame):
    """Single units alone, other ones on every prompt: no derivative ever changes."""

    def __post_init__(self):
        super().__post_init__()
        pairs = [place for place, term in enumerate(self.support) if len(term) > 1]
        self.coefficients[:, pairs] = 0


@pytest.mark.parametrize("n_drawn", [1, 3, 8])
def test_contexts_are_compared_with_the_same_prompts_intact(n_drawn):
    game = AdditivePrompts(12, n_prompts=8, spread=5.0)
    contexts = Contexts(Meter(game, 10_000), n_drawn, np.random.default_rng(0))
    changes = contexts.read(np.eye(12, dtype=bool))
    assert np.abs(changes.gradients).max() < 1e-5
    intact = torch.ones(1, 12, dtype=torch.bool)
    np.testing.assert_allclose(contexts.values, game.per_prompt(intact)[0])
    assert np.abs(contexts.gradients - contexts.gradient).max() > 1  # prompts are told apart


def test_no_interaction_is_made_of_differences_between_prompts():
    game = AdditivePrompts(40, n_prompts=8, spread=2.0, seed=1)
    decoder = decoders.get("coarse_to_fine", keep_rate=0.9, prompts_per_mask=1)
    found = decoder.decode(game, budget=1500, seed=0)
    assert all(abs(entry["coefficient"]) < 1e-9 for entry in found.diagnostics["verified"])
    assert found.held_out_r2 is not None
    assert found.held_out_r2 > 0.99
