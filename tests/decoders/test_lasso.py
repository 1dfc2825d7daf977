"""Triples in the LASSO decoder; what it shares with the others is in test_decoders.py."""

from itertools import combinations

import numpy as np
import pytest
import torch

from circuitspex import decoders
from circuitspex.decoders import LassoDecoder
from circuitspex.decoders.regression import strongest_triples
from circuitspex.errors import DecoderError
from circuitspex.games import SparseGame, characters, random_terms


class Noisy:
    """A game with normal noise on every value."""

    def __init__(self, game, spread, seed):
        self.game, self.spread, self.n_units = game, spread, game.n_units
        self.rng = np.random.default_rng([seed, 1])

    def __call__(self, masks):
        return self.game(masks) + torch.from_numpy(self.rng.normal(0, self.spread, len(masks)))


def planted(n_units, support, seed=0, keep_rate=0.5):
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1, 1], len(support))
    return SparseGame(n_units, support, signs * rng.uniform(0.5, 1.5, len(support)), keep_rate)


def bare_triples(n_units, n_terms=6, seed=0, keep_rate=0.5):
    """Plant triples of which no single unit and no pair shows a trace."""
    support = random_terms(n_units, n_terms, 3, np.random.default_rng(seed))
    return planted(n_units, support, seed, keep_rate)


def terms_of(found, floor=1e-9):
    pairs = zip(found.support, found.coefficients.tolist(), strict=True)
    return {term: value for term, value in pairs if abs(value) > floor}


