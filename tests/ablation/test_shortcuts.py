"""What nobody reads is left out, while nobody looks, and what is read stays the same."""

from contextlib import contextmanager

import pytest
import torch
from slow_truth import random_masks, random_tokens, slow_logits, slow_table
from tiny_models import ARCHITECTURES, D_VOCAB, make_tiny
from torch.testing import assert_close

from circuitspex.ablation import Rows, ablate
from circuitspex.units import Head, Neuron, UnitSet, heads, mlps, replacements

CLOSE = {"rtol": 0, "atol": 1e-4}
COLUMNS = torch.tensor([9, 3, 30])
LONG_WAY = ("tiny-opt",)
"""TransformerLens keeps hooks of its own in the last block of these, so all is computed."""


def late_units(model):
    """Units on both sides of the place where positions are left out."""
    return heads(model) + mlps(model, [0]) + UnitSet([Neuron(1, 3), Neuron(1, 5)])


@contextmanager
def seen_by_torch(model):
    """Note what goes into the last linear layer of the last MLP, and comes out of the model.

    PyTorch's own hooks: hooks of TransformerLens would be noticed.
    """
    shapes: dict[str, tuple] = {}
    inner = model.original_model
    down = [m for m in model.blocks[1].mlp.modules() if isinstance(m, torch.nn.Linear)]
    down += [m for m in model.blocks[1].mlp.modules() if type(m).__name__ == "Conv1D"]
    handles = [
        down[-1].register_forward_pre_hook(
            lambda module, given: shapes.__setitem__("mlp", tuple(given[0].shape[:-1]))
        ),
        inner.register_forward_hook(
            lambda module, given, out: shapes.__setitem__("logits", tuple(out.logits.shape))
        ),
    ]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def stream(ablated, tokens, masks, columns=None, ends=None):
    """Logits of every mask on every prompt, (masks, prompts, columns)."""
    prompts = torch.arange(len(tokens)).repeat(len(masks))
    which = torch.arange(len(masks)).repeat_interleave(len(tokens))
    parts = list(ablated.stream(tokens, Rows(masks, which, prompts), ends, columns=columns))
    order = torch.cat([rows for rows, _ in parts]).argsort()
    logits = torch.cat([logits for _, logits in parts])[order]
    return logits.reshape(len(masks), len(tokens), -1)


@pytest.mark.parametrize("forks", [True, False])
@pytest.mark.parametrize("tiny", ARCHITECTURES, indirect=True)
def test_only_what_is_read_is_computed(tiny, forks):
    units = late_units(tiny)
    tokens, masks = random_tokens(tiny, 2, 7), random_masks(5, len(units))
    with ablate(tiny, units, forks=forks, batch_size=4) as ablated, seen_by_torch(tiny) as shapes:
        few = stream(ablated, tokens, masks, COLUMNS)
        if tiny.cfg.model_name not in LONG_WAY:
            assert (shapes["mlp"][-1], shapes["logits"][1:]) == (1, (1, 3))
        whole = ablated(tokens, masks)
        assert shapes["logits"][1:] == (1, D_VOCAB)
    truth = slow_table(tiny, tokens, masks, units)
    assert_close(few, truth[..., COLUMNS], **CLOSE)
    assert_close(whole, truth, **CLOSE)


@pytest.mark.parametrize("tiny", ARCHITECTURES, indirect=True)
@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_stand_ins_are_taken_at_the_position_that_is_read(tiny, kind):
    units = late_units(tiny)
    tokens, masks = random_tokens(tiny, 3, 6), random_masks(5, len(units))
    replacement = getattr(replacements, kind)(random_tokens(tiny, 3, 6, seed=1))
    with ablate(tiny, units, replacement) as ablated:
        few, whole = stream(ablated, tokens, masks, COLUMNS), ablated(tokens, masks)
        with tiny.hooks(fwd_hooks=[("unembed.hook_in", lambda t, hook: None)]):
            long_way = ablated(tokens, masks)
    assert_close(whole, long_way, **CLOSE)
    assert_close(few, long_way[..., COLUMNS], **CLOSE)


@pytest.mark.parametrize("tiny", ARCHITECTURES, indirect=True)
def test_the_position_that_is_read_may_be_any(tiny):
    units = late_units(tiny)
    tokens, masks = random_tokens(tiny, 2, 7), random_masks(4, len(units))
    with ablate(tiny, units) as ablated:
        for ends in (torch.tensor([4, 4]), torch.tensor([4, 2])):
            values = stream(ablated, tokens, masks, COLUMNS, ends)
            short = [row[: end + 1] for row, end in zip(tokens, ends.tolist(), strict=True)]
            assert_close(values, slow_table(tiny, short, masks, units)[..., COLUMNS], **CLOSE)


