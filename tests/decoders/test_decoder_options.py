"""Options that decoders share: some of the units, an early stop, prompts and their own games."""

from typing import Any

import numpy as np
import pytest
import torch

from circuitspex import decoders
from circuitspex.algebra import Interactions
from circuitspex.decoders.measuring import (
    Meter,
    Samples,
    gather,
    prompts_to_draw,
    variance_components,
)
from circuitspex.decoders.regression import SparseRegression
from circuitspex.errors import DecoderError
from circuitspex.games import PromptsGame, SparseGame, characters, hierarchy

SAMPLED = ["lasso", "spex", "proxyspex", "hybrid"]
OPTIONS = {"proxyspex": {"n_trees": 60}}


class Recording:
    """A game that remembers every mask it was asked for."""

    def __init__(self, game, units=None):
        self.game, self.n_units, self.masks = game, game.n_units, []
        if units is not None:
            self.units = units

    def __call__(self, masks):
        self.masks.append(masks)
        return self.game(masks)


class RecordingPrompts(Recording):
    """The same, prompt by prompt."""

    @property
    def n_prompts(self):
        return self.game.n_prompts

    def per_prompt(self, masks):
        self.masks.append(masks)
        return self.game.per_prompt(masks)

    def sample(self, masks, prompts_per_mask, rng):
        self.masks.append(masks)
        return self.game.sample(masks, prompts_per_mask, rng)


def as_dict(interactions, tolerance=1e-9):
    pairs = zip(interactions.support, interactions.coefficients.tolist(), strict=True)
    return {term: value for term, value in pairs if abs(value) > tolerance}


def cut(game, chosen):
    """Return the game on some units alone, written out: every other character is that of kept."""
    kept = np.sqrt((1 - game.keep_rate) / game.keep_rate)
    terms = {}
    for term, value in zip(game.support, game.coefficients.tolist(), strict=True):
        inside = tuple(unit for unit in term if unit in chosen)
        outside = len(term) - len(inside)
        terms[inside] = terms.get(inside, 0.0) + value * kept**outside
    return {term: value for term, value in terms.items() if abs(value) > 1e-9}


# ------------------------------------------------------------------------------------------------
# among


def mixed_game(keep_rate=0.5):
    """Terms inside CHOSEN, outside of it, and across, where every part of a term has an effect."""
    support = [
        (),
        (0,),
        (2,),
        (5,),
        (7,),
        (5, 7),
        (1, 5),
        (0, 3),
        (2, 11),
        (4, 7, 13),
        (13,),
        (7, 13),
    ]
    values = np.array([1.0, -0.7, 1.2, 0.9, 0.8, 0.6, -0.4, 0.75, -0.65, 0.5, 0.7, 0.3])
    return SparseGame(18, support, values, keep_rate)


CHOSEN = (2, 5, 7, 11, 13, 14, 15, 16, 17)


@pytest.mark.parametrize("keep_rate", [0.5, 0.8])
@pytest.mark.parametrize("name", ["exact", *SAMPLED])
def test_among_ablates_some_units_and_keeps_the_rest(name, keep_rate):
    if name == "spex" and keep_rate != 0.5:
        keep_rate = 0.5  # the only rate it takes
    game, labels = mixed_game(keep_rate), [f"L{i}" for i in range(18)]
    decoder = decoders.get(name, keep_rate=keep_rate, among=CHOSEN, **OPTIONS.get(name, {}))
    recorded = Recording(game, labels)
    found = decoder.decode(recorded, budget=512, seed=0)
    masks = torch.cat(recorded.masks)
    assert masks.shape == (found.n_evaluations, 18)
    others = [unit for unit in range(18) if unit not in CHOSEN]
    assert masks[:, others].all()
    assert not masks[:, list(CHOSEN)].all(dim=0).any()
    assert found.n_units == 18
    assert found.units == tuple(labels)
    assert found.diagnostics["among"] == [labels[unit] for unit in CHOSEN]
    assert as_dict(found) == pytest.approx(cut(game, CHOSEN), abs=1e-9)
    torch.testing.assert_close(found.predict(masks), game(masks), rtol=0, atol=1e-8)
    assert found.covariance is None or len(found.covariance) == len(found.support)


