"""Batched ablation against one mask at a time, and the model as it was on every way out."""

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from slow_truth import (
    activations,
    assert_same_state,
    mean_activations,
    random_masks,
    random_tokens,
    slow_logits,
    slow_table,
    state_of,
)
from tiny_models import ARCHITECTURES, D_VOCAB, make_hf_model, make_tiny, warm_up
from torch.testing import assert_close

from circuitspex import models
from circuitspex.ablation import Rows, ablate, answer_logits
from circuitspex.ablation.hooks import HookedModel
from circuitspex.algebra import ablate_only, all_ablated, all_kept
from circuitspex.errors import AblationError, HookError, MaskError, UnitError
from circuitspex.units import (
    MLP,
    AttentionLayer,
    Head,
    Neuron,
    UnitSet,
    attention_layers,
    heads,
    mlps,
    neuron_blocks,
    neurons,
    replacements,
)

each_architecture = pytest.mark.parametrize("tiny", ARCHITECTURES, indirect=True)
CLOSE = {"rtol": 0, "atol": 1e-4}

CHOICES: dict[str, Callable] = {
    "heads": heads,
    "neurons": neurons,
    "blocks": lambda m: neuron_blocks(m, size=6),
    "attention": attention_layers,
    "mlps": mlps,
    "heads+mlps": lambda m: heads(m) + mlps(m),
    # Out of order, some units of a hook only, and a layer next to its own parts.
    "mixture": lambda m: UnitSet(
        [MLP(1), Head(1, 2), Neuron(0, 3), AttentionLayer(0), Head(0, 1), Neuron(0, 1), Head(1, 0)]
    ),
}


@contextmanager
def leaves_as_it_was(model):
    before = state_of(model)
    try:
        yield
    finally:
        assert_same_state(state_of(model), before, "the block changed the model")


# ---- against the slow truth ----


@each_architecture
@pytest.mark.parametrize("choice", CHOICES)
def test_rows_equal_one_mask_at_a_time_and_plain_hooks(tiny, choice):
    units = CHOICES[choice](tiny)
    tokens = random_tokens(tiny, 2, 7)
    masks = torch.cat([random_masks(3, len(units)), all_ablated(len(units))])
    with ablate(tiny, units) as ablated:
        batched = ablated(tokens, masks)
        single = [[ablated(row[None], mask[None])[0, 0] for row in tokens] for mask in masks]
    truth = slow_table(tiny, tokens, masks, units)
    assert_close(batched, torch.stack([torch.stack(row) for row in single]), **CLOSE)
    assert_close(batched, truth, **CLOSE)
    changes = (truth[:, 0] - slow_logits(tiny, tokens[0], [])).abs().amax(dim=1)
    assert changes[~masks.all(dim=1)].min() > 1e-3, "ablations that change nothing"


@pytest.mark.parametrize("choice", ["heads", "attention"])
def test_the_trained_toy_equals_plain_hooks(toy, choice):
    units = CHOICES[choice](toy)
    tokens, masks = random_tokens(toy, 3, 32), random_masks(4, len(units))
    with ablate(toy, units) as ablated:
        assert_close(ablated(tokens, masks), slow_table(toy, tokens, masks, units), **CLOSE)


@each_architecture
def test_mean_ablation_equals_a_mean_taken_by_hand(tiny):
    units = CHOICES["mixture"](tiny)
    tokens, masks = random_tokens(tiny, 2, 6), random_masks(4, len(units))
    reference = random_tokens(tiny, 5, 6, seed=1)
    means = mean_activations(tiny, reference, units)
    with ablate(tiny, units, replacements.mean(reference)) as ablated:
        values = ablated(tokens, masks)
    assert_close(values, slow_table(tiny, tokens, masks, units, [means, means]), **CLOSE)


@each_architecture
def test_resample_ablation_equals_the_counterfactuals_activations(tiny):
    units = CHOICES["heads+mlps"](tiny)
    tokens, masks = random_tokens(tiny, 3, 6), random_masks(4, len(units))
    others = random_tokens(tiny, 3, 6, seed=1)
    each = [activations(tiny, other, units) for other in others]
    with ablate(tiny, units, replacements.resample(others)) as ablated:
        values = ablated(tokens, masks)
        everything_resampled = ablated(tokens, all_ablated(len(units)))
    assert_close(values, slow_table(tiny, tokens, masks, units, each), **CLOSE)
    # Embeddings are of no unit, so even the empty circuit still reads the prompt itself.
    counterfactual = torch.stack([slow_logits(tiny, other, []) for other in others])
    assert (everything_resampled[0] - counterfactual).abs().max() > 1e-2


