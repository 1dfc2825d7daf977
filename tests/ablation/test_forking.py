"""Rows that share layers: planned against counted prefixes, run against the flat batch."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from slow_truth import random_masks, random_tokens, slow_table
from tiny_models import ARCHITECTURES, make_tiny
from torch.testing import assert_close

from circuitspex import models
from circuitspex.ablation import Rows, ablate
from circuitspex.ablation.forking import SharedLayers, plan
from circuitspex.algebra import ablate_only, all_ablated, all_kept
from circuitspex.errors import ForkWarning
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

CLOSE = {"rtol": 0, "atol": 1e-5}

CHOICES: dict[str, Callable] = {
    "heads": heads,
    "neurons": lambda m: neurons(m, indices=range(6)),
    "blocks": lambda m: neuron_blocks(m, size=6),
    "attention": attention_layers,
    "mlps": mlps,
    "heads+mlps": lambda m: heads(m) + mlps(m),
    "last layer": lambda m: heads(m, [1]),
    "mixture": lambda m: UnitSet(
        [MLP(1), Head(1, 2), Neuron(0, 3), AttentionLayer(0), Head(0, 1), Neuron(0, 1), Head(1, 0)]
    ),
}


def deletions(n_units: int) -> torch.Tensor:
    """Return the masks that ablate nothing, one unit, two units or all, in no order, some twice."""
    sets = [[], *([i] for i in range(n_units)), *map(list, combinations(range(n_units), 2))]
    masks = torch.cat([ablate_only(sets[:30], n_units), all_ablated(n_units)])
    order = torch.randperm(len(masks) + 5, generator=torch.Generator().manual_seed(0))
    return torch.cat([masks, masks[:5]])[order]


# ---- plans ----


def prefix(mask, layer_of_unit, layer):
    """What a row's forward pass depends on up to and including a layer."""
    return tuple((mask | (layer_of_unit > layer)).tolist())


def draw_rows(seed):
    rng = torch.Generator().manual_seed(seed)
    layer_of_unit = torch.randint(0, 5, (7,), generator=rng)
    masks = torch.rand(40, 7, generator=rng) < 0.7
    prompts = torch.randint(0, 3, (90,), generator=rng)
    which = torch.randint(0, 40, (90,), generator=rng)
    return masks, prompts, which, layer_of_unit


def passes(shared: SharedLayers, batch_size: int):
    for tree in shared.groups():
        for start in range(tree.start, tree.stop, batch_size):
            yield slice(start, min(start + batch_size, tree.stop))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_plans_run_each_prefix_once_a_pass(seed, batch_size):
    masks, prompts, which, layer_of_unit = draw_rows(seed)
    shared = plan(masks, prompts, which, layer_of_unit, n_layers=6)
    total, n_passes = 0, 0
    for leaves in passes(shared, batch_size):
        n_passes += 1
        fork = shared.fork(leaves)
        own = [masks[i] for i in shared.masks[leaves]]
        alive = 1
        for layer in range(6):
            alive = len(fork.alive[layer]) if layer in fork.alive else alive
            assert alive == len({prefix(mask, layer_of_unit, layer) for mask in own})
            total += alive
        assert alive == len(own) <= batch_size
    assert shared.row_layers(batch_size) == total
    assert shared.n_passes(batch_size) == n_passes


@pytest.mark.parametrize("seed", range(3))
def test_every_row_descends_from_rows_with_its_own_past(seed):
    masks, prompts, which, layer_of_unit = draw_rows(seed)
    shared = plan(masks, prompts, which, layer_of_unit, n_layers=5)
    for leaves in passes(shared, 16):
        fork = shared.fork(leaves)
        pasts: list[tuple] = [()]  # of every row alive, what was ablated so far
        for layer in sorted(fork.alive):
            if layer in fork.grow:
                pasts = [pasts[i] for i in fork.grow[layer].tolist()]
            assert len(pasts) == len(fork.alive[layer])
            for row, leaf in enumerate(fork.alive[layer].tolist()):
                mask = masks[shared.masks[leaves][leaf]]
                pasts[row] += tuple(mask[layer_of_unit == layer].tolist())
        order = layer_of_unit.argsort(stable=True)
        assert pasts == [tuple(masks[i][order].tolist()) for i in shared.masks[leaves]]


