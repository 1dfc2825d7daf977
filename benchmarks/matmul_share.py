"""Which share of what a large matrix product reaches do ablations reach, and where is the rest?

A flat batch of random masks at keep rate 0.9 over all heads, one IOI prompt, in turn with a large
product of two matrices on the same cores. Achieved FLOP/s counts what the pass has to multiply
(``flops``), over processor seconds times threads. Then the profiler's own time of every operator,
in groups.

    python benchmarks/matmul_share.py --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import json
import time
from collections import defaultdict

import numpy as np
import torch
from forks import load
from torch.profiler import ProfilerActivity, profile

import circuitspex as cs
from circuitspex.ablation import Rows

GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear"),
    "attention": ("aten::_scaled_dot_product", "aten::scaled_dot_product", "aten::softmax",
                  "aten::_softmax"),
    "activation function": ("aten::silu", "aten::gelu", "aten::relu", "aten::sigmoid"),
    "masking by hooks": ("aten::where", "aten::_s_where"),
    "norms, residuals, rotations": ("aten::add", "aten::mul", "aten::mean", "aten::pow",
                                    "aten::rsqrt", "aten::neg", "aten::sub", "aten::div",
                                    "aten::sum"),
    "copies and layout": ("aten::copy_", "aten::cat", "aten::index", "aten::clone",
                          "aten::contiguous", "aten::index_select", "aten::_to_copy",
                          "aten::embedding", "aten::fill_", "aten::masked_fill", "aten::gather"),
}  # fmt: skip


def flops(hf, n_positions: int) -> dict[str, int]:
    """Count what one row has to multiply, twice per multiplication.

    Every weight matrix at every position, scores and weighted values of every pair of positions,
    the last MLP at one position, and no unembedding.
    """
    sizes: dict[str, int] = defaultdict(int)
    last = hf.config.num_hidden_layers - 1
    for name, module in hf.named_modules():
        if not isinstance(module, torch.nn.Linear) or "lm_head" in name:
            continue
        once = f"layers.{last}.mlp" in name
        group = "mlp" if ".mlp." in name else "projections of attention"
        sizes[group] += 2 * module.weight.numel() * (1 if once else n_positions)
    width = hf.config.hidden_size
    sizes["attention between positions"] = 4 * n_positions**2 * width * (last + 1)
    return dict(sizes)


def seconds(run) -> np.ndarray:
    """Wall and processor time of one call."""
    started = np.array([time.perf_counter(), time.process_time()])
    run()
    return np.array([time.perf_counter(), time.process_time()]) - started


def group_of(operator: str) -> str:
    """Name the group of an operator of the profiler."""
    for group, prefixes in GROUPS.items():
        if any(operator == p or operator.startswith(f"{p}_") for p in prefixes):
            return group
    return "other operators"


def where_time_goes(run) -> dict[str, float]:
    """Return each group's share of the wall time of a call; the rest is Python and dispatch."""
    with profile(activities=[ProfilerActivity.CPU]) as traced:
        wall = seconds(run)[0]
    shares: dict[str, float] = defaultdict(float)
    for event in traced.key_averages():
        if event.key.startswith("aten::"):
            shares[group_of(event.key)] += event.self_cpu_time_total / 1e6 / wall
    shares["Python and hooks"] = 1 - sum(shares.values())
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def main() -> None:
    """Check, time in turn, profile, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a .gguf file, a folder or a name")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=1536, help="of the matrices multiplied")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.size = 2, 256
    if not options.smoke and options.model is None:
        parser.error("--model is needed, or --smoke")
    model, tokens = load(None if options.smoke else options.model)
    units = cs.heads(model)
    n_positions = tokens.shape[1]
    left = torch.rand(options.size, options.size)
    product = torch.empty_like(left)
    with cs.ablate(model, units, forks=False) as ablated:
        n_rows = ablated.batch_size(n_positions)
        masks = torch.rand(n_rows, len(units), generator=torch.Generator().manual_seed(0)) < 0.9
        rows = torch.arange(n_rows)
        columns = torch.tensor([3, 4])

        def run() -> list:
            return list(ablated.stream(tokens, Rows(masks, rows, 0 * rows), columns=columns))

        whole = ablated(tokens, masks)[:, 0, 3:5]
        for part, some in run():
            torch.testing.assert_close(some, whole[part], rtol=0, atol=1e-3)
        per_row = flops(model.original_model, n_positions)
        work = n_rows * sum(per_row.values())
        shares, ours, theirs = [], [], []
        for _ in range(options.rounds):
            before = seconds(lambda: torch.mm(left, left, out=product))
            own = seconds(run)
            after = seconds(lambda: torch.mm(left, left, out=product))
            gemm = 2 * options.size**3 / np.minimum(before, after)
            ours.append(work / own)
            theirs.append(gemm)
            shares.append(work / own / gemm)
        where = where_time_goes(run)
    share = np.median(shares, axis=0)
    for name, value in where.items():
        print(f"{name:30s} {value:.3f}")
    print(
        json.dumps(
            {
                "benchmark": "matmul_share",
                "model": model.cfg.model_name,
                "threads": torch.get_num_threads(),
                "rows": n_rows,
                "tokens": n_positions,
                "gflop_per_row": {k: round(v / 1e9, 4) for k, v in per_row.items()},
                "gflops_processor": round(float(np.median(ours, axis=0)[1]) / 1e9, 2),
                "gemm_gflops_processor": round(float(np.median(theirs, axis=0)[1]) / 1e9, 2),
                "share_of_gemm_wall": round(float(share[0]), 3),
                "share_of_gemm_processor": round(float(share[1]), 3),
                "spread": round(float(np.ptp([s[1] for s in shares])), 3),
                "where": {k: round(v, 3) for k, v in where.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
