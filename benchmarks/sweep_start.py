"""How long from ``circuitspex sweep run`` to the first evaluation, and where does the time go?

A sweep of one run on a toy model, started as a user starts it. The first evaluation counts when its
values are on disk. What happens between is timed step by step in a fresh process of its own, as
medians of rounds that alternate with the whole.

    python benchmarks/sweep_start.py
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from circuitspex.sweeps.manifest import Manifest, plan_sweep
from circuitspex.sweeps.state import sweep_states

SWEEP = """
method: grid
command: [circuitspex, discover, --decoder=exact, --verify=0, "${args}"]
parameters:
  seed: {value: 0}
  budget: {value: 4096}
"""
STEPS = """
import json, time
times = [("start", 0.0, 0.0)]
def step(name): times.append((name, time.perf_counter() - began, time.process_time()))
began = time.perf_counter()
import torch
step("import torch")
from circuitspex.runs import discover
step("import circuitspex")
from circuitspex import models, tasks
from circuitspex.algebra import all_kept
from circuitspex.spex import CircuitSpex
from circuitspex.units import parse_units
model = models.load("toy-induction")
step("load the model")
task = tasks.make("induction", model, 16, 0)
units = parse_units("heads", model)
step("make the task")
with CircuitSpex(model, task, units) as spex:
    step("enter: probe hooks, intact model")
    value = spex(~all_kept(8))
    step("first mask")
assert value.isfinite().all()
print(json.dumps({b[0]: [b[1] - a[1], b[2] - a[2]] for a, b in zip(times, times[1:])}))
"""


def first_evaluation(folder: Path) -> tuple[float, float]:
    """Plan a sweep and start it.

    Args:
        folder: Where to.

    Returns:
        Seconds until the run's process starts, and until its first values are on disk.
    """
    (folder / "sweep.yaml").write_text(SWEEP)
    plan = plan_sweep(folder / "sweep.yaml", folder / "sweep")
    command = [sys.executable, "-m", "circuitspex.cli", "sweep", "run", str(plan.folder)]
    began = time.time()
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([*command, "--wandb=disabled"], stdout=quiet, stderr=quiet)
    child, values = _watch(plan, process)
    assert process.wait() == 0
    assert [state.state for state in sweep_states(plan)] == ["done"]
    return child - began, values - began


def _watch(plan: Manifest, process: "subprocess.Popen[bytes]") -> tuple[float, float]:
    run = plan.run_folder(0)
    child = 0.0
    while process.poll() is None:
        if not child and (run / "log.txt").exists():
            child = time.time()
        shards = list((run / "evaluations").glob("*.parquet"))
        if shards:
            return child, min(shard.stat().st_mtime for shard in shards)
        time.sleep(0.005)
    raise SystemExit("the run ended without an evaluation")


def steps() -> dict[str, list[float]]:
    """Return seconds, and processor seconds, of every step of a run's start in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, check=True, env=os.environ
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, then print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    whole: list[tuple[float, float]] = []
    parts: list[dict[str, list[float]]] = []
    for _ in range(1 if options.smoke else options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            whole.append(first_evaluation(Path(folder)))
        parts.append(steps())
    wall, processor = (
        {name: round(statistics.median(part[name][kind] for part in parts), 2) for name in parts[0]}
        for kind in (0, 1)
    )
    found = {
        "benchmark": "sweep_start",
        "rounds": len(whole),
        "to_run_process_s": round(statistics.median(child for child, _ in whole), 2),
        "to_first_evaluation_s": round(statistics.median(values for _, values in whole), 2),
        "to_first_evaluation_all_s": [round(values, 2) for _, values in whole],
        "steps_s": wall,
        "steps_processor_s": processor,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
