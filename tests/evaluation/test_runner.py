"""Rows that run together: a pass run by itself gives the bits that it gives in a run of all."""

import itertools
from functools import partial

import pytest
import torch
from conftest import shared_tiny
from slow_truth import random_tokens

from circuitspex.ablation import Room, Rows, ablate
from circuitspex.ablation.batching import Batcher, rows_that_fit
from circuitspex.algebra import ablate_only
from circuitspex.evaluation import LocalRunner
from circuitspex.tasks import METRICS, Task, logit_difference
from circuitspex.units import heads, mlps, resample

LENGTHS = (5, 7, 5, 7)
SLOW = partial(pytest.param, marks=pytest.mark.slow)


def make_task(model):
    prompts = [random_tokens(model, 1, n, seed=i)[0] for i, n in enumerate(LENGTHS)]
    others = [random_tokens(model, 1, n, seed=i + 50)[0] for i, n in enumerate(LENGTHS)]
    return Task.from_prompts(model, prompts, [3, 4, 5, 6], [[8], [9, 10], [11], [12]], others)


def all_pairs(n_units):
    return ablate_only(itertools.combinations(range(n_units), 2), n_units)


def random_rows(masks, n_prompts, n_rows=300):
    """Rows in no order, some more than once, of which not every mask has one."""
    rng = torch.Generator().manual_seed(3)
    return Rows(
        masks,
        torch.randint(len(masks), (n_rows,), generator=rng),
        torch.randint(n_prompts, (n_rows,), generator=rng),
    )


def part_of(rows, planned):
    """What somebody else would be given: the rows of a pass, with masks of their own."""
    chosen = rows.take(planned.rows)
    return Rows(chosen.own_masks, torch.arange(len(chosen)), chosen.prompt_of_row)


def together(n_rows, parts):
    values, times = torch.full((n_rows,), torch.nan, dtype=torch.float64), torch.zeros(n_rows)
    for rows, value in parts:
        values[rows] = value
        times[rows] += 1
    assert (times == 1).all(), "a row ran twice, or not at all"
    return values


@pytest.mark.parametrize("metric", ["logit_difference", SLOW("negative_kl")])
@pytest.mark.parametrize("name", ["gpt2", SLOW("llama-grouped")])
@pytest.mark.parametrize("forks", [True, False])
def test_passes_run_alone_and_backwards_give_the_same_bits(name, metric, forks):
    model = shared_tiny(name)
    task, units = make_task(model), heads(model) + mlps(model)
    rows = random_rows(all_pairs(len(units)), len(task))
    assert task.counterfactuals is not None
    stand_ins = resample(task.counterfactuals)
    with ablate(model, units, stand_ins, batch_size=16, forks=forks) as ablated:
        runner = LocalRunner(ablated, task, METRICS[metric])
        batches = list(runner.values(rows))
        planned = list(runner.passes(rows))
        alone = [
            (each.rows[done], value)
            for each in reversed(planned)
            for done, value in runner.values(part_of(rows, each), each)
        ]
    values = together(len(rows), batches)
    assert torch.equal(together(len(rows), alone), values)
    assert values.std() > 0.01
    assert {each.forked for each in planned} == {forks}
    assert len(planned) > 8


def test_passes_of_gradients_run_alone_give_the_same_bits(gpt2):
    task, units = make_task(gpt2), heads(gpt2) + mlps(gpt2)
    rows = random_rows(all_pairs(len(units)), len(task), n_rows=70)
    with ablate(gpt2, units, batch_size=16) as ablated:
        runner = LocalRunner(ablated, task, logit_difference)
        gradients = {
            int(i): g
            for done, _, grad in runner.gradients(rows)
            for i, g in zip(done, grad, strict=True)
        }
        planned = list(runner.passes(rows, gradients=True))
        for each in reversed(planned):
            (alone,) = runner.gradients(part_of(rows, each), each)
            assert torch.equal(alone[0], torch.arange(len(each.rows)))
            assert torch.equal(alone[2], torch.stack([gradients[int(i)] for i in each.rows]))
    assert sorted(torch.cat([each.rows for each in planned]).tolist()) == list(range(70))
    assert max(len(each.rows) for each in planned) == 16


@pytest.mark.slow
def test_other_batches_would_give_other_bits():
    """Without this, the tests above would pass whatever ran together."""
    model = shared_tiny("llama-grouped")
    task, units = make_task(model), heads(model) + mlps(model)
    rows = random_rows(all_pairs(len(units)), len(task))
    values = []
    for batch_size in (16, 1):
        with ablate(model, units, batch_size=batch_size, forks=False) as ablated:
            runner = LocalRunner(ablated, task, logit_difference)
            values.append(together(len(rows), runner.values(rows)))
    assert not torch.equal(*values)
    assert torch.allclose(*values, atol=1e-5)


def test_a_pass_is_one_batch_even_where_batches_are_small(gpt2):
    task, units = make_task(gpt2), heads(gpt2)
    rows = random_rows(all_pairs(len(units)), len(task))
    with ablate(gpt2, units, batch_size=50) as here:
        planned = list(LocalRunner(here, task, logit_difference).passes(rows))
    passes = []
    count = [("hook_embed", lambda activation, hook: passes.append(len(activation)))]
    with ablate(gpt2, units, batch_size=1) as there, gpt2.hooks(fwd_hooks=count):
        runner = LocalRunner(there, task, logit_difference)
        for each in planned:
            list(runner.values(part_of(rows, each), each))
    assert passes == [1] * len(planned), "forked passes have one row where they begin"
    assert {each.forked for each in planned} == {True}


def test_a_pass_that_does_not_fit_is_halved():
    asked = []

    done = []
    for batch in Batcher(None, batch_size=1)(slice(2, 10), 7, at_once=True):
        asked.append(len(batch))
        with batch:
            if len(batch) > 3:
                raise MemoryError
            done.append(len(batch))
    assert done == [2, 2, 2, 2]
    assert asked == [8, 4, 2, 2, 2, 2]


def test_room_elsewhere_decides_how_many_rows_fit(gpt2):
    wide, narrow = Room(1e12, "cuda"), Room(1e6, "cuda")
    assert rows_that_fit(gpt2, 7, room=wide) == 4096
    assert rows_that_fit(gpt2, 7, room=narrow) < rows_that_fit(gpt2, 7, room=Room(1e12, "cpu"))
    with ablate(gpt2, heads(gpt2), room=narrow) as ablated:
        assert ablated.batch_size(7) == rows_that_fit(gpt2, 7, room=narrow)
