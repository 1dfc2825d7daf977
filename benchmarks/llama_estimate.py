"""On paper: what would ProxySPEX's experiment on the heads of Llama-3.1-8B take with shared layers?

Butler et al. (2025, arXiv:2505.17495, appendix C.2) evaluate 5,000 masks, kept at rate ½, of the 96
heads of layers 1 to 3, 14 to 16 or 30 to 32 on 120 questions, 1.7 s a mask on an H100 in batches of
50. No model is run here. The planner that runs on real models plans the same masks; what is counted
is layers times rows, weighed by the multiplications in each, the last layer's MLP at one position.

Assumed, and printed: flat batches run as fast as theirs, which is what ours ÷ a bare forward pass
measures elsewhere (``--flat``); of what forks promise beyond 1, they reach the share that singles
and pairs reach on SmolLM2 (``--share``); questions are ``--tokens`` long, which hardly moves the
seconds and decides what share of the H100's speed 1.7 s are.

    python benchmarks/llama_estimate.py
"""

import argparse
import json

import torch

from circuitspex.ablation.forking import Fork, plan

N_LAYERS, N_HEADS, N_KEY_HEADS, WIDTH, D_MLP = 32, 32, 8, 4096, 14_336
GROUPS = {"1 to 3": 0, "14 to 16": 13, "30 to 32": 29}
"""First layer, counted from 0."""
THEIR_SECONDS, THEIR_PROMPTS = 1.7, 120


def layer_flops(n_tokens: int) -> tuple[float, float]:
    """Multiplications and additions of one layer's attention and of its MLP, one row."""
    projections = 2 * WIDTH * WIDTH * (2 + 2 * N_KEY_HEADS / N_HEADS)
    between = 4 * n_tokens * WIDTH
    return n_tokens * (projections + between), n_tokens * 6.0 * WIDTH * D_MLP


def rows_alive(fork: Fork, n_leaves: int) -> list[int]:
    """Rows in every layer of a pass."""
    rows, now = [], 1
    for layer in range(N_LAYERS):
        if layer in fork.grow:
            now = len(fork.grow[layer])
        rows.append(now)
    assert rows[-1] == n_leaves
    return rows


def flops_of(first: int, n_masks: int, batch: int, n_tokens: int) -> tuple[float, float]:
    """FLOPs per mask and prompt, flat with every layer whole, and forked with shortcuts."""
    attention, mlp = layer_flops(n_tokens)
    rng = torch.Generator().manual_seed(0)
    masks = torch.rand(n_masks, 3 * N_HEADS, generator=rng) < 0.5
    layers = first + torch.arange(3 * N_HEADS) // N_HEADS
    rows = torch.arange(n_masks)
    shared = plan(masks, 0 * rows, rows, layers, N_LAYERS)
    total = 0.0
    for start in range(0, len(shared.masks), batch):
        leaves = slice(start, min(start + batch, len(shared.masks)))
        alive = rows_alive(shared.fork(leaves), leaves.stop - leaves.start)
        total += sum(alive) * attention
        total += (sum(alive[:-1]) + alive[-1] / n_tokens) * mlp
    return N_LAYERS * (attention + mlp), total / n_masks


def main() -> None:
    """Plan, count, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--masks", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=250)
    parser.add_argument("--flat", type=float, default=1.0, help="our flat speed over theirs")
    parser.add_argument("--share", type=float, default=0.9, help="of what forks promise beyond 1")
    parser.add_argument("--batches", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.masks = 400
    # 7.0e9 weights outside embeddings, two operations each per token.
    assert abs(N_LAYERS * sum(layer_flops(1)) / 2 / 6.98e9 - 1) < 0.01
    rows = []
    for name, first in GROUPS.items():
        for batch in options.batches:
            flat, forked = flops_of(first, options.masks, batch, options.tokens)
            limit = flat / forked
            faster = max(1.0, 1 + (limit - 1) * options.share) * options.flat
            row = {
                "layers": name,
                "masks_per_pass": batch,
                "limit": round(limit, 2),
                "seconds_per_mask": round(THEIR_SECONDS / faster, 3),
                "masks_per_second": round(faster / THEIR_SECONDS, 2),
                "hours_of_5000": round(5000 * THEIR_SECONDS / faster / 3600, 2),
            }
            rows.append(row)
            print(row)
    flat, _ = flops_of(0, 2, 2, options.tokens)
    print(
        json.dumps(
            {
                "benchmark": "llama_estimate",
                "measured": False,
                "theirs": {"seconds_per_mask": THEIR_SECONDS, "prompts": THEIR_PROMPTS},
                "assumed": {k: getattr(options, k) for k in ("tokens", "flat", "share")},
                "tflop_per_mask_and_prompt": round(flat / 1e12, 2),
                "tflops_that_theirs_implies": round(flat * THEIR_PROMPTS / THEIR_SECONDS / 1e12),
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