def test_resampling_everything_but_the_embedding_of_the_same_token_gives_the_counterfactual(gpt2):
    # Only earlier tokens differ, so once all that moves information is resampled, so is the answer.
    tokens, others = random_tokens(gpt2, 2, 6), random_tokens(gpt2, 2, 6, seed=1)
    others[:, -1] = tokens[:, -1]
    units = CHOICES["heads"](gpt2) + mlps(gpt2)
    with ablate(gpt2, units, replacements.resample(others)) as ablated:
        values = ablated(tokens, all_ablated(len(units)))[0]
    assert_close(values, torch.stack([slow_logits(gpt2, other, []) for other in others]), **CLOSE)


def test_stand_ins_survive_small_batches(gpt2):
    units = CHOICES["mixture"](gpt2)
    tokens, masks = random_tokens(gpt2, 3, 6), random_masks(4, len(units))
    others = random_tokens(gpt2, 3, 6, seed=1)
    for replacement in (replacements.mean(others), replacements.resample(others)):
        with ablate(gpt2, units, replacement) as whole:
            expected = whole(tokens, masks)
        with ablate(gpt2, units, replacement, batch_size=2) as small:
            assert_close(small(tokens, masks), expected, **CLOSE)


@each_architecture
def test_padded_rows_give_the_unpadded_values(tiny):
    units = CHOICES["heads+mlps"](tiny)
    prompts = [random_tokens(tiny, 1, length, seed=length)[0] for length in (4, 7, 5, 5)]
    padded = torch.full((4, 7), 9)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    ends = torch.tensor([len(prompt) - 1 for prompt in prompts])
    masks = random_masks(3, len(units))
    with ablate(tiny, units) as ablated:
        values = ablated(padded, masks, answer_positions=ends)
    assert_close(values, slow_table(tiny, prompts, masks, units), **CLOSE)


def test_padding_serves_the_native_toy_too(toy):
    units, prompts = heads(toy), [random_tokens(toy, 1, n, seed=n)[0] for n in (6, 9)]
    padded = torch.zeros(2, 9, dtype=torch.long)
    padded[0, :6], padded[1] = prompts[0], prompts[1]
    masks = random_masks(3, len(units))
    with ablate(toy, units) as ablated:
        values = ablated(padded, masks, answer_positions=torch.tensor([5, 8]))
    assert_close(values, slow_table(toy, prompts, masks, units), **CLOSE)


@each_architecture
def test_keeping_all_is_the_unhooked_model(tiny):
    tokens = random_tokens(tiny, 3, 7)
    units = CHOICES["mixture"](tiny)
    unhooked = answer_logits(tiny, tokens)
    with ablate(tiny, units) as ablated:
        assert_close(ablated(tokens, all_kept(len(units)))[0], unhooked, rtol=0, atol=1e-5)
        # Bit for bit where all is computed, as it is while somebody looks.
        with tiny.hooks(fwd_hooks=[("unembed.hook_in", lambda t, hook: None)]):
            assert_close(ablated(tokens, all_kept(len(units)))[0], unhooked, rtol=0, atol=0)
    assert_close(unhooked, tiny(tokens)[:, -1], **CLOSE)


@each_architecture
def test_logits_of_positions_nobody_reads_are_never_made(tiny):
    shapes = []

    def spy(logits, hook):
        shapes.append(tuple(logits.shape))

    units = heads(tiny)
    with tiny.hooks(fwd_hooks=[("unembed.hook_out", spy)]), ablate(tiny, units) as ablated:
        shapes.clear()
        ablated(random_tokens(tiny, 2, 7), random_masks(3, len(units)))
        assert shapes == [(6, 1, D_VOCAB)]
        shapes.clear()
        ends = torch.tensor([6, 3])
        ablated(random_tokens(tiny, 2, 7), random_masks(3, len(units)), answer_positions=ends)
        assert shapes == [(6, 2, D_VOCAB)]


def test_one_forward_pass_a_batch(gpt2):
    rows = []
    units, tokens = heads(gpt2), random_tokens(gpt2, 2, 5)
    with ablate(gpt2, units, batch_size=4, forks=False) as ablated:
        with gpt2.hooks(fwd_hooks=[("hook_embed", lambda t, hook: rows.append(len(t)))]):
            ablated(tokens, random_masks(5, len(units)))
    assert rows == [4, 4, 2]


