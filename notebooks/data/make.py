"""Make the figures of SmolLM2 that ``02_find_and_verify.ipynb`` shows; README.md lists them.

``--tables`` holds ``pairs_0.npz`` … of ``exhaustive_pairs.py``, ``--white-box`` names files that
``white_box.py --out`` wrote, and ``--store`` is the folder of its ``--store``, so that masks which
it evaluated are not evaluated again. ``--only`` makes one of the files.

    PYTHONPATH=benchmarks OMP_NUM_THREADS=1 python notebooks/data/make.py \
        --model SmolLM2-135M-Instruct.Q4_1.gguf --tables benchmarks/data --white-box results.jsonl
"""

import argparse
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exhaustive_pairs import read
from interaction_recall import effect, heuristics, read_values, recall, verify

import circuitspex as cs
from circuitspex._shared.protocols import GRADIENT_COST
from circuitspex.decoders.gradient import GradientDecoder
from circuitspex.decoders.around_intact.exploration import explore
from circuitspex.decoders.around_intact.neighbourhood import Neighbourhood
from circuitspex.decoders.measuring.samples import Meter
from circuitspex.designs.bernoulli import bernoulli_masks

HERE = Path(__file__).parent
BLACK_BOXES = HERE.parents[1] / "benchmarks" / "real_decoders.md"
BUDGETS = [100, 150, 200, 300, 400, 500, 600, 726, 1000, 1300, 1815]
SHOWN_BUDGET = 726  # 2 % of all 36,315 pairs
KEEP_RATES = [0.95, 0.9, 0.8]
N_LARGEST, N_RANDOM = 2000, 1000


