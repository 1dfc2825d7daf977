"""What does a store cost, up to a million masks on 16 prompts each?

Random masks of 270 units. The store is filled batch by batch as a run does it, every batch durable
before the next; then looked up, closed, and opened again. With a model, a run on it says which
share of its time the store takes.

    OMP_NUM_THREADS=1 python benchmarks/store_scale.py --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import numpy as np
import psutil
import torch

import circuitspex as cs
from circuitspex.evaluation.store.parquet import ParquetStore

N_UNITS, N_PROMPTS = 270, 16
SPEC = cs.Spec({"n_units": N_UNITS, "n_prompts": N_PROMPTS})


def make_masks(first: int, n: int) -> torch.Tensor:
    """Masks number first, first + 1, …: the same in whatever order they are asked for."""
    rng = np.random.default_rng([0, first])
    return torch.from_numpy(rng.random((n, N_UNITS)) < 0.9)


def rows_of(first: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every prompt under n masks, with values that can be told without the store."""
    masks = make_masks(first, n).repeat_interleave(N_PROMPTS, 0)
    prompts = torch.arange(N_PROMPTS).repeat(n)
    values = np.sin(np.arange(first * N_PROMPTS, (first + n) * N_PROMPTS))
    return masks, prompts, torch.from_numpy(values)


def check(folder: Path) -> None:
    """What was put in is there bit for bit, after a crash too, and nothing else is."""
    store = ParquetStore(folder, SPEC)
    for first in range(0, 400, 4):
        store.append(*rows_of(first, 4))
    for known in (store, ParquetStore(folder, SPEC)):
        parts = zip(*(rows_of(first, 4) for first in range(0, 400, 4)), strict=True)
        masks, prompts, values = (torch.cat(part) for part in parts)
        found_values, found = known.look_up(masks, prompts)
        assert found.all()
        assert torch.equal(found_values, values)
        assert not known.look_up(*rows_of(400, 4)[:2])[1].any()


def resident_gib() -> float:
    """Memory of this process."""
    return psutil.Process().memory_info().rss / 2**30


def fill(store: ParquetStore, n_masks: int, step: int) -> list[float]:
    """Append all masks; seconds of every tenth of them, without making the masks."""
    seconds = [0.0] * 10
    for first in range(0, n_masks, step):
        rows = rows_of(first, min(step, n_masks - first))
        started = time.perf_counter()
        store.append(*rows)
        seconds[10 * first // n_masks] += time.perf_counter() - started
    return seconds


def look_up(store: ParquetStore, n_masks: int, step: int, *, known: bool) -> float:
    """Rows a second, in batches drawn at random."""
    rng = np.random.default_rng(1)
    batches = [
        rows_of(int(i) * step + (0 if known else n_masks), step)
        for i in rng.integers(0, n_masks // step, 200)
    ]
    started = time.perf_counter()
    for masks, prompts, values in batches:
        found_values, found = store.look_up(masks, prompts)
        assert found.all() if known else not found.any()
        assert not known or torch.equal(found_values, values)
    return 200 * step * N_PROMPTS / (time.perf_counter() - started)


def share_of_a_run(model: str | None, folder: Path, n_masks: int) -> dict[str, float]:
    """Which share of a run's time the store takes, timed from inside."""
    loaded = cs.models.load(model or "toy-induction")
    task = (cs.tasks.ioi if model else cs.tasks.induction)(loaded, n_prompts=1, seed=0)
    units = cs.heads(loaded)
    rng = torch.Generator().manual_seed(0)
    masks = torch.rand(n_masks, len(units), generator=rng) < 0.9
    spent = 0.0

    def timed(call: Callable) -> Callable:
        @wraps(call)
        def run(*args):
            nonlocal spent
            started = time.perf_counter()
            result = call(*args)
            spent += time.perf_counter() - started
            return result

        return run

    with cs.CircuitSpex(loaded, task, units, store=folder) as spex:
        spex(masks[:64])
        store = spex.evaluation.store
        store.look_up, store.append = timed(store.look_up), timed(store.append)
        started = time.perf_counter()
        spex(masks[64:])
        total = time.perf_counter() - started
    per_row = 1e3 / (n_masks - 64)
    share = spent / (total - spent)
    return {"run_ms": per_row * (total - spent), "store_ms": per_row * spent, "share": share}


def main() -> None:
    """Check, fill, look up, close, open, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a .gguf file, a folder or a name")
    parser.add_argument("--masks", type=int, default=1_000_000)
    parser.add_argument("--step", type=int, default=16, help="masks per append, 16 prompts each")
    parser.add_argument("--folder", type=Path, help="where to; a temporary folder when left out")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    n_masks = 2_000 if options.smoke else options.masks
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        check(folder / "check")
        result = measure(folder / "large", n_masks, options.step)
        result |= share_of_a_run(options.model, folder / "run", 128 if options.smoke else 1024)
    print(json.dumps(result))


def measure(folder: Path, n_masks: int, step: int) -> dict[str, float]:
    """Fill a store, and everything that can then be done with it."""
    n_rows = n_masks * N_PROMPTS
    before = resident_gib()
    store = ParquetStore(folder, SPEC)
    seconds = fill(store, n_masks, step)
    rates = [n_rows / 10 / second for second in seconds]
    files = sizes(folder)
    print("rows appended per second, by tenths:", ", ".join(f"{rate:,.0f}" for rate in rates))
    print(f"{len(files):,} files, {sum(files) / 2**20:,.0f} MiB")
    result = {
        "rows": n_rows,
        "appends_per_s": n_masks / step / sum(seconds),
        "appended_rows_per_s": n_rows / sum(seconds),
        "last_tenth_rows_per_s": rates[-1],
        "known_rows_per_s": look_up(store, n_masks, step, known=True),
        "unknown_rows_per_s": look_up(store, n_masks, step, known=False),
        "files_before_close": len(files),
        "memory_gib": resident_gib() - before,
    }
    started = time.perf_counter()
    store.close()
    result["close_s"] = time.perf_counter() - started
    del store
    started = time.perf_counter()
    again = ParquetStore(folder, SPEC)
    result["open_s"] = time.perf_counter() - started
    assert len(again) == n_rows
    files = sizes(folder)
    return result | {
        "files": len(files),
        "mib_on_disk": sum(files) / 2**20,
        "bytes_per_row": sum(files) / n_rows,
    }


def sizes(folder: Path) -> list[int]:
    """Bytes of every shard."""
    return [path.stat().st_size for path in folder.glob("*.parquet")]


if __name__ == "__main__":
    main()