def test_no_masks_give_no_logits(gpt2):
    with ablate(gpt2, heads(gpt2)) as ablated:
        values = ablated(random_tokens(gpt2, 2, 5), torch.zeros(0, 8, dtype=torch.bool))
    assert values.shape == (0, 2, D_VOCAB)


def test_logits_carry_no_gradient(gpt2):
    with ablate(gpt2, heads(gpt2)) as ablated:
        assert not ablated(random_tokens(gpt2, 1, 5), all_kept(8)).requires_grad


def test_ablation_hides_what_is_not_finite(gpt2):
    def poison(z, hook):
        z = z.clone()
        z[:, :, 2] = torch.nan
        return z

    units, tokens = heads(gpt2), random_tokens(gpt2, 1, 5)
    masks = ablate_only([[2], []], len(units))
    with gpt2.hooks(fwd_hooks=[("blocks.0.attn.hook_z", poison)]):
        with ablate(gpt2, units, probe=False) as ablated:
            values = ablated(tokens, masks)[:, 0]
    assert_close(values[0], slow_logits(gpt2, tokens[0], [Head(0, 2)]), **CLOSE)
    assert values[1].isnan().all()


# ---- the model is as it was ----


def test_a_block_leaves_the_model_as_it_was(gpt2):
    with leaves_as_it_was(gpt2), ablate(gpt2, CHOICES["mixture"](gpt2)) as ablated:
        assert ablated(random_tokens(gpt2, 2, 5), random_masks(3, 7)).isfinite().all()


def test_the_check_notices_a_hook_that_is_left(gpt2):
    # The negative control of leaves_as_it_was, and of the check after every test.
    before = state_of(gpt2)
    gpt2.add_hook("blocks.0.attn.hook_z", lambda z, hook: None)
    try:
        with pytest.raises(AssertionError, match="lens hooks, torch hooks"):
            assert_same_state(state_of(gpt2), before, "")
    finally:
        gpt2.reset_hooks()
    gpt2.original_model.transformer.h[0].train()
    try:
        with pytest.raises(AssertionError, match="training"):
            assert_same_state(state_of(gpt2), before, "")
    finally:
        gpt2.eval()


def test_an_exception_in_the_body_passes_and_leaves_the_model_as_it_was(gpt2):
    with (
        leaves_as_it_was(gpt2),
        pytest.raises(ZeroDivisionError, match="user code"),
        ablate(gpt2, heads(gpt2)),
    ):
        raise ZeroDivisionError("user code")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_forward_pass_leaves_the_model_as_it_was(gpt2, error):
    tokens, units = random_tokens(gpt2, 2, 5), heads(gpt2)

    def interrupt(z, hook):
        raise error("stop here")

    with leaves_as_it_was(gpt2):
        with pytest.raises(error, match="stop here"), ablate(gpt2, units) as ablated:
            with gpt2.hooks(fwd_hooks=[("blocks.1.attn.hook_z", interrupt)]):
                ablated(tokens, all_ablated(len(units)))
    # Inside the same block, too, an interrupted pass leaves nothing switched on.
    with ablate(gpt2, units) as ablated:
        with (
            pytest.raises(error, match="stop here"),
            gpt2.hooks(fwd_hooks=[("blocks.1.attn.hook_z", interrupt)]),
        ):
            ablated(tokens, all_ablated(len(units)))
        assert_close(answer_logits(gpt2, tokens)[0], slow_logits(gpt2, tokens[0], []), **CLOSE)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_entry_leaves_the_model_as_it_was(gpt2, error):
    def interrupt(z, hook):
        raise error("stop here")

    with gpt2.hooks(fwd_hooks=[("blocks.1.attn.hook_z", interrupt)]):
        with (
            leaves_as_it_was(gpt2),
            pytest.raises(error, match="stop here"),
            ablate(gpt2, heads(gpt2)),
        ):
            pytest.fail("the block was entered")  # pragma: no cover


def test_failing_stand_ins_leave_the_model_as_it_was(gpt2):
    beyond = torch.full((2, 5), D_VOCAB)
    with leaves_as_it_was(gpt2), pytest.raises(IndexError, match="out of range"):
        with ablate(gpt2, heads(gpt2), replacements.mean(beyond)):
            pytest.fail("the block was entered")  # pragma: no cover


