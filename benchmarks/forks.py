"""How much faster are masks that share their early layers, and how close is that to the limit?

Every design runs twice, in turn: forked, so that masks which agree on the first layers run as one
row until they differ, and flat, every mask through all layers. The limit is the plan's: rows times
layers of the flat batch over the layers that are run, each as often as there are rows alive in it.
Two logits per mask are read, as a logit difference does. Last, what leaving out the rest saves:
flat batches against flat batches while a hook looks, so that everything is computed.

    python benchmarks/forks.py --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

import circuitspex as cs
from circuitspex.ablation import Rows
from circuitspex.ablation.forking import SharedLayers, plan

AT_ONCE = 10**9


@dataclass
class Design:
    """Masks to evaluate, and the stretches of them, in sorted order, that are timed."""

    masks: torch.Tensor
    plan: SharedLayers
    stretches: list[slice]

    def parts(self) -> list[torch.Tensor]:
        """Masks of every stretch."""
        return [self.masks[self.plan.masks[part]] for part in self.stretches]

    def layers(self, part: slice, batch_size: int = AT_ONCE) -> int:
        """Row-layers of a stretch that is run by itself."""
        chosen = self.masks[self.plan.masks[part]]
        return plan_of(chosen, self.plan.n_layers).row_layers(batch_size)


def plan_of(masks: torch.Tensor, n_layers: int) -> SharedLayers:
    """Plan masks over all heads, one prompt."""
    rows = torch.arange(len(masks))
    layer_of_unit = torch.arange(masks.shape[1]) // (masks.shape[1] // n_layers)
    return plan(masks, torch.zeros_like(rows), rows, layer_of_unit, n_layers)


def make_design(masks: torch.Tensor, n_layers: int, n_timed: int, rng) -> Design:
    """Time all masks, or stretches of equal length, one from every quarter of the sorted masks."""
    planned = plan_of(masks, n_layers)
    n = len(planned.masks)
    if n <= n_timed:
        return Design(masks, planned, [slice(0, n)])
    length = n_timed // 4
    starts = [int(i * n / 4 + rng.integers(n // 4 - length + 1)) for i in range(4)]
    return Design(masks, planned, [slice(start, start + length) for start in starts])


def deletions(units, order: int, n_units: int) -> torch.Tensor:
    """Ablate every set of that many of some units."""
    return cs.masks.ablate_only(combinations(units, order), n_units)


def designs(model, options) -> dict[str, Design]:
    """Make every design of the table."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    n = n_layers * n_heads
    rng = np.random.default_rng(options.seed)
    bernoulli = torch.from_numpy(rng.random((options.masks, n)) < 0.9)
    pairs = deletions(range(n), 2, n)
    drawn = rng.choice(len(pairs), min(options.timed, len(pairs)), replace=False)
    early, late = range(n_heads * min(4, n_layers)), range(n - n_heads * min(3, n_layers), n)
    masks = {
        "random at 0.9": bernoulli,
        "singles": deletions(range(n), 1, n),
        "all pairs": pairs,
        "pairs drawn at random": pairs[torch.from_numpy(np.sort(drawn))],
        "pairs of the last 3 layers": deletions(late, 2, n),
        "triples of layers 0 to 3": deletions(early, 3, n),
    }
    chosen = options.designs or [*masks]
    return {name: make_design(masks[name], n_layers, options.timed, rng) for name in chosen}


def load(name: str | None):
    """Load the model and one prompt, or a small random model for the smoke run."""
    if name is not None:
        model = cs.models.load(name)
        return model, cs.tasks.ioi(model, n_prompts=1, seed=0).tokens[0][None]
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=48, intermediate_size=96, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return cs.models.from_hugging_face(LlamaForCausalLM(config)), torch.arange(1, 16)[None]


def read(ablated, tokens, masks) -> torch.Tensor:
    """Two logits per mask, in the order of the masks."""
    rows, columns = torch.arange(len(masks)), torch.tensor([3, 4])
    logits = torch.empty(len(masks), 2)
    for part, some in ablated.stream(tokens, Rows(masks, rows, 0 * rows), columns=columns):
        logits[part] = some
    return logits


def seconds(run: Callable[[], object]) -> np.ndarray:
    """Wall and processor time of one call."""
    started = np.array([time.perf_counter(), time.process_time()])
    run()
    return np.array([time.perf_counter(), time.process_time()]) - started


