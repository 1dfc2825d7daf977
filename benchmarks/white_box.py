"""With gradients: what do fewer evaluations buy, on one prompt's game and on the average of 16?

Held-out R² of ``gradient`` and of the best black-box decoder at equal cost, a gradient counted as
three evaluations. Every run is live, at its own budget: nothing is shared but the masks that R² is
measured on, which no fit saw. The questions are whether ``gradient`` reaches with 1,000 evaluations
what the best black-box decoder reaches with 4,000, and with 500 what shapiq's ProxySPEX reaches
with 8,000 and all prompts on every mask (``real_decoders.py``).

With ``--store`` an interrupted run goes on where it was. Results go to ``--out`` line by line.

    OMP_NUM_THREADS=1 python benchmarks/white_box.py --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

import circuitspex as cs
from circuitspex import decoders
from circuitspex.designs.bernoulli import bernoulli_masks

BUDGETS = {"gradient": [250, 500, 1000, 2000, 4000], "hybrid": [1000, 4000]}


def r2(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return the share of variance explained."""
    return float(1 - np.square(truth - predicted).mean() / truth.var())


class Multilinear:
    """A planted game with gradients: known truth for the check."""

    n_units = 40

    def __init__(self) -> None:
        """Draw singles, pairs and triples."""
        rng = np.random.default_rng(0)
        terms = [(i,) for i in range(20)]
        terms += [tuple(rng.choice(20, size, replace=False)) for size in (2, 2, 2, 2, 3, 3)]
        self.terms = [tuple(sorted(int(i) for i in term)) for term in terms]
        self.weights = rng.normal(size=len(terms))

    def __call__(self, masks: Tensor) -> Tensor:
        """Return the values."""
        return self.value_and_gradient(masks)[0]

    def value_and_gradient(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and derivatives, by automatic differentiation."""
        with torch.enable_grad():
            gates = masks.double().requires_grad_()
            parts = [
                weight * (1 - gates[:, list(term)]).prod(dim=1)
                for term, weight in zip(self.terms, self.weights, strict=True)
            ]
            values = torch.stack(parts).sum(dim=0)
            (gradient,) = torch.autograd.grad(values.sum(), gates)
        return values.detach(), gradient


def check_answers() -> None:
    """A planted game must be explained, and its interactions verified, before anything is timed."""
    game = Multilinear()
    found = decoders.get("gradient", keep_rate=0.8).decode(game, budget=1200, seed=0)
    masks = bernoulli_masks(200, game.n_units, 0.8, np.random.default_rng(1))
    score = r2(game(masks).numpy(), found.predict(masks).numpy())
    if score < 0.95:
        raise SystemExit(f"a planted game: gradient has R² {score}")
    truth = dict(zip(game.terms, game.weights, strict=True))
    for entry in found.diagnostics["verified"]:
        term = tuple(int(unit) for unit in entry["units"])
        expected = sum(w for t, w in truth.items() if t == term)
        if abs(entry["coefficient"] - expected) > 1e-9:
            raise SystemExit(f"{term} was measured as {entry['coefficient']}, not {expected}")


def run(
    spex: cs.CircuitSpex,
    name: str,
    keep_rate: float,
    budget: int,
    seed: int,
    test: Bool[Tensor, "tests units"],
    truth: Float[np.ndarray, " tests"],
) -> dict[str, Any]:
    """Discover live, and test what was found."""
    started = time.perf_counter()
    found = spex.discover(name, budget=budget, keep_rate=keep_rate, seed=seed)
    result: dict[str, Any] = {
        "r2": r2(truth, found.predict(test).numpy()),
        "r2_reported": found.held_out_r2,
        "r2_reported_std_error": found.diagnostics.get("held_out_r2_std_error"),
        "n_evaluations": found.n_evaluations,
        "terms_by_order": np.bincount([len(term) for term in found.support])[1:].tolist(),
        "seconds": time.perf_counter() - started,
    }
    if name == "gradient":
        result["n_verified"] = len(found.diagnostics.get("verified", []))
        result["prior"] = found.diagnostics.get("prior")
    return result


def main() -> None:
    """Run everything; the last line of output is one JSON object."""
    parser = argparse.ArgumentParser(description="White box against black box, by budget.")
    parser.add_argument("--model", default="toy-induction")
    parser.add_argument("--keep-rates", type=float, nargs="+", default=[0.95, 0.9, 0.8])
    parser.add_argument("--games", nargs="+", default=["average", "0"], help="or prompt indices")
    parser.add_argument("--decoders", nargs="+", default=list(BUDGETS))
    parser.add_argument("--budgets", type=int, nargs="+", help="for all decoders alike")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--test-masks", type=int, default=250)
    parser.add_argument("--store", type=Path, help="folder for the evaluations")
    parser.add_argument("--out", type=Path, help="file that every result is appended to")
    parser.add_argument("--smoke", action="store_true", help="a toy model, under 20 seconds")
    options = parser.parse_args()
    if options.smoke:
        options.keep_rates, options.test_masks, options.budgets = [0.8], 40, [300]
    check_answers()
    model = cs.models.load(options.model)
    toy = options.model.startswith("toy-")
    everything = cs.tasks.make("induction" if toy else "ioi", model, 16, seed=0)
    units, rows = cs.heads(model), []
    for keep_rate in options.keep_rates:
        rng = np.random.default_rng([round(1000 * keep_rate), 0])
        test = bernoulli_masks(options.test_masks, len(units), keep_rate, rng)
        for game in options.games:
            task = everything if game == "average" else everything.subset([int(game)])
            store = options.store and options.store / f"{game}-{keep_rate}"
            with cs.CircuitSpex(model, task, units, store=store) as spex:
                truth = spex(test).numpy()
                for name in options.decoders:
                    for budget in options.budgets or BUDGETS[name]:
                        for seed in options.seeds:
                            cell = {"keep_rate": keep_rate, "game": game, "decoder": name}
                            result = run(spex, name, keep_rate, budget, seed, test, truth)
                            rows.append({**cell, "budget": budget, "seed": seed, **result})
                            print(json.dumps(rows[-1]), flush=True)
                            if options.out:
                                with options.out.open("a") as file:
                                    file.write(json.dumps(rows[-1]) + "\n")
    print(json.dumps({"benchmark": "white_box", "model": options.model, "rows": rows}))


if __name__ == "__main__":
    main()