def test_an_entry_that_failed_can_be_tried_again(gpt2):
    units, tokens = heads(gpt2), random_tokens(gpt2, 1, 5)
    block = ablate(gpt2, units)
    with gpt2.hooks(fwd_hooks=[("hook_embed", lambda t, hook: 1 / 0)]):
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            block.__enter__()
    with block as ablated:
        assert_close(
            ablated(tokens, ablate_only([[3]], 8))[0, 0],
            slow_logits(gpt2, tokens[0], [Head(0, 3)]),
            **CLOSE,
        )


def test_a_block_can_be_entered_again_after_it_was_left(gpt2):
    units, tokens, masks = heads(gpt2), random_tokens(gpt2, 2, 5), random_masks(3, 8)
    others = random_tokens(gpt2, 2, 5, seed=1)
    block = ablate(gpt2, units, replacements.resample(others))
    with block as ablated:
        first = ablated(tokens, masks)
    with leaves_as_it_was(gpt2), block as ablated:
        assert_close(ablated(tokens, masks), first, rtol=0, atol=0)


def test_a_block_cannot_be_entered_twice_at_once(gpt2):
    tokens = random_tokens(gpt2, 1, 5)
    with leaves_as_it_was(gpt2), ablate(gpt2, heads(gpt2)) as ablated:
        before = ablated(tokens, all_ablated(8))
        with pytest.raises(HookError, match=r"already entered; make another one with cs\.ablate"):
            ablated.__enter__()
        assert_close(ablated(tokens, all_ablated(8)), before, rtol=0, atol=0)


def test_calling_outside_the_block_is_refused(gpt2):
    block, tokens = ablate(gpt2, heads(gpt2)), random_tokens(gpt2, 1, 5)
    with pytest.raises(HookError, match=r"call this inside the block: with cs\.ablate"):
        block(tokens, all_kept(8))
    with block:
        pass
    with pytest.raises(HookError, match=r"call this inside the block: with cs\.ablate"):
        block(tokens, all_kept(8))


def test_nested_blocks_do_not_see_each_other(gpt2):
    tokens, masks = random_tokens(gpt2, 2, 5), random_masks(4, 8)
    others = random_tokens(gpt2, 2, 5, seed=1)
    means = mean_activations(gpt2, others, heads(gpt2))
    outer_truth = slow_table(gpt2, tokens, masks, heads(gpt2))
    inner_truth = slow_table(gpt2, tokens, masks, heads(gpt2), [means, means])
    mlp_truth = slow_table(gpt2, tokens, all_ablated(2), mlps(gpt2))
    with leaves_as_it_was(gpt2), ablate(gpt2, heads(gpt2)) as outer:
        with ablate(gpt2, heads(gpt2), replacements.mean(others)) as inner:
            with ablate(gpt2, mlps(gpt2)) as innermost:
                assert_close(inner(tokens, masks), inner_truth, **CLOSE)
                assert_close(outer(tokens, masks), outer_truth, **CLOSE)
                assert_close(innermost(tokens, all_ablated(2)), mlp_truth, **CLOSE)
            assert_close(inner(tokens, masks), inner_truth, **CLOSE)
        assert_close(outer(tokens, masks), outer_truth, **CLOSE)


def test_blocks_may_be_left_in_any_order(gpt2):
    tokens, masks = random_tokens(gpt2, 2, 5), random_masks(4, 8)
    with leaves_as_it_was(gpt2):
        first, second = ablate(gpt2, heads(gpt2)), ablate(gpt2, heads(gpt2))
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert_close(second(tokens, masks), slow_table(gpt2, tokens, masks, heads(gpt2)), **CLOSE)
        second.__exit__(None, None, None)


def test_other_peoples_hooks_stay_and_fire(gpt2):
    seen = []

    def note(name):
        return lambda z, hook: seen.append(name)

    tokens = random_tokens(gpt2, 1, 5)
    gpt2.add_hook("blocks.0.attn.hook_z", note("before"))
    gpt2.add_perma_hook("blocks.1.attn.hook_z", note("permanent"))
    try:
        with ablate(gpt2, heads(gpt2)) as ablated:
            gpt2.add_hook("blocks.1.hook_attn_out", note("inside"))
            seen.clear()
            ablated(tokens, all_ablated(8))
            assert seen == ["before", "permanent", "inside"]
        seen.clear()
        gpt2(tokens)
        assert seen == ["before", "permanent", "inside"]
    finally:
        gpt2.reset_hooks(including_permanent=True)


