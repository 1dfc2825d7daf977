"""Gates: gradients against differences, each row its own, and the model as it was on every way out.

The truth is finite differences of plain forward passes whose hooks multiply, in double precision.
"""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import share
from slow_truth import (
    activations,
    assert_same_state,
    central_differences,
    gated_logits,
    mean_activations,
    random_masks,
    random_tokens,
    slow_logits,
    state_of,
)
from tiny_models import ARCHITECTURES, make_hf_model, make_tiny
from torch import Tensor
from torch.testing import assert_close

import circuitspex as cs
from circuitspex._shared import (
    DifferentiableSetFunction,
    SampledDifferentiableSetFunction,
    SampledSetFunction,
)
from circuitspex.ablation import ablate
from circuitspex.ablation.batching import rows_that_fit
from circuitspex.algebra import ablate_only, all_ablated, all_kept
from circuitspex.decoders.measuring import Meter
from circuitspex.decoders.measuring.restriction import Restricted
from circuitspex.errors import (
    BudgetError,
    DecoderError,
    HookError,
    MaskError,
    ModelError,
    NonFiniteError,
    OutOfMemoryError,
    TaskError,
)
from circuitspex.evaluation import Evaluation, LocalRunner
from circuitspex.evaluation.store import MemoryStore
from circuitspex.models import from_hugging_face
from circuitspex.tasks import METRICS, Targets, Task, logit_difference
from circuitspex.units import (
    MLP,
    AttentionLayer,
    Head,
    Neuron,
    UnitSet,
    attention_layers,
    heads,
    mean,
    mlps,
    neuron_blocks,
    neurons,
    resample,
)

STEP = 1e-3
EXACT_IN_DOUBLE = ("gpt2", "gpt-neox")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
LENGTHS = (5, 7, 5)

CHOICES: dict[str, Callable[[Any], UnitSet]] = {
    "heads": heads,
    "neurons": neurons,
    "blocks": lambda m: neuron_blocks(m, size=6),
    "attention": attention_layers,
    "mlps": mlps,
    # Out of order, some units of a hook only, and a layer next to its own parts.
    "mixture": lambda m: UnitSet(
        [MLP(1), Head(1, 2), Neuron(0, 3), AttentionLayer(0), Head(0, 1), Neuron(0, 1), Head(1, 0)]
    ),
}


def precise(name: str) -> Any:
    """One of the tiny models in double precision."""
    return share(
        f"{name}-float64",
        lambda: from_hugging_face(make_hf_model(name), dtype=torch.float64),
    )


def assert_true(
    derivatives: Tensor, truth: Tensor, *, exact: bool = True, floor: float = 1e-2
) -> None:
    """Compare with differences, as exactly as these can be.

    On most architectures transformers computes norms, or a softmax, in single precision whatever
    the model's, as do metrics with logarithms, and a step may cross the kink of a ReLU: that costs
    up to a hundredth of the largest derivative.
    """
    largest = truth.abs().max().item()
    assert largest > floor, "derivatives that are all zero"
    atol = 1e-6 if exact else 0.01 * largest
    assert_close(derivatives.double(), truth, rtol=1e-6, atol=atol)


def make_task(model: Any) -> Task:
    """Prompts of two lengths, with one to three wrong answers and counterfactuals."""
    prompts = [random_tokens(model, 1, n, seed=i)[0] for i, n in enumerate(LENGTHS)]
    others = [random_tokens(model, 1, n, seed=i + 50)[0] for i, n in enumerate(LENGTHS)]
    return Task.from_prompts(model, prompts, [3, 4, 5], [[8], [9, 10], [11, 12, 13]], others)


def make_evaluation(ablated: Any, task: Task, metric: Any = logit_difference, **options: Any):
    return Evaluation(ablated, task, metric, MemoryStore(len(ablated.units), len(task)), **options)


