"""Effects of sets of units against the dense transform and a sum written out, masks counted."""

from itertools import chain, combinations
from typing import Any

import numpy as np
import pytest
import torch

from circuitspex.algebra import all_kept, enumerate_masks, moebius
from circuitspex.errors import ResultError
from circuitspex.games import PromptsGame, gates, random_terms
from circuitspex.verification.measurement import measure_coefficients, plan_measurement

N = 7


def subsets(term: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(term, k) for k in range(len(term) + 1)))


def slow_effect(game: Any, term: tuple[int, ...], context: torch.Tensor) -> float:
    """The definition, one mask at a time."""
    total = 0.0
    for ablated in subsets(term):
        mask = context.clone()
        mask[list(term)] = True
        mask[list(ablated)] = False
        total += (-1) ** (len(term) - len(ablated)) * float(game(mask[None])[0])
    return total


def number(term: tuple[int, ...]) -> int:
    return sum(2**unit for unit in term)


@pytest.mark.parametrize("seed", range(3))
def test_every_coefficient_is_that_of_the_dense_transform(seed: int) -> None:
    game = gates(N, seed)
    exact = moebius(game(enumerate_masks(N)), origin="intact")
    terms = [term for term in subsets(tuple(range(N))) if term]
    measured = measure_coefficients(game, terms, N)
    expected = exact[[number(term) for term in terms]]
    torch.testing.assert_close(measured, expected, rtol=0, atol=1e-9)


def test_prompts_are_measured_apart() -> None:
    game = PromptsGame(N, n_prompts=3)
    exact = moebius(game.per_prompt(enumerate_masks(N)), origin="intact")
    terms = [(0,), (2, 5), (1, 3, 4)]
    measured = measure_coefficients(game.per_prompt, terms, N)
    torch.testing.assert_close(measured, exact[[number(t) for t in terms]], rtol=0, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_effects_in_any_context_are_those_of_the_definition(order: int) -> None:
    rng = np.random.default_rng(order)
    game = gates(N, order)
    contexts = torch.from_numpy(rng.random((5, N)) < 0.6)
    terms = random_terms(N, 4, order, rng)
    plan = plan_measurement(terms, contexts)
    measured = plan.coefficients(game(plan.masks))
    expected = [[slow_effect(game, term, context) for context in contexts] for term in terms]
    truth = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(measured, truth, rtol=0, atol=1e-9)


def needed(terms: list[tuple[int, ...]], contexts: torch.Tensor) -> set[tuple[bool, ...]]:
    masks = set()
    for context in contexts:
        for term in terms:
            for ablated in subsets(term):
                mask = context.clone()
                mask[list(term)] = True
                mask[list(ablated)] = False
                masks.add(tuple(mask.tolist()))
    return masks


@pytest.mark.parametrize("keep_rate", [0.3, 1.1])
def test_every_mask_that_is_needed_is_there_once(keep_rate: float) -> None:
    rng = np.random.default_rng(0)
    contexts = torch.from_numpy(rng.random((6, 5)) < keep_rate)
    terms = [(0, 1), (1, 2), (0, 1, 2), (3,), (0, 3, 4)]
    plan = plan_measurement(terms, contexts)
    rows = [tuple(row) for row in plan.masks.tolist()]
    assert len(set(rows)) == len(rows)
    assert set(rows) == needed(terms, contexts)


def test_what_is_shared_is_counted_once() -> None:
    # The intact model and 3 single units for 3 pairs of 3 units; the triple adds itself.
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert len(plan_measurement(pairs, all_kept(9)).masks) == 1 + 3 + 3
    assert len(plan_measurement([*pairs, (0, 1, 2)], all_kept(9)).masks) == 8


def test_what_does_not_fit_is_passed_over_and_the_next_is_tried() -> None:
    terms = [(0, 1), (2, 3, 4), (0, 5)]
    plan = plan_measurement(terms, all_kept(6), max_masks=7)
    assert plan.terms == ((0, 1), (0, 5))
    assert len(plan.masks) == 6
    assert plan_measurement(terms, all_kept(6), max_masks=3).terms == ()


def test_nothing_to_measure_needs_nothing() -> None:
    plan = plan_measurement([], all_kept(4))
    assert plan.masks.shape == (0, 4)
    assert plan.coefficients(torch.zeros(0, 3)).shape == (0, 0, 3)


@pytest.mark.parametrize("term", [(), (0, 0), (0, 4), (-1,), tuple(range(13))])
def test_impossible_sets_are_refused(term: tuple[int, ...]) -> None:
    with pytest.raises(ResultError, match=r"1 to 12 distinct units in 0\.\."):
        plan_measurement([term], all_kept(max(4, len(term))))
