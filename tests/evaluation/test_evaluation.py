"""A model, a task and units as a set function: true values, each evaluated once and never lost."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from processes import outputs_by_hash_seed
from slow_truth import (
    activations,
    mean_activations,
    random_masks,
    random_tokens,
    slow_logits,
    slow_table,
)
from tiny_models import make_tiny
from torch.testing import assert_close

from circuitspex import metrics
from circuitspex._shared import Spec
from circuitspex.ablation import ablate
from circuitspex.algebra import ablate_only, all_ablated, all_kept
from circuitspex.errors import BudgetError, MaskError, NonFiniteError, StoreError, TaskError
from circuitspex.evaluation import Evaluation, describe_evaluation
from circuitspex.evaluation.evaluation import draw_balanced
from circuitspex.evaluation.store import MemoryStore, ParquetStore
from circuitspex.tasks import METRICS, Task, induction, logit_difference
from circuitspex.units import heads, mean, mlps, neuron_blocks, resample

LENGTHS = (5, 7, 5, 4, 7)
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture
def task(gpt2):
    """Prompts of three lengths, with one to three wrong answers and counterfactuals."""
    prompts = [random_tokens(gpt2, 1, n, seed=i)[0] for i, n in enumerate(LENGTHS)]
    others = [random_tokens(gpt2, 1, n, seed=i + 50)[0] for i, n in enumerate(LENGTHS)]
    return Task.from_prompts(
        gpt2, prompts, [3, 4, 5, 6, 7], [[8], [9, 10], [11], [12, 13, 14], [15]], others
    )


@pytest.fixture
def units(gpt2):
    return heads(gpt2) + mlps(gpt2)


def evaluate_slowly(logits, task):
    """The logit difference by hand from logits (masks, prompts, vocab)."""
    values = torch.zeros(logits.shape[:2], dtype=torch.float64)
    for prompt in range(len(task)):
        right = logits[:, prompt, task.answers[prompt]]
        wrong = [logits[:, prompt, token] for token in task.wrong_answers[prompt]]
        values[:, prompt] = (right - sum(wrong) / len(wrong)).double()
    return values


def make_evaluation(ablated, task, metric=logit_difference, store=None, progress=None):
    store = MemoryStore(len(ablated.units), len(task)) if store is None else store
    return Evaluation(ablated, task, metric, store, progress)


def embedding_hook(action):
    return [("hook_embed", action)]


# ---- values ----


def test_values_equal_one_mask_and_one_prompt_at_a_time(gpt2, task, units):
    masks = torch.cat([random_masks(5, len(units)), all_kept(10), all_ablated(10)])
    truth = evaluate_slowly(slow_table(gpt2, task.tokens, masks, units), task)
    with ablate(gpt2, units) as ablated:
        evaluation = make_evaluation(ablated, task)
        table = evaluation.per_prompt(masks)
        assert_close(table, truth, **CLOSE)
        assert_close(evaluation(masks), truth.mean(dim=1), **CLOSE)
    assert table.dtype == torch.float64
    assert truth.std() > 0.1


def test_resampled_values_come_from_each_prompts_own_counterfactual(gpt2, task, units):
    masks = random_masks(4, len(units))
    stand_ins = [activations(gpt2, other, units) for other in task.counterfactuals]
    truth = evaluate_slowly(slow_table(gpt2, task.tokens, masks, units, stand_ins), task)
    with ablate(gpt2, units, resample(task.counterfactuals)) as ablated:
        assert_close(make_evaluation(ablated, task).per_prompt(masks), truth, **CLOSE)


def test_mean_values_come_from_prompts_of_the_same_length(gpt2, task, units):
    masks = random_masks(4, len(units))
    by_length = {
        length: mean_activations(gpt2, [t for t in task.tokens if len(t) == length], units)
        for length in LENGTHS
    }
    stand_ins = [by_length[length] for length in LENGTHS]
    truth = evaluate_slowly(slow_table(gpt2, task.tokens, masks, units, stand_ins), task)
    with ablate(gpt2, units, mean(task.tokens)) as ablated:
        assert_close(make_evaluation(ablated, task).per_prompt(masks), truth, **CLOSE)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_of_the_intact_model_is_that_of_the_unhooked_one(gpt2, task, units, metric):
    intact = torch.stack([slow_logits(gpt2, tokens, []) for tokens in task.tokens])
    wrong, is_wrong = task.wrong_table
    targets = metrics.Targets(torch.tensor(task.answers), wrong, is_wrong, lambda: intact)
    with ablate(gpt2, units) as ablated:
        values = make_evaluation(ablated, task, METRICS[metric]).per_prompt(all_kept(10))
    assert_close(values[0], METRICS[metric](intact, targets).double(), rtol=0, atol=1e-5)


def test_the_divergence_of_ablated_models_is_measured_from_the_intact_one(gpt2, task, units):
    masks = torch.cat([all_kept(10), all_ablated(10)])
    logits = slow_table(gpt2, task.tokens, masks, units).double()
    intact, ablated_one = logits.log_softmax(dim=-1)
    truth = -(intact.exp() * (intact - ablated_one)).sum(dim=-1)
    with ablate(gpt2, units) as ablated:
        values = make_evaluation(ablated, task, METRICS["negative_kl"]).per_prompt(masks)
    assert_close(values[0], torch.zeros(5).double(), rtol=0, atol=1e-6)
    assert_close(values[1], truth, rtol=0, atol=1e-5)
    assert (values[1] < -0.01).all()


def test_a_users_metric_sees_its_own_prompts_targets(gpt2, task, units):
    def answers_and_width(logits, targets):
        return targets.answers * 100 + targets.is_wrong.sum(dim=1)

    with ablate(gpt2, units, batch_size=3) as ablated:
        values = make_evaluation(ablated, task, answers_and_width).per_prompt(random_masks(4, 10))
    by_hand = [a * 100 + len(w) for a, w in zip(task.answers, task.wrong_answers, strict=True)]
    assert_close(values, torch.tensor(by_hand).double().expand(4, 5))


@pytest.mark.parametrize(
    ("metric", "got"),
    [
        (lambda logits, targets: logits, r"\(\d+, 37\)"),
        (lambda logits, targets: logits.mean(), r"\(\)"),
        (lambda logits, targets: 1.0, "float"),
    ],
)
def test_a_metric_of_another_shape_is_refused(gpt2, task, units, metric, got):
    words = rf"the metric must return one number per row, shape \(\d+,\); got {got}"
    with ablate(gpt2, units) as ablated, pytest.raises(TaskError, match=words):
        make_evaluation(ablated, task, metric)(all_kept(10))


def test_masks_are_checked(gpt2, task, units):
    with ablate(gpt2, units) as ablated, pytest.raises(MaskError, match=r"\(masks, 10\)"):
        make_evaluation(ablated, task)(all_kept(9))


def test_no_masks_have_no_values(gpt2, task, units):
    with ablate(gpt2, units) as ablated:
        evaluation = make_evaluation(ablated, task)
        assert evaluation(torch.zeros(0, 10, dtype=torch.bool)).shape == (0,)
        assert evaluation.n_evaluated == 0


# ---- samples ----


@pytest.mark.parametrize(("n_masks", "n_drawn"), [(7, 1), (7, 2), (3, 4), (4, 5), (40, 3), (1, 2)])
def test_prompts_are_drawn_balanced_and_without_repetition(n_masks, n_drawn):
    drawn = draw_balanced(n_masks, n_drawn, 5, np.random.default_rng(0))
    assert drawn.shape == (n_masks, n_drawn)
    assert all(len({*row}) == n_drawn for row in drawn.tolist())
    counts = Counter(dict.fromkeys(range(5), 0))
    counts.update(drawn.flatten().tolist())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_draws_are_random_and_repeat_by_seed():
    draws = [draw_balanced(20, 2, 6, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert_close(draws[0], draws[1], rtol=0, atol=0)
    assert not torch.equal(draws[0], draws[2])
    pairs = {
        tuple(row)
        for seed in range(30)
        for row in draw_balanced(3, 2, 6, np.random.default_rng(seed)).tolist()
    }
    assert len(pairs) == 15, "every pair of prompts comes up"


def test_samples_are_entries_of_the_full_table(gpt2, task, units):
    masks = random_masks(9, 10)
    with ablate(gpt2, units, batch_size=4) as ablated:
        table = make_evaluation(ablated, task).per_prompt(masks)
        evaluation = make_evaluation(ablated, task)
        values, prompts = evaluation.sample(masks, 2, np.random.default_rng(3))
        assert evaluation.n_evaluated == 18
    assert values.shape == prompts.shape == (9, 2)
    assert_close(values, table.gather(1, prompts), **CLOSE)
    assert values.std() > 0.1


@pytest.mark.parametrize("prompts_per_mask", [0, 6, -1])
def test_more_prompts_than_there_are_cannot_be_drawn(gpt2, task, units, prompts_per_mask):
    words = rf"must lie in 1\.\.5, the task's prompts, or be 'all'; got {prompts_per_mask}"
    with ablate(gpt2, units) as ablated, pytest.raises(BudgetError, match=words):
        make_evaluation(ablated, task).sample(
            all_kept(10), prompts_per_mask, np.random.default_rng(0)
        )


# ---- the store ----


def test_a_second_run_replays_from_the_store(gpt2, task, units):
    masks, store = random_masks(6, 10), MemoryStore(10, 5)
    with ablate(gpt2, units) as ablated:
        first = make_evaluation(ablated, task, store=store)
        values = first.per_prompt(masks)
        assert (first.n_evaluated, first.n_replayed, len(store)) == (30, 0, 30)
        second = make_evaluation(ablated, task, store=store)

        def refuse(embedded, hook):
            raise AssertionError("the model ran")

        with gpt2.hooks(fwd_hooks=embedding_hook(refuse)):
            assert_close(second.per_prompt(masks), values, rtol=0, atol=0)
        assert (second.n_evaluated, second.n_replayed) == (0, 30)


def test_only_what_the_store_lacks_is_evaluated(gpt2, task, units):
    masks, store = random_masks(6, 10), MemoryStore(10, 5)
    rows = []
    with ablate(gpt2, units) as ablated:
        evaluation = make_evaluation(ablated, task, store=store)
        evaluation.per_prompt(masks[:2])
        evaluation.sample(masks[2:4], 2, np.random.default_rng(0))
        assert evaluation.n_evaluated == 14
        with gpt2.hooks(fwd_hooks=embedding_hook(lambda t, hook: rows.append(len(t)))):
            table = evaluation.per_prompt(masks)
        assert evaluation.n_replayed == 14
        assert sum(rows) == 30 - 14
        assert_close(table, make_evaluation(ablated, task).per_prompt(masks), **CLOSE)


def test_progress_counts_every_row_once(gpt2, task, units):
    calls, store = [], MemoryStore(10, 5)
    with ablate(gpt2, units, batch_size=4) as ablated:
        for n_masks in (3, 6):
            make_evaluation(
                ablated, task, store=store, progress=lambda *counts: calls.append(counts)
            )(random_masks(6, 10)[:n_masks])
    assert sum(evaluated for evaluated, _ in calls) == 30
    assert sum(replayed for _, replayed in calls) == 15
    assert all(0 < evaluated + replayed <= 15 for evaluated, replayed in calls)


def test_large_requests_are_looked_up_in_parts(gpt2, task, units, monkeypatch):
    masks = random_masks(7, 10)
    with ablate(gpt2, units) as ablated:
        whole = make_evaluation(ablated, task).per_prompt(masks)
        monkeypatch.setattr("circuitspex.evaluation.evaluation._LOOK_UP_BYTES", 2 * 5 * 10)
        sizes = []

        class Counting(MemoryStore):
            def look_up(self, masks, prompts):
                sizes.append(len(masks))
                return super().look_up(masks, prompts)

        parts = make_evaluation(ablated, task, store=Counting(10, 5)).per_prompt(masks)
    assert sizes == [10, 10, 10, 5]
    assert_close(parts, whole, **CLOSE)


def test_an_interrupted_run_keeps_finished_batches_and_a_rerun_completes_the_rest(
    gpt2, task, units, tmp_path
):
    masks, spec = random_masks(8, 10), Spec({"n_units": 10, "n_prompts": 5})
    batches = []

    def interrupt_the_fourth(embedded, hook):
        batches.append(len(embedded))
        if len(batches) == 4:
            raise KeyboardInterrupt("stop here")

    with ablate(gpt2, units, batch_size=3) as ablated:
        truth = make_evaluation(ablated, task).per_prompt(masks)
    with (
        pytest.raises(KeyboardInterrupt, match="stop here"),
        ablate(gpt2, units, batch_size=3) as ablated,
    ):
        with ParquetStore(tmp_path / "store", spec) as store:
            with gpt2.hooks(fwd_hooks=embedding_hook(interrupt_the_fourth)):
                make_evaluation(ablated, task, store=store)(masks)
    kept = sum(batches[:3])
    assert 0 < kept < 40
    with (
        ablate(gpt2, units, batch_size=3) as ablated,
        ParquetStore(tmp_path / "store", spec) as store,
    ):
        assert len(store) == kept
        again = make_evaluation(ablated, task, store=store)
        assert_close(again.per_prompt(masks), truth, **CLOSE)
        assert (again.n_evaluated, again.n_replayed) == (40 - kept, kept)


def test_a_store_that_fails_loses_only_its_own_batch(gpt2, task, units):
    class Full(MemoryStore):
        n_left = 2

        def append(self, masks, prompts, values):
            if self.n_left == 0:
                raise StoreError("the disk is full")
            self.n_left -= 1
            super().append(masks, prompts, values)

    store = Full(10, 5)
    with ablate(gpt2, units, batch_size=4) as ablated:
        with pytest.raises(StoreError, match="the disk is full"):
            make_evaluation(ablated, task, store=store)(random_masks(6, 10))
        assert len(store) == 6  # two batches: of the shortest prompt there are six rows
        store.n_left = 100
        rest = make_evaluation(ablated, task, store=store)
        rest(random_masks(6, 10))
        assert rest.n_evaluated == 24


# ---- numbers that are not finite ----


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_the_mask_and_the_rest_is_kept(gpt2, task, units, bad):
    masks = ablate_only([[], [1, 9], [2]], 10)
    with ablate(gpt2, units) as ablated:
        table = make_evaluation(ablated, task).per_prompt(masks)
        fine = table[[0, 2], 3].float()

        def wrong_for_mask_1(logits, targets):
            values = logit_difference(logits, targets)
            is_mask_1 = (values[:, None] - fine).abs().min(dim=1).values > 1e-3
            return torch.where((targets.answers == task.answers[3]) & is_mask_1, bad, values)

        store = MemoryStore(10, 5)
        words = (
            r"1 of 15 evaluations gave NaN or infinite values; the first is mask 1 on prompt 3, "
            r"which ablates L0H1, L1mlp\. The finite values are kept"
        )
        with pytest.raises(NonFiniteError, match=words):
            make_evaluation(ablated, task, wrong_for_mask_1, store)(masks)
        assert len(store) == 14
        again = make_evaluation(ablated, task, store=store)
        assert_close(again.per_prompt(masks), table, **CLOSE)
        assert (again.n_evaluated, again.n_replayed) == (1, 14)


def test_a_model_that_overflows_is_reported(gpt2, task, units):
    def poison(embedded, hook):
        return embedded * torch.nan

    store = MemoryStore(10, 5)
    with ablate(gpt2, units) as ablated, gpt2.hooks(fwd_hooks=embedding_hook(poison)):
        with pytest.raises(
            NonFiniteError, match=r"10 of 10.*mask 0 on prompt 0, which ablates noth"
        ):
            make_evaluation(ablated, task, store=store)(ablate_only([[], range(10)], 10))
        with pytest.raises(NonFiniteError, match=r"L1H2, L1H3, … \(10 in all\)"):
            make_evaluation(ablated, task, store=store)(all_ablated(10))
    assert len(store) == 0


# ---- what a value is a value of ----


def describe(model, task, units=None, metric=logit_difference, ablation: Any = "zero"):
    described = describe_evaluation(
        ablate(model, heads(model) if units is None else units, ablation), task, metric
    )
    return json.dumps(described, sort_keys=True)


def test_the_description_changes_with_everything_that_decides_values(gpt2, task):
    nudged, folded, renamed = make_tiny("gpt2"), make_tiny("gpt2"), make_tiny("gpt2")
    with torch.no_grad():
        next(iter(nudged.original_model.parameters()))[3, 3] += 1e-5
    folded.enable_compatibility_mode()
    renamed.cfg.model_name = "another"
    tokens = torch.stack([t[:4] for t in task.tokens])
    descriptions = [
        describe(gpt2, task),
        describe(nudged, task),
        describe(folded, task),
        describe(renamed, task),
        describe(gpt2, task.subset([1, 0, 2, 3, 4])),
        describe(gpt2, task.subset([0, 1, 2])),
        describe(gpt2, task, metric=METRICS["negative_kl"]),
        describe(gpt2, task, metric=lambda logits, targets: logits[:, 0]),
        describe(gpt2, task, metric=lambda logits, targets: logits[:, 1]),
        describe(gpt2, task, ablation=mean(tokens)),
        describe(gpt2, task, ablation=mean(tokens[1:])),
        describe(gpt2, task, ablation=resample(tokens)),
        describe(gpt2, task, units=heads(gpt2)[::-1]),
        describe(gpt2, task, units=heads(gpt2)[:-1]),
        describe(gpt2, task, units=neuron_blocks(gpt2, 16)),
    ]
    assert len({*descriptions}) == len(descriptions)


def test_the_description_changes_in_the_middle_of_the_units_too(gpt2, task):
    # Its first and last unit are shown; the ones between are in the digest.
    chosen = [heads(gpt2)[:1] + heads(gpt2)[i : i + 1] + heads(gpt2)[7:] for i in (2, 3)]
    assert describe(gpt2, task, units=chosen[0]) != describe(gpt2, task, units=chosen[1])


def test_the_description_is_stable(gpt2, task):
    assert describe(gpt2, task) == describe(make_tiny("gpt2"), task)
    before = describe(gpt2, task)
    with ablate(gpt2, heads(gpt2)) as ablated:
        make_evaluation(ablated, task)(all_kept(8))
    assert describe(gpt2, task) == before


DESCRIBE = """
import json
from circuitspex import models, tasks, units
from circuitspex.ablation import ablate
from circuitspex.evaluation import describe_evaluation
from circuitspex.units import resample

