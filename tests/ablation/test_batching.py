"""Rows in batches: every row once, halved when memory runs out, other errors let through."""

from types import SimpleNamespace

import pytest
import torch
from slow_truth import random_masks, random_tokens, slow_table
from torch.testing import assert_close

from circuitspex.ablation import ablate
from circuitspex.ablation.batching import Batcher, rows_that_fit
from circuitspex.errors import OutOfMemoryError
from circuitspex.units import heads, mean


class Memory:
    """Runs rows as long as no more than so many come at once; remembers what was asked."""

    def __init__(self, holds: int, error: BaseException | None = None):
        self.holds = holds
        self.error = error or torch.OutOfMemoryError("CUDA out of memory.")
        self.asked: list[int] = []
        self.finished: list[int] = []

    def __call__(self, rows: slice) -> list[int]:
        self.asked.append(rows.stop - rows.start)
        if rows.stop - rows.start > self.holds:
            raise self.error
        self.finished += range(rows.start, rows.stop)
        return list(range(rows.start, rows.stop))


def run_all(batcher: Batcher, rows: slice, memory: Memory):
    """Yield every batch that fitted with what it gave."""
    for batch in batcher(rows, 7):
        with batch:
            yield batch.rows, memory(batch.rows)


@pytest.mark.parametrize("n_rows", [0, 1, 3, 4, 5, 8])
def test_every_row_runs_once_and_in_order(n_rows):
    memory = Memory(holds=100)
    parts = list(run_all(Batcher(None, batch_size=4), slice(0, n_rows), memory))
    assert [row for _, result in parts for row in result] == list(range(n_rows))
    assert all(list(range(rows.start, rows.stop)) == result for rows, result in parts)
    assert all(size <= 4 for size in memory.asked)


def test_batches_are_halved_until_they_fit_and_finished_rows_stay():
    memory = Memory(holds=3)
    batcher = Batcher(None, batch_size=16)
    parts = list(run_all(batcher, slice(0, 10), memory))
    assert memory.finished == list(range(10)), "a row ran twice, or not at all"
    assert memory.asked == [10, 5, 2, 2, 2, 2, 2]
    assert [result for _, result in parts] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert batcher.size(7) == 2, "the next call should not fail again first"


def test_memory_that_runs_out_later_loses_nothing():
    memory = Memory(holds=8)
    done = []
    for rows, result in run_all(Batcher(None, batch_size=8), slice(0, 20), memory):
        done += result
        if rows.stop == 8:
            memory.holds = 3
    assert done == memory.finished == list(range(20))


def test_chosen_rows_run_alone():
    memory = Memory(holds=100)
    parts = run_all(Batcher(None, batch_size=4), slice(3, 9), memory)
    assert [rows for rows, _ in parts] == [slice(3, 7), slice(7, 9)]
    assert memory.finished == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
)
def test_every_kind_of_full_memory_is_known(error):
    memory = Memory(holds=2, error=error)
    assert len(list(run_all(Batcher(None, batch_size=8), slice(0, 8), memory))) == 4


def test_a_single_row_that_does_not_fit_says_so():
    memory = Memory(holds=0)
    words = r"not even one row of 7 tokens fits into memory: CUDA out of memory\. Use a shorter"
    with pytest.raises(OutOfMemoryError, match=words) as raised:
        list(run_all(Batcher(None, batch_size=4), slice(0, 4), memory))
    assert memory.asked == [4, 2, 1]
    assert raised.value.__cause__ is memory.error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes differ"),
        ValueError("shapes differ"),
        KeyboardInterrupt("shapes differ"),
    ],
)
def test_other_errors_pass_at_once(error):
    memory = Memory(holds=0, error=error)
    with pytest.raises(type(error), match="shapes differ"):
        list(run_all(Batcher(None, batch_size=4), slice(0, 4), memory))
    assert memory.asked == [4]


def make_config(**changes):
    sizes = {
        "d_model": 64,
        "d_mlp": 256,
        "n_heads": 4,
        "d_vocab": 1000,
        "dtype": torch.float32,
        "device": "cpu",
    }
    return SimpleNamespace(cfg=SimpleNamespace(**(sizes | changes)))


def test_more_rows_fit_where_rows_are_smaller():
    usual = rows_that_fit(make_config(), 64)
    assert 1 < usual < 4096
    assert rows_that_fit(make_config(), 128) < usual
    assert rows_that_fit(make_config(d_model=128), 64) < usual
    assert rows_that_fit(make_config(d_vocab=100_000), 64) < usual
    assert rows_that_fit(make_config(dtype=torch.bfloat16), 64) == pytest.approx(2 * usual, abs=1)


def test_the_estimate_is_at_least_one_and_bounded():
    assert rows_that_fit(make_config(d_vocab=10**9), 64) == 1
    assert rows_that_fit(make_config(d_model=1, d_mlp=1, n_heads=1, d_vocab=1), 1) == 4096


def test_more_rows_fit_where_few_are_there_in_most_layers(monkeypatch):
    usual = rows_that_fit(make_config(), 64)
    assert rows_that_fit(make_config(), 64, alive=0.25) == pytest.approx(4 * usual, abs=4)
    # In the last layer all of them are there, and have to fit.
    free = SimpleNamespace(available=10 * 2**20)
    monkeypatch.setattr("circuitspex.ablation.batching.psutil.virtual_memory", lambda: free)
    assert rows_that_fit(make_config(), 64, alive=0.25) == rows_that_fit(make_config(), 64)


def test_a_batch_size_of_ones_own_wins():
    assert Batcher(make_config(), batch_size=3).size(64) == 3
    assert Batcher(make_config(), batch_size=3).size(64, alive=0.1) == 3


# ---- with a model ----


def hold(n_rows, seen):
    def refuse(embedded, hook):
        seen.append(len(embedded))
        if len(embedded) > n_rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    return [("hook_embed", refuse)]


def test_ablation_halves_its_batches_and_runs_no_finished_row_again(gpt2):
    tokens, masks, units = random_tokens(gpt2, 2, 5), random_masks(6, 8), heads(gpt2)
    seen: list[int] = []
    with ablate(gpt2, units, batch_size=8, forks=False) as ablated:
        with gpt2.hooks(fwd_hooks=hold(5, seen)):
            values = ablated(tokens, masks)
        assert seen == [8, 4, 4, 4]
    assert_close(values, slow_table(gpt2, tokens, masks, units), rtol=0, atol=1e-4)


def test_stand_ins_are_computed_in_smaller_batches_too(gpt2):
    tokens, masks, units = random_tokens(gpt2, 2, 5), random_masks(3, 8), heads(gpt2)
    reference = random_tokens(gpt2, 6, 5, seed=1)
    with ablate(gpt2, units, mean(reference)) as ablated:
        expected = ablated(tokens, masks)
    with gpt2.hooks(fwd_hooks=hold(2, [])), ablate(gpt2, units, mean(reference)) as ablated:
        assert_close(ablated(tokens, masks), expected, rtol=0, atol=1e-5)


def test_a_model_that_holds_no_row_says_so(gpt2):
    with ablate(gpt2, heads(gpt2)) as ablated, gpt2.hooks(fwd_hooks=hold(0, [])):
        with pytest.raises(OutOfMemoryError, match="not even one row of 5 tokens"):
            ablated(random_tokens(gpt2, 1, 5), random_masks(3, 8))