def test_other_peoples_hooks_act_on_the_ablated_model(gpt2):
    def halve(z, hook):
        return z / 2

    tokens, masks, units = random_tokens(gpt2, 2, 5), random_masks(3, 8), heads(gpt2)
    with gpt2.hooks(fwd_hooks=[("blocks.0.attn.hook_z", halve)]):
        truth = slow_table(gpt2, tokens, masks, units)
        with ablate(gpt2, units) as ablated:
            assert_close(ablated(tokens, masks), truth, **CLOSE)


def test_training_flags_come_back_module_by_module():
    model = make_tiny("gpt2")
    model.train()
    model.original_model.transformer.h[0].attn.eval()
    model.original_model.transformer.drop.eval()
    modules = [*model.modules(), *model.original_model.modules()]
    assert len({module.training for module in modules}) == 2
    tokens, units = random_tokens(model, 2, 5), heads(model)
    with leaves_as_it_was(model), ablate(model, units) as ablated:
        assert not any(module.training for module in modules)
        # With dropout on, two passes would differ.
        assert_close(ablated(tokens, all_ablated(8)), ablated(tokens, all_ablated(8)))


def test_gradients_leave_every_parameter_as_it_was():
    model = make_tiny("gpt2")
    parameters = list(model.original_model.parameters())
    for parameter in parameters[::2]:
        parameter.requires_grad_(False)
    before = [parameter.requires_grad for parameter in parameters]
    assert {*before} == {True, False}
    tokens, rows = random_tokens(model, 1, 5), torch.arange(4)
    asked, during = Rows(random_masks(4, 8), rows, 0 * rows), []

    def measure(logits, done):
        during.append(any(parameter.requires_grad for parameter in parameters))
        return logits[:, 0] if len(during) < 3 else logits[:, 0] / [][0]

    with ablate(model, heads(model), batch_size=2) as ablated:
        for _ in ablated.stream_gradients(tokens, asked, measure):
            assert [parameter.requires_grad for parameter in parameters] == before
        with pytest.raises(IndexError, match="list index out of range"):
            next(ablated.stream_gradients(tokens, asked, measure))
    assert during == [False] * 3
    assert [parameter.requires_grad for parameter in parameters] == before


def test_stand_ins_are_dropped_with_the_block(gpt2):
    kept = []

    class Noted(replacements.Resample):
        def combine(self, activations):
            kept.append(weakref.ref(activations))
            return activations

    block = ablate(gpt2, heads(gpt2), Noted(tuple(random_tokens(gpt2, 2, 5))))
    with block:
        gc.collect()
        assert [ref() is None for ref in kept] == [False, False]
    gc.collect()
    assert [ref() is None for ref in kept] == [True, True]


def test_inside_the_block_the_model_itself_is_intact(gpt2):
    tokens = random_tokens(gpt2, 2, 5)
    intact = gpt2(tokens)
    others = random_tokens(gpt2, 2, 5, seed=1)
    with ablate(gpt2, heads(gpt2), replacements.resample(others)) as ablated:
        ablated(tokens, all_ablated(8))
        assert_close(gpt2(tokens), intact, rtol=0, atol=0)
        text, cache = gpt2.run_with_cache(tokens)
        assert_close(text, intact, rtol=0, atol=0)
        assert len(cache) > 10
    assert_close(gpt2(tokens), intact, rtol=0, atol=0)


def test_between_batches_the_model_itself_is_intact(gpt2):
    # Code that consumes the stream, such as a metric, may run the model while rows are pending.
    tokens, units = random_tokens(gpt2, 1, 5), heads(gpt2)
    intact = gpt2(tokens)
    rows = torch.zeros(4, dtype=torch.long)
    with ablate(gpt2, units, batch_size=2) as ablated:
        for _, logits in ablated.stream(tokens, Rows(all_ablated(8), rows, rows)):
            assert_close(gpt2(tokens), intact, rtol=0, atol=0)
            assert (logits - intact[:, -1]).abs().max() > 1e-2