model = models.load("toy-induction")
task = tasks.induction(model, n_prompts=3, seed=0)

def metric(logits, targets):
    return logits[:, 0] * ("a" in {"a", "b", "c"})

block = ablate(model, units.heads(model), resample(task.counterfactuals))
print(json.dumps(describe_evaluation(block, task, metric), sort_keys=True))
"""


@pytest.mark.slow
def test_the_description_is_the_same_in_every_process():
    printed = outputs_by_hash_seed(DESCRIBE)
    assert printed[0] == printed[1]
    assert json.loads(printed[0])["n_units"] == 8


def test_the_trained_toy_is_a_set_function_too(toy):
    task = induction(toy, n_prompts=3, seed=0)
    masks = random_masks(4, 8)
    with ablate(toy, heads(toy)) as ablated:
        values = make_evaluation(ablated, task).per_prompt(masks)
    truth = evaluate_slowly(slow_table(toy, task.tokens, masks, heads(toy)), task)
    assert_close(values, truth, **CLOSE)


# ---- gradients in the store ----


def refuse(embedded, hook):
    raise AssertionError("the model ran")


def all_gradients(evaluation, masks):
    return evaluation.sample_gradients(masks, evaluation.n_prompts, np.random.default_rng(0))[:2]


def test_gradients_of_a_second_run_come_from_the_store(gpt2, task, units):
    masks, store = random_masks(6, 10), MemoryStore(10, 5)
    with ablate(gpt2, units) as ablated:
        first = make_evaluation(ablated, task, store=store)
        mean_values, mean_gradients = first.value_and_gradient(masks)
        assert (first.n_evaluated, first.n_replayed, len(store)) == (90, 0, 30)
        second = make_evaluation(ablated, task, store=store)
        with gpt2.hooks(fwd_hooks=embedding_hook(refuse)):
            again, gradients_again = second.value_and_gradient(masks)
            assert (second.n_evaluated, second.n_replayed) == (0, 90)
            values, gradients = all_gradients(second, masks)
            table = second.per_prompt(masks)
        assert (second.n_evaluated, second.n_replayed) == (0, 90 + 90 + 30)
    assert_close(again, mean_values, rtol=0, atol=0)
    assert_close(gradients_again, mean_gradients, rtol=0, atol=0)
    assert_close(gradients.mean(dim=1), mean_gradients, rtol=0, atol=0)
    assert_close(table, values, rtol=0, atol=0)
    assert gradients.std() > 1e-3


def test_a_value_in_the_store_is_no_gradient_and_both_come_again(gpt2, task, units):
    masks, store = random_masks(4, 10), MemoryStore(10, 5)
    with ablate(gpt2, units) as ablated:
        first = make_evaluation(ablated, task, store=store)
        table = first.per_prompt(masks[:2])
        values, gradients = all_gradients(first, masks)
        assert (first.n_evaluated, first.n_replayed) == (10 + 3 * 20, 0)
        second = make_evaluation(ablated, task, store=store)
        with gpt2.hooks(fwd_hooks=embedding_hook(refuse)):
            assert_close(second.per_prompt(masks[:2]), table, rtol=0, atol=0)
            assert_close(second.per_prompt(masks[2:]), values[2:], rtol=0, atol=0)
            for got, expected in zip(
                all_gradients(second, masks), (values, gradients), strict=True
            ):
                assert_close(got, expected, rtol=0, atol=0)
    assert_close(table, values[:2], **CLOSE)


def test_only_gradients_that_the_store_lacks_are_evaluated(gpt2, task, units):
    masks, store, rows, calls = random_masks(6, 10), MemoryStore(10, 5), [], []
    with ablate(gpt2, units, batch_size=4) as ablated:
        evaluation = make_evaluation(
            ablated, task, store=store, progress=lambda *counts: calls.append(counts)
        )
        evaluation.value_and_gradient(masks[:2])
        evaluation.sample_gradients(masks[2:4], 2, np.random.default_rng(0))
        assert evaluation.n_evaluated == 3 * 14
        with gpt2.hooks(fwd_hooks=embedding_hook(lambda t, hook: rows.append(len(t)))):
            values, gradients = all_gradients(evaluation, masks)
        assert (evaluation.n_evaluated, evaluation.n_replayed) == (3 * 30, 3 * 14)
        assert sum(rows) == 30 - 14
        truth = all_gradients(make_evaluation(ablated, task), masks)
    assert_close(values, truth[0], **CLOSE)
    assert_close(gradients, truth[1], **CLOSE)
    assert sum(evaluated for evaluated, _ in calls) == 3 * 30
    assert sum(replayed for _, replayed in calls) == 3 * 14


@pytest.mark.parametrize("gates", [random_masks(3, 10).float(), torch.full((3, 10), 0.5)])
def test_fractional_gates_are_neither_stored_nor_looked_up(gpt2, task, units, gates):
    store = MemoryStore(10, 5)
    with ablate(gpt2, units) as ablated:
        evaluation = make_evaluation(ablated, task, store=store)
        evaluation.value_and_gradient(gates == 1)
        n_known = len(store)
        for times in (1, 2):
            evaluation.value_and_gradient(gates)
            assert evaluation.n_evaluated == 3 * 5 * (3 + 3 * times)
        assert (evaluation.n_replayed, len(store)) == (0, n_known)


def test_large_requests_of_gradients_go_in_parts(gpt2, task, units, monkeypatch):
    masks = random_masks(7, 10)
    with ablate(gpt2, units) as ablated:
        whole = make_evaluation(ablated, task).value_and_gradient(masks)
        each = all_gradients(make_evaluation(ablated, task), masks)
        monkeypatch.setattr("circuitspex.evaluation.evaluation._LOOK_UP_BYTES", 2 * 5 * 10 * 4)
        sizes = []

        class Counting(MemoryStore):
            def look_up_gradients(self, masks, prompts):
                sizes.append(len(masks))
                return super().look_up_gradients(masks, prompts)

        evaluation = make_evaluation(ablated, task, store=Counting(10, 5))
        parts = evaluation.value_and_gradient(masks)
        assert sizes == [10, 10, 10, 5]
        assert_close(parts[0], whole[0], **CLOSE)
        assert_close(parts[1], whole[1], **CLOSE)
        for got, expected in zip(all_gradients(evaluation, masks), each, strict=True):
            assert_close(got, expected, **CLOSE)
        # Also of parts, the message counts and names masks of the whole request.
        bad = ablate_only([[], [], [], [], [2, 9]], 10)

        def poisoned(logits, targets):
            values = logit_difference(logits, targets)
            return values.masked_fill(
                (values[:, None] - intact.float()).abs().amin(1) > 1e-3, torch.nan
            )

        intact = make_evaluation(ablated, task).per_prompt(all_kept(10))[0]
        words = r"5 of 25 evaluations gave NaN.*mask 4 on prompt 0, which ablates L0H2, L1mlp"
        with pytest.raises(NonFiniteError, match=words):
            make_evaluation(ablated, task, poisoned).value_and_gradient(bad)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_interrupted_run_of_gradients_resumes_and_evaluates_nothing_twice(
    gpt2, task, units, tmp_path, where
):
    masks, spec = random_masks(8, 10), Spec({"n_units": 10, "n_prompts": 5})
    batches, seen = [], []

    def stop(gradient=None):
        if len(batches) == 4:
            raise KeyboardInterrupt("stop here")

    def interrupt_the_fourth(activation, hook):
        batches.append(len(activation))
        if where == "forward":
            stop()
        activation.register_hook(stop)

    with ablate(gpt2, units, batch_size=3) as ablated:
        truth = all_gradients(make_evaluation(ablated, task), masks)
    with (
        pytest.raises(KeyboardInterrupt, match="stop here"),
        ablate(gpt2, units, batch_size=3) as ablated,
        ParquetStore(tmp_path / "store", spec) as store,
    ):
        with gpt2.hooks(fwd_hooks=[("blocks.1.hook_attn_out", interrupt_the_fourth)]):
            make_evaluation(ablated, task, store=store).value_and_gradient(masks)
    kept = sum(batches[:3])
    assert 0 < kept < 40

    def count(embedded, hook):
        seen.append(len(embedded))

    mask_of_row, prompt_of_row = masks.repeat_interleave(5, dim=0), torch.arange(5).repeat(8)
    results = []
    for n_missing in (40 - kept, 0):
        with (
            ablate(gpt2, units, batch_size=3) as ablated,
            ParquetStore(tmp_path / "store", spec) as store,
        ):
            kept_values, kept_gradients, found = store.look_up_gradients(mask_of_row, prompt_of_row)
            assert int(found.sum()) == len(store) == 40 - n_missing
            again = make_evaluation(ablated, task, store=store)
            seen.clear()
            with gpt2.hooks(fwd_hooks=embedding_hook(count)):
                values, gradients = all_gradients(again, masks)
            assert sum(seen) == n_missing
            assert (again.n_evaluated, again.n_replayed) == (3 * n_missing, 3 * (40 - n_missing))
            replayed = found.reshape(8, 5)
            assert_close(values[replayed], kept_values[found], rtol=0, atol=0)
            assert_close(gradients[replayed], kept_gradients[found], rtol=0, atol=0)
            assert_close(values, truth[0], **CLOSE)
            assert_close(gradients, truth[1], **CLOSE)
            results.append((values, gradients))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, rtol=0, atol=0)


def test_a_store_that_fails_loses_only_its_own_batch_of_gradients(gpt2, task, units):
    class Full(MemoryStore):
        n_left = 2

        def append_gradients(self, masks, prompts, values, gradients):
            if self.n_left == 0:
                raise StoreError("the disk is full")
            self.n_left -= 1
            super().append_gradients(masks, prompts, values, gradients)

    store = Full(10, 5)
    with ablate(gpt2, units, batch_size=4) as ablated:
        with pytest.raises(StoreError, match="the disk is full"):
            make_evaluation(ablated, task, store=store).value_and_gradient(random_masks(6, 10))
        assert len(store) == 6  # two batches: of the shortest prompt there are six rows
        store.n_left = 100
        rest = make_evaluation(ablated, task, store=store)
        rest.value_and_gradient(random_masks(6, 10))
        assert (rest.n_evaluated, rest.n_replayed) == (3 * 24, 3 * 6)


@pytest.mark.parametrize("what", ["value", "gradient"])
def test_finite_gradients_are_kept_when_another_is_not(gpt2, task, units, what):
    masks, store = random_masks(4, 10), MemoryStore(10, 5)

    def poisoned(logits, targets):
        hurt = targets.answers == task.answers[2]
        if what == "gradient":
            logits.register_hook(lambda slopes: slopes.masked_fill(hurt[:, None], torch.nan))
            return logit_difference(logits, targets)
        return logit_difference(logits, targets).masked_fill(hurt, torch.inf)

    with ablate(gpt2, units) as ablated:
        with pytest.raises(NonFiniteError, match=r"4 of 20 .* mask 0 on prompt 2"):
            make_evaluation(ablated, task, poisoned, store).value_and_gradient(masks)
        assert len(store) == 16
        again = make_evaluation(ablated, task, store=store)
        values, gradients = all_gradients(again, masks)
        assert (again.n_evaluated, again.n_replayed) == (3 * 4, 3 * 16)
        truth = all_gradients(make_evaluation(ablated, task), masks)
    assert_close(values, truth[0], **CLOSE)
    assert_close(gradients, truth[1], **CLOSE)
