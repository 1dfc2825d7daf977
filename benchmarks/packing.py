"""Many masks on many prompts: does the order of rows matter, and what would shared prefixes save?

Flat batches of every mask on every prompt of one length, rows ordered mask by mask and prompt by
prompt, in turn. (Forked passes hold one prompt each, so they are prompt by prompt by construction.)
Then, with no model run, the bound on sharing what prompts have in common: positions of all prompts
over those that differ in what comes before them. Rows could share a prefix only under one mask:
with one prompt on each mask, the default, nothing could be shared.

    python benchmarks/packing.py --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import json
import time
from collections import Counter

import numpy as np
import torch

import circuitspex as cs
from circuitspex.ablation import Rows


def run(ablated, tokens, masks, order: str) -> tuple[float, torch.Tensor]:
    """Processor seconds of all masks on all prompts, and two logits of each."""
    which = torch.cartesian_prod(torch.arange(len(masks)), torch.arange(len(tokens)))
    if order == "prompt by prompt":
        which = which[which[:, 1].argsort(stable=True)]
    logits = torch.zeros(len(masks), len(tokens), 2)
    started = time.process_time()
    asked = Rows(masks, which[:, 0], which[:, 1])
    stream = ablated.stream(tokens, asked, columns=torch.tensor([3, 4]))
    for rows, some in stream:
        logits[which[rows, 0], which[rows, 1]] = some
    return time.process_time() - started, logits


def prefix_bound(prompts: list[list[int]]) -> float:
    """Positions of all prompts over the distinct prefixes they end."""
    prefixes = {tuple(p[: end + 1]) for p in prompts for end in range(len(p))}
    return sum(map(len, prompts)) / len(prefixes)


def main() -> None:
    """Check that both orders agree, time them in turn, and count prefixes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a .gguf file, a folder or a name")
    parser.add_argument("--masks", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if not options.smoke and options.model is None:
        parser.error("--model is needed, or --smoke")
    model = cs.models.load("toy-induction" if options.smoke else options.model)
    name = "induction" if options.smoke else "ioi"
    prompts = {n: cs.tasks.make(name, model, n, seed=0).tokens for n in (16, 64)}
    bounds = {n: round(prefix_bound([t.tolist() for t in p]), 3) for n, p in prompts.items()}
    length = Counter(map(len, prompts[16])).most_common(1)[0][0]
    tokens = torch.stack([t for t in prompts[16] if len(t) == length])
    units = cs.heads(model)
    rng = torch.Generator().manual_seed(0)
    masks = torch.rand(options.masks, len(units), generator=rng) < 0.9
    ratios = []
    with cs.ablate(model, units, forks=False) as ablated:
        for _ in range(options.rounds):
            by_mask, first = run(ablated, tokens, masks, "mask by mask")
            by_prompt, second = run(ablated, tokens, masks, "prompt by prompt")
            torch.testing.assert_close(first, second, rtol=0, atol=1e-3)
            ratios.append(by_mask / by_prompt)
    print(
        json.dumps(
            {
                "benchmark": "packing",
                "model": model.cfg.model_name,
                "threads": torch.get_num_threads(),
                "masks": options.masks,
                "prompts_of_one_length": len(tokens),
                "by_mask_over_by_prompt": round(float(np.median(ratios)), 3),
                "spread": round(float(np.ptp(ratios)), 3),
                "prefix_bound_by_prompts": bounds,
            }
        )
    )


if __name__ == "__main__":
    main()
