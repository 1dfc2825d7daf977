"""At equal time: random masks that share their first layers, or independent ones?

Masks of a group share everything below a layer, and their prompt, so a group costs less than as
many independent masks; in return, early units are seen in as many contexts as there are groups. One
prompt on each mask. Designs are evaluated in turn; how much faster one is than independent masks is
the median over seeds and keep rates of processor time, which other jobs lengthen less than wall
time. Of each design as many masks are fitted as it evaluates in the time of the independent ones.
R² is of the average over all prompts, on independent masks that no fit saw.

    python benchmarks/forked_designs.py --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import json
import time
from itertools import pairwise

import numpy as np
import torch

import circuitspex as cs
from circuitspex.ablation.forking import plan
from circuitspex.decoders.regression.sparse_regression import SparseRegression
from circuitspex.designs.forked import forked_masks

SPARE = 1.1
"""Masks evaluated of a design, over what its plan promises in the time of the independent ones."""


def shapes(n_layers: int) -> dict[str, dict[int, int]]:
    """Name the designs: at which layers a mask becomes how many."""
    half, late = n_layers // 2, n_layers * 4 // 5
    branches = [{}, {half: 2}, {late: 2}, {late: 4}]
    return {" ".join(f"{at}×{n}" for at, n in b.items()) or "independent": b for b in branches}


def promised(branches: dict[int, int], n_layers: int) -> float:
    """Rows that the plan runs in the time of one independent row."""
    ends = [*sorted(branches), n_layers]
    rows, layers = 1, ends[0]
    for start, end in pairwise(ends):
        rows *= branches[start]
        layers += rows * (end - start)
    return rows * n_layers / layers


def check_promise(branches: dict[int, int], layers: list[int], n_layers: int) -> None:
    """Compare the promise with the planner that runs."""
    masks, _ = forked_masks(64, layers, 0.9, branches, np.random.default_rng(0))
    rows = torch.arange(64)
    shared = plan(masks, torch.zeros_like(rows), rows, torch.tensor(layers), n_layers)
    planned = 64 * n_layers / shared.row_layers(10**9)
    if planned < promised(branches, n_layers) * 0.999:
        raise SystemExit(f"{branches}: the plan runs {planned:.3f}, less than was promised")


def evaluate(spex, layers, keep_rate, branches, n_masks, rng) -> dict:
    """Draw and evaluate a design."""
    masks, groups = forked_masks(n_masks, layers, keep_rate, branches, rng)
    started = np.array([time.process_time(), time.perf_counter()])
    values, prompts = spex.sample(masks, 1, rng, groups)
    spent = np.array([time.process_time(), time.perf_counter()]) - started
    return {
        "masks": masks,
        "groups": groups,
        "values": values,
        "prompts": prompts,
        "seconds": spent[0],
        "wall": spent[1],
    }


def evaluate_all(spex, keep_rate: float, seed: int, budget: int) -> dict[str, dict]:
    """Evaluate every design, with the speed of each over that of the independent masks."""
    layers, n_layers = [unit.layer for unit in spex.units], spex.model.cfg.n_layers
    designs, base = {}, 0.0
    for i, (name, branches) in enumerate(shapes(n_layers).items()):
        n_masks = round(budget * promised(branches, n_layers) * (SPARE if branches else 1))
        rng = np.random.default_rng([seed, i])
        rows = evaluate(spex, layers, keep_rate, branches, n_masks, rng)
        base = base or rows["seconds"] / n_masks
        rows["faster"] = base * n_masks / rows["seconds"]
        designs[name] = rows
        shown = {key: round(rows[key], 2) for key in ("seconds", "wall", "faster")}
        print(
            json.dumps({"keep_rate": keep_rate, "seed": seed, "design": name, **shown}), flush=True
        )
    return designs


def fit(decoder: str, keep_rate: float, rows: dict, n_rows: int, n_prompts: int):
    """Fit the first rows of a design."""
    method = cs.decoders.get(decoder, keep_rate=keep_rate, max_order=2)
    assert isinstance(method, SparseRegression)
    return method.fit(
        rows["masks"][:n_rows],
        rows["values"][:n_rows],
        np.random.default_rng(0),
        prompts=rows["prompts"][:n_rows],
        n_prompts=n_prompts,
        groups=rows["groups"][:n_rows],
    )


def share_explained(truth: torch.Tensor, predicted: torch.Tensor) -> float:
    """R² of predictions."""
    return float(1 - (truth - predicted).square().mean() / truth.var(correction=0))


def compare(name: str, faster: float, tables: dict, tests: dict, options) -> list[dict]:
    """Fit what a design evaluates in the time of the independent masks, and in as many."""
    results = []
    for (keep_rate, seed), designs in tables.items():
        rows, (test, truth) = designs[name], tests[keep_rate]
        sizes = {"equal_time": round(options.budget * faster), "equal_masks": options.budget}
        result = {"design": name, "keep_rate": keep_rate, "seed": seed}
        for decoder in options.decoders:
            for key, size in sizes.items():
                n_rows = min(size, len(rows["masks"]))
                found = fit(decoder, keep_rate, rows, n_rows, options.n_prompts)
                r2 = share_explained(truth, found.predict(test))
                result |= {f"{key}_rows": n_rows, f"{decoder}_{key}": round(r2, 4)}
        print(json.dumps(result), flush=True)
        results.append(result)
    return results


def summarise(rows: list[dict], faster: dict[str, float], decoders: list[str]) -> list[dict]:
    """Differences to the independent masks of the same seed and keep rate."""
    base = {(r["keep_rate"], r["seed"]): r for r in rows if r["design"] == "independent"}
    cells = []
    for rate, name in sorted({(r["keep_rate"], r["design"]) for r in rows}):
        own = [r for r in rows if (r["design"], r["keep_rate"]) == (name, rate)]
        cell = {"keep_rate": rate, "design": name, "faster": round(faster[name], 3)}
        for key in (f"{d}_{k}" for d in decoders for k in ("equal_time", "equal_masks")):
            cell[key] = round(float(np.mean([r[key] for r in own])), 3)
            cell[f"{key}_gain"] = [round(r[key] - base[rate, r["seed"]][key], 3) for r in own]
        cells.append(cell)
        print(json.dumps(cell))
    return cells


def main() -> None:
    """Run every design at every keep rate and seed; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a .gguf file, a folder or a name")
    parser.add_argument("--budget", type=int, default=400, help="independent masks")
    parser.add_argument("--keep-rates", type=float, nargs="+", default=[0.95, 0.9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test-masks", type=int, default=100)
    parser.add_argument("--decoders", nargs="+", default=["lasso", "hybrid"])
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.budget, options.test_masks, options.seeds = 128, 30, [0]
        options.keep_rates, options.decoders = [0.8], ["lasso"]
    if not options.smoke and options.model is None:
        parser.error("--model is needed, or --smoke")
    name = "toy-induction" if options.smoke else options.model
    model = cs.models.load(name)
    task = cs.tasks.make("induction" if options.smoke else "ioi", model, 16, seed=0)
    units = cs.heads(model)
    for branches in shapes(model.cfg.n_layers).values():
        check_promise(branches, [unit.layer for unit in units], model.cfg.n_layers)
    options.n_prompts = len(task)
    tables, tests = {}, {}
    with cs.CircuitSpex(model, task, units) as spex:
        for keep_rate in options.keep_rates:
            rng = np.random.default_rng(10**6)
            test = torch.from_numpy(rng.random((options.test_masks, len(units))) < keep_rate)
            tests[keep_rate] = test, spex(test)
            for seed in options.seeds:
                tables[keep_rate, seed] = evaluate_all(spex, keep_rate, seed, options.budget)
    names = shapes(model.cfg.n_layers)
    faster = {n: float(np.median([d[n]["faster"] for d in tables.values()])) for n in names}
    rows = [row for n in names for row in compare(n, faster[n], tables, tests, options)]
    print(
        json.dumps(
            {
                "benchmark": "forked_designs",
                "model": model.cfg.model_name,
                "units": len(units),
                "prompts": len(task),
                "budget": options.budget,
                "test_masks": options.test_masks,
                "threads": torch.get_num_threads(),
                "promised": {
                    n: round(promised(b, model.cfg.n_layers), 3) for n, b in names.items()
                },
                "cells": summarise(rows, faster, options.decoders),
            }
        )
    )


if __name__ == "__main__":
    main()