def test_gradients_take_the_shortcut_too(gpt2):
    units, tokens = late_units(gpt2), random_tokens(gpt2, 1, 6)
    gates, rows = torch.rand(3, len(units)), torch.arange(3)

    def gradients(ablated):
        asked = Rows(gates, rows, 0 * rows)
        stream = ablated.stream_gradients(tokens, asked, lambda logits, rows: logits[:, 4])
        return torch.cat([gradient for _, _, gradient in stream])

    with ablate(gpt2, units) as ablated, seen_by_torch(gpt2) as shapes:
        short = gradients(ablated)
        assert shapes["mlp"][-1] == 1
        with gpt2.hooks(fwd_hooks=[("unembed.hook_in", lambda t, hook: None)]):
            assert_close(short, gradients(ablated), **CLOSE)
        assert shapes["mlp"][-1] == 6


@pytest.mark.parametrize(
    "place", ["blocks.1.mlp.hook_post", "blocks.1.hook_resid_post", "unembed.hook_out"]
)
def test_who_looks_sees_everything(gpt2, place):
    units, tokens, masks = heads(gpt2), random_tokens(gpt2, 1, 6), random_masks(3, 8)
    seen: list[tuple] = []
    with ablate(gpt2, units, forks=False) as ablated:
        with gpt2.hooks(fwd_hooks=[(place, lambda t, hook: seen.append(tuple(t.shape)))]):
            values = stream(ablated, tokens, masks, COLUMNS)
        assert seen[0][:2] == ((3, 1) if place == "unembed.hook_out" else (3, 6))
        assert place != "unembed.hook_out" or seen[0][2] == D_VOCAB
        assert_close(values, stream(ablated, tokens, masks, COLUMNS), **CLOSE)


def test_hooks_that_act_there_act(gpt2):
    units, tokens, masks = heads(gpt2), random_tokens(gpt2, 1, 6), random_masks(3, 8)
    hooks = [("blocks.1.hook_mlp_out", lambda t, hook: t - t.mean(dim=1, keepdim=True))]
    with gpt2.hooks(fwd_hooks=hooks):
        truth = slow_table(gpt2, tokens, masks, units)
        with ablate(gpt2, units) as ablated:
            assert_close(stream(ablated, tokens, masks, COLUMNS), truth[..., COLUMNS], **CLOSE)
    with ablate(gpt2, units) as ablated, gpt2.hooks(fwd_hooks=hooks):
        assert_close(stream(ablated, tokens, masks, COLUMNS), truth[..., COLUMNS], **CLOSE)


def test_other_blocks_of_ours_do_not_count(gpt2):
    tokens, masks = random_tokens(gpt2, 1, 6), random_masks(3, 8)
    with ablate(gpt2, mlps(gpt2)), ablate(gpt2, heads(gpt2)) as ablated:
        with seen_by_torch(gpt2) as shapes:
            ablated(tokens, masks)
        assert shapes["mlp"][-1] == 1


def test_a_model_in_which_positions_depend_on_each_other_takes_the_long_way():
    model = make_tiny("gpt2")
    # A norm over positions: right only where all of them are there.
    model.original_model.transformer.h[1].mlp.c_proj.register_forward_pre_hook(
        lambda module, given: (given[0] - given[0].mean(dim=-2, keepdim=True),)
    )
    units, tokens, masks = heads(model), random_tokens(model, 2, 6), random_masks(3, 8)
    with ablate(model, units) as ablated:
        values = stream(ablated, tokens, masks, COLUMNS)
    assert_close(values, slow_table(model, tokens, masks, units)[..., COLUMNS], **CLOSE)


def test_one_token_prompts_have_one_position(gpt2):
    tokens = random_tokens(gpt2, 1, 1)
    with ablate(gpt2, heads(gpt2)) as ablated:
        values = stream(ablated, tokens, ~torch.eye(8, dtype=torch.bool)[:2], COLUMNS)
    expected = torch.stack([slow_logits(gpt2, tokens[0], [Head(0, i)]) for i in range(2)])
    assert_close(values[:, 0], expected[:, COLUMNS], **CLOSE)
