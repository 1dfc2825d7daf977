"""How much memory does a run take, and how long the import?

Peak memory of a 4,000-mask run (one prompt per mask) in a process of its own, the peak after
loading the model alone, and the time of ``import circuitspex`` beyond ``import torch``, as medians
of interleaved fresh processes.

    python benchmarks/footprint.py --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import json
import statistics
import subprocess
import sys

RUN = """
import json, resource, sys
import numpy as np, torch
import circuitspex as cs
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
imported = peak()
model = cs.models.load({model!r})
loaded = peak()
task = cs.tasks.make({task!r}, model, 16, seed=0)
rng = np.random.default_rng(0)
with cs.CircuitSpex(model, task, cs.heads(model)) as spex:
    masks = torch.from_numpy(rng.random(({n_masks}, spex.n_units)) < 0.95)
    values, _ = spex.sample(masks, 1, rng)
    assert values.isfinite().all() and values.std() > 0
print(json.dumps(dict(import_gib=imported, loaded_gib=loaded, run_gib=peak(), masks=len(masks))))
"""
TIMED = "import time, {first}\nt = time.perf_counter()\n{then}\nprint(time.perf_counter() - t)"


def child(code: str) -> str:
    """Run code in a fresh process and return the last line it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    """Measure, then print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="toy-induction")
    parser.add_argument("--masks", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.model, options.masks, options.rounds = "toy-induction", 200, 1
    task = "induction" if options.model.startswith("toy-") else "ioi"
    memory = json.loads(child(RUN.format(model=options.model, task=task, n_masks=options.masks)))
    beyond, everything = [], []
    for _ in range(options.rounds):
        beyond.append(float(child(TIMED.format(first="torch", then="import circuitspex"))))
        everything.append(float(child(TIMED.format(first="sys", then="import circuitspex"))))
    print(
        json.dumps(
            {
                "benchmark": "footprint",
                "model": options.model.rsplit("/", 1)[-1],
                **{k: round(v, 3) for k, v in memory.items()},
                "import_beyond_torch_s": round(statistics.median(beyond), 3),
                "import_with_torch_s": round(statistics.median(everything), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