def test_among_takes_labels_and_indices_in_any_order():
    labels = [f"L{i}" for i in range(18)]
    results = [
        decoders.get("lasso", among=among).decode(
            Recording(mixed_game(), labels), budget=200, seed=3
        )
        for among in (
            CHOSEN,
            tuple(f"L{i}" for i in CHOSEN),
            ("L17", 16, "L2", 13, "L11", 14, 15, 7, 5),
        )
    ]
    for result in results[1:]:
        assert result.support == results[0].support
        assert torch.equal(result.coefficients, results[0].coefficients)
        assert result.diagnostics["among"] == results[0].diagnostics["among"]


def test_among_everything_is_everything():
    game = mixed_game()
    plain = decoders.get("lasso").decode(game, budget=300, seed=0)
    all_of_it = decoders.get("lasso", among=tuple(range(18))).decode(game, budget=300, seed=0)
    assert all_of_it.support == plain.support
    assert torch.equal(all_of_it.coefficients, plain.coefficients)


@pytest.mark.parametrize("prompts_per_mask", ["all", "auto", 1, 3])
@pytest.mark.parametrize("name", ["lasso", "spex"])
def test_among_works_prompt_by_prompt(name, prompts_per_mask):
    game = PromptsGame(20, 6, seed=2, spread=0.1)
    chosen = tuple(range(4, 16))
    recorded = RecordingPrompts(game)
    decoder = decoders.get(name, among=chosen, prompts_per_mask=prompts_per_mask)
    found = decoder.decode(recorded, budget=3000, seed=0)
    masks = torch.cat(recorded.masks)
    assert masks[:, [0, 1, 2, 3, 16, 17, 18, 19]].all()
    assert game.n_evaluations == found.n_evaluations <= 3000
    average = SparseGame(20, game.support, game.coefficients.mean(axis=0))
    tolerance = 1e-9 if prompts_per_mask == "all" else 0.1
    truth = cut(average, chosen)
    where = as_dict(found)
    assert truth.keys() <= where.keys() | {t for t, v in truth.items() if abs(v) < 0.1}
    for term, value in truth.items():
        assert where.get(term, 0.0) == pytest.approx(value, abs=tolerance)
    assert (found.prompt_coefficients is not None) == (prompts_per_mask == "all")


@pytest.mark.parametrize(
    ("among", "message"),
    [
        (
            ("L2", "L99"),
            r"among names 'L99', which is not a unit\. Give labels such as 'L0', or in",
        ),
        ((18,), r"among names 18, which is not a unit\. .*indices from 0 to 17"),
        ((-1,), r"among names -1, which is not a unit"),
        ((), r"among must be a list of at least 1, each .*; got \(\)"),
        ((3, 4, 3), r"at least one unit, each once; got \(3, 4, 3\)"),
        ((3, "L3"), r"at least one unit, each once; got \(3, 'L3'\)"),
    ],
)
def test_units_that_are_not_there_or_come_twice_are_refused(among, message):
    recorded = Recording(mixed_game(), [f"L{i}" for i in range(18)])
    with pytest.raises(DecoderError, match=message):
        decoders.get("lasso", among=among).decode(recorded, budget=100, seed=0)
    assert recorded.masks == []


# ------------------------------------------------------------------------------------------------
# tolerance


