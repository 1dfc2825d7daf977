"""A model in, prompts with correct and incorrect answers out, and metrics that read logits."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from circuitspex.errors import TaskError
from circuitspex.tasks import metrics
from circuitspex.tasks.induction import induction
from circuitspex.tasks.ioi import ioi
from circuitspex.tasks.metrics import (
    METRICS,
    Metric,
    Targets,
    identify,
    logit_difference,
    tokens_read,
)
from circuitspex.tasks.task import Task

__all__ = [
    "METRICS",
    "TASKS",
    "Metric",
    "Targets",
    "Task",
    "identify",
    "induction",
    "ioi",
    "logit_difference",
    "make",
    "metrics",
    "tokens_read",
]

TASKS: dict[str, Callable[..., Task]] = {"ioi": ioi, "induction": induction}


def make(name: str, model: Any, n_prompts: int = 16, seed: int = 0) -> Task:
    """Make one of the built-in tasks.

    Args:
        name: A key of ``TASKS``.
        model: A TransformerBridge.
        n_prompts: How many prompts to discover on.
        seed: Seed of every draw.

    Returns:
        The task.

    Raises:
        TaskError: If there is no task of that name.
    """
    if name not in TASKS:
        near = get_close_matches(name, TASKS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TaskError(f"there is no task {name!r}; choose one of {', '.join(TASKS)}.{hint}")
    return TASKS[name](model, n_prompts=n_prompts, seed=seed)
