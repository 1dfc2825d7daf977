"""How far one mask's value moves with the rows it happens to run beside.

Products of matrices are rounded in an order that depends on how many rows there are, so the same
mask may give slightly different values in different batches. What lies below that floor is no
effect of a unit, and no budget sees through it. It says how well values repeat, not how near they
are to those of finer weights: an error that every batch makes alike does not show.
"""

import torch

from circuitspex.ablation import Pass, Rows
from circuitspex.evaluation.runner import LocalRunner

_PROMPTS = 4
_SIZES = (1, 2, 8, 32)
"""Rows of the passes, as far as that many run at once."""


def noise_floor(runner: LocalRunner) -> float:
    """Evaluate the mask that keeps everything at several places of several batches.

    Args:
        runner: Runs rows here; nothing that it runs for this is counted or kept.

    Returns:
        The root mean square of a value's departure from its mean over places, in units of the
        metric, over at most four prompts; 0 where values repeat exactly.
    """
    n_prompts = min(_PROMPTS, len(runner.task))
    floors = torch.stack([_variance(runner, prompt) for prompt in range(n_prompts)])
    return float(floors.mean().sqrt())


def _variance(runner: LocalRunner, prompt: int) -> torch.Tensor:
    ablated = runner.ablated
    most = ablated.batch_size(len(runner.task.tokens[prompt]))
    values = torch.cat(
        [_kept_values(runner, prompt, size, ablated.forks) for size in _SIZES if size <= most]
    )
    return (values - values.mean()).square().mean()


def _kept_values(runner: LocalRunner, prompt: int, n_rows: int, forks: bool) -> torch.Tensor:
    """Return the values of the kept mask as first and as last of some rows, and once forked."""
    others = torch.rand(n_rows, len(runner.ablated.units), generator=_fixed(n_rows)) < 0.9
    others[[0, -1]] = True
    which = torch.arange(n_rows)
    rows = Rows(others, which, torch.full_like(which, prompt))
    found = []
    for forked in (False, True) if forks else (False,):
        values = torch.zeros(n_rows, dtype=torch.float64)
        for done, some in runner.values(rows, Pass(which, forked)):
            values[done] = some
        found.append(values[[0, -1]])
    return torch.cat(found)


def _fixed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