def n_evaluations_of_rounds(found):
    return [entry["n_evaluations"] for entry in found.diagnostics["stopping"]["rounds"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLED)
def test_an_easy_game_stops_early(name):
    game = SparseGame(30, [(), (3,), (5,), (3, 5)], np.array([1.0, 2.0, -1.5, 0.8]))
    recorded = Recording(game)
    decoder = decoders.get(name, tolerance=0.01, max_order=2, **OPTIONS.get(name, {}))
    found = decoder.decode(recorded, budget=1600, seed=0)
    stopping, spent = found.diagnostics["stopping"], n_evaluations_of_rounds(found)
    assert stopping["tolerance"] == 0.01
    assert stopping["stopped_early"] is True
    planned = 4 if name in {"spex", "hybrid"} else 8
    assert spent == [1600 // planned * (i + 1) for i in range(3)]  # the first that can settle twice
    assert spent[-1] == found.n_evaluations == sum(map(len, recorded.masks)) < 1600
    assert as_dict(found) == pytest.approx(
        dict(zip(game.support, game.coefficients.tolist(), strict=True)), abs=1e-9
    )
    assert stopping["rounds"][0]["top_overlap"] is None
    assert stopping["rounds"][-1]["top_overlap"] == 1.0


@pytest.mark.slow
def test_a_game_that_keeps_improving_takes_the_whole_budget():
    recorded = Recording(hierarchy(16))
    found = decoders.get("lasso", tolerance=0.001).decode(recorded, budget=400, seed=0)
    stopping = found.diagnostics["stopping"]
    assert stopping["stopped_early"] is False
    assert n_evaluations_of_rounds(found) == [50 * (i + 1) for i in range(8)]
    assert found.n_evaluations == sum(map(len, recorded.masks)) == 400


@pytest.mark.slow
def test_rounds_together_are_what_one_round_is():
    """The masks are the same, so the fits differ by how rows are dealt into folds alone."""
    game = hierarchy(16, seed=1)
    recorded = [Recording(game), Recording(game)]
    whole = decoders.get("lasso").decode(recorded[0], budget=400, seed=0)
    rounds = decoders.get("lasso", tolerance=1e-9).decode(recorded[1], budget=400, seed=0)
    assert not rounds.diagnostics["stopping"]["stopped_early"]
    assert "stopping" not in whole.diagnostics
    assert torch.equal(torch.cat(recorded[0].masks), torch.cat(recorded[1].masks))
    assert rounds.n_evaluations == whole.n_evaluations == 400
    assert rounds.held_out_r2 == pytest.approx(whole.held_out_r2, abs=0.1)
    strongest = {ranked.units for ranked in whole.top(10)}
    assert len(strongest & {ranked.units for ranked in rounds.top(10)}) >= 6
    masks = torch.from_numpy(np.random.default_rng(1).random((500, 16)) < 0.5)
    errors = [(found.predict(masks) - game(masks)).square().mean() for found in (whole, rounds)]
    assert float(errors[1]) == pytest.approx(float(errors[0]), rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("prompts_per_mask", ["all", "auto", 1, 2])
@pytest.mark.parametrize("budget", [100, 777])
@pytest.mark.parametrize("name", ["lasso", "spex"])
def test_rounds_never_pass_the_budget(name, budget, prompts_per_mask):
    game = PromptsGame(30, 3)
    decoder = decoders.get(name, tolerance=0.01, prompts_per_mask=prompts_per_mask, max_order=2)
    found = decoder.decode(game, budget=budget, seed=0)
    assert found.n_evaluations == game.n_evaluations <= budget
    spent = n_evaluations_of_rounds(found)
    assert spent == sorted(set(spent))
    assert spent[-1] == found.n_evaluations
    if not found.diagnostics["stopping"]["stopped_early"]:
        assert budget - found.n_evaluations < {"all": 3, 2: 2}.get(prompts_per_mask, 1)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -0.1])
@pytest.mark.parametrize("name", SAMPLED)
def test_tolerances_out_of_range_are_refused(name, tolerance):
    with pytest.raises(
        DecoderError,
        match=r"tolerance must be a number above 0 and below 1 or None; got (-0\.1|0\.0|1\.0)",
    ):
        decoders.get(name, tolerance=tolerance)


def test_exact_has_nothing_to_stop():
    with pytest.raises(DecoderError, match="no option 'tolerance'"):
        decoders.get("exact", tolerance=0.1)


# ------------------------------------------------------------------------------------------------
# prompts_per_mask="auto"


@pytest.mark.parametrize(
    ("n_units", "n_prompts", "budget", "drawn"),
    [
        (40, 7, 1000, 1),
        (8, 7, 256, 1),
        (8, 7, 257, 2),
        (8, 7, 3 * 256, 3),
        (8, 7, 6 * 256 + 1, None),
        (8, 7, 10**6, None),
        (6, 1, 50, None),
    ],
)
def test_auto_is_one_prompt_per_mask_or_as_few_as_spend_the_budget(
    n_units, n_prompts, budget, drawn
):
    meter = Meter(PromptsGame(n_units, n_prompts), budget)
    assert prompts_to_draw(meter, "auto") == drawn


def test_auto_is_all_for_a_plain_callable():
    game = mixed_game()
    assert prompts_to_draw(Meter(game, 500), "auto") is None
    plain, auto = (
        decoders.get("lasso", prompts_per_mask=option).decode(game, budget=200, seed=0)
        for option in ("all", "auto")
    )
    assert auto.support == plain.support
    assert torch.equal(auto.coefficients, plain.coefficients)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLED)
