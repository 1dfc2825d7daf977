"""What half precision adds to values, and that the user's own type and device are kept."""

import copy

import pytest
import torch
from slow_truth import random_tokens
from tiny_models import make_hf_model, make_tiny

import circuitspex as cs
from circuitspex import models
from circuitspex.errors import HookError
from circuitspex.report import render_page

HALVES = (torch.bfloat16, torch.float16)


def make(dtype, name="llama-grouped"):
    return models.from_hugging_face(copy.deepcopy(make_hf_model(name)), dtype=dtype)


def make_task(model, n_prompts=3):
    prompts = [random_tokens(model, 1, 6, seed=i)[0] for i in range(n_prompts)]
    return cs.Task.from_prompts(model, prompts, [8] * n_prompts, [[3]] * n_prompts)


def slow_floor(model, task):
    """Values of the kept mask from ablated logits, at both ends of batches of 1, 2, 8 and 32."""
    variances = []
    with cs.ablate(model, cs.heads(model), forks=False) as ablated:
        for tokens in task.tokens:
            values = []
            for size in (1, 2, 8, 32):
                rng = torch.Generator().manual_seed(size)
                masks = torch.rand(size, 8, generator=rng) < 0.9
                masks[[0, -1]] = True
                logits = ablated(tokens[None], masks)[:, 0]
                values += [(row[8] - row[3]).double() for row in (logits[0], logits[-1])]
            variances.append(torch.stack(values).var(correction=0))
    return float(torch.stack(variances).mean().sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_the_floor_is_what_repeats_in_other_batches_differ_by(dtype):
    model = make(dtype)
    task = make_task(model)
    with cs.CircuitSpex(model, task, cs.heads(model)) as spex:
        floor, evaluated = spex.noise_floor(), spex.evaluation.n_evaluated
        assert spex.evaluation.ablated.forks
    slow = slow_floor(model, task)
    intact = 1e-6 if dtype == torch.float32 else 0.3
    assert floor < intact
    # Forked passes are places too, which the slow truth leaves out.
    assert floor == pytest.approx(slow, rel=1.0, abs=1e-6)
    assert evaluated == len(task)  # the check that the model solves the task, and nothing else


def test_a_metric_that_depends_on_the_batch_shows():
    """Were values to depend on their row, the floor would be as large as they differ."""
    model = make(torch.float32)

    def by_row(logits, targets):
        return torch.arange(len(logits), dtype=torch.float64)

    with cs.CircuitSpex(model, make_task(model, 1), cs.heads(model), metric=by_row) as spex:
        places = torch.tensor([0, 0, 0, 1, 0, 7, 0, 31], dtype=torch.float64)
        assert spex.noise_floor() > 0.5 * float(places.std(correction=0))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
def test_results_in_half_precision_say_what_it_costs(dtype):
    model = make(dtype)
    with cs.CircuitSpex(model, make_task(model), cs.heads(model)) as spex:
        found = spex.discover("exact", budget=768, keep_rate=0.5)
        assert found.diagnostics["noise_floor"] == spex.noise_floor()
        assert found.n_evaluations == 768
        page = render_page(spex.findings())
    assert "Values repeat to" in page
    assert "(half precision)" in page


def test_results_in_single_precision_do_not():
    model = make(torch.float32)
    with cs.CircuitSpex(model, make_task(model), cs.heads(model)) as spex:
        found = spex.discover("exact", budget=768, keep_rate=0.5)
        assert "noise_floor" not in found.diagnostics
        assert "Values repeat to" not in render_page(spex.findings())


def test_outside_the_block_there_is_no_floor():
    model = make_tiny("gpt2")
    spex = cs.CircuitSpex(model, make_task(model), cs.heads(model))
    with pytest.raises(HookError, match="call this inside the block"):
        spex.noise_floor()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_the_models_own_type_and_device_are_kept(dtype, ablation):
    """Weights stay what they are, and no activation is computed in another type."""
    model = make(dtype)
    units, seen = cs.heads(model) + cs.mlps(model), set()
    before = {name: (p.dtype, p.device, p.clone()) for name, p in model.named_parameters()}

    def look(activation, hook):
        seen.add((activation.dtype, activation.device))

    tokens = random_tokens(model, 2, 6)
    replacement = "zero" if ablation == "zero" else cs.mean(tokens)
    masks = torch.rand(9, len(units), generator=torch.Generator().manual_seed(0)) < 0.7
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
    with cs.ablate(model, units, replacement) as ablated:
        with model.hooks(fwd_hooks=[(name, look) for name in names]):
            logits = ablated(tokens, masks)
    assert seen == {(dtype, torch.device("cpu"))}
    assert (logits.dtype, logits.device) == (dtype, torch.device("cpu"))
    for name, parameter in model.named_parameters():
        assert (parameter.dtype, parameter.device) == before[name][:2]
        assert torch.equal(parameter, before[name][2])