def test_hooks_that_were_reset_inside_the_block_are_missed(gpt2):
    tokens = random_tokens(gpt2, 1, 5)
    with leaves_as_it_was(gpt2), ablate(gpt2, heads(gpt2)) as ablated:
        ablated(tokens, all_kept(8))
        gpt2.reset_hooks()
        with pytest.raises(
            HookError,
            match=r"hook blocks\.0\.attn\.hook_z did not fire \(2 of 2 hooks\).*reset_hooks\(\)",
        ):
            ablated(tokens, all_ablated(8))


# ---- probes ----


class Elsewhere(AttentionLayer):
    """A unit at a hook of the test's choice."""

    place = ""

    @property
    def hook(self):
        return self.place


def at(place: str) -> UnitSet:
    return UnitSet([type("Elsewhere", (Elsewhere,), {"place": place})(0)])


def test_units_of_another_kind_of_model_are_refused(toy):
    with pytest.raises(UnitError, match="the model has no MLPs"):
        ablate(toy, UnitSet([Neuron(0, 0)]))
    with pytest.raises(UnitError, match="L0H4 does not exist"):
        ablate(toy, UnitSet([Head(0, 4)]))


def test_a_missing_hook_is_named(gpt2):
    with leaves_as_it_was(gpt2):
        with pytest.raises(
            HookError, match=r"the model has no hook blocks\.0\.hook_nowhere \(1 of 1 are missing\)"
        ):
            ablate(gpt2, at("blocks.0.hook_nowhere")).__enter__()


def test_a_hook_that_is_switched_off_is_named(gpt2):
    with leaves_as_it_was(gpt2):
        with pytest.raises(HookError, match=r"blocks\.0\.attn\.hook_result.*use_attn_result"):
            ablate(gpt2, at("blocks.0.attn.hook_result")).__enter__()


def test_a_hook_that_does_not_fire_is_named():
    model = make_tiny("gpt2")
    # Not run any more: what the output projection's hook is called on.
    model.blocks[1].attn.o.hook_in = torch.nn.Identity()
    words = r"hook blocks\.1\.attn\.hook_z did not fire \(1 of 2 hooks\)"
    with leaves_as_it_was(model), pytest.raises(HookError, match=words):
        ablate(model, heads(model)).__enter__()


def test_an_axis_of_another_size_is_named():
    # TransformerLens takes an OPT model's MLPs to be four times as wide as the stream.
    import transformers

    sizes = make_hf_model("opt").config.to_dict()
    config = transformers.OPTConfig(**{**sizes, "ffn_dim": 20})
    model = models.from_hugging_face(transformers.OPTForCausalLM(config).eval())
    warm_up(model)
    words = r"blocks\.0\.mlp\.hook_post has shape \(1, 8, 20\); \(1, positions, 64\) was expected"
    with leaves_as_it_was(model), pytest.raises(HookError, match=words):
        ablate(model, neurons(model)).__enter__()


def test_a_hook_of_another_shape_is_named(gpt2):
    words = r"blocks\.0\.attn\.hook_pattern has shape \(1, 4, 8, 8\); \(1, positions, 16\) was"
    with leaves_as_it_was(gpt2), pytest.raises(HookError, match=words):
        ablate(gpt2, at("blocks.0.attn.hook_pattern")).__enter__()


def test_a_dead_canary_is_named():
    model = make_tiny("gpt2")
    with torch.no_grad():
        model.original_model.transformer.h[1].attn.c_proj.weight.zero_()
    words = r"ablating at blocks\.1\.attn\.hook_z does not change the logits.*pass probe=False"
    with leaves_as_it_was(model), pytest.raises(HookError, match=words):
        ablate(model, heads(model)).__enter__()
    tokens, masks = random_tokens(model, 1, 5), random_masks(3, 8)
    with ablate(model, heads(model), probe=False) as ablated:
        assert_close(
            ablated(tokens, masks), slow_table(model, tokens, masks, heads(model)), **CLOSE
        )


def test_hooks_that_disturb_the_model_are_noticed(gpt2):
    calls = []

    def drift(t, hook):
        calls.append(1)
        t = t.clone()
        t[..., 0] += len(calls)
        return t

    with gpt2.hooks(fwd_hooks=[("hook_embed", drift)]), leaves_as_it_was(gpt2):
        with pytest.raises(HookError, match=r"keeping every unit changed the logits by \d"):
            ablate(gpt2, heads(gpt2)).__enter__()


# ---- weight processing ----


