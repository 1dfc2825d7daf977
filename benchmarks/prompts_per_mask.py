"""At equal cost: many prompts on few masks, or few prompts on many masks?

One budget of evaluations of a task's average game is spent with 1, 4 and all prompts per mask.
Held-out R² is of the average over all prompts, on fresh masks that no fit saw. Also prints the ten
largest interactions of order 2 and more that the best of them found.

    python benchmarks/prompts_per_mask.py --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import json
import time

import numpy as np
import torch

import circuitspex as cs


def main() -> None:
    """Spend the budget each way, then print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="toy-induction")
    parser.add_argument("--budget", type=int, default=4000)
    parser.add_argument("--keep-rate", type=float, default=0.95)
    parser.add_argument("--test-masks", type=int, default=250)
    parser.add_argument("--decoders", nargs="+", default=["proxyspex", "lasso"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--store", help="folder for the evaluations, to go on after a stop")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.model, options.budget, options.test_masks = "toy-induction", 640, 40
        options.keep_rate = 0.7
    model = cs.models.load(options.model)
    toy = options.model.startswith("toy-")
    task = cs.tasks.make("induction" if toy else "ioi", model, 16, seed=0)
    units = cs.heads(model)
    rows, best = [], None
    with cs.CircuitSpex(model, task, units, store=options.store) as spex:
        rng = np.random.default_rng(10**6)
        test = torch.from_numpy(rng.random((options.test_masks, len(units))) < options.keep_rate)
        truth = spex(test)
        total = (truth - truth.mean()).square().sum()
        intact = float(spex(cs.masks.all_kept(len(units))))
        for seed in options.seeds:
            for decoder in options.decoders:
                for prompts in (1, 4, "all"):
                    started = time.perf_counter()
                    found = spex.discover(
                        decoder,
                        budget=options.budget,
                        keep_rate=options.keep_rate,
                        seed=seed,
                        prompts_per_mask=prompts,
                    )
                    spent = time.perf_counter() - started
                    r2 = float(1 - (truth - found.predict(test)).square().sum() / total)
                    assert found.n_evaluations <= options.budget
                    rows.append(
                        {
                            "decoder": decoder,
                            "prompts_per_mask": prompts,
                            "seed": seed,
                            "r2": round(r2, 4),
                            "r2_reported": found.held_out_r2 and round(found.held_out_r2, 4),
                            "n_terms": len(found.support),
                            "seconds": round(spent, 1),
                        }
                    )
                    print(rows[-1], flush=True)
                    if best is None or r2 > best[0]:
                        best = (r2, found)
    assert best is not None
    top = [
        [term.label, round(term.coefficient, 3), *(round(end, 3) for end in term.interval or ())]
        for term in best[1].to("moebius", "intact").top(10, min_order=2)
    ]
    print(
        json.dumps(
            {
                "benchmark": "prompts_per_mask",
                "model": model.cfg.model_name,
                "budget": options.budget,
                "keep_rate": options.keep_rate,
                "prompts": len(task),
                "test_masks": options.test_masks,
                "intact": round(intact, 3),
                "sd": round(float(truth.std()), 3),
                "rows": rows,
                "top_order_2": top,
            }
        )
    )


if __name__ == "__main__":
    main()