def time_design(design: Design, tokens, forked, flat) -> np.ndarray:
    """Return how often faster forked rows are: timed, and expected of the whole design.

    Every stretch is timed between two flat batches of its own masks, by wall and processor time.
    """
    size = flat.batch_size(tokens.shape[1])
    ours, theirs, n_rows = np.zeros(2), np.zeros(2), 0
    for masks in design.parts():
        few = masks[torch.randperm(len(masks))[:size]]
        beside = seconds(lambda few=few: read(flat, tokens, few))
        ours += seconds(lambda masks=masks: read(forked, tokens, masks))
        beside += seconds(lambda few=few: read(flat, tokens, few))
        theirs += beside / 2 / len(few) * len(masks)
        n_rows += len(masks)
    timed_layers = sum(design.layers(part) for part in design.stretches)
    layers_per_row = design.plan.row_layers(AT_ONCE) / len(design.plan.masks)
    whole = ours / timed_layers * layers_per_row * n_rows
    return np.stack([theirs / ours, theirs / whole])


def largest_difference(design: Design, tokens, forked, flat) -> float:
    """Compare the logits of some masks of the design."""
    masks = torch.cat([part[:: max(1, len(part) // 24)] for part in design.parts()])
    return (read(forked, tokens, masks) - flat(tokens, masks)[:, 0, 3:5]).abs().max().item()


def time_shortcuts(model, masks, tokens, flat) -> np.ndarray:
    """Return how often faster a flat batch is for what is left out of it."""
    few = masks[: flat.batch_size(tokens.shape[1])]
    short = seconds(lambda: read(flat, tokens, few))
    with model.hooks(fwd_hooks=[("unembed.hook_in", lambda residual, hook: None)]):
        return seconds(lambda: read(flat, tokens, few)) / short


def main() -> None:
    """Check that forked and flat rows agree, then time both in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a .gguf file, a folder or a name")
    parser.add_argument("--masks", type=int, default=384, help="random masks")
    parser.add_argument("--timed", type=int, default=2000, help="masks timed of a larger design")
    parser.add_argument("--designs", nargs="+", help="names from the table; all when left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.masks, options.timed, options.rounds = 48, 160, 2
    if not options.smoke and options.model is None:
        parser.error("--model is needed, or --smoke")
    model, tokens = load(None if options.smoke else options.model)
    table = designs(model, options)
    units = cs.heads(model)
    with cs.ablate(model, units) as forked, cs.ablate(model, units, forks=False) as flat:
        assert forked.forks, "this model cannot fork"
        largest = max(largest_difference(d, tokens, forked, flat) for d in table.values())
        if largest > 1e-4:
            raise SystemExit(f"forked and flat logits differ by {largest:.3g}")
        ratios: dict[str, list[np.ndarray]] = {name: [] for name in table}
        left_out = []
        for _ in range(options.rounds):
            some_masks = next(iter(table.values())).masks
            left_out.append(time_shortcuts(model, some_masks, tokens, flat))
            for name, design in table.items():
                ratios[name].append(time_design(design, tokens, forked, flat))
    rows = {}
    for name, design in table.items():
        (wall, wall_whole), (processor, processor_whole) = np.median(ratios[name], axis=0).T
        timed = sum(part.stop - part.start for part in design.stretches)
        rows[name] = {
            "masks": len(design.masks),
            "timed": timed,
            "limit": len(design.masks) * model.cfg.n_layers / design.plan.row_layers(AT_ONCE),
            "faster": wall,
            "faster_processor": processor,
            "whole": wall_whole,
            "whole_processor": processor_whole,
            "spread": float(np.ptp([r[1, 1] for r in ratios[name]])),
        }
        print(f"{name:28s}", *(f"{key} {value:.4g}" for key, value in rows[name].items()))
    print(
        json.dumps(
            {
                "benchmark": "forks",
                "model": model.cfg.model_name,
                "tokens": tokens.shape[1],
                "threads": torch.get_num_threads(),
                "rounds": options.rounds,
                "largest_difference": largest,
                "median_of": "per-round ratios, flat seconds over forked seconds",
                "faster_for_shortcuts": round(float(np.median(left_out, axis=0)[1]), 3),
                "worst_share_of_limit": min(
                    r["whole_processor"] / r["limit"] for r in rows.values()
                ),
                "designs": {
                    n: {k: round(float(v), 3) for k, v in r.items()} for n, r in rows.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main()