@pytest.mark.parametrize("seed", range(3))
def test_leaves_stand_for_every_row_once(seed):
    masks, prompts, which, layer_of_unit = draw_rows(seed)
    shared = plan(masks, prompts, which, layer_of_unit, n_layers=5)
    seen = []
    for leaves in passes(shared, 4):
        rows, leaf = shared.rows_of(leaves)
        seen += rows.tolist()
        assert torch.equal(prompts[rows], shared.prompts[leaves][leaf])
        assert torch.equal(masks[which[rows]], masks[shared.masks[leaves]][leaf])
        assert len({*shared.prompts[leaves].tolist()}) == 1
    assert sorted(seen) == list(range(90))
    distinct = {(int(p), tuple(masks[m].tolist())) for p, m in zip(prompts, which, strict=True)}
    assert len(shared.masks) == len(distinct) < 90


def test_wide_masks_are_packed_in_parts(monkeypatch):
    masks, prompts, which, layer_of_unit = draw_rows(0)
    whole = plan(masks, prompts, which, layer_of_unit, n_layers=5)
    monkeypatch.setattr("circuitspex.ablation.forking._PACK_BYTES", 20)
    parts = plan(masks, prompts, which, layer_of_unit, n_layers=5)
    assert torch.equal(parts.masks, whole.masks)
    assert torch.equal(parts.splits, whole.splits)


KEPT = {"A": "111", "B": "110", "C": "100"}
"""By layer: C differs from B in layer 1, B from A in layer 2."""


@pytest.mark.parametrize(
    ("rows", "batch_size", "row_layers", "n_passes"),
    [
        (["0A", "0C", "0B"], 3, 3 + 2 + 1, 1),
        (["0A", "0C", "0B"], 2, 3 + 2 + 3, 2),
        (["0A", "0C", "0B"], 1, 3 + 3 + 3, 3),
        (["0A", "0B", "0A", "0B"], 4, 3 + 1, 1),  # the same row twice is one leaf
        (["0A", "0C"], 2, 3 + 2, 1),  # B, which is between them, is on no row
        (["1B", "0C", "1A", "0A"], 4, 3 + 2 + 3 + 1, 2),  # one pass per prompt
    ],
)
def test_small_plans_counted_by_hand(rows, batch_size, row_layers, n_passes):
    layer_of_unit = torch.tensor([2, 0, 1])  # masks do not come in the order of layers
    masks = torch.tensor([[c == "1" for c in KEPT[name]] for name in "ABC"])[:, layer_of_unit]
    which = torch.tensor(["ABC".index(row[1]) for row in rows])
    prompts = torch.tensor([int(row[0]) for row in rows])
    shared = plan(masks, prompts, which, layer_of_unit, n_layers=3)
    assert shared.row_layers(batch_size) == row_layers
    assert shared.n_passes(batch_size) == n_passes
    assert shared.alive(batch_size) == row_layers / (3 * len({*rows}))


def test_what_a_plan_saves_counts_started_passes_as_whole_ones():
    rows = torch.arange(3)
    masks = torch.tensor([[c == "1" for c in KEPT[name]] for name in "ABC"])
    shared = plan(masks, 0 * rows, rows, rows, n_layers=3)
    a_pass = 3 * 2 / 32  # beyond its rows: a 32nd of a full flat batch, here of two rows
    flat = 3 * 3 + 2 * a_pass  # three rows take two batches of two
    assert shared.saving(3, 2) == pytest.approx(1 - (6 + a_pass) / flat, abs=1e-12)
    assert shared.saving(2, 2) == pytest.approx(1 - (8 + 2 * a_pass) / flat, abs=1e-12)


