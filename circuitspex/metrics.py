"""Metrics: logits at the answer position become one number per row; higher is better at the task.

A metric is any function of ``(logits, targets)``, so users can pass their own.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex.errors import TaskError


@dataclass(frozen=True)
class Targets:
    """What each row's logits are judged by."""

    answers: Int[Tensor, " rows"]
    """Token id of the correct answer."""
    wrong_answers: Int[Tensor, "rows wrong"]
    """Token ids of incorrect answers, padded with 0 where ``is_wrong`` is False."""
    is_wrong: Bool[Tensor, "rows wrong"]
    """Which entries of ``wrong_answers`` are real."""
    read_intact: Callable[[], Tensor]
    """Reads the intact model's logits; called only by metrics that need them."""

    @property
    def intact_logits(self) -> Float[Tensor, "rows vocab"]:
        """Logits of the intact model on each row's prompt."""
        return self.read_intact()


Metric: TypeAlias = Callable[[Tensor, Targets], Tensor]


def logit_difference(
    logits: Float[Tensor, "rows vocab"], targets: Targets
) -> Float[Tensor, " rows"]:
    """Correct answer's logit minus the mean logit of the incorrect answers.

    Args:
        logits: Output at the answer position.
        targets: Correct and incorrect answers.

    Returns:
        The difference, in logits.
    """
    return _at(logits, targets.answers) - _mean_over_wrong(logits, targets)


def answer_log_probability(
    logits: Float[Tensor, "rows vocab"], targets: Targets
) -> Float[Tensor, " rows"]:
    """Log-probability of the correct answer.

    Args:
        logits: Output at the answer position.
        targets: Correct answers.

    Returns:
        Natural logarithm, at most 0.
    """
    return _at(torch.log_softmax(logits.float(), dim=-1), targets.answers)


def probability_difference(
    logits: Float[Tensor, "rows vocab"], targets: Targets
) -> Float[Tensor, " rows"]:
    """Correct answer's probability minus the mean probability of the incorrect answers.

    Args:
        logits: Output at the answer position.
        targets: Correct and incorrect answers.

    Returns:
        The difference, between -1 and 1.
    """
    probabilities = torch.softmax(logits.float(), dim=-1)
    return _at(probabilities, targets.answers) - _mean_over_wrong(probabilities, targets)


def negative_kl(logits: Float[Tensor, "rows vocab"], targets: Targets) -> Float[Tensor, " rows"]:
    r"""Minus the divergence of the ablated from the intact model's next-token distribution.

    .. math:: -\mathrm{KL}(p_\text{intact} \,\|\, p_\text{ablated}),

    so the intact model has value 0 and every other mask at most that.

    Args:
        logits: Output at the answer position.
        targets: Holds the intact model's logits.

    Returns:
        Minus the divergence, in nats.
    """
    intact = torch.log_softmax(targets.intact_logits.float(), dim=-1)
    ablated = torch.log_softmax(logits.float(), dim=-1)
    return -(intact.exp() * (intact - ablated)).sum(dim=-1)


METRICS: dict[str, Metric] = {
    "logit_difference": logit_difference,
    "answer_log_probability": answer_log_probability,
    "probability_difference": probability_difference,
    "negative_kl": negative_kl,
}


def get(metric: str | Metric) -> Metric:
    """Look a metric up by name; a function is returned as it is.

    Args:
        metric: A key of ``METRICS`` or a function of ``(logits, targets)``.

    Returns:
        The function.

    Raises:
        TaskError: If there is no metric of that name.
    """
    if callable(metric):
        return metric
    if metric not in METRICS:
        raise TaskError(
            f"there is no metric {metric!r}; choose one of {', '.join(METRICS)}, or pass a "
            "function of (logits, targets) that returns one number per row."
        )
    return METRICS[metric]


def identify(metric: Metric) -> str:
    """Name a metric so that two different ones never share a name.

    Args:
        metric: A built-in metric or a user's function.

    Returns:
        The built-in's name, or the function's name with a digest of its code.
    """
    for name, function in METRICS.items():
        if function is metric:
            return name
    code = getattr(metric, "__code__", None)
    content = type(metric).__qualname__ if code is None else _content(code)
    digest = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
    return f"{getattr(metric, '__qualname__', type(metric).__qualname__)}@{digest}"


def _content(code: CodeType) -> str:
    # The repr of a nested code object holds its address, which changes from run to run.
    constants = [_content(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code, constants, code.co_names))


def _at(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(-1, tokens[:, None]).squeeze(-1)


def _mean_over_wrong(values: Tensor, targets: Targets) -> Tensor:
    wrong = values.gather(-1, targets.wrong_answers) * targets.is_wrong
    return wrong.sum(dim=-1) / targets.is_wrong.sum(dim=-1)