def test_compatibility_mode_works_and_ablates_once(monkeypatch):
    model = make_tiny("gpt2")
    tokens = random_tokens(model, 2, 5)
    raw = slow_table(model, tokens, all_ablated(8), heads(model))
    model.enable_compatibility_mode()
    warm_up(model)
    calls: list[str] = []
    add_hook = HookedModel._ablating

    def counted(self, site):
        ablate_site = add_hook(self, site)

        def count(activation, *, hook):
            calls.append(site.hook)
            return ablate_site(activation, hook=hook)

        return count

    monkeypatch.setattr(HookedModel, "_ablating", counted)
    units = heads(model) + mlps(model)
    masks = random_masks(4, len(units))
    with leaves_as_it_was(model), ablate(model, units) as ablated:
        calls.clear()
        values = ablated(tokens, masks)
        assert calls == [
            "blocks.0.attn.hook_z",
            "blocks.0.hook_mlp_out",
            "blocks.1.attn.hook_z",
            "blocks.1.hook_mlp_out",
        ]
    assert_close(values, slow_table(model, tokens, masks, units), **CLOSE)
    folded = slow_table(model, tokens, all_ablated(8), heads(model))
    centred = folded - folded.mean(dim=-1, keepdim=True) - raw + raw.mean(dim=-1, keepdim=True)
    assert centred.abs().max() > 1e-2, "folding should move zero ablation, or nothing is tested"


def test_half_precision_is_ablated_in_half_precision(gpt2):
    model = models.from_hugging_face(
        copy.deepcopy(make_hf_model("llama-grouped")), dtype=torch.bfloat16
    )
    units, tokens = heads(model), random_tokens(model, 2, 5)
    with ablate(model, units, replacements.mean(tokens)) as ablated:
        assert ablated(tokens, random_masks(2, 8)).dtype == torch.bfloat16


# ---- bad input ----


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ([[True] * 8], r"must be a torch bool tensor of shape \(masks, 8\), True = kept; got list"),
        (torch.ones(2, 8).numpy() > 0, r"got ndarray\. Convert it with torch\.as_tensor"),
        (torch.ones(2, 8), r"must be bool, True = kept; got dtype torch\.float32.*masks > 0\.5"),
        (torch.ones(2, 8, dtype=torch.uint8), r"must be bool.*got dtype torch\.uint8"),
        (torch.ones(2, 7, dtype=torch.bool), r"one column per unit; got \(2, 7\)"),
        (torch.ones(8, dtype=torch.bool), r"got \(8,\)\. A single mask needs mask\[None, :\]"),
    ],
    ids=["list", "numpy", "float", "integers", "width", "one-dimensional"],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_masks_are_refused(gpt2, masks, words):
    with ablate(gpt2, heads(gpt2)) as ablated, pytest.raises(MaskError, match=words):
        ablated(random_tokens(gpt2, 1, 5), masks)


@pytest.mark.usefixtures("unchecked")
def test_tokens_of_one_prompt_need_a_batch_axis(gpt2):
    with ablate(gpt2, heads(gpt2)) as ablated:
        with pytest.raises(MaskError, match=r"tokens must have shape \(prompts, positions\)"):
            ablated(random_tokens(gpt2, 1, 5)[0], all_kept(8))


def test_prompts_without_a_stand_in_are_refused(gpt2):
    reference = [torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3, 4])]
    with ablate(gpt2, heads(gpt2), replacements.mean(reference)) as ablated:
        assert ablated(random_tokens(gpt2, 1, 4), all_ablated(8)).shape == (1, 1, D_VOCAB)
        words = r"mean ablation has no stand-in for prompts of 5 tokens, only for 3, 4"
        with pytest.raises(AblationError, match=words):
            ablated(random_tokens(gpt2, 1, 5), all_ablated(8))


def test_prompts_without_a_counterfactual_are_refused(gpt2):
    others = random_tokens(gpt2, 2, 5)
    with ablate(gpt2, heads(gpt2), replacements.resample(others)) as ablated:
        words = r"one counterfactual per prompt, of the same length; got 2 counterfactuals"
        with pytest.raises(AblationError, match=words):
            ablated(random_tokens(gpt2, 3, 5), all_ablated(8))


def test_counterfactuals_of_another_order_of_lengths_are_refused(gpt2):
    others = [torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3])]
    with ablate(gpt2, heads(gpt2), replacements.resample(others)) as ablated:
        with pytest.raises(AblationError, match="of the same length; got 2 counterfactuals"):
            ablated(random_tokens(gpt2, 1, 3), all_ablated(8))
