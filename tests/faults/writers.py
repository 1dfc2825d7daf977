"""Several processes on one store that append, merge, look up and are killed: no row may be lost."""

import os
import random
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from job import PROCESSES

from circuitspex._shared import Spec
from circuitspex.evaluation.store import ParquetStore

N_UNITS = 20
SPEC = Spec({"n_units": N_UNITS, "n_prompts": 1})


def rows_of(numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masks that spell numbers in binary, each with its number as its value."""
    rows = torch.tensor(numbers)
    masks = (rows[:, None] >> torch.arange(N_UNITS)) & 1 == 1
    return masks, torch.zeros_like(rows), rows.double()


def write_until_killed(folder: Path, noted: Path, seed: int) -> None:
    """Append rows, note them once they are in, and close and open the store now and then."""
    rng = random.Random(seed)
    file = os.open(noted, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    # Merging all the time, into several files.
    names: Any = {"_MAX_LOOSE": 3, "_MERGED_BYTES": 4000}
    with patch.multiple("circuitspex.evaluation.store.shards", **names):
        while True:
            store = ParquetStore(folder, SPEC)
            for _ in range(rng.randrange(12)):
                rows = rows_of([rng.randrange(2**N_UNITS) for _ in range(rng.randrange(1, 9))])
                if rng.random() < 0.5:
                    store.append(*rows)
                else:
                    store.append_gradients(*rows, rows[0] * rows[2][:, None].float())
                os.write(file, "".join(f"{n}\n" for n in rows[2].long().tolist()).encode())
            if rng.random() < 0.7:
                store.close()


def lose_nothing(folder: Path, rng: random.Random, n_writers: int = 4) -> list[str]:
    """Let several write for a while, kill them one by one, and look for what they had noted."""
    folder.mkdir(parents=True)
    paths = [folder / f"noted{i}" for i in range(n_writers)]
    writers: list[Any] = [
        PROCESSES.Process(
            target=write_until_killed, args=(folder / "store", path, rng.getrandbits(32))
        )
        for path in paths
    ]
    for writer in writers:
        writer.start()
    found = []
    for writer in writers:
        time.sleep(rng.uniform(0.3, 1.0))
        if not writer.is_alive():
            found.append(f"a writer ended with {writer.exitcode} before it was killed")
        writer.kill()
    for writer in writers:
        writer.join()
    noted = sorted({int(line) for path in paths for line in path.read_text().split()})
    if len(noted) < n_writers:
        found.append("hardly anything was written")
    return found + _missing(folder / "store", noted)


def _missing(folder: Path, noted: list[int]) -> list[str]:
    masks, prompts, values = rows_of(noted)
    for _ in range(2):  # as it is, and after everything was merged
        with ParquetStore(folder, SPEC) as store:
            found_values, found = store.look_up(masks, prompts)
            slopes_values, slopes, with_slopes = store.look_up_gradients(masks, prompts)
            n_rows = len(store)
            if n_rows != len(store.table()):
                return [f"the table has {len(store.table())} of {n_rows} rows"]
        lost = int((~found).sum())
        if lost:
            return [f"{lost} of {len(noted)} rows are lost"]
        if not torch.equal(found_values, values):
            return ["values were mixed up"]
        if not torch.equal(slopes_values[with_slopes], values[with_slopes]):
            return ["values of gradients were mixed up"]
        if not torch.equal(slopes[with_slopes], (masks * values[:, None].float())[with_slopes]):
            return ["gradients were mixed up"]
    return []