class Tabled:
    """One prompt's game around the intact model, every answer from a table."""

    def __init__(self, values: dict[tuple[int, ...], float], gradients: np.ndarray) -> None:
        self.n_units = gradients.shape[1]
        self._values, self._gradients = values, gradients

    def __call__(self, masks: torch.Tensor) -> torch.Tensor:
        """Return the values of masks that ablate two heads at most."""
        ablated = [tuple(np.flatnonzero(~mask).tolist()) for mask in masks.numpy()]
        return torch.tensor([self._values[term] for term in ablated], dtype=torch.float64)

    def value_and_gradient(self, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values and gradients of masks that ablate one head at most."""
        rows = [np.flatnonzero(~mask) for mask in masks.numpy()]
        rows = [1 + int(row[0]) if len(row) else 0 for row in rows]
        return self(masks), torch.from_numpy(self._gradients[rows])


def single_gradients(model, task, tables: Path, prompt: int) -> np.ndarray:
    """Return gradients at the intact model, row 0, and without head i, row i + 1; kept on disk."""
    path = tables / f"gradients_{prompt}.npy"
    if not path.exists():
        units = cs.heads(model)
        masks = cs.masks.ablate_only([[], *([i] for i in range(len(units)))], len(units))
        with cs.CircuitSpex(model, task.subset([prompt]), units) as spex:
            np.save(path, spex.value_and_gradient(masks)[1].numpy())
    return np.load(path).astype(float)


def search(values, gradients: np.ndarray, budget: int) -> tuple[Neighbourhood, int]:
    """Return what ``discover("gradient", keep_rate=0.95, max_order=2)`` verifies of a budget.

    With it comes how many evaluations the search was allowed; the rest of the budget is for the fit.
    """
    decoder = GradientDecoder(keep_rate=0.95, max_order=2)
    meter = Meter(Tabled(values, gradients), budget)
    n_evaluations, _ = decoder._plan(meter, None)
    found = explore(meter, None, n_evaluations, (1.0,), np.random.default_rng(0))
    return found, n_evaluations


def search_with_row_effects(values, gradients: np.ndarray, budget: int, n_rounds: int = 4):
    """Return what the same contexts verify where a model of rows chooses: a trial that failed.

    A ridge regression of log |θ| on the log of the estimate and on which units are involved, fitted
    to what was verified so far, chooses what is verified next.
    """
    found, n_evaluations = search(values, gradients, budget)
    n_units = gradients.shape[1]
    taken = np.zeros((n_units, n_units))
    for (context,) in found.contexts:
        taken[context] = np.abs(gradients[1 + context] - gradients[0])
    first, second = np.triu_indices(n_units, 1)
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    estimate = np.log(np.maximum(taken, taken.T)[first, second] + 1e-3)
    features = np.zeros((len(pairs), 2 + n_units))
    features[:, 0], features[:, 1] = 1, estimate
    for unit in (first, second):
        features[np.arange(len(pairs)), 2 + unit] = 1
    penalty = np.diag([1e-6, 1e-3, *[3.0] * n_units])
    left = n_evaluations - GRADIENT_COST * (1 + len(found.contexts))
    known, verified, score = [(), *found.contexts], {}, estimate
    for n_left in range(n_rounds, 0, -1):
        ranking = [k for k in np.argsort(-score, kind="stable").tolist() if k not in verified]
        new = verify([pairs[k] for k in ranking], known, left // n_left)
        parts = {part for pair in new for part in (*((unit,) for unit in pair), pair)}
        left -= len(parts - set(known))
        known = [*{*known, *parts}]
        verified |= {k: effect(values, pairs[k]) for k in ranking[: len(new)]}
        rows = list(verified)
        size = np.log(np.abs(list(verified.values())) + 1e-3)
        seen = features[rows]
        score = features @ np.linalg.solve(seen.T @ seen + penalty, seen.T @ size)
    return [pairs[k] for k in verified]


def make_pairs(tables: Path, gradients: np.ndarray) -> dict[str, Any]:
    """Write prompt 0's pairs, thinned, and return what is said of all of them."""
    table = read(tables / "pairs_0.npz")
    values = read_values(tables, 0, triples=False)
    pairs = table["sets"]
    theta = np.array([effect(values, tuple(pair)) for pair in pairs.tolist()])
    change = -(gradients[1:] - gradients[0])
    first, second = change[pairs[:, 0], pairs[:, 1]], change[pairs[:, 1], pairs[:, 0]]
    larger = np.where(np.abs(first) > np.abs(second), first, second)
    by_truth, by_estimate = np.argsort(-np.abs(theta)), np.argsort(-np.abs(larger))
    strongest = np.union1d(by_truth[:N_LARGEST], by_estimate[: N_LARGEST // 2])
    rest = np.setdiff1d(np.arange(len(pairs)), strongest)
    drawn = np.random.default_rng(0).choice(rest, N_RANDOM, replace=False)
    kept = np.sort(np.concatenate([strongest, drawn]))
    verified = search(values, gradients, SHOWN_BUDGET)[0].verified
    np.savez_compressed(
        HERE / "smollm2_pairs.npz",
        prompt=table["prompt"],
        intact=table["intact"],
        singles=table["singles"],
        gradient=gradients[0].astype(np.float32),
        pairs=pairs[kept].astype(np.int16),
        theta=theta[kept].astype(np.float32),
        from_first=first[kept].astype(np.float32),
        from_second=second[kept].astype(np.float32),
        drawn=np.isin(kept, drawn),
        verified=np.array([tuple(pair) in verified for pair in pairs[kept].tolist()]),
    )
    top = {k: set(by_truth[:k].tolist()) for k in (50, 100)}
    return {
        "n_pairs": len(pairs),
        "n_verified": len(verified),
        "budget": SHOWN_BUDGET,
        "correlation": float(np.corrcoef(theta, larger)[0, 1]),
        "same_sign_top_50": float((theta * larger > 0)[by_truth[:50]].mean()),
        "ranked": {
            str(n): len(top[50] & set(by_estimate[:n].tolist())) / 50 for n in (50, 300, 600)
        },
    }


def make_recall(tables: Path, gradients: list[np.ndarray]) -> list[dict[str, Any]]:
    """Return the recall of every method, prompt and budget."""
    rows = []
    for prompt, slopes in enumerate(gradients):
        values = read_values(tables, prompt, triples=False)
        truth = {t: effect(values, t) for t in combinations(range(slopes.shape[1]), 2)}
        for budget in BUDGETS:
            found = heuristics(values, slopes[0], truth, budget)
            found["gradient"] = recall([*search(values, slopes, budget)[0].verified], truth)
            if budget == SHOWN_BUDGET:
                chosen = search_with_row_effects(values, slopes, budget)
                found["gradient, row effects"] = recall(chosen, truth)
            rows += [
                {"prompt": prompt, "budget": budget, "method": name, "recall": shares}
                for name, shares in found.items()
            ]
    return rows


def test_masks(keep_rate: float, n_units: int) -> torch.Tensor:
    """Return the masks that ``white_box.py`` tests on."""
    rng = np.random.default_rng([round(1000 * keep_rate), 0])
    return bernoulli_masks(150 if keep_rate < 0.9 else 250, n_units, keep_rate, rng)


def r2(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return the share of variance explained, the mean apart."""
    return float(1 - np.var(truth - predicted) / truth.var())


def make_expansion(model, task, tables: Path, store: Path | None) -> list[dict[str, Any]]:
    """Return how well all exact singles and pairs of prompt 0 predict random masks."""
    table = read(tables / "pairs_0.npz")
    values = read_values(tables, 0, triples=False)
    n_units, rows = len(table["singles"]), []
    singles = table["singles"] - table["intact"]
    pairs = np.zeros((n_units, n_units))
    for pair in table["sets"].tolist():
        pairs[tuple(pair)] = effect(values, tuple(pair))
    for keep_rate in KEEP_RATES:
        masks = test_masks(keep_rate, n_units)
        folder = store and store / f"0-{keep_rate}"
        with cs.CircuitSpex(model, task.subset([0]), cs.heads(model), store=folder) as spex:
            truth = spex(masks).numpy()
        gone = (~masks).numpy().astype(float)
        linear = gone @ singles
        both = linear + ((gone @ pairs) * gone).sum(axis=1)
        rows.append(
            {"keep_rate": keep_rate, "singles": r2(truth, linear), "pairs": r2(truth, both)}
        )
    return rows


def make_outliers(model, task, store: Path | None, n_gradients: int = 320) -> dict[str, Any]:
    """Return how well plain and clipped means of gradients predict the average game at 0.9."""
    keep_rate, units = 0.9, cs.heads(model)
    test = test_masks(keep_rate, len(units))
    masks = bernoulli_masks(n_gradients, len(units), keep_rate, np.random.default_rng(0))
    folder = store and store / f"average-{keep_rate}"
    with cs.CircuitSpex(model, task, units, store=folder) as spex:
        truth = spex(test).numpy()
        _, gradients, _ = spex.sample_gradients(masks, 1, np.random.default_rng(0))
    gradients = gradients[:, 0].numpy().astype(float)
    lengths = np.linalg.norm(gradients, axis=1)
    clipped = gradients * np.minimum(1, np.median(lengths) / lengths)[:, None]
    rng, rows = np.random.default_rng(0), []
    for size in (16, 32, 64, 128):
        for _ in range(200):
            rows_drawn = rng.choice(n_gradients, size, replace=False)
            plain, short = (g[rows_drawn].mean(axis=0) for g in (gradients, clipped))
            scores = [r2(truth, test.numpy() @ mean) for mean in (plain, short)]
            rows.append([size, *(round(score, 4) for score in scores)])
    return {"lengths": np.round(np.sort(lengths), 2).tolist(), "size_plain_clipped": rows}


def read_black_boxes(path: Path) -> list[dict[str, Any]]:
    """Return the R² of black-box decoders on the average game, from the table of a page."""
    rows = []
    for line in path.read_text().splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if len(cells) != 8 or not re.fullmatch(r"0\.\d+", cells[0]) or cells[2] not in ("all", "1"):
            continue
        for budget, cell in zip((500, 1000, 2000, 4000, 8000), cells[3:], strict=True):
            number = re.match(r"[−-]?\d\.\d\d", cell)  # neither "—" nor shapiq's "0¹", an error
            if number:
                row = {"keep_rate": float(cells[0]), "game": "average", "decoder": cells[1]}
                score = float(number[0].replace("−", "-"))
                rows.append({**row, "prompts_per_mask": cells[2], "budget": budget, "r2": score})
    return rows


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--white-box", type=Path, nargs="*", default=[])
    parser.add_argument("--only", choices=["r2", "recall", "trials"])
    options = parser.parse_args()
    model = cs.models.load(options.model)
    task = cs.tasks.ioi(model, n_prompts=16, seed=0)
    gradients = [single_gradients(model, task, options.tables, prompt) for prompt in range(4)]
    lines = [line for path in options.white_box for line in path.read_text().splitlines()]
    makers = {
        "r2": lambda: read_black_boxes(BLACK_BOXES) + [json.loads(line) for line in lines],
        "recall": lambda: make_recall(options.tables, gradients),
        "trials": lambda: {
            "pairs": make_pairs(options.tables, gradients[0]),
            "expansion": make_expansion(model, task, options.tables, options.store),
            "outliers": make_outliers(model, task, options.store),
        },
    }
    for name in [options.only] if options.only else makers:
        (HERE / f"smollm2_{name}.json").write_text(json.dumps(makers[name]()) + "\n")


if __name__ == "__main__":
    main()