def test_no_rows_make_no_trees():
    nothing = torch.zeros(0, dtype=torch.long)
    shared = plan(torch.zeros(0, 3, dtype=torch.bool), nothing, nothing, torch.tensor([0, 1, 1]), 2)
    assert list(shared.groups()) == []
    assert (shared.row_layers(4), shared.n_passes(4), shared.saving(4, 4)) == (0, 0, 0)
    assert shared.alive(4) == 1


def ratio(sets, layers, batch_size=10**6):
    """Row-layers of the flat batch by those of a forked one: 30 layers of 9 units, one prompt."""
    masks, rows = ablate_only(sets, 270), torch.arange(len(sets))
    shared = plan(masks, torch.zeros_like(rows), rows, torch.arange(270) // 9, 30)
    assert shared.layers == tuple(range(30))
    return len(sets) * 30 / shared.row_layers(batch_size)


def test_the_limits_of_deletion_designs():
    singles = [[i] for i in range(270)]
    # A head of layer L shares the L layers below: the rest adds up to 9 * (30 + 29 + … + 1).
    assert ratio(singles, 30) == pytest.approx(270 * 30 / (9 * 465 + 0), rel=0.01)
    late = list(combinations(range(243, 270), 2))
    assert ratio(late, 30) > 10
    pairs = list(combinations(range(0, 270, 3), 2))
    assert ratio(pairs, 30) == pytest.approx(2.8, abs=0.1)
    assert ratio(pairs, 30, batch_size=64) > 0.95 * ratio(pairs, 30)


def test_what_shares_nothing_is_not_worth_sorting():
    rows = torch.arange(200)
    masks = random_masks(200, 60, keep_rate=0.5)
    shared = plan(masks, 0 * rows, rows, torch.arange(60) // 30, 2)
    assert shared.saving(64, 64) < 0.02
    few = plan(masks[:8], torch.arange(8), rows[:8], torch.arange(60) // 30, 2)
    assert few.saving(64, 64) < 0, "eight prompts need eight passes where one does flat"


# ---- passes ----


def embedded(model, seen):
    """Hooks that note how many rows go into a model."""
    return model.hooks(fwd_hooks=[("hook_embed", lambda t, hook: seen.append(len(t)))])


def forked_and_flat(model, tokens, masks, units, *args, batch_size=None, **options):
    """Logits of both ways, after checking that the first shared layers."""
    seen: list[int] = []
    with ablate(model, units, *args, batch_size=batch_size) as ablated:
        assert ablated.forks
        with embedded(model, seen):
            forked = ablated(tokens, masks, **options)
    assert {*seen} == {1}, "not forked"
    with ablate(model, units, *args, batch_size=batch_size, forks=False) as ablated:
        assert not ablated.forks
        return forked, ablated(tokens, masks, **options)


@pytest.mark.parametrize("tiny", ARCHITECTURES, indirect=True)
@pytest.mark.parametrize("choice", CHOICES)
def test_forked_rows_equal_flat_rows(tiny, choice):
    units = CHOICES[choice](tiny)
    masks, tokens = deletions(len(units)), random_tokens(tiny, 2, 7)
    forked, flat = forked_and_flat(tiny, tokens, masks, units, batch_size=8)
    assert_close(forked, flat, **CLOSE)
    assert_close(forked[:6], slow_table(tiny, tokens, masks[:6], units), rtol=0, atol=1e-4)


@pytest.mark.parametrize("tiny", ARCHITECTURES, indirect=True)
@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_stand_ins_follow_the_rows(tiny, kind):
    units = CHOICES["heads+mlps"](tiny)
    masks, tokens = deletions(len(units)), random_tokens(tiny, 3, 6)
    replacement = getattr(replacements, kind)(random_tokens(tiny, 3, 6, seed=1))
    assert_close(*forked_and_flat(tiny, tokens, masks, units, replacement, batch_size=5), **CLOSE)


@pytest.mark.parametrize("tiny", ARCHITECTURES, indirect=True)
def test_padded_prompts_fork(tiny):
    units = CHOICES["heads+mlps"](tiny)
    padded, ends = random_tokens(tiny, 4, 7), torch.tensor([3, 6, 4, 4])
    masks = deletions(len(units))
    forked, flat = forked_and_flat(tiny, padded, masks, units, batch_size=8, answer_positions=ends)
    assert_close(forked, flat, **CLOSE)


@pytest.mark.parametrize("name", ["toy-induction", "toy-redundant"])
def test_the_toys_fork(name):
    toy = models.load(name)
    units, tokens = heads(toy), random_tokens(toy, 3, 9)
    masks = deletions(len(units))
    assert_close(*forked_and_flat(toy, tokens, masks, units, batch_size=8), **CLOSE)


def test_a_single_layer_forks_at_its_start():
    import transformers as hf

    config = hf.GPT2Config(vocab_size=37, n_embd=16, n_layer=1, n_head=4, n_positions=48)
    model = models.from_hugging_face(hf.GPT2LMHeadModel(config).eval())
    tokens, units = random_tokens(model, 2, 5), heads(model)
    seen: list[int] = []
    with ablate(model, units, batch_size=8) as ablated:
        assert ablated.forks
        with embedded(model, seen):
            # Nothing is shared but what is the same.
            values = ablated(tokens, random_masks(4, 4)[[0, 1, 2, 3, 3, 3]])
    assert seen == [1, 1]
    expected = slow_table(model, tokens, random_masks(4, 4)[[0, 1, 2, 3, 3, 3]], units)
    assert_close(values, expected, rtol=0, atol=1e-4)


def test_rows_of_chosen_masks_on_chosen_prompts(gpt2):
    masks, tokens, units = deletions(8), random_tokens(gpt2, 3, 5), heads(gpt2)
    rng = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 3, (80,), generator=rng)
    which = torch.randint(0, len(masks), (80,), generator=rng)
    with ablate(gpt2, units, batch_size=8) as ablated:
        batches = list(ablated.stream(tokens, Rows(masks, which, prompts)))
        table = ablated(tokens, masks)
    assert all(len(rows) == len(logits) <= 8 for rows, logits in batches)
    rows = torch.cat([rows for rows, _ in batches])
    assert sorted(rows.tolist()) == list(range(80))
    logits = torch.cat([logits for _, logits in batches])
    assert_close(logits, table[which, prompts][rows], **CLOSE)


def test_identical_rows_run_once_and_batches_stay_small(gpt2):
    rows_out: list[int] = []
    masks = ablate_only([[3], []], 8)[[0, 1] * 20]
    tokens = random_tokens(gpt2, 1, 5)
    with ablate(gpt2, heads(gpt2), batch_size=4) as ablated:
        count = [("unembed.hook_in", lambda t, hook: rows_out.append(len(t)))]
        with gpt2.hooks(fwd_hooks=count):
            rows = torch.arange(40)
            batches = list(ablated.stream(tokens, Rows(masks, rows, 0 * rows)))
    assert rows_out == [2]
    assert max(len(logits) for _, logits in batches) <= 4
    assert sum(len(logits) for _, logits in batches) == 40


def test_rows_that_share_little_stay_in_the_callers_order(gpt2):
    masks, tokens = random_masks(6, 8, keep_rate=0.5), random_tokens(gpt2, 1, 5)
    rows = torch.arange(6)
    with ablate(gpt2, heads(gpt2)) as ablated:
        batches = list(ablated.stream(tokens, Rows(masks, rows, 0 * rows)))
    assert [rows.tolist() for rows, _ in batches] == [[0, 1, 2, 3, 4, 5]]


def test_forked_batches_are_halved_until_they_fit(gpt2):
    tokens, masks, units = random_tokens(gpt2, 2, 5), deletions(8), heads(gpt2)

    def refuse(residual, hook):
        if len(residual) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    seen: list[int] = []
    with ablate(gpt2, units, batch_size=16) as ablated:
        with gpt2.hooks(fwd_hooks=[("blocks.1.hook_resid_post", refuse)]), embedded(gpt2, seen):
            values = ablated(tokens, masks)
        assert ablated.batch_size(5) == 4
    assert {*seen} == {1}
    assert_close(values, slow_table(gpt2, tokens, masks, units), rtol=0, atol=1e-4)


def test_nested_blocks_fork_too(gpt2):
    tokens, masks = random_tokens(gpt2, 2, 5), deletions(8)
    with ablate(gpt2, heads(gpt2), batch_size=8) as outer, ablate(gpt2, mlps(gpt2)) as inner:
        assert_close(inner(tokens, all_ablated(2)), slow_table(
            gpt2, tokens, all_ablated(2), mlps(gpt2)), rtol=0, atol=1e-4)  # fmt: skip
        values = outer(tokens, masks)
    with ablate(gpt2, heads(gpt2), forks=False) as flat:
        assert_close(values, flat(tokens, masks), **CLOSE)


def test_other_peoples_hooks_act_on_forked_rows(gpt2):
    tokens, masks, units = random_tokens(gpt2, 2, 5), deletions(8), heads(gpt2)
    hooks = [
        ("blocks.0.attn.hook_z", lambda z, hook: z / 2),
        ("blocks.1.hook_resid_pre", lambda r, hook: r + 1),
    ]
    with gpt2.hooks(fwd_hooks=hooks):
        assert_close(*forked_and_flat(gpt2, tokens, masks, units, batch_size=8), **CLOSE)


# ---- where forks cannot be made ----


def gives_the_flat_values(model, units):
    tokens, masks = random_tokens(model, 2, 5), deletions(len(units))
    seen: list[int] = []
    block = ablate(model, units, batch_size=8)
    with pytest.warns(ForkWarning, match="masks cannot share layers on this model") as said:
        block.__enter__()
    with embedded(model, seen):
        values = block(tokens, masks)
    assert not block.forks
    block.__exit__(None, None, None)
    assert min(seen) > 1
    with ablate(model, units, forks=False) as ablated:
        assert_close(values, ablated(tokens, masks), **CLOSE)
    return str(said[0].message)


def test_a_model_whose_layers_need_all_rows_runs_flat(gpt2):
    entered = [0]

    def note(embedding, hook):
        entered[0] = len(embedding)

    def per_row(z, hook):
        return torch.cat([z, z])[entered[0] :].reshape(z.shape)

    hooks = [("hook_embed", note), ("blocks.1.attn.hook_z", per_row)]
    with gpt2.hooks(fwd_hooks=hooks):
        assert "RuntimeError" in gives_the_flat_values(gpt2, heads(gpt2))


def test_a_model_without_block_inputs_runs_flat(monkeypatch):
    model = make_tiny("gpt2")
    monkeypatch.setattr(
        "circuitspex.ablation.ablated.WAYS_TO_FORK",
        (lambda layer: f"blocks.{layer}.hook_nowhere",),
    )
    assert "HookError" in gives_the_flat_values(model, heads(model))


def test_a_model_that_gives_forked_rows_other_values_runs_flat(gpt2):
    entered = [0]

    def note(embedding, hook):
        entered[0] = len(embedding)

    def depends_on_it(residual, hook):
        return residual if len(residual) == entered[0] else residual.flip(2)

    hooks = [("hook_embed", note), ("blocks.1.hook_resid_post", depends_on_it)]
    with gpt2.hooks(fwd_hooks=hooks):
        words = gives_the_flat_values(gpt2, heads(gpt2))
    assert "logits differ by" in words


def test_forks_can_be_declined(gpt2):
    seen: list[int] = []
    masks = deletions(8)
    with ablate(gpt2, heads(gpt2), batch_size=16, forks=False) as ablated:
        with embedded(gpt2, seen):
            ablated(random_tokens(gpt2, 1, 5), masks)
    assert seen == [16] * (len(masks) // 16) + [len(masks) % 16]


def test_without_probes_forks_are_still_tried_first(gpt2):
    with ablate(gpt2, heads(gpt2), probe=False) as ablated:
        assert ablated.forks
        assert_close(
            ablated(random_tokens(gpt2, 1, 5), all_kept(8)),
            slow_table(gpt2, random_tokens(gpt2, 1, 5), all_kept(8), heads(gpt2)),
            rtol=0,
            atol=1e-4,
        )
