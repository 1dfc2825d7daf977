"""What does ablating every pair of heads do? The ground truth that finders of pairs are judged by.

All pairs of heads around the intact model, one prompt at a time, in the logit difference; with
``--triples``, all triples of heads of layers 0 to 3 instead. Written as one small file per prompt,
``pairs_0.npz`` or ``triples_0.npz``:

    prompt, answer, wrong_answer, model    what the values are of, as text
    intact                                 value of the intact model
    singles                                value without head i, heads counted layer by layer
    values                                 value without the heads of row k of ``sets``
    n_units, order                         from which ``sets`` follows: see ``read``

    python benchmarks/exhaustive_pairs.py --model SmolLM2-135M-Instruct.Q4_1.gguf --prompts 0 1 2 3
"""

import argparse
import json
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

import circuitspex as cs

DATA = Path(__file__).parent / "data"


def read(path: Path) -> dict[str, np.ndarray]:
    """Read a table.

    Returns:
        What the file holds, and ``sets``, the heads that are ablated for every value.
    """
    with np.load(path) as file:
        table = dict(file)
    units = range(int(table["n_units"]))
    table["sets"] = np.array(list(combinations(units, int(table["order"]))))
    return table


def write(path: Path, task: cs.Task, model, intact, singles, values, n_units, order) -> None:
    """Write a table, with the text of what its values are of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = [[task.answers[0]], task.wrong_answers[0]]
    answer, wrong_answer = (model.tokenizer.decode(word) for word in words)
    np.savez_compressed(
        path, prompt=task.texts[0], answer=answer, wrong_answer=wrong_answer,
        model=str(model.cfg.model_name), intact=np.float32(intact), singles=np.float32(singles),
        values=np.float32(values), n_units=n_units, order=order,
    )  # fmt: skip


def measure(model, task: cs.Task, masks: torch.Tensor) -> np.ndarray:
    """Evaluate masks the way users do."""
    started, done = time.perf_counter(), [0]

    def progress(evaluated: int, replayed: int) -> None:
        if (done[0] + evaluated) // 2000 > done[0] // 2000:
            rate = (done[0] + evaluated) / (time.perf_counter() - started)
            print(f"{done[0] + evaluated} of {len(masks)}, {rate:.0f} a second", flush=True)
        done[0] += evaluated

    with cs.CircuitSpex(model, task, units=cs.heads(model), progress=progress) as spex:
        return spex(masks).numpy()


def measure_plainly(model, task: cs.Task, masks: torch.Tensor) -> np.ndarray:
    """Evaluate masks with nothing shared, the logit difference taken by hand."""
    answer, wrong = task.answers[0], [*task.wrong_answers[0]]
    with cs.ablate(model, cs.heads(model), forks=False) as ablated:
        logits = ablated(task.tokens[0][None], masks)[:, 0].double()
    return (logits[:, answer] - logits[:, wrong].mean(dim=1)).numpy()


def load(name: str | None):
    """Load the model and its task, or a toy for the smoke run."""
    if name is None:
        model = cs.models.load("toy-induction")
        return model, cs.tasks.induction(model, n_prompts=2, seed=0)
    model = cs.models.load(name)
    return model, cs.tasks.ioi(model, n_prompts=16, seed=0)


def main() -> None:
    """Measure the tables of some prompts and check a sample of each plainly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a .gguf file, a folder or a name")
    parser.add_argument("--prompts", type=int, nargs="+", default=[0], help="of ioi(16, seed=0)")
    parser.add_argument("--triples", action="store_true", help="of layers 0 to 3, not all pairs")
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--check", type=int, default=200, help="sets that are measured plainly too")
    parser.add_argument("--smoke", action="store_true", help="a toy; nothing is written")
    options = parser.parse_args()
    if not options.smoke and options.model is None:
        parser.error("--model is needed, or --smoke")
    model, tasks = load(None if options.smoke else options.model)
    n_heads = model.cfg.n_heads
    order = 3 if options.triples else 2
    n_chosen = n_heads * min(4, model.cfg.n_layers) if options.triples else len(cs.heads(model))
    n_units = len(cs.heads(model))
    sets = list(combinations(range(n_chosen), order))
    masks = cs.masks.ablate_only([[], *([i] for i in range(n_units)), *sets], n_units)
    rng = np.random.default_rng(0)
    seconds, largest = [], 0.0
    for prompt in options.prompts:
        task = tasks.subset([prompt])
        started = time.perf_counter()
        table = measure(model, task, masks)
        seconds.append(time.perf_counter() - started)
        sample = rng.choice(len(masks), min(options.check, len(masks)), replace=False)
        plain = measure_plainly(model, task, masks[torch.from_numpy(sample)])
        largest = max(largest, float(np.abs(plain - table[sample]).max()))
        if largest > 1e-3:
            raise SystemExit(f"shared and plain values differ by {largest:.3g}")
        if not options.smoke:
            name = f"{'triples' if options.triples else 'pairs'}_{prompt}.npz"
            first = 1 + n_units
            write(options.out / name, task, model, table[0], table[1:first], table[first:],
                  n_chosen, order)  # fmt: skip
    print(
        json.dumps(
            {
                "benchmark": "exhaustive_pairs",
                "model": model.cfg.model_name,
                "order": order,
                "sets": len(sets),
                "prompts": options.prompts,
                "seconds": [round(s, 1) for s in seconds],
                "sets_per_second": [round(len(masks) / s, 1) for s in seconds],
                "largest_difference_to_plain": largest,
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
