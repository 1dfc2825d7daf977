"""How do time and memory grow with masks, prompts, units and depth, and what does a block cost?

A small random Llama (30 layers of 9 heads, width 36, 16 tokens) in place of a large model, so that
what circuitspex does itself weighs as much as it ever will; every axis is a process of its own.
Processor seconds of evaluating random masks at keep rate 0.9, store included, and peak memory above
that of the smallest point of the axis. The exponent is the slope of log seconds over the upper half
of the points: 1 is linear. Then what does not touch the model, up to 100,000 masks, and what a
block and its hooks cost per layer.

    python benchmarks/growth.py
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch

import circuitspex as cs
from circuitspex.ablation import answer_logits
from circuitspex.ablation.forking import plan
from circuitspex.evaluation.evaluation import draw_balanced
from circuitspex.evaluation.store.memory import MemoryStore

AXES: dict[str, tuple[int, ...]] = {
    "masks": (100, 1000, 10_000),
    "prompts": (1, 4, 16, 64),
    "units": (270, 1440, 5760, 46_080),
    "depth": (2, 4, 8, 16, 32, 64),
    "planning masks": (1000, 10_000, 100_000),
    "planning units": (270, 5760, 46_080),
    "storing masks": (1000, 10_000, 100_000),
    "drawing prompts": (1000, 10_000, 100_000),
    "a block of layers": (2, 8, 32, 64),
    "hooks of layers": (2, 8, 32, 64),
}
SMOKE: dict[str, tuple[int, ...]] = {
    "masks": (50, 200),
    "depth": (2, 4),
    "planning masks": (1000, 4000),
    "hooks of layers": (2, 4),
}
LINEAR = 1.15
"""Exponents above count as worse than linear."""


def tiny(n_layers: int = 30, d_mlp: int = 64):
    """Make a random Llama of 9 heads in 3 groups."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=36, intermediate_size=d_mlp, num_hidden_layers=n_layers,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=64,
    )  # fmt: skip
    return cs.models.from_hugging_face(LlamaForCausalLM(config))


def make_task(model, n_prompts: int):
    """Make random prompts of 16 tokens."""
    rng = np.random.default_rng(0)
    prompts = [torch.from_numpy(rng.integers(4, 256, 16)) for _ in range(n_prompts)]
    return cs.Task.from_prompts(model, prompts, [1] * n_prompts, [[2]] * n_prompts)