def both(evaluation: Any, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Values (masks, prompts) and gradients (masks, prompts, units), every prompt by itself."""
    values, gradients, prompts = evaluation.sample_gradients(
        gates, evaluation.n_prompts, np.random.default_rng(0)
    )
    assert_close(prompts, torch.arange(evaluation.n_prompts).expand(len(gates), -1))
    return values, gradients


def slow_value(
    model: Any,
    task: Task,
    prompt: int,
    units: UnitSet,
    gates: Tensor,
    metric: Any = logit_difference,
    stand_ins: Any = None,
) -> float:
    """One prompt's metric by a plain forward pass."""
    wrong, is_wrong = (table[[prompt]] for table in task.wrong_table)
    intact = slow_logits(model, task.tokens[prompt], [])[None]
    targets = Targets(torch.tensor([task.answers[prompt]]), wrong, is_wrong, lambda: intact)
    logits = gated_logits(model, task.tokens[prompt], units, gates.double(), stand_ins)
    return metric(logits[None], targets).item()


def slow_gradient(
    model: Any, task: Task, prompt: int, units: UnitSet, gates: Tensor, **options: Any
) -> Tensor:
    """Derivatives of one prompt's metric by some gates, or all, from plain forward passes."""
    columns = options.pop("columns", range(len(units)))
    return central_differences(
        lambda moved: slow_value(model, task, prompt, units, moved, **options),
        gates.double(),
        list(columns),
        STEP,
    )


def some_columns(n_units: int, seed: int = 0) -> list[int]:
    return sorted(np.random.default_rng(seed).choice(n_units, min(5, n_units), False).tolist())


def fractions(n_masks: int, n_units: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 0.1 + 0.8 * torch.rand(n_masks, n_units, generator=rng, dtype=torch.float64)


# ---- against differences ----


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("choice", CHOICES)
def test_gradients_equal_differences_of_plain_forward_passes(name, choice):
    model = precise(name)
    task, units = make_task(model), CHOICES[choice](model)
    columns = some_columns(len(units))
    boolean, fractional = random_masks(1, len(units)), fractions(1, len(units))
    with ablate(model, units) as ablated:
        evaluation = make_evaluation(ablated, task)
        at = [
            (boolean, both(evaluation, boolean)[1]),
            (fractional, both(evaluation, fractional)[1]),
        ]
    for prompt in (0, 1):  # of different lengths
        for gates, gradients in at:
            truth = slow_gradient(model, task, prompt, units, gates[0], columns=columns)
            assert_true(gradients[0, prompt, columns], truth, exact=name in EXACT_IN_DOUBLE)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_gates_lead_to_what_stands_in_for_an_activation(name, ablation):
    model = precise(name)
    task, units = make_task(model), CHOICES["mixture"](model)
    assert task.counterfactuals is not None
    if ablation == "mean":
        others = [other for other in task.counterfactuals if len(other) == 5]
        replacement, stand_ins = mean(task.counterfactuals), mean_activations(model, others, units)
    else:
        replacement = resample(task.counterfactuals)
        stand_ins = activations(model, task.counterfactuals[2], units)
    with ablate(model, units, replacement) as ablated:
        evaluation = make_evaluation(ablated, task)
        for gates in (random_masks(1, len(units), seed=1), fractions(1, len(units))):
            _, gradients = both(evaluation, gates)
            truth = slow_gradient(model, task, 2, units, gates[0], stand_ins=stand_ins)
            assert_true(gradients[0, 2], truth, exact=name in EXACT_IN_DOUBLE)
            zero = slow_gradient(model, task, 2, units, gates[0])
            assert (zero - truth).abs().max() > 1e-1, "zero ablation would pass too"


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_a_gradient(metric):
    model = precise("gpt2")
    task, units = make_task(model), CHOICES["mixture"](model)
    function = METRICS[metric]
    with ablate(model, units) as ablated:
        evaluation = make_evaluation(ablated, task, function)
        for gates in (random_masks(1, len(units)), fractions(1, len(units))):
            _, gradients = both(evaluation, gates)
            for prompt in range(len(task)):
                truth = slow_gradient(model, task, prompt, units, gates[0], metric=function)
                exact = metric == "logit_difference"
                assert_true(gradients[0, prompt], truth, exact=exact, floor=1e-3)


def test_a_users_metric_is_differentiated_prompt_by_prompt():
    def squares(logits, targets):
        return logits[:, 0] ** 2 * targets.answers

    model = precise("gpt2")
    task, units = make_task(model), heads(model)
    gates = fractions(1, len(units))
    with ablate(model, units) as ablated:
        _, gradients = both(make_evaluation(ablated, task, squares), gates)
    for prompt in range(len(task)):
        truth = slow_gradient(model, task, prompt, units, gates[0], metric=squares)
        assert_true(gradients[0, prompt], truth)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_gradients_are_differences_of_the_values_beside_them(ablation):
    model = precise("gpt2")
    task, units = make_task(model), heads(model) + mlps(model)
    assert task.counterfactuals is not None
    replacement = {"mean": mean, "resample": resample}.get(ablation)
    stand_in = "zero" if replacement is None else replacement(task.counterfactuals)
    gates = fractions(1, len(units))
    with ablate(model, units, stand_in) as ablated:
        evaluation = make_evaluation(ablated, task)

        def value(gates: Tensor) -> float:
            return evaluation.value_and_gradient(gates[None])[0].item()

        truth = central_differences(value, gates[0], list(range(len(units))), STEP)
        _, gradient = evaluation.value_and_gradient(gates)
    assert_close(gradient[0].double(), truth, rtol=0, atol=1e-6)
    assert truth.abs().max() > 1e-2


def test_the_gradient_integrates_to_what_ablating_everything_changes():
    model = precise("gpt2")
    task, units = make_task(model), heads(model) + mlps(model)
    points, weights = np.polynomial.legendre.leggauss(24)
    gates = torch.from_numpy((points + 1) / 2)[:, None].expand(-1, len(units))
    with ablate(model, units) as ablated:
        evaluation = make_evaluation(ablated, task)
        _, gradients = both(evaluation, gates)
        ends = evaluation.per_prompt(torch.cat([all_kept(len(units)), all_ablated(len(units))]))
    total = (torch.from_numpy(weights / 2)[:, None] * gradients.double().sum(dim=2)).sum(dim=0)
    assert_close(total, ends[0] - ends[1], rtol=0, atol=1e-5)
    assert (ends[0] - ends[1]).abs().min() > 1e-2


# ---- values, rows and types ----


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_values_are_those_of_a_forward_pass_alone(gpt2, metric, ablation):
    task, units = make_task(gpt2), CHOICES["mixture"](gpt2)
    assert task.counterfactuals is not None
    replacement = {"mean": mean, "resample": resample}.get(ablation)
    stand_in = "zero" if replacement is None else replacement(task.counterfactuals)
    masks = torch.cat([random_masks(5, len(units)), all_kept(7), all_ablated(7)])
    with ablate(gpt2, units, stand_in) as ablated:
        plain = make_evaluation(ablated, task, METRICS[metric]).per_prompt(masks)
        evaluation = make_evaluation(ablated, task, METRICS[metric])
        values, _ = both(evaluation, masks)
        as_floats, gradients = both(evaluation, masks.float())
        mean_value, mean_gradient = evaluation.value_and_gradient(masks)
    assert_close(values, plain, rtol=0, atol=1e-6)
    assert_close(as_floats, plain, rtol=0, atol=1e-6)
    assert_close(mean_value, plain.mean(dim=1), rtol=0, atol=1e-6)
    assert_close(mean_gradient, gradients.mean(dim=1), **CLOSE)
    assert plain.std() > 1e-3


@pytest.mark.parametrize("batch_size", [1, 2, 5, None])
def test_a_rows_gradient_depends_on_that_row_only(gpt2, batch_size):
    task, units = make_task(gpt2), CHOICES["mixture"](gpt2)
    assert task.counterfactuals is not None
    gates = torch.cat([random_masks(3, len(units)).double(), fractions(3, len(units))])
    with ablate(gpt2, units, resample(task.counterfactuals), batch_size=1) as ablated:
        evaluation = make_evaluation(ablated, task)
        alone = [both(evaluation, row[None]) for row in gates]
    with ablate(gpt2, units, resample(task.counterfactuals), batch_size=batch_size) as ablated:
        values, gradients = both(make_evaluation(ablated, task), gates)
    assert_close(values, torch.cat([value for value, _ in alone]), **CLOSE)
    assert_close(gradients, torch.cat([gradient for _, gradient in alone]), **CLOSE)
    distances = (gradients[:, None] - gradients[None]).abs().amax(dim=(2, 3))
    assert (distances + torch.eye(6)).min() > 1e-2, "rows that are all the same"


def test_samples_are_rows_of_the_full_table(gpt2):
    task, units = make_task(gpt2), heads(gpt2)
    masks = random_masks(7, 8)
    with ablate(gpt2, units, batch_size=4) as ablated:
        evaluation = make_evaluation(ablated, task)
        values, gradients = both(evaluation, masks)
        few, few_gradients, prompts = evaluation.sample_gradients(
            masks, 2, np.random.default_rng(3)
        )
        _, same_prompts = evaluation.sample(masks, 2, np.random.default_rng(3))
    assert (few.shape, few_gradients.shape) == ((7, 2), (7, 2, 8))
    assert_close(few, values.gather(1, prompts), **CLOSE)
    rows = torch.arange(7)[:, None]
    assert_close(few_gradients, gradients[rows, prompts], **CLOSE)
    assert_close(prompts, same_prompts)


def test_types_do_not_depend_on_the_gates_or_on_the_callers_default(gpt2):
    task, units = make_task(gpt2), heads(gpt2)
    masks = random_masks(2, 8)
    torch.set_default_dtype(torch.float64)
    try:
        with ablate(gpt2, units) as ablated:
            evaluation = make_evaluation(ablated, task)
            each = [
                evaluation.value_and_gradient(masks.to(dtype))
                for dtype in (torch.bool, torch.float16, torch.float32, torch.float64)
            ]
    finally:
        torch.set_default_dtype(torch.float32)
    for values, gradients in each:
        assert (values.dtype, gradients.dtype) == (torch.float64, torch.float32)
        assert_close(gradients, each[0][1], **CLOSE)


def test_gates_keep_double_precision_where_the_model_has_it():
    model = precise("gpt2")
    task, units = make_task(model), heads(model)
    gates = fractions(1, 8)
    with ablate(model, units) as ablated:
        evaluation = make_evaluation(ablated, task)
        exact, _ = evaluation.value_and_gradient(gates)
        rounded, _ = evaluation.value_and_gradient(gates.float())
    slow = np.mean([slow_value(model, task, i, units, gates[0]) for i in range(3)])
    assert abs(exact.item() - slow) < 1e-12
    assert abs(rounded.item() - slow) > 1e-10


def test_half_precision_models_have_gradients_in_single_precision():
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        model = from_hugging_face(make_hf_model("llama-grouped"), dtype=dtype)
        task = make_task(model)
        with ablate(model, heads(model)) as ablated:
            gradients.append(make_evaluation(ablated, task).value_and_gradient(all_kept(8))[1])
    assert gradients[1].dtype == torch.float32
    assert_close(gradients[1], gradients[0], rtol=0, atol=0.05 * gradients[0].abs().max().item())


def test_no_masks_have_no_gradients(gpt2):
    with ablate(gpt2, heads(gpt2)) as ablated:
        evaluation = make_evaluation(ablated, make_task(gpt2))
        values, gradients = evaluation.value_and_gradient(torch.zeros(0, 8, dtype=torch.bool))
        assert (values.shape, gradients.shape) == ((0,), (0, 8))
        assert evaluation.n_evaluated == 0


def test_other_peoples_hooks_act_on_gradients_too(gpt2):
    model = precise("gpt2")
    task, units = make_task(model), mlps(model)

    def halve(activation, hook):
        return activation / 2

    gates = fractions(1, 2)
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", halve)]):
        truth = slow_gradient(model, task, 0, units, gates[0])
        with ablate(model, units) as ablated:
            _, gradients = both(make_evaluation(ablated, task), gates)
    assert_true(gradients[0, 0], truth)
    assert (slow_gradient(model, task, 0, units, gates[0]) - truth).abs().max() > 1e-2


def test_nested_blocks_do_not_see_each_others_gates(gpt2):
    task = make_task(gpt2)
    assert task.counterfactuals is not None
    gates = fractions(3, 8)

    def gradients_of(ablated):
        return make_evaluation(ablated, task).value_and_gradient(gates[:, : len(ablated.units)])[1]

    with ablate(gpt2, heads(gpt2)) as only:
        outer_truth = gradients_of(only)
    with ablate(gpt2, mlps(gpt2), mean(task.counterfactuals)) as only:
        inner_truth = gradients_of(only)
    before = state_of(gpt2)
    with ablate(gpt2, heads(gpt2)) as outer:
        with ablate(gpt2, mlps(gpt2), mean(task.counterfactuals)) as inner:
            assert_close(gradients_of(inner), inner_truth, **CLOSE)
            assert_close(gradients_of(outer), outer_truth, **CLOSE)
        assert_close(gradients_of(outer), outer_truth, **CLOSE)
    assert_same_state(state_of(gpt2), before, "nested blocks changed the model")


# ---- the model and the caller are as they were ----


def partly_frozen() -> Any:
    """A model of which every other parameter is frozen, and one has a gradient already."""
    model = make_tiny("gpt2")
    parameters = list(model.original_model.parameters())
    for parameter in parameters[::2]:
        parameter.requires_grad_(False)
    parameters[1].grad = torch.ones_like(parameters[1])
    return model


@contextmanager
def leaves_as_it_was(model: Any):
    parameters = list(model.original_model.parameters())
    before, modes = state_of(model), (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    assert len({*before["gradients"]}) == 2, "frozen and trainable parameters, or little is tested"
    try:
        yield
    finally:
        assert_same_state(state_of(model), before, "gradients changed the model")
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
        assert parameters[1].grad is not None
        assert bool((parameters[1].grad == 1).all()), "a gradient was accumulated"
        assert all(p.grad is None for i, p in enumerate(parameters) if i != 1)


def test_the_check_notices_what_a_backward_pass_leaves():
    # The negative control of leaves_as_it_was.
    model = partly_frozen()
    with pytest.raises(AssertionError, match="gradients changed the model: gradients"):
        with leaves_as_it_was(model):
            model.original_model.requires_grad_(True)
    model = partly_frozen()
    with pytest.raises(AssertionError, match=r"accumulated|is None"):
        with leaves_as_it_was(model):
            model(random_tokens(model, 1, 5)).sum().backward()


def test_gradients_leave_the_model_as_it_was():
    model = partly_frozen()
    with leaves_as_it_was(model), ablate(model, CHOICES["mixture"](model)) as ablated:
        with leaves_as_it_was(model):  # between two calls, too
            values, gradients = both(make_evaluation(ablated, make_task(model)), fractions(3, 7))
        assert not values.requires_grad
        assert not gradients.requires_grad
        assert gradients.abs().max() > 1e-2


class Failing:
    """Fails in the forward pass, the backward pass or the metric, from the n-th time on."""

    def __init__(self, place: str, error: BaseException, after: int = 1):
        self.place, self.error, self.left = place, error, after

    def fail(self, *_: Any) -> None:
        if self.left <= 0:
            raise self.error
        self.left -= 1

    def hook(self, activation: Tensor, hook: Any) -> None:
        if self.place == "forward":
            self.fail()
        if self.place == "backward" and activation.requires_grad:
            activation.register_hook(self.fail)

    def metric(self, logits: Tensor, targets: Targets) -> Tensor:
        if self.place == "metric":
            self.fail()
        return logit_difference(logits, targets)


WAYS_OUT = [
    (torch.OutOfMemoryError("out of memory"), OutOfMemoryError, "not even one row of 5 tokens"),
    (MemoryError("out of memory"), OutOfMemoryError, "not even one row of 5 tokens"),
    (KeyboardInterrupt("stop here"), KeyboardInterrupt, "stop here"),
    (ValueError("stop here"), ValueError, "stop here"),
]


@pytest.mark.parametrize("place", ["forward", "backward", "metric"])
@pytest.mark.parametrize(("error", "raised", "words"), WAYS_OUT, ids=lambda part: str(part)[-20:])
def test_every_way_out_leaves_the_model_as_it_was(place, error, raised, words):
    model = partly_frozen()
    task, masks = make_task(model), random_masks(4, 8)
    failing = Failing(place, error)
    with leaves_as_it_was(model):
        with ablate(model, heads(model), batch_size=1) as ablated:
            truth = make_evaluation(ablated, task).value_and_gradient(masks)[1]
            evaluation = make_evaluation(ablated, task, failing.metric)
            with leaves_as_it_was(model), pytest.raises(raised, match=words):
                with model.hooks(fwd_hooks=[("blocks.1.hook_attn_out", failing.hook)]):
                    evaluation.value_and_gradient(masks)
            assert evaluation.n_evaluated == 3, "the first row was done"
            # The same block goes on, and nothing of ours is still switched on.
            tokens = task.tokens[0]
            assert_close(model(tokens[None])[0, -1], slow_logits(model, tokens, []))
            assert_close(make_evaluation(ablated, task).value_and_gradient(masks)[1], truth)


def test_an_interruption_between_batches_leaves_the_model_as_it_was():
    model = partly_frozen()
    calls = []

    def interrupt(evaluated, replayed):
        calls.append((evaluated, replayed))
        if len(calls) == 2:
            raise KeyboardInterrupt("stop here")

    with leaves_as_it_was(model), ablate(model, heads(model), batch_size=2) as ablated:
        evaluation = make_evaluation(ablated, make_task(model), progress=interrupt)
        with leaves_as_it_was(model), pytest.raises(KeyboardInterrupt, match="stop here"):
            evaluation.value_and_gradient(random_masks(4, 8))
    assert calls == [(6, 0), (6, 0)]


def test_rows_that_do_not_fit_run_in_smaller_batches():
    model = partly_frozen()
    task, masks = make_task(model), random_masks(6, 8)
    sizes: list[int] = []

    def hold_two(activation, hook):
        sizes.append(len(activation))
        if len(activation) > 2:
            raise torch.OutOfMemoryError("out of memory")

    block = ablate(model, heads(model), batch_size=8, forks=False)
    with leaves_as_it_was(model), block as ablated:
        truth = make_evaluation(ablated, task).value_and_gradient(masks)[1]
        evaluation = make_evaluation(ablated, task)
        with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", hold_two)]):
            gradients = evaluation.value_and_gradient(masks)[1]
        assert_close(gradients, truth, **CLOSE)
        assert sizes[:3] == [8, 4, 2]
        assert evaluation.n_evaluated == 3 * 18
        # Forward passes alone need less, so their batches stay.
        sizes.clear()
        with model.hooks(fwd_hooks=[("hook_embed", lambda t, hook: sizes.append(len(t)))]):
            evaluation(~masks)
        assert max(sizes) == 8


def test_fewer_rows_fit_with_all_layers_alive_at_once(gpt2, monkeypatch):
    free = SimpleNamespace(available=10 * 2**20)
    monkeypatch.setattr("circuitspex.ablation.batching.psutil.virtual_memory", lambda: free)
    alone, with_backward = (rows_that_fit(gpt2, 32, gradients=g) for g in (False, True))
    assert 0 < with_backward < alone < 4096
    with ablate(gpt2, heads(gpt2)) as ablated:
        assert ablated.batch_size(32) == alone
        sizes: list[int] = []
        evaluation = make_evaluation(ablated, make_task(gpt2))
        free.available = 2**20
        with gpt2.hooks(fwd_hooks=[("hook_embed", lambda t, hook: sizes.append(len(t)))]):
            evaluation.value_and_gradient(random_masks(40, 8))
        assert max(sizes) == rows_that_fit(gpt2, 5, gradients=True) < ablated.batch_size(5)


MODES = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("metric", ["logit_difference", "negative_kl"])
@pytest.mark.parametrize("ablation", ["zero", "resample"])
@pytest.mark.parametrize("around", ["call", "block"])
def test_the_callers_grad_mode_neither_matters_nor_changes(gpt2, mode, metric, ablation, around):
    masks = random_masks(3, 10)
    outside, inside = (nullcontext, MODES[mode]) if around == "call" else (MODES[mode], nullcontext)

    def run(outside: Any, inside: Any) -> tuple[Tensor, Tensor]:
        with outside():
            task, units = make_task(gpt2), heads(gpt2) + mlps(gpt2)
            assert task.counterfactuals is not None
            stand_in = "zero" if ablation == "zero" else resample(task.counterfactuals)
            with ablate(gpt2, units, stand_in) as ablated, inside():
                evaluation = make_evaluation(ablated, task, METRICS[metric])
                evaluation(masks)
                modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
                found = evaluation.value_and_gradient(masks.clone())
                assert modes == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
                return found

    for got, expected in zip(run(outside, inside), run(nullcontext, nullcontext), strict=True):
        assert not got.requires_grad
        assert_close(got.clone(), expected, rtol=0, atol=0)


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = make_tiny("gpt2")
    with ablate(model, heads(model)) as ablated:
        evaluation = make_evaluation(ablated, make_task(model))
        assert evaluation(all_kept(8)).isfinite().all()
        with pytest.raises(ModelError, match=r"made under torch\.inference_mode\(\)\. Load the mo"):
            evaluation.value_and_gradient(all_kept(8))


def test_training_mode_and_dropout_stay_out_of_it():
    model = partly_frozen()
    task, masks = make_task(model), random_masks(3, 8)
    with ablate(model, heads(model)) as ablated:
        truth = make_evaluation(ablated, task).value_and_gradient(masks)
    model.train()
    model.original_model.transformer.h[0].attn.eval()
    with leaves_as_it_was(model):
        with ablate(model, heads(model)) as ablated:
            found = make_evaluation(ablated, task).value_and_gradient(masks)
    for got, expected in zip(found, truth, strict=True):
        assert_close(got, expected, **CLOSE)


def test_the_callers_own_graph_stays_out_of_it():
    model, tokens = make_tiny("gpt2"), random_tokens(make_tiny("gpt2"), 2, 5)
    parameters = list(model.original_model.parameters())
    truth = torch.autograd.grad(model(tokens).square().sum(), parameters, allow_unused=True)
    loss = model(tokens).square().sum()
    gates = fractions(2, 8).requires_grad_()
    doubled = gates * 0.5
    with ablate(model, heads(model)) as ablated:
        values, gradients = make_evaluation(ablated, make_task(model)).value_and_gradient(doubled)
    assert not values.requires_grad
    assert not gradients.requires_grad
    assert gates.grad is None
    loss.backward()
    doubled.sum().backward()
    for parameter, expected in zip(parameters, truth, strict=True):
        assert (parameter.grad is None) == (expected is None)
        if expected is not None:
            assert_close(parameter.grad, expected, **CLOSE)
    assert gates.grad is not None
    assert_close(gates.grad, torch.full((2, 8), 0.5, dtype=torch.float64))


# ---- bad input ----


def wrong_gates() -> dict[str, tuple[Any, str]]:
    beyond, below, nan = (torch.full((2, 8), 0.5) for _ in range(3))
    beyond[1, 3], below[0, 7], nan[1, 2] = 1.5, -1e-3, torch.nan
    return {
        "beyond": (
            beyond,
            r"between 0, ablated, and 1, kept; 1 of 16 do not: the first is 1\.5, o",
        ),
        "below": (below, r"the first is -0\.001, of unit 7 in row 0"),
        "nan": (nan, r"1 of 16 do not: the first is nan, of unit 2 in row 1"),
        "infinite": (torch.full((1, 8), torch.inf), r"8 of 8 do not: the first is inf, of unit 0"),
        "width": (torch.ones(2, 7), r"must have shape \(masks, 8\), one column per.*got \(2, 7\)"),
        "flat": (torch.ones(8), r"got \(8,\)\. A single mask needs mask\[None, :\]"),
        "integers": (
            torch.ones(2, 8, dtype=torch.long),
            r"gates must be bool.*got dtype torch\.in",
        ),
        "complex": (torch.ones(2, 8, dtype=torch.complex64), r"floating-point.*dtype torch\.compl"),
        "list": ([[1.0] * 8], r"must be a torch bool tensor of shape \(masks, 8\).*got list"),
        "numpy": (np.ones((2, 8)), r"got ndarray\. Convert it with torch\.as_tensor"),
    }


@pytest.mark.parametrize("wrong", wrong_gates())
@pytest.mark.usefixtures("unchecked")
def test_bad_gates_are_refused(gpt2, wrong):
    gates, words = wrong_gates()[wrong]
    task, units = make_task(gpt2), heads(gpt2)
    with ablate(gpt2, units) as ablated:
        evaluation = make_evaluation(ablated, task)
        with pytest.raises(MaskError, match=words):
            evaluation.value_and_gradient(gates)
        with pytest.raises(MaskError, match=words):
            evaluation.sample_gradients(gates, 1, np.random.default_rng(0))
        assert evaluation.n_evaluated == 0


def test_gates_at_the_ends_are_fine(gpt2):
    ends = torch.tensor([[0.0, 1.0] * 4, [-0.0, 1.0] * 4])
    with ablate(gpt2, heads(gpt2)) as ablated:
        assert make_evaluation(ablated, make_task(gpt2)).value_and_gradient(ends)[1].shape == (2, 8)


def test_gradients_outside_the_block_are_refused(gpt2):
    with ablate(gpt2, heads(gpt2)) as ablated:
        evaluation = make_evaluation(ablated, make_task(gpt2))
    with pytest.raises(HookError, match=r"call this inside the block: with cs\.ablate"):
        evaluation.value_and_gradient(all_kept(8))


@pytest.mark.parametrize("prompts_per_mask", [0, 4])
def test_gradients_of_prompts_that_do_not_exist_are_refused(gpt2, prompts_per_mask):
    with ablate(gpt2, heads(gpt2)) as ablated:
        with pytest.raises(BudgetError, match=rf"must lie in 1\.\.3.*got {prompts_per_mask}"):
            make_evaluation(ablated, make_task(gpt2)).sample_gradients(
                all_kept(8), prompts_per_mask, np.random.default_rng(0)
            )


def under_no_grad(logits: Tensor, targets: Targets) -> Tensor:
    with torch.no_grad():
        return logit_difference(logits, targets)


def under_inference_mode(logits: Tensor, targets: Targets) -> Tensor:
    with torch.inference_mode():
        return logit_difference(logits, targets)


WEIGHT = torch.ones((), requires_grad=True)
CUT_OFF: dict[str, Any] = {
    "argmax": lambda logits, targets: logits.argmax(dim=-1),
    "comparison": lambda logits, targets: (logits[:, 0] > 0).float(),
    "detach": lambda logits, targets: logits.detach()[:, 0],
    "item": lambda logits, targets: torch.tensor([row[0].item() for row in logits]),
    "no_grad": under_no_grad,
    "inference_mode": under_inference_mode,
    "another graph": lambda logits, targets: logits.detach()[:, 0] * WEIGHT,
}


@pytest.mark.parametrize("metric", CUT_OFF)
def test_a_metric_without_a_gradient_is_refused_with_what_to_do(metric):
    model = partly_frozen()
    words = r"the metric cannot be differentiated.*argmax.*Use a metric without them, such as 'log"
    with leaves_as_it_was(model), ablate(model, heads(model)) as ablated:
        evaluation = make_evaluation(ablated, make_task(model), CUT_OFF[metric])
        assert evaluation(all_kept(8)).isfinite().all()
        with leaves_as_it_was(model), pytest.raises(TaskError, match=words):
            evaluation.value_and_gradient(all_kept(8))
    assert WEIGHT.grad is None


def test_a_metric_of_another_shape_is_refused_with_gradients_too(gpt2):
    with ablate(gpt2, heads(gpt2)) as ablated, pytest.raises(TaskError, match="one number per row"):
        make_evaluation(ablated, make_task(gpt2), lambda logits, targets: logits)(all_kept(8))


@pytest.mark.parametrize("what", ["values", "gradients", "both"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_names_the_mask(gpt2, what, bad):
    task, units = make_task(gpt2), heads(gpt2) + mlps(gpt2)
    masks = ablate_only([[], [1, 9], [2]], 10)
    with ablate(gpt2, units) as ablated:
        fine, _ = both(make_evaluation(ablated, task), masks)

        def poisoned(logits, targets):
            values = logit_difference(logits, targets)
            is_fine = (values.detach()[:, None] - fine[[0, 2], 1].float()).abs().amin(dim=1) < 1e-3
            hurt = (targets.answers == task.answers[1]) & ~is_fine
            if what != "values":
                logits.register_hook(lambda slopes: slopes.masked_fill(hurt[:, None], bad))
            return (
                values if what == "gradients" else values + torch.zeros(()).masked_fill(hurt, bad)
            )

        words = (
            r"1 of 9 evaluations gave NaN or infinite values or gradients; the first is mask 1 on "
            r"prompt 1, which ablates L0H1, L1mlp\. The finite values are kept"
        )
        with pytest.raises(NonFiniteError, match=words):
            make_evaluation(ablated, task, poisoned).value_and_gradient(masks)


def test_large_gradients_are_not_mistaken_for_infinite_ones(gpt2, monkeypatch):
    # Their sum over units is beyond single precision; each of them is not.
    def steep(self, rows):
        yield (
            torch.arange(len(rows)),
            torch.zeros(len(rows)).double(),
            torch.full((len(rows), 8), 3e38),
        )

    monkeypatch.setattr(LocalRunner, "gradients", steep)
    with ablate(gpt2, heads(gpt2)) as ablated:
        _, gradients = both(make_evaluation(ablated, make_task(gpt2)), all_kept(8))
    assert (gradients == 3e38).all()


# ---- counting ----


def test_a_gradient_counts_three_evaluations(gpt2):
    calls = []
    with ablate(gpt2, heads(gpt2), batch_size=4) as ablated:
        evaluation = make_evaluation(
            ablated, make_task(gpt2), progress=lambda *counts: calls.append(counts)
        )
        evaluation.value_and_gradient(random_masks(5, 8))
        assert evaluation.n_evaluated == 3 * 5 * 3
        evaluation.sample_gradients(random_masks(5, 8, seed=1), 2, np.random.default_rng(0))
        assert evaluation.n_evaluated == 3 * (15 + 10)
    assert sum(evaluated for evaluated, _ in calls) == 75
    assert all(0 < evaluated <= 12 and evaluated % 3 == 0 for evaluated, _ in calls)


@dataclass
class GatedGame:
    """A linear part and one product per prompt; its gradient is plain."""

    n_units: int = 5
    n_prompts: int = 4

    def __post_init__(self) -> None:
        self.weights = torch.arange(1.0, 1 + self.n_prompts * self.n_units).reshape(
            self.n_prompts, self.n_units
        )

    def per_prompt(self, masks: Tensor) -> Tensor:
        gates = masks.float()
        return gates @ self.weights.T + (gates[:, 0] * gates[:, 1])[:, None]

    def slopes(self, masks: Tensor) -> Tensor:
        gradients = self.weights.expand(len(masks), -1, -1).clone()
        gradients[:, :, :2] += masks.float()[:, [1, 0]][:, None]
        return gradients

    def __call__(self, masks: Tensor) -> Tensor:
        return self.per_prompt(masks).mean(dim=1)

    def value_and_gradient(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        return self(masks), self.slopes(masks).mean(dim=1)

    def sample(self, masks: Tensor, prompts_per_mask: int, rng: np.random.Generator):
        prompts = torch.from_numpy(
            rng.integers(self.n_prompts, size=(len(masks), prompts_per_mask))
        )
        return self.per_prompt(masks).gather(1, prompts), prompts

    def sample_gradients(self, masks: Tensor, prompts_per_mask: int, rng: np.random.Generator):
        values, prompts = self.sample(masks, prompts_per_mask, rng)
        return values, self.slopes(masks)[torch.arange(len(masks))[:, None], prompts], prompts


class Without:
    """A game that lacks some of its methods."""

    def __init__(self, game: GatedGame, *missing: str):
        self.n_units = game.n_units
        for name in ("n_prompts", "per_prompt", "sample", "value_and_gradient", "sample_gradients"):
            if name not in missing:
                setattr(self, name, getattr(game, name))
        self.game = game

    def __call__(self, masks: Tensor) -> Tensor:
        return self.game(masks)


def test_a_meter_counts_gradients_three_times_and_stops_at_the_budget():
    meter, masks = Meter(GatedGame(), 72), random_masks(4, 5)
    rng = np.random.default_rng(0)
    values, gradients, prompts = meter.gradients(masks, None, rng)
    assert meter.n_evaluations == 3 * 4 * 4
    truth = GatedGame().value_and_gradient(masks)
    np.testing.assert_allclose(values[:, 0], truth[0])
    np.testing.assert_allclose(gradients[:, 0], truth[1])
    assert (prompts == 0).all()
    values, gradients, prompts = meter.gradients(masks, 2, rng)
    assert meter.n_evaluations == 48 + 3 * 4 * 2 == 72
    assert (values.shape, gradients.shape, prompts.shape) == ((4, 2), (4, 2, 5), (4, 2))
    slopes = GatedGame().slopes(masks)[torch.arange(4)[:, None], prompts]
    np.testing.assert_allclose(gradients, slopes)
    assert gradients.dtype == values.dtype == np.float64
    with pytest.raises(BudgetError, match="3 more evaluations would pass the budget of 72"):
        meter.gradients(masks[:1], 1, rng)
    with pytest.raises(BudgetError, match="12 more evaluations would pass the budget of 72"):
        meter.gradients(masks[:1], None, rng)
    assert meter.n_evaluations == 72


@pytest.mark.parametrize(
    ("missing", "n_drawn", "words"),
    [
        (("value_and_gradient",), None, r"need a set function with value_and_gradient\(\); Witho"),
        (("sample_gradients",), 2, r"with n_prompts and sample_gradients\(\); Without has none"),
    ],
)
def test_a_meter_says_which_gradients_a_set_function_lacks(missing, n_drawn, words):
    meter = Meter(Without(GatedGame(), *missing), 1000)
    with pytest.raises(DecoderError, match=words):
        meter.gradients(random_masks(4, 5), n_drawn, np.random.default_rng(0))
    assert meter.n_evaluations == 0
    assert meter.differentiable is ("value_and_gradient" not in missing)


def test_a_meter_names_masks_whose_gradient_is_not_finite():
    class Poisoned(GatedGame):
        def slopes(self, masks):
            slopes = super().slopes(masks)
            slopes[2, :, 1] = torch.nan
            return slopes

    masks = ablate_only([[], [0, 1], [2, 4]], 5)
    for n_drawn in (None, 1):
        with pytest.raises(NonFiniteError, match=r"1 of 3 masks: the mask that ablates units \[2,"):
            Meter(Poisoned(), 1000).gradients(masks, n_drawn, np.random.default_rng(0))


@pytest.mark.parametrize("n_drawn", [None, 2])
def test_a_meter_refuses_gradients_of_another_shape(n_drawn):
    class Narrow(GatedGame):
        def slopes(self, masks):
            return super().slopes(masks)[:, :, :4]

    with pytest.raises(
        DecoderError, match=r"must return values of shape \(3, \d, 5\).*got \(3, \d"
    ):
        Meter(Narrow(), 1000).gradients(random_masks(3, 5), n_drawn, np.random.default_rng(0))


# ---- some units only ----


def test_gradients_of_some_units_are_columns_of_all(gpt2):
    task, units = make_task(gpt2), heads(gpt2) + mlps(gpt2)
    chosen = (1, 4, 9)
    for masks in (random_masks(4, 3), fractions(4, 3)):
        wide = torch.ones(4, 10, dtype=masks.dtype)
        wide[:, list(chosen)] = masks
        with cs.CircuitSpex(gpt2, task, units, metric="answer_log_probability") as spex:
            assert isinstance(spex, SampledDifferentiableSetFunction)
            narrow = Restricted(spex, chosen, spex.units.labels)
            assert isinstance(narrow, SampledDifferentiableSetFunction)
            values, gradients = spex.value_and_gradient(wide)
            some_values, some_gradients = narrow.value_and_gradient(masks)
            sampled = spex.sample_gradients(wide, 2, np.random.default_rng(1))
            some_sampled = narrow.sample_gradients(masks, 2, np.random.default_rng(1))
        assert_close(some_values, values, rtol=0, atol=0)
        assert_close(some_gradients, gradients[:, chosen], rtol=0, atol=0)
        assert_close(some_sampled[0], sampled[0], rtol=0, atol=0)
        assert_close(some_sampled[1], sampled[1][..., chosen], rtol=0, atol=0)
        assert_close(some_sampled[2], sampled[2], rtol=0, atol=0)
        assert some_gradients.std() > 1e-3


@pytest.mark.parametrize(
    ("missing", "sampled", "gradient", "sampled_gradients"),
    [
        ((), True, True, True),
        (("sample_gradients",), True, True, False),
        (("value_and_gradient", "sample_gradients"), True, False, False),
        (("per_prompt", "sample", "n_prompts", "sample_gradients"), False, True, False),
        (
            ("per_prompt", "sample", "n_prompts", "value_and_gradient", "sample_gradients"),
            False,
            False,
            False,
        ),
    ],
)
def test_a_restricted_set_function_has_what_the_whole_has(
    missing, sampled, gradient, sampled_gradients
):
    whole: Any = Without(GatedGame(), *missing) if missing else GatedGame()
    narrow: Any = Restricted(whole, (0, 3), [*"abcde"])
    for function in (whole, narrow):
        assert isinstance(function, SampledSetFunction) is sampled
        assert isinstance(function, DifferentiableSetFunction) is gradient
        assert isinstance(function, SampledDifferentiableSetFunction) is sampled_gradients
    masks = random_masks(3, 2)
    wide = torch.ones(3, 5, dtype=torch.bool)
    wide[:, [0, 3]] = masks
    assert_close(narrow(masks), GatedGame()(wide))
    if gradient:
        assert_close(
            narrow.value_and_gradient(masks)[1], GatedGame().slopes(wide).mean(1)[:, [0, 3]]
        )