@pytest.mark.parametrize("keep_rate", [0.3, 0.5, 0.9])
def test_noiseless_games_of_order_three_are_decoded_exactly(keep_rate):
    support = [(), (0,), (1,), (3,), (5,), (8,), (0, 3), (3, 5), (0, 3, 5)]
    game = planted(9, support, keep_rate=keep_rate)
    found = LassoDecoder(keep_rate=keep_rate, max_order=3).decode(game, budget=300, seed=0)
    truth = dict(zip(support, game.coefficients.tolist(), strict=True))
    assert terms_of(found) == pytest.approx(truth, abs=1e-9)
    # of four fifths of the rows some folds fit more candidates than they can tell apart
    assert found.held_out_r2 == pytest.approx(1.0, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_triples_without_a_trace_in_smaller_terms_are_found(seed):
    game = bare_triples(60, seed=seed)
    truth = dict(zip(game.support, game.coefficients.tolist(), strict=True))
    exact = LassoDecoder(max_order=3).decode(game, budget=1000, seed=seed)
    assert terms_of(exact) == pytest.approx(truth, abs=1e-9)
    noisy = LassoDecoder(max_order=3).decode(Noisy(game, 1.0, seed), budget=1500, seed=seed)
    assert terms_of(noisy, 0.2).keys() == truth.keys()
    assert noisy.std_errors is not None
    for term, value, error in zip(noisy.support, noisy.coefficients, noisy.std_errors, strict=True):
        assert abs(float(value) - truth.get(term, 0.0)) < 5 * float(error)


@pytest.mark.slow
def test_triples_away_from_one_half_are_found():
    game = bare_triples(60, keep_rate=0.8)
    found = LassoDecoder(keep_rate=0.8, max_order=3).decode(
        Noisy(game, 0.5, 0), budget=2000, seed=0
    )
    assert terms_of(found, 0.2).keys() == set(game.support)


def test_pairs_are_the_default():
    assert decoders.get("lasso").max_order == 2
    game = planted(9, [(), (0,), (0, 3), (0, 3, 5)])
    assert max(map(len, decoders.get("lasso").decode(game, budget=300, seed=0).support)) == 2


def test_relabelling_units_relabels_triples():
    game = planted(12, [(), (2,), (2, 7), (2, 7, 9), (0, 4, 5)])
    order = np.random.default_rng(1).permutation(12)

    def moved(masks):
        return game(masks[:, order])

    moved.n_units = 12  # pyright: ignore[reportFunctionMemberAccess]
    decoder = decoders.get("lasso", max_order=3)
    plain = terms_of(decoder.decode(game, budget=400, seed=2))
    found = terms_of(decoder.decode(moved, budget=400, seed=2))  # pyright: ignore[reportArgumentType]
    renamed = {tuple(sorted(int(order[unit]) for unit in t)): v for t, v in plain.items()}
    assert found == pytest.approx(renamed, abs=1e-9)


@pytest.mark.slow
def test_beyond_the_limit_strong_pairs_and_strong_units_lead_to_triples():
    # (1, 2) is a strong pair, whose triple ends in an idle unit; 10, 20, 30 are strong alone
    support = [(10,), (20,), (30,), (1, 2), (1, 2, 39), (10, 20, 30), (33, 34, 35)]
    coefficients = np.array([2.0, -2.0, 2.0, 1.5, 1.0, 1.0, 1.0])
    game = SparseGame(40, support, coefficients)
    found = LassoDecoder(max_order=3, max_triple_units=8).decode(game, budget=1000, seed=0)
    # as documented, a triple nothing leads to is missed there, and found with the default limit
    assert terms_of(found, 0.3).keys() == set(support[:-1])
    assert terms_of(LassoDecoder(max_order=3).decode(game, budget=1000, seed=0)).keys() == {
        *support
    }


def slow_screen(masks, residuals, triples, keep_rate):
    columns = characters(masks, triples, keep_rate)
    strengths = np.abs(columns.T @ residuals) / len(masks)
    order = np.argsort(-strengths, kind="stable")
    return [triples[i] for i in order], strengths[order]


def test_the_screen_ranks_all_triples_of_the_core_and_all_extensions():
    rng = np.random.default_rng(0)
    masks, residuals = rng.random((300, 12)) < 0.7, rng.normal(size=300)
    core, units = np.array([0, 2, 3, 7, 8]), np.arange(12)
    pairs = [(2, 3), (5, 11), (3, 5)]
    wanted = {
        *combinations(core.tolist(), 3),
        *(tuple(sorted({*pair, unit})) for pair in pairs for unit in range(12) if unit not in pair),
    }
    expected, strengths = slow_screen(masks, residuals, sorted(wanted), 0.7)
    found = strongest_triples(masks, residuals, core, pairs, units, 0.7, 1000)
    assert found == expected
    # asked for fewer, it also leaves out what pure noise reaches easily
    level = residuals.std() * np.sqrt(2 * np.log(len(wanted)) / 300) / 2
    fewer = strongest_triples(masks, residuals, core, pairs, units, 0.7, 25)
    assert fewer == [t for t, s in zip(expected[:25], strengths, strict=False) if s > level]
    assert 0 < len(fewer) < 25


@pytest.mark.parametrize("n_units", [0, 1, 2])
def test_there_are_no_triples_of_fewer_units(n_units):
    rng = np.random.default_rng(0)
    masks, residuals = rng.random((50, n_units)) < 0.5, rng.normal(size=50)
    units = np.arange(n_units)
    pairs = [(0, 1)] if n_units == 2 else []
    assert strongest_triples(masks, residuals, units, pairs, units, 0.5, 10) == []
    found = LassoDecoder(max_order=3).decode(planted(3, [(0, 1, 2)]), budget=8, seed=0)
    assert terms_of(found).keys() == {(0, 1, 2)}


@pytest.mark.usefixtures("unchecked")
def test_what_it_does_not_do_is_said():
    for order in (4, None):
        with pytest.raises(
            DecoderError, match=rf"'lasso': max_order must be .* from 1 to 3; got {order}"
        ):
            LassoDecoder(max_order=order)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DecoderError, match=r"max_triples must be a whole number above 0 .*; got 0"):
        LassoDecoder(max_triples=0)
