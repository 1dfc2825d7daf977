"""Induction: a pattern of random tokens repeats; which token comes next?

Olsson et al. (2022), "In-context learning and induction heads", Transformer Circuits Thread.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from circuitspex.errors import TaskError
from circuitspex.tasks.task import Task

_TRAINED_PERIODS = {"toy-redundant": (16, 16)}
_PERIODS = (6, 14)


def induction(
    model: Any,
    n_prompts: int = 16,
    seed: int = 0,
    periods: tuple[int, int] | None = None,
    n_tokens: int = 31,
) -> Task:
    """Make an induction task: patterns of distinct random tokens, tiled behind BOS.

    The incorrect answers of a prompt are the pattern's other tokens, so a model that only knows
    which tokens occurred has value 0. Counterfactuals keep the length and draw every token anew, so
    nothing repeats on purpose.

    Args:
        model: A TransformerBridge; needs no tokenizer.
        n_prompts: How many prompts to discover on; as many again are held out.
        seed: Seed of every draw.
        periods: Smallest and largest period. When None: what ``toy-redundant`` was trained on for
            that model, 6 to 14 for any other.
        n_tokens: Tokens behind BOS; must be longer than a period.

    Returns:
        The task, with ``held_out`` prompts for verification. Strata are the periods.

    Raises:
        TaskError: If prompts would not fit the model, or hold no full period.
    """
    low, high = periods or _TRAINED_PERIODS.get(model.cfg.model_name, _PERIODS)
    if not 2 <= low <= high < n_tokens:
        raise TaskError(f"periods must satisfy 2 ≤ low ≤ high < {n_tokens}; got {(low, high)}.")
    if n_tokens + 1 > model.cfg.n_ctx:
        raise TaskError(
            f"prompts of {n_tokens + 1} tokens do not fit the model's context of {model.cfg.n_ctx};"
            " pass a smaller n_tokens."
        )
    rng = np.random.default_rng(seed)
    bos, ordinary = _vocabulary(model, high)
    found, aside = (
        _draw_task(model, n_prompts, (low, high), n_tokens, bos, ordinary, rng) for _ in range(2)
    )
    return replace(found, held_out=aside)


def _draw_task(
    model: Any,
    n_prompts: int,
    periods: tuple[int, int],
    n_tokens: int,
    bos: int,
    ordinary: np.ndarray,
    rng: np.random.Generator,
) -> Task:
    prompts, answers, wrong, others, strata = [], [], [], [], []
    for _ in range(n_prompts):
        period = int(rng.integers(periods[0], periods[1] + 1))
        pattern = rng.choice(ordinary, size=period, replace=False)
        answer = int(pattern[n_tokens % period])
        prompts.append([bos, *np.resize(pattern, n_tokens).tolist()])
        answers.append(answer)
        wrong.append([int(t) for t in pattern if t != answer])
        others.append([bos, *rng.choice(ordinary, size=n_tokens).tolist()])
        strata.append(f"period {period}")
    task = Task.from_prompts(
        model, prompts, answers, wrong, others, name="induction", strata=strata
    )
    return replace(task, prepend_bos=True)


def _vocabulary(model: Any, n_needed: int) -> tuple[int, np.ndarray]:
    tokenizer = getattr(model, "tokenizer", None)
    special = {0} if tokenizer is None else set(tokenizer.all_special_ids)
    bos = 0
    if tokenizer is not None:
        bos = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ordinary = np.array([t for t in range(model.cfg.d_vocab) if t not in special])
    if len(ordinary) < n_needed:
        raise TaskError(f"a period of {n_needed} needs as many tokens; there are {len(ordinary)}.")
    return int(bos), ordinary