def test_auto_decodes_as_its_number_does(name):
    results = []
    for option in ("auto", 1):
        game = PromptsGame(30, 5, spread=0.2)
        decoder = decoders.get(name, prompts_per_mask=option, **OPTIONS.get(name, {}))
        results.append(decoder.decode(game, budget=600, seed=0))
        assert results[-1].n_evaluations == game.n_evaluations == 600
    assert results[0].support == results[1].support
    assert torch.equal(results[0].coefficients, results[1].coefficients)


# ------------------------------------------------------------------------------------------------
# Every prompt's own coefficients


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLED)
def test_coefficients_are_the_mean_of_every_prompts_own(name):
    game = PromptsGame(20, 5, seed=1)
    recorded = RecordingPrompts(game)
    decoder = decoders.get(name, prompts_per_mask="all", **OPTIONS.get(name, {}))
    found = decoder.decode(recorded, budget=300 * 5, seed=0)
    own = found.prompt_coefficients
    assert own is not None
    assert own.shape == (len(found.support), 5)
    torch.testing.assert_close(own.mean(dim=1), found.coefficients, rtol=0, atol=1e-9)
    # the same least squares, one prompt at a time
    assert found.diagnostics["ridge"] == 0.0
    masks = torch.cat(recorded.masks)
    columns = characters(masks.numpy(), [t for t in found.support if t], 0.5)
    design = np.column_stack([np.ones(len(masks)), columns])
    for prompt in range(5):
        values = game.per_prompt(masks)[:, prompt].numpy()
        wanted, *_ = np.linalg.lstsq(design, values, rcond=None)
        np.testing.assert_allclose(own[:, prompt].numpy(), wanted, atol=1e-8)
    # and since the game is sparse, the truth
    for term, truth in zip(game.support, game.coefficients.T, strict=True):
        np.testing.assert_allclose(own[found.support.index(term)], truth, atol=1e-8)


def test_shrunken_fits_shrink_every_prompt_alike():
    rng = np.random.default_rng(0)
    game = PromptsGame(20, 4, seed=1, spread=0.3)
    per_prompt = game.per_prompt

    def noisy(masks):
        values = per_prompt(masks)
        return values + torch.from_numpy(rng.normal(0.0, 8.0, values.shape))

    game.per_prompt = noisy
    found = decoders.get("lasso", prompts_per_mask="all").decode(game, budget=120 * 4, seed=0)
    assert found.diagnostics["ridge"] != 0.0  # a penalty, or None for the LASSO itself
    assert found.prompt_coefficients is not None
    torch.testing.assert_close(
        found.prompt_coefficients.mean(dim=1), found.coefficients, rtol=0, atol=1e-9
    )


def test_single_prompts_draws_and_callables_have_no_table():
    games = [
        (SparseGame(12, [(), (1,)], np.ones(2)), "all"),
        (PromptsGame(12, 5), 2),
        (PromptsGame(12, 1), "all"),
    ]
    for game, prompts_per_mask in games:
        decoder = decoders.get("lasso", prompts_per_mask=prompts_per_mask)
        assert decoder.decode(game, budget=200, seed=0).prompt_coefficients is None


