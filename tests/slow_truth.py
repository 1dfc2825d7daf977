"""Ablation the slow and obvious way, and what must not change about a model.

Written apart from :mod:`circuitspex.ablation`: hook names and axes are spelled out here again, one
mask and one prompt run at a time, unpadded, with all logits, and hooks are plain assignments.
"""

import hashlib
from functools import partial
from typing import Any

import torch
from torch import Tensor

from circuitspex.units import MLP, AttentionLayer, Head, Neuron, NeuronBlock


def where(unit: Any) -> tuple[str, Any]:
    """Return a unit's hook name and its index into the activation."""
    match unit:
        case Head(layer, head):
            return f"blocks.{layer}.attn.hook_z", (slice(None), slice(None), head)
        case Neuron(layer, neuron):
            return f"blocks.{layer}.mlp.hook_post", (..., neuron)
        case NeuronBlock(layer, start, stop):
            return f"blocks.{layer}.mlp.hook_post", (..., slice(start, stop))
        case AttentionLayer(layer):
            return f"blocks.{layer}.hook_attn_out", ...
        case MLP(layer):
            return f"blocks.{layer}.hook_mlp_out", ...
    raise AssertionError(f"no reference for {unit!r}")


def overwrite(activation: Tensor, hook: Any, places: list[Any], stand_in: Tensor | None) -> Tensor:
    changed = activation.clone()
    for place in places:
        changed[place] = 0 if stand_in is None else stand_in[place]
    return changed


def slow_logits(model: Any, tokens: Tensor, ablated: list[Any], stand_ins: Any = None) -> Tensor:
    """Run one prompt with some units ablated and return the logits at its last position.

    ``stand_ins`` maps a hook's name to what replaces its activation, shape (1, positions, ...).
    """
    by_hook: dict[str, list[Any]] = {}
    for unit in ablated:
        name, place = where(unit)
        by_hook.setdefault(name, []).append(place)
    hooks = [
        (
            name,
            partial(
                overwrite, places=places, stand_in=None if stand_ins is None else stand_ins[name]
            ),
        )
        for name, places in by_hook.items()
    ]
    with torch.no_grad():
        return model.run_with_hooks(tokens[None], fwd_hooks=hooks)[0, -1]


def interpolate(
    activation: Tensor, hook: Any, gates: list[tuple[Any, float]], stand_in: Tensor | None
) -> Tensor:
    changed = activation.clone()
    for place, gate in gates:
        other = 0 if stand_in is None else stand_in[place]
        changed[place] = other + gate * (activation[place] - other)
    return changed


def gated_logits(
    model: Any, tokens: Tensor, units: Any, gates: Tensor, stand_ins: Any = None
) -> Tensor:
    """Run one prompt with every unit's activation a made s + g (a - s); a gate g is any number.

    ``stand_ins`` maps a hook's name to its s, as for :func:`slow_logits`.
    """
    by_hook: dict[str, list[tuple[Any, float]]] = {}
    for unit, gate in zip(units, gates.tolist(), strict=True):
        name, place = where(unit)
        by_hook.setdefault(name, []).append((place, gate))
    hooks = [
        (
            name,
            partial(
                interpolate, gates=pairs, stand_in=None if stand_ins is None else stand_ins[name]
            ),
        )
        for name, pairs in by_hook.items()
    ]
    with torch.no_grad():
        return model.run_with_hooks(tokens[None], fwd_hooks=hooks)[0, -1]


def central_differences(value: Any, gates: Tensor, columns: list[int], step: float) -> Tensor:
    """Return the derivatives of ``value(gates)`` by some gates, one gate moved at a time.

    Four points a gate: their error falls with the fourth power of the step.
    """
    derivatives = []
    for column in columns:
        moved = []
        for steps in (-2, -1, 1, 2):
            there = gates.clone()
            there[column] += steps * step
            moved.append(value(there))
        derivatives.append((8 * (moved[2] - moved[1]) - (moved[3] - moved[0])) / (12 * step))
    return torch.tensor(derivatives, dtype=torch.float64)


def slow_table(
    model: Any, prompts: Any, masks: Tensor, units: Any, stand_ins: Any = None
) -> Tensor:
    """Return the logits of every mask on every prompt, (masks, prompts, vocab), one by one.

    ``stand_ins`` holds one dictionary per prompt.
    """
    rows = [
        [
            slow_logits(
                model,
                prompt,
                [unit for unit, kept in zip(units, mask.tolist(), strict=True) if not kept],
                None if stand_ins is None else stand_ins[index],
            )
            for index, prompt in enumerate(prompts)
        ]
        for mask in masks
    ]
    return torch.stack([torch.stack(row) for row in rows])


def activations(model: Any, tokens: Tensor, units: Any) -> dict[str, Tensor]:
    """Return the activations at the units' hooks for one sequence, each of shape (1, ...)."""
    names = {where(unit)[0] for unit in units}
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens[None])
    return {name: cache[name] for name in names}


def mean_activations(model: Any, reference: Any, units: Any) -> dict[str, Tensor]:
    """Return the mean over reference prompts of one length, prompt by prompt."""
    each = [activations(model, tokens, units) for tokens in reference]
    return {name: torch.stack([one[name] for one in each]).mean(dim=0) for name in each[0]}


def random_masks(n_masks: int, n_units: int, seed: int = 0, keep_rate: float = 0.6) -> Tensor:
    """Return different masks, so that counts of what was evaluated are plain."""
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.rand(10 * n_masks, n_units, generator=rng) < keep_rate
    different = list(dict.fromkeys(map(tuple, drawn.tolist())))[:n_masks]
    assert len(different) == n_masks
    return torch.tensor(different)


def random_tokens(model: Any, n_prompts: int, n_positions: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(1, model.cfg.d_vocab, (n_prompts, n_positions), generator=rng)


def state_of(model: Any) -> dict[str, Any]:
    """Return everything about a model that a block must leave as it was.

    Hooks are counted twice: in TransformerLens's lists and in PyTorch's own dictionaries.
    """
    modules = {
        **{f"bridge.{name}": module for name, module in model.named_modules()},
        **{f"original.{name}": module for name, module in model.original_model.named_modules()},
    }
    digest = hashlib.blake2b()
    for _, parameter in model.original_model.named_parameters():
        digest.update(memoryview(parameter.detach().contiguous().reshape(-1).numpy()))
    return {
        "lens hooks": {
            name: [id(h.user_hook) for h in (*point.fwd_hooks, *point.bwd_hooks)]
            for name, point in model.hook_dict.items()
        },
        "torch hooks": {
            name: [*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks]
            for name, m in modules.items()
        },
        "context level": getattr(model, "context_level", 0),
        "training": {name: module.training for name, module in modules.items()},
        "parameters": digest.hexdigest(),
        "gradients": [p.requires_grad for p in model.original_model.parameters()],
    }


def changes(after: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Name what of a model's state is not as it was."""
    return [key for key in before if after[key] != before[key]]


def assert_same_state(after: dict[str, Any], before: dict[str, Any], why: str) -> None:
    changed = changes(after, before)
    assert not changed, f"{why}: {', '.join(changed)}"
