"""On a real model: how many evaluations does each decoder need, at each keep rate?

R² is of the task's average game (the mean over 16 prompts) on fresh masks that no fit saw. The
yardstick is what published tools do: shapiq's ProxySPEX with all prompts on every mask. The
question is whether ours reaches with 1,000 evaluations what that reaches with 8,000.

* One pool of evaluations per keep rate is drawn from seeded generators: a twentieth of its masks
  with all prompts, then masks with four, then masks with one. Every budget and every number of
  prompts per mask takes its rows from there, so all see nested data. With one prompt per mask, a
  fifth of the budget goes to masks with four, just as the decoders draw them when they run live.
* Seed 0 takes rows from the start of each part of the pool, seed 1 from its end: up to half the
  largest budget the two share no row. The seed also deals the folds. At the largest budget the rows
  would be the same, so only the first seed runs.
* shapiq (1.4.1) fits the rows with all prompts, as it comes: its sampler is made to hand out the
  recorded masks, so its grid search, tree-to-Fourier step, cut and ridge refit are its own.
  Its trees can fit masks at any rate, but its Fourier basis is always that of rate ½. Where it
  raises an error (with too few masks its trees are constants), its R² is given as 0, a constant's.

* ``spex`` is left out: it needs coded masks. ``hybrid`` uses them at rate ½ when it runs live; here
  it makes do with random ones.

With ``--store`` an interrupted run goes on where it was; without decoders it only evaluates.

    OMP_NUM_THREADS=1 python benchmarks/real_decoders.py --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from proxyspex_vs_shapiq import parity_predict, r2
from torch import Tensor

import circuitspex as cs
from circuitspex import decoders
from circuitspex.decoders.regression.sparse_regression import SparseRegression
from circuitspex.designs.bernoulli import bernoulli_masks
from circuitspex.evaluation.evaluation import draw_balanced
from circuitspex.games import SparseGame

SETTINGS: tuple[int | str, ...] = ("all", 4, 1)
BUDGETS = [500, 1000, 2000, 4000, 8000]
REPEATS = 4
"""Prompts on each mask of the fifth of the budget that measures how much prompts differ."""


@dataclass(frozen=True)
class Pool:
    """What was evaluated at one keep rate; every budget takes its rows from here."""

    keep_rate: float
    n_prompts: int
    test: Bool[Tensor, "tests units"]
    truth: Float[np.ndarray, " tests"]
    masks: Bool[np.ndarray, "masks units"]
    """First those with all prompts, then those with four, then those with one."""
    full: Float[np.ndarray, "full prompts"]
    """Values of the first masks on every prompt."""
    fours: Float[np.ndarray, "fours drawn"]
    """Values of the first masks, and of the next, on four prompts each."""
    four_prompts: Int[np.ndarray, "fours drawn"]
    ones: Float[np.ndarray, "ones one"]
    """Values of the last masks on one prompt each."""
    one_prompts: Int[np.ndarray, "ones one"]


def collect(
    game: cs.SampledSetFunction, keep_rate: float, budget: int, few_budget: int, n_test: int
) -> Pool:
    """Evaluate the masks of one keep rate, enough for the largest budgets."""
    n_prompts, n_units = game.n_prompts, game.n_units
    n_full, n_fours, n_ones = budget // n_prompts, few_budget // REPEATS, few_budget * 4 // 5
    seeds = [np.random.default_rng([round(1000 * keep_rate), i]) for i in range(5)]
    test = bernoulli_masks(n_test, n_units, keep_rate, seeds[0])
    masks = bernoulli_masks(
        n_fours + n_ones, n_units, keep_rate, seeds[1], complementary=keep_rate == 0.5
    )
    truth = game(test)
    full = game.per_prompt(masks[:n_full])
    which = draw_balanced(n_full, REPEATS, n_prompts, seeds[2])
    more, which_more = game.sample(masks[n_full:n_fours], REPEATS, seeds[3])
    ones, which_one = game.sample(masks[n_fours:], 1, seeds[4])
    return Pool(
        keep_rate=keep_rate,
        n_prompts=n_prompts,
        test=test,
        truth=truth.numpy(),
        masks=masks.numpy(),
        full=full.numpy(),
        fours=torch.cat([full.gather(1, which), more]).numpy(),
        four_prompts=torch.cat([which, which_more]).numpy(),
        ones=ones.numpy(),
        one_prompts=which_one.numpy(),
    )


def rows_of(
    pool: Pool, prompts_per_mask: int | str, budget: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return masks, values and prompts of the rows that a budget buys; prompts None for all."""

    def part(n_rows: int, start: int, stop: int) -> slice:
        assert n_rows <= stop - start
        return slice(stop - n_rows, stop) if seed % 2 else slice(start, start + n_rows)

    n_fours = len(pool.fours)
    if prompts_per_mask == "all":
        chosen = part(budget // pool.n_prompts, 0, len(pool.full))
        return pool.masks[chosen], pool.full[chosen].mean(axis=1, keepdims=True), None
    if prompts_per_mask == REPEATS:
        chosen = part(budget // REPEATS, 0, n_fours)
        return pool.masks[chosen], pool.fours[chosen], pool.four_prompts[chosen]
    n_repeated = budget // (5 * REPEATS)
    repeated = part(n_repeated, 0, n_fours)
    single = part(budget - n_repeated * REPEATS, 0, len(pool.ones))
    masks = [pool.masks[n_fours:][single], pool.masks[repeated].repeat(REPEATS, axis=0)]
    values = [pool.ones[single], rearrange(pool.fours[repeated], "m d -> (m d) 1")]
    prompts = [pool.one_prompts[single], rearrange(pool.four_prompts[repeated], "m d -> (m d) 1")]
    return np.concatenate(masks), np.concatenate(values), np.concatenate(prompts)


def fit_ours(
    pool: Pool, name: str, prompts_per_mask: int | str, budget: int, seed: int
) -> dict[str, Any]:
    """Fit one of our decoders to what a budget buys, and test it."""
    masks, values, prompts = rows_of(pool, prompts_per_mask, budget, seed)
    decoder = decoders.get(name, keep_rate=pool.keep_rate, prompts_per_mask=prompts_per_mask)
    assert isinstance(decoder, SparseRegression)
    started = time.perf_counter()
    found = decoder.fit(
        torch.from_numpy(masks),
        torch.from_numpy(values[:, 0] if prompts is None else values),
        np.random.default_rng(seed),
        prompts=None if prompts is None else torch.from_numpy(prompts),
        n_prompts=pool.n_prompts,
    )
    return {
        "r2": r2(pool.truth, found.predict(pool.test).numpy()),
        "r2_reported": found.held_out_r2,
        "terms_by_order": np.bincount([len(term) for term in found.support])[1:].tolist(),
        "seconds": time.perf_counter() - started,
    }


class _Refined(Exception):
    """Leaves shapiq once its spectrum is ready, before it is converted to an index."""


class _Recorded:
    """Stands in for shapiq's sampler and hands out masks that were recorded."""

    def __init__(self, masks: np.ndarray) -> None:
        self.coalitions_matrix = masks

    def sample(self, budget: int) -> None:
        """Draw nothing: the masks are there."""


def fit_shapiq(pool: Pool, budget: int, seed: int) -> dict[str, Any]:
    """Let shapiq's ProxySPEX fit what a budget buys with all prompts per mask, and test it."""
    from shapiq.approximator import ProxySPEX

    masks, values, _ = rows_of(pool, "all", budget, seed)
    proxy = ProxySPEX(n=masks.shape[1], max_order=5, index="k-SII", random_state=seed)
    setattr(proxy, "_uniform_sampler", _Recorded(masks))  # noqa: B010 - no public way to it
    spectrum, refine = {}, proxy._refine

    def refine_and_keep(*arguments: Any) -> dict[tuple[int, ...], float]:
        spectrum.update(refine(*arguments))
        raise _Refined

    setattr(proxy, "_refine", refine_and_keep)  # noqa: B010 - nor to this
    error, started = None, time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            proxy.approximate(len(masks), lambda _: values[:, 0])
        except _Refined:
            pass
        except (ValueError, IndexError) as failure:
            error = str(failure)
    predicted = parity_predict(spectrum, pool.test.numpy())
    return {
        "r2": 0.0 if error else r2(pool.truth, predicted),
        "error": error,
        "terms_by_order": np.bincount([len(term) for term in spectrum] or [0])[1:].tolist(),
        "seconds": time.perf_counter() - started,
    }


@dataclass
class Planted:
    """A sparse game whose prompts differ by a constant: known truth for the check."""

    game: SparseGame
    levels: np.ndarray

    def __post_init__(self) -> None:
        """Say what a set function says."""
        self.n_units, self.n_prompts = self.game.n_units, len(self.levels)

    def per_prompt(self, masks: Tensor) -> Tensor:
        """Return game plus level, one column per prompt."""
        return self.game(masks)[:, None] + torch.from_numpy(self.levels)

    def __call__(self, masks: Tensor) -> Tensor:
        """Return the average game."""
        return self.per_prompt(masks).mean(dim=1)

    def sample(
        self, masks: Tensor, prompts_per_mask: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return values of a few prompts, and which."""
        which = draw_balanced(len(masks), prompts_per_mask, self.n_prompts, rng)
        return self.per_prompt(masks).gather(1, which), which


def check_answers(names: list[str]) -> None:
    """Every decoder and shapiq must explain a planted game from a pool, however it is sampled."""
    rng = np.random.default_rng(0)
    support = [(), *((i,) for i in range(12)), (1, 4)]
    game = SparseGame(30, support, rng.normal(size=len(support)) + 2.0)
    pool = collect(Planted(game, rng.normal(size=8)), 0.5, 2400, 2400, 100)
    if r2(pool.truth, pool.truth) != 1.0:
        raise SystemExit("the R² of the truth is not 1")
    found = {(name, n): fit_ours(pool, name, n, 2400, 1)["r2"] for name in names for n in SETTINGS}
    found["shapiq", "all"] = fit_shapiq(pool, 2400, 1)["r2"]
    for cell, score in found.items():
        if score < (0.9 if cell[0] == "shapiq" else 0.99):
            raise SystemExit(f"a planted game: {cell} has R² {score}")


def check_store(model: Any, task: cs.Task, units: cs.UnitSet, pool: Pool) -> None:
    """What the pool says of a few test masks must be what the model says without a store."""
    with cs.CircuitSpex(model, task, units) as spex:
        direct = spex(pool.test[:3]).numpy()
    if np.abs(direct - pool.truth[:3]).max() > 1e-4:
        raise SystemExit(f"the store says {pool.truth[:3]}, the model {direct}")


def measure(
    pool: Pool, names: list[str], budgets: list[int], few_budget: int, seeds: list[int]
) -> list[dict]:
    """Fit everything to every budget at one keep rate."""
    ways = [(name, n) for name in names for n in SETTINGS] + [("shapiq", "all")]
    rows = []
    for name, prompts in ways:
        affordable = budgets if prompts == "all" else [b for b in budgets if b <= few_budget]
        for budget in affordable:
            most = max(budgets) if prompts == "all" else few_budget
            for seed in seeds if budget < most else seeds[:1]:  # the rows would be the same
                if name == "shapiq":
                    result = fit_shapiq(pool, budget, seed)
                else:
                    result = fit_ours(pool, name, prompts, budget, seed)
                cell = {"keep_rate": pool.keep_rate, "decoder": name, "prompts_per_mask": prompts}
                rows.append({**cell, "budget": budget, "seed": seed, **result})
        print_line(rows, pool.keep_rate, name, prompts, affordable)
    return rows


def print_line(
    rows: list[dict], keep_rate: float, name: str, prompts: int | str, budgets: list[int]
) -> None:
    """Print the means over seeds of one way to spend the budget."""
    cells = []
    for budget in budgets:
        key = (keep_rate, name, prompts, budget)
        own = [
            row["r2"]
            for row in rows
            if (row["keep_rate"], row["decoder"], row["prompts_per_mask"], row["budget"]) == key
        ]
        cells.append(f"{np.mean(own):+.3f} ± {np.ptp(own) / 2:.3f}")
    print(f"{keep_rate:4.2f}  {name:10s} {prompts!s:>3s}  {'  '.join(cells)}", flush=True)


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with numbers that can be read."""
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}


def main() -> None:
    """Evaluate, fit, print a table; the last line of output is one JSON object."""
    ours = [
        name
        for name, kind in decoders.DECODERS.items()
        if issubclass(kind, SparseRegression) and name != "spex"
    ]
    parser = argparse.ArgumentParser(description="Every decoder on a real model, by budget.")
    parser.add_argument("--model", default="toy-induction")
    parser.add_argument("--keep-rates", type=float, nargs="+", default=[0.95, 0.9, 0.5, 0.8])
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--few-budget", type=int, help="largest with 4 and 1 prompts per mask")
    parser.add_argument("--test-masks", type=int, default=250)
    parser.add_argument("--decoders", nargs="*", default=ours, help="none: only evaluate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--store", type=Path, help="folder for the evaluations")
    parser.add_argument("--smoke", action="store_true", help="a toy model, under 20 seconds")
    options = parser.parse_args()
    if options.smoke:
        options.model, options.keep_rates, options.budgets = "toy-induction", [0.8], [320, 640]
        options.test_masks, options.seeds = 40, [0]
    few_budget = options.few_budget or max(options.budgets)
    check_answers(options.decoders)
    model = cs.models.load(options.model)
    toy = options.model.startswith("toy-")
    task = cs.tasks.make("induction" if toy else "ioi", model, 16, seed=0)
    units = cs.heads(model)
    rows = []
    print("rate  decoder  prompts  " + "  ".join(f"{b:14d}" for b in options.budgets))
    for keep_rate in options.keep_rates:
        store = options.store and options.store / f"keep-{keep_rate}"
        with cs.CircuitSpex(model, task, units, store=store) as spex:
            pool = collect(spex, keep_rate, max(options.budgets), few_budget, options.test_masks)
        check_store(model, task, units, pool)
        if options.decoders:
            rows += measure(pool, options.decoders, options.budgets, few_budget, options.seeds)
    print(
        json.dumps(
            {
                "benchmark": "real_decoders",
                "model": model.cfg.model_name,
                "n_units": len(units),
                "prompts": len(task),
                "test_masks": options.test_masks,
                "smoke": options.smoke,
                "rows": [rounded(row) for row in rows],
            }
        )
    )


if __name__ == "__main__":
    main()