def test_every_prompts_coefficients_convert_and_are_saved(tmp_path):
    game = PromptsGame(12, 4, seed=3)
    found = decoders.get("lasso", prompts_per_mask="all").decode(game, budget=200 * 4, seed=0)
    assert found.prompt_coefficients is not None
    ablated = found.to("moebius", "ablated")
    assert ablated.prompt_coefficients is not None
    masks = torch.from_numpy(np.random.default_rng(0).random((50, 12)) < 0.5)
    values = game.per_prompt(masks)
    for prompt in range(4):  # every prompt's game, predicted from its own Möbius coefficients
        alone = Interactions(
            12, ablated.units, "moebius", "ablated", 0.5, ablated.support,
            ablated.prompt_coefficients[:, prompt],
        )  # fmt: skip
        torch.testing.assert_close(alone.predict(masks), values[:, prompt], rtol=0, atol=1e-8)
    ablated.save(tmp_path / "result.json")
    loaded = Interactions.load(tmp_path / "result.json")
    assert loaded.prompt_coefficients is not None
    assert torch.equal(loaded.prompt_coefficients, ablated.prompt_coefficients)
    assert loaded.held_out_coefficients is not None
    assert ablated.held_out_coefficients is not None
    assert torch.equal(loaded.held_out_coefficients, ablated.held_out_coefficients)


# ------------------------------------------------------------------------------------------------
# Variance components


def two_way_layout(rng, n_masks, n_prompts, sd_masks, sd_both):
    """Simulate values of a layout: prompts differ by large constants, which must not matter."""
    masks = np.unique(rng.random((4 * n_masks, 30)) < 0.5, axis=0)
    masks = masks[rng.permutation(len(masks))[:n_masks]]
    main = rng.normal(0.0, sd_masks, n_masks)
    both = rng.normal(0.0, sd_both, (n_masks, n_prompts))
    both -= both.mean(axis=1, keepdims=True)  # v is the mean over exactly these prompts
    return masks, main[:, None] + rng.normal(0.0, 10.0, n_prompts) + both


def test_variances_of_a_full_table_are_those_simulated():
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        masks, table = two_way_layout(rng, 80, 6, 1.5, 0.7)
        means = table.mean(axis=1, keepdims=True)
        found.append(variance_components(gather(masks, means, None, 1, 0.5, table=table)))
    assert_close_on_average(found)


def assert_close_on_average(found):
    own = np.array([entry["variance_masks"] for entry in found])
    both = np.array([entry["variance_masks_x_prompts"] for entry in found])
    assert abs(own.mean() - 1.5**2) < 4 * own.std() / np.sqrt(len(own)) + 0.03
    assert abs(both.mean() - 0.7**2) < 4 * both.std() / np.sqrt(len(both)) + 0.02


def draws_of(rng, masks, table, n_drawn, n_repeated):
    """Draw prompts: so many per mask, or one, with four on some of the masks."""
    prompts = np.array([rng.permutation(table.shape[1]) for _ in masks])
    if n_drawn > 1:
        which, rows = prompts[:, :n_drawn], np.arange(len(masks))
    else:
        more = np.repeat(np.arange(n_repeated), 4)
        rows = np.concatenate([np.arange(n_repeated, len(masks)), more])
        which = np.concatenate([prompts[n_repeated:, 0], prompts[:n_repeated, :4].reshape(-1)])
        which = which[:, None]
    return gather(masks[rows], table[rows[:, None], which], which, table.shape[1], 0.9)


@pytest.mark.parametrize(("n_drawn", "n_repeated"), [(3, 0), (2, 0), (1, 80)])
def test_variances_of_draws_are_those_simulated(n_drawn, n_repeated):
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        masks, table = two_way_layout(rng, 320, 6, 1.5, 0.7)
        found.append(variance_components(draws_of(rng, masks, table, n_drawn, n_repeated)))
    assert_close_on_average(found)


def test_where_prompts_are_not_told_apart_there_are_no_variances():
    rng = np.random.default_rng(0)
    masks, table = two_way_layout(rng, 40, 6, 1.5, 0.7)
    assert variance_components(gather(masks, table[:, :1], None, 1, 0.5)) == {}
    assert variance_components(draws_of(rng, masks, table, 1, 0)) == {}


@pytest.mark.slow
def test_variances_are_reported():
    for prompts_per_mask in ("all", 1, 2):
        decoder = decoders.get("lasso", prompts_per_mask=prompts_per_mask)
        found = decoder.decode(PromptsGame(20, 5, spread=0.5), budget=1000, seed=0)
        assert found.diagnostics["variance_masks"] > 0
        assert found.diagnostics["variance_masks_x_prompts"] > 0


# ------------------------------------------------------------------------------------------------
# fit with prompts


