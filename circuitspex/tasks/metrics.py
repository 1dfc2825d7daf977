"""Metrics: logits at the answer position become one number per row; higher is better at the task.

A metric is any function of ``(logits, targets)``, so users can pass their own. It may declare
(:func:`declare`) what those who run it can spare.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, Literal, TypeAlias, TypeVar

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
AnyMetric = TypeVar("AnyMetric", bound=Metric)
Reads: TypeAlias = Literal["all", "answers"]


def declare(
    *, reads: Reads = "all", positive_when_solved: bool = False
) -> Callable[[AnyMetric], AnyMetric]:
    """Make a decorator that notes what a metric is like; one that declares nothing reads all.

    Args:
        reads: Whose logits it reads: ``all`` tokens', or those of correct and incorrect ``answers``
            only. Then no others are computed, and targets count the columns that are.
        positive_when_solved: Whether a model that does the task has values above 0.

    Returns:
        The decorator; it returns the metric itself.
    """

    def note(metric: AnyMetric) -> AnyMetric:
        metric.__dict__.update(reads=reads, positive_when_solved=positive_when_solved)
        return metric

    return note


def tokens_read(metric: Metric) -> Reads:
    """Return whose logits a metric reads."""
    return getattr(metric, "reads", "all")


def is_positive_when_solved(metric: Metric) -> bool:
    """Return whether a model that does the task has values above 0."""
    return getattr(metric, "positive_when_solved", False)


@declare(reads="answers", positive_when_solved=True)
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


@declare(positive_when_solved=True)
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
    metric.__name__: metric
    for metric in (logit_difference, answer_log_probability, probability_difference, negative_kl)
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
        The built-in's name, or the function's name with a digest of its code and of the values it
        closes over. Functions it calls by a global name are known by that name only.
    """
    for name, function in METRICS.items():
        if function is metric:
            return name
    digest = hashlib.blake2b(_content(metric).encode(), digest_size=8).hexdigest()
    return f"{getattr(metric, '__qualname__', type(metric).__qualname__)}@{digest}"


def _content(value: Any, around: tuple[int, ...] = ()) -> str:
    # Describes a function, or a value it depends on, by content: no address, no hash order.
    if id(value) in around:
        return "itself"
    around = (*around, id(value))

    def every(parts: Iterable[Any]) -> list[str]:
        return [_content(part, around) for part in parts]

    if isinstance(value, CodeType):
        return repr((value.co_code, every(value.co_consts), value.co_names))
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return repr(every((value.__code__, cells, value.__defaults__, value.__kwdefaults__)))
    if isinstance(value, MethodType):
        return repr(every((value.__func__, value.__self__)))
    if isinstance(value, partial):
        return repr(every((value.func, value.args, value.keywords)))
    if isinstance(value, Tensor):
        return repr((value.dtype, value.tolist()))
    if isinstance(value, dict):
        return repr(every(value.items()))
    if isinstance(value, set | frozenset):
        return repr(sorted(every(value)))
    if isinstance(value, list | tuple):
        return repr(every(value))
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if type(value).__repr__ is object.__repr__:
        return repr((type(value).__qualname__, every([getattr(value, "__dict__", {})])))
    return repr(value)


def _at(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(-1, tokens[:, None]).squeeze(-1)


def _mean_over_wrong(values: Tensor, targets: Targets) -> Tensor:
    wrong = values.gather(-1, targets.wrong_answers) * targets.is_wrong
    return wrong.sum(dim=-1) / targets.is_wrong.sum(dim=-1)
