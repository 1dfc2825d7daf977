"""What do workers on Ray cost, and how do they scale?

Random masks over all heads, one prompt, in the same batches each way: here, in a plain loop over
batches, and on 1, 2 and 4 workers of one thread each. All are started before, run in turn, and must
give the same bits. Beside wall time, the processor time of this process, the workers and Ray's own
processes is counted, which other programs disturb less.

    OMP_NUM_THREADS=1 python benchmarks/ray_scaling.py --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import json
import os
import statistics
import time
from contextlib import ExitStack

import psutil
import torch

import circuitspex as cs
from circuitspex.cluster.session import connected


def load(name: str | None):
    """Load the model and one prompt, or a toy for the smoke run."""
    model = cs.models.load(name or "toy-induction")
    make = cs.tasks.induction if name is None else cs.tasks.ioi
    return model, make(model, n_prompts=1, seed=0)


def processor_seconds() -> float:
    """Processor time so far of this process and all below it."""
    total = time.process_time()
    for process in psutil.Process().children(recursive=True):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def measure(spex, masks) -> tuple[torch.Tensor, float, float]:
    """Values, wall seconds and processor seconds."""
    wall, processor = time.perf_counter(), processor_seconds()
    values = spex(masks)
    return values, time.perf_counter() - wall, processor_seconds() - processor


def main() -> None:
    """Check that all ways give the same bits, then time them in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a .gguf file, a folder or a name")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--masks", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep-rate", type=float, default=0.9)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.workers, options.masks, options.rounds = [1, 2], 128, 2
    if not options.smoke and options.model is None:
        parser.error("--model is needed, or --smoke")
    torch.set_num_threads(1)
    name = None if options.smoke else options.model
    model, task = load(name)
    units, rng = cs.heads(model), torch.Generator().manual_seed(0)
    ways: list[int] = [0, *options.workers]
    times: dict[int, list[tuple[float, float]]] = {way: [] for way in ways}
    loads = []
    with ExitStack() as exits:
        exits.enter_context(connected("local", sum(ways)))
        spexes = {}
        for way in ways:
            pool = cs.cluster.ray_workers(name or "toy-induction", way) if way else None
            spexes[way] = exits.enter_context(
                cs.CircuitSpex(model, task, units, batch_size=options.batch_size, workers=pool)
            )
        for at in range(-1, options.rounds):
            # Fresh masks each round, as what was evaluated before is remembered.
            masks = torch.rand(options.masks, len(units), generator=rng) < options.keep_rate
            truth = None
            # In another order each time: what runs next to what should not matter.
            for way in ways[at % len(ways) :] + ways[: at % len(ways)]:
                values, wall, processor = measure(spexes[way], masks)
                truth = values if truth is None else truth
                if not torch.equal(values, truth):
                    raise SystemExit(f"{way} workers give other values")
                if at >= 0:
                    times[way].append((wall, processor))
            loads.append(os.getloadavg()[0])

    def ratio(way: int, kind: int) -> float:
        pairs = zip(times[way], times[0], strict=True)
        return statistics.median(own[kind] / plain[kind] for own, plain in pairs)

    print(
        json.dumps(
            {
                "benchmark": "ray_scaling",
                "model": model.cfg.model_name,
                "masks": options.masks,
                "batch_size": options.batch_size,
                "plain_seconds": round(statistics.median(wall for wall, _ in times[0]), 2),
                "wall_over_plain": {w: round(ratio(w, 0), 3) for w in options.workers},
                "processor_over_plain": {w: round(ratio(w, 1), 3) for w in options.workers},
                "seconds": {w: [round(wall, 2) for wall, _ in times[w]] for w in ways},
                "cores": os.cpu_count(),
                "load": [round(min(loads), 1), round(max(loads), 1)],
                "rounds": options.rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