def regression(name, **options):
    decoder = decoders.get(name, **options, **OPTIONS.get(name, {}))
    assert isinstance(decoder, SparseRegression)
    return decoder


@pytest.mark.slow
@pytest.mark.parametrize("n_drawn", [1, 2])
@pytest.mark.parametrize("name", SAMPLED)
def test_fit_with_prompts_gives_what_decode_gives(name, n_drawn, monkeypatch):
    """On the rows that decode fitted, with a generator in the state that it had."""
    kept = {}
    inner = SparseRegression._fit

    def spy(self, samples, labels, n_evaluations, rng):
        if not kept:
            plain = Samples(**{**vars(samples), "designs": (), "cells": None})
            kept.update(samples=plain, rng=np.random.default_rng(5))
            return inner(self, plain, labels, n_evaluations, np.random.default_rng(5))
        return inner(self, samples, labels, n_evaluations, rng)

    monkeypatch.setattr(SparseRegression, "_fit", spy)
    decoder = regression(name, prompts_per_mask=n_drawn)
    decoded = decoder.decode(PromptsGame(20, 5, spread=0.3), budget=500, seed=0)
    samples = kept["samples"]
    fitted = decoder.fit(
        torch.from_numpy(samples.masks),
        torch.from_numpy(samples.draws),
        kept["rng"],
        prompts=torch.from_numpy(samples.prompts),
        n_prompts=5,
    )
    assert fitted.support == decoded.support
    assert torch.equal(fitted.coefficients, decoded.coefficients)
    assert fitted.held_out_r2 == decoded.held_out_r2
    assert fitted.n_evaluations == decoded.n_evaluations == 500
    assert len(fitted.support) > 5


def measured(n_rows=200):
    rng = np.random.default_rng(0)
    game = PromptsGame(12, 5, spread=0.1)
    masks = torch.from_numpy(rng.random((n_rows, 12)) < 0.5)
    values, prompts = game.sample(masks, 2, rng)
    return game, masks, values, prompts, rng


def test_prompts_take_their_levels_out_of_the_average_game():
    game, masks, values, prompts, rng = measured()
    levels = torch.tensor([5.0, -3.0, 8.0, 0.0, -10.0], dtype=torch.float64)
    shifted = values + levels[prompts]
    decoder = regression("lasso")
    plain = decoder.fit(masks, values, rng, prompts=prompts, n_prompts=5)
    moved = decoder.fit(masks, shifted, rng, prompts=prompts, n_prompts=5)
    truth = dict(zip(game.support, game.coefficients.mean(axis=0), strict=True))
    for found in (plain, moved):
        where = as_dict(found)
        assert all(abs(where[term] - value) < 0.1 for term, value in truth.items())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompts": None},
            r"values of shape \(200, 2\) need prompts=\.\.\., which prompt each is",
        ),
        ({"values": lambda v: v[:199]}, r"one value per mask; got 199 for 200 mask"),
        ({"prompts": lambda p: p[:, :1]}, r"prompts must have the shape of the values, \(200, 2\)"),
        ({"prompts": lambda p: p.T}, r"prompts must have .* \(200, 2\); got \(2, 200\)"),
        ({"n_prompts": 4}, r"prompts must be indices from 0 to n_prompts - 1 = 3; got 0 to 4"),
        ({"n_prompts": 1}, r"prompts must be indices from 0 to n_prompts - 1 = 0; got 0 to 4"),
        ({"prompts": lambda p: p - 1}, r"indices from 0 to n_prompts - 1 = 4; got -1 to 3"),
    ],
)
def test_prompts_that_do_not_fit_the_values_are_refused(changes, message):
    _, masks, values, prompts, rng = measured()
    arguments = {"values": values, "prompts": prompts, "n_prompts": 5}
    for name, change in changes.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    values = arguments.pop("values")
    with pytest.raises(DecoderError, match=message):
        regression("lasso").fit(masks, values, rng, **arguments)


def test_fit_cannot_restrict_units():
    decoder: Any = decoders.get("lasso", among=(0, 1))
    with pytest.raises(DecoderError, match="cannot restrict them; leave among out"):
        decoder.fit(torch.ones(20, 3, dtype=torch.bool), torch.ones(20), np.random.default_rng(0))
