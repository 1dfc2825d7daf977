"""How many rows should run at once, forward alone and with a gradient?

Random masks over all heads, one prompt. Every batch size runs in turn, forward and forward with
backward; costs are per row, over that of a forward pass at the batch size that is chosen by itself.

    python benchmarks/batch_size.py --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import torch

import circuitspex as cs
from circuitspex.ablation import Rows
from circuitspex.ablation.batching import Batcher


def load(name: str | None):
    """Load the model and one prompt, or a toy for the smoke run."""
    if name is None:
        model = cs.models.load("toy-induction")
        return model, cs.tasks.induction(model, n_prompts=1, seed=0).tokens[0][None]
    model = cs.models.load(name)
    return model, cs.tasks.ioi(model, n_prompts=1, seed=0).tokens[0][None]


def forward(ablated, tokens, masks) -> torch.Tensor:
    """Difference of two logits of every mask."""
    rows = torch.arange(len(masks))
    parts = ablated.stream(tokens, Rows(masks, rows, 0 * rows))
    return torch.cat([logits[:, 3] - logits[:, 4] for _, logits in parts])


def gradient(ablated, tokens, masks) -> torch.Tensor:
    """Its derivatives by the gates."""
    rows = torch.arange(len(masks))
    parts = ablated.stream_gradients(
        tokens, Rows(masks, rows, 0 * rows), lambda logits, _: logits[:, 3] - logits[:, 4]
    )
    return torch.cat([gradients for _, _, gradients in parts])


def seconds_per_row(run: Callable, ablated, tokens, masks) -> float:
    """Processor time, which other programs disturb least."""
    started = time.process_time()
    run(ablated, tokens, masks)
    return (time.process_time() - started) / len(masks)


def main() -> None:
    """Check that batches of all sizes agree, then time them in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a .gguf file, a folder or a name")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.sizes, options.rounds = [1, 4], 2
    if not options.smoke and options.model is None:
        parser.error("--model is needed, or --smoke")
    model, tokens = load(None if options.smoke else options.model)
    units = cs.heads(model)
    rng = torch.Generator().manual_seed(0)
    masks = torch.rand(max(options.sizes), len(units), generator=rng) < 0.9
    ways = {"forward": forward, "gradient": gradient}
    with ExitStack() as stack:

        def enter(size: int | None):
            return stack.enter_context(cs.ablate(model, units, batch_size=size, forks=False))

        usual, blocks = enter(None), {size: enter(size) for size in options.sizes}
        few = masks[: min(options.sizes[-1], 8)]
        expected = {name: run(usual, tokens, few) for name, run in ways.items()}
        for block in blocks.values():
            for name, run in ways.items():
                torch.testing.assert_close(
                    run(block, tokens, few), expected[name], rtol=1e-3, atol=1e-3
                )
        costs = {name: {size: [] for size in options.sizes} for name in ways}
        for _ in range(options.rounds):
            rows = masks[: usual.batch_size(tokens.shape[1])]
            one = seconds_per_row(forward, usual, tokens, rows)
            for size, block in blocks.items():
                for name, run in ways.items():
                    # Small batches are timed over several of them.
                    spent = seconds_per_row(run, block, tokens, masks[: max(size, 16)])
                    costs[name][size].append(spent / one)
    table = {
        name: {size: round(float(np.median(c)), 3) for size, c in by_size.items()}
        for name, by_size in costs.items()
    }
    print(
        json.dumps(
            {
                "benchmark": "batch_size",
                "model": model.cfg.model_name,
                "tokens": tokens.shape[1],
                "threads": torch.get_num_threads(),
                "rounds": options.rounds,
                "usual": usual.batch_size(tokens.shape[1]),
                "usual_with_gradient": Batcher(model, gradients=True).size(tokens.shape[1]),
                "cost_per_row_over_usual_forward": table,
            }
        )
    )


if __name__ == "__main__":
    main()