def make_units(model, n: int):
    """Take that many units: heads, or neurons in blocks as large as it takes."""
    n_heads = model.cfg.n_layers * model.cfg.n_heads
    if n == n_heads:
        return cs.heads(model)
    return cs.neuron_blocks(model, model.cfg.n_layers * model.cfg.d_mlp // n)


def processor(run) -> float:
    """Processor seconds of one call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def evaluate(masks: int = 256, prompts: int = 1, units: int = 0, depth: int = 30) -> float:
    """Time the set function of a task on random masks."""
    model = tiny(depth, d_mlp=1536 if units else 64)
    chosen = make_units(model, units or depth * 9)
    rng = np.random.default_rng(0)
    drawn = torch.from_numpy(rng.random((masks, len(chosen)), dtype=np.float32) < 0.9)
    with cs.CircuitSpex(model, make_task(model, prompts), chosen) as spex:
        spex(drawn[:8])
        return processor(lambda: spex(drawn))


def planning(masks: int = 1000, units: int = 270) -> float:
    """Time planning which masks share layers, one prompt."""
    drawn = torch.from_numpy(np.random.default_rng(0).random((masks, units), np.float32) < 0.9)
    layers = torch.arange(units) // (units // 30)
    rows = torch.arange(masks)
    return processor(lambda: plan(drawn, 0 * rows, rows, layers, 30).row_layers(69))


def storing(masks: int) -> float:
    """Time keeping values in memory and asking for them."""
    drawn = torch.from_numpy(np.random.default_rng(0).random((masks, 270), np.float32) < 0.9)
    prompts, values = torch.zeros(masks, dtype=torch.long), torch.rand(masks, dtype=torch.float64)

    def run() -> None:
        store = MemoryStore(270, 1)
        for part in torch.arange(masks).split(69):
            store.append(drawn[part], prompts[part], values[part])
        assert store.look_up(drawn, prompts)[1].all()

    return processor(run)


def drawing(masks: int) -> float:
    """Time drawing one of 16 prompts for every mask."""
    return processor(lambda: draw_balanced(masks, 1, 16, np.random.default_rng(0)))


def block(depth: int) -> float:
    """Time entering and leaving a block, probes left out, median of nine."""
    model = tiny(depth)
    units = cs.heads(model)

    def enter() -> None:
        with cs.ablate(model, units, probe=False, forks=False):
            pass

    enter()
    return float(np.median([processor(enter) for _ in range(9)]))


def hooks(depth: int) -> float:
    """Time what hooks add to a pass of 8 rows, median of 25 in turn with the bare one."""
    model = tiny(depth)
    tokens = torch.arange(1, 17).expand(8, -1)
    masks = torch.rand(8, 9 * depth) < 0.9
    extra = []
    with cs.ablate(model, cs.heads(model), forks=False) as ablated:
        for _ in range(25):
            bare = processor(lambda: answer_logits(model, tokens))
            extra.append(processor(lambda: ablated(tokens[:1], masks)) - bare)
    return float(np.median(extra))


MEASURES = {
    "masks": lambda n: evaluate(masks=n),
    "prompts": lambda n: evaluate(prompts=n),
    "units": lambda n: evaluate(units=n),
    "depth": lambda n: evaluate(depth=n),
    "planning masks": lambda n: planning(masks=n),
    "planning units": lambda n: planning(units=n),
    "storing masks": storing,
    "drawing prompts": drawing,
    "a block of layers": block,
    "hooks of layers": hooks,
}


def measure(axis: str, sizes: tuple[int, ...]) -> list[dict[str, float]]:
    """Measure the points of an axis, the smallest first."""
    points = []
    for size in sizes:
        seconds = MEASURES[axis](size)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        points.append({"seconds": seconds, "mib": peak})
    return points


def measure_apart(axis: str, sizes: tuple[int, ...]) -> list[dict[str, float]]:
    """Measure an axis in a fresh process."""
    code = [sys.executable, __file__, "--axis", axis, *map(str, sizes)]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Slope of log seconds over log size, upper half of the points."""
    start = len(sizes) // 2 - (len(sizes) == 2)
    start = min(start, len(sizes) - 2)
    return float(np.polyfit(np.log(sizes[start:]), np.log(seconds[start:]), 1)[0])


def main() -> None:
    """Measure every point, fit, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axes", nargs="+", choices=[*AXES], help="all when left out")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--axis", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.axis:
        print(json.dumps(measure(options.axis[0], tuple(map(int, options.axis[1:])))))
        return
    axes = SMOKE if options.smoke else {axis: AXES[axis] for axis in options.axes or AXES}
    rows: dict[str, Any] = {}
    for axis, sizes in axes.items():
        rounds = [measure_apart(axis, sizes) for _ in range(options.rounds)]
        seconds, memory = (
            np.median([[point[key] for point in points] for points in rounds], axis=0).tolist()
            for key in ("seconds", "mib")
        )
        rows[axis] = {
            "sizes": sizes,
            "seconds": [round(s, 5) for s in seconds],
            "mib_above_first": [round(m - memory[0], 1) for m in memory],
            "exponent": round(exponent(sizes, seconds), 3),
        }
        if axis == "masks":
            rows[axis]["extrapolated_seconds_of_100000"] = round(
                seconds[-1] * (1e5 / sizes[-1]) ** rows[axis]["exponent"], 1
            )
        print(axis, json.dumps(rows[axis]), flush=True)
    print(
        json.dumps(
            {
                "benchmark": "growth",
                "threads": torch.get_num_threads(),
                "worse_than_linear": [a for a, row in rows.items() if row["exponent"] > LINEAR],
                "axes": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
