"""How many masks per second, against one at a time and against the bare forward pass?

Random masks over all heads, one IOI prompt. Three ways, interleaved: ours (batched through hooks),
a loop of ``run_with_hooks`` with one mask at a time, and the bare Hugging Face forward without
hooks at its best batch size, ``logits_to_keep=1``. The last is the limit for any method that runs
every mask through the whole model.

    python benchmarks/throughput.py --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

import circuitspex as cs
from circuitspex.ablation import answer_logits

BATCHES = (8, 16, 32, 64, 128)


def load(name: str | None):
    """Load the model, or a small random one for the smoke run."""
    if name is not None:
        model = cs.models.load(name)
        return model, cs.tasks.ioi(model, n_prompts=1).tokens[0][None]
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=48, intermediate_size=96, num_hidden_layers=4,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = cs.models.from_hugging_face(LlamaForCausalLM(config), name="tiny-llama")
    return model, torch.arange(1, 16)[None]


def zero_heads(ablated):
    """Make a hook that zeroes heads in place."""

    def hook(z, hook):
        z[:, :, ablated] = 0
        return z

    return hook


def one_at_a_time(model, tokens, masks, units):
    """The loop people write: for every mask, hooks that zero its ablated heads."""
    n_heads = model.cfg.n_heads
    rows = []
    for mask in masks:
        hooks = [
            (units[start].hook, zero_heads(~mask[start : start + n_heads]))
            for start in range(0, len(units), n_heads)
        ]
        with torch.no_grad():
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks, logits_to_keep=1)
        rows.append(logits[0, -1])
    return torch.stack(rows)


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Check that all ways agree, then time them in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a .gguf file, a folder or a name")
    parser.add_argument("--masks", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep-rate", type=float, default=0.9)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.masks, options.rounds = 48, 2
    if not options.smoke and options.model is None:
        parser.error("--model is needed, or --smoke")
    model, tokens = load(None if options.smoke else options.model)
    units = cs.heads(model)
    rng = torch.Generator().manual_seed(0)
    masks = torch.rand(options.masks, len(units), generator=rng) < options.keep_rate
    few = masks[: max(8, options.masks // 16)]
    hf = model.original_model

    def bare(batch: int) -> float:
        rows = tokens.expand(batch, -1)
        n = max(1, options.masks // batch)
        with torch.no_grad():
            return seconds(
                lambda: [hf(rows, logits_to_keep=1, use_cache=False) for _ in range(n)]
            ) / (n * batch)

    with cs.ablate(model, units) as ablated:
        ours = ablated(tokens, few)[:, 0]
        difference = (ours - one_at_a_time(model, tokens, few, units)).abs().max().item()
        if difference > 1e-4:
            raise SystemExit(f"batched and one-at-a-time logits differ by {difference:.3g}")
        intact = answer_logits(model, tokens)
        torch.testing.assert_close(ablated(tokens, cs.masks.all_kept(len(units)))[0], intact)

        best = min(BATCHES, key=bare)
        times: dict[str, list[float]] = {"ours": [], "loop": [], "bare": []}
        for _ in range(options.rounds):
            times["ours"].append(seconds(lambda: ablated(tokens, masks)) / len(masks))
            times["bare"].append(bare(best))
            times["loop"].append(
                seconds(lambda: one_at_a_time(model, tokens, few, units)) / len(few)
            )
    median = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        name: statistics.median(t / o for t, o in zip(times[name], times["ours"], strict=True))
        for name in ("loop", "bare")
    }
    print(
        json.dumps(
            {
                "benchmark": "throughput",
                "model": model.cfg.model_name,
                "units": len(units),
                "tokens": tokens.shape[1],
                "threads": torch.get_num_threads(),
                "largest_difference": difference,
                "best_bare_batch": best,
                "our_batch": ablated.batch_size(tokens.shape[1]),
                "masks_per_second": {k: round(1 / v, 2) for k, v in median.items()},
                "ours_over_loop": round(ratios["loop"], 3),
                "ours_over_bare": round(ratios["bare"], 3),
                "rounds": options.rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
