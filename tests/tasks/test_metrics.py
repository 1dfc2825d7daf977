"""Metrics against formulas worked out by hand, and names that tell metrics apart."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from processes import outputs_by_hash_seed
from slow_truth import random_masks
from torch.testing import assert_close

import circuitspex as cs
from circuitspex.errors import TaskError
from circuitspex.runs import Settings
from circuitspex.tasks import METRICS, Targets, identify, tokens_read
from circuitspex.tasks.metrics import declare, get, is_positive_when_solved

# Probabilities that are easy to work with by hand; row 1 has one wrong answer, row 0 three.
P = [[0.5, 0.2, 0.1, 0.15, 0.05], [0.1, 0.1, 0.6, 0.1, 0.1]]
INTACT = [[0.7, 0.1, 0.1, 0.05, 0.05], [0.2, 0.2, 0.2, 0.2, 0.2]]
# Shifting all logits of a row must not change what is about probabilities.
LOGITS = torch.tensor(P).log() + torch.tensor([[3.0], [-2.0]])
WRONG = torch.tensor([[1, 2, 4], [3, 0, 0]])
IS_WRONG = torch.tensor([[True, True, True], [True, False, False]])


def make_targets(read_intact=None):
    def refuse():
        raise AssertionError("this metric must not run the intact model")

    return Targets(torch.tensor([0, 2]), WRONG, IS_WRONG, read_intact or refuse)


def test_logit_difference_is_the_answers_logit_minus_the_mean_wrong_one():
    expected = [
        math.log(0.5) - (math.log(0.2) + math.log(0.1) + math.log(0.05)) / 3,
        math.log(0.6) - math.log(0.1),
    ]
    assert_close(METRICS["logit_difference"](LOGITS, make_targets()), torch.tensor(expected))


def test_answer_log_probability():
    expected = torch.tensor([math.log(0.5), math.log(0.6)])
    assert_close(METRICS["answer_log_probability"](LOGITS, make_targets()), expected)


def test_probability_difference():
    expected = torch.tensor([0.5 - (0.2 + 0.1 + 0.05) / 3, 0.6 - 0.1])
    assert_close(METRICS["probability_difference"](LOGITS, make_targets()), expected)


def test_negative_kl_goes_from_the_intact_to_the_ablated_model():
    expected = [
        -sum(q * math.log(q / p) for q, p in zip(intact, ablated, strict=True))
        for intact, ablated in zip(INTACT, P, strict=True)
    ]
    targets = make_targets(lambda: torch.tensor(INTACT).log() + 5)
    assert_close(METRICS["negative_kl"](LOGITS, targets), torch.tensor(expected))
    other_way = -sum(p * math.log(p / q) for q, p in zip(INTACT[0], P[0], strict=True))
    assert abs(other_way - expected[0]) > 0.01, "the direction would not show"


def test_negative_kl_of_the_intact_model_is_zero_and_others_are_below():
    targets = make_targets(lambda: LOGITS)
    assert_close(METRICS["negative_kl"](LOGITS, targets), torch.zeros(2), rtol=0, atol=1e-6)
    noise = LOGITS + torch.randn(LOGITS.shape, generator=torch.Generator().manual_seed(0))
    assert (METRICS["negative_kl"](noise, targets) < 0).all()


@pytest.mark.parametrize("name", METRICS)
def test_half_precision_logits_are_measured_in_single_precision(name):
    targets = make_targets(lambda: LOGITS)
    values = METRICS[name](LOGITS.bfloat16(), targets).float()
    assert_close(values, METRICS[name](LOGITS.bfloat16().float(), targets), rtol=0.02, atol=0.02)


def test_metrics_are_found_by_name_and_functions_pass():
    assert get("negative_kl") is METRICS["negative_kl"]
    own = lambda logits, targets: logits[:, 0]  # noqa: E731
    assert get(own) is own


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(TaskError, match=r"no metric 'loss'; choose one of logit_difference, .*or"):
        get("loss")


# ---- names ----


def scaled(factor):
    def metric(logits, targets):
        return factor * logits[:, 0]

    return metric


def first(logits, targets, sign=1):
    return sign * logits[:, 0]


def second(logits, targets, sign=1):
    return sign * logits[:, 1]


class Weighted:
    def __init__(self, weight: Any):
        self.weight = weight

    def __call__(self, logits, targets):
        return self.weight * logits[:, 0]

    def method(self, logits, targets):
        return self(logits, targets)


def with_default(logits, targets, sign=-1):
    return sign * logits[:, 0]


def test_builtin_metrics_are_known_by_name():
    assert [identify(metric) for metric in METRICS.values()] == list(METRICS)


def test_different_metrics_have_different_names():
    helper = scaled(3.0)
    different = [
        first,
        second,
        scaled(1.0),
        scaled(2.0),
        scaled(torch.tensor([1.0, 2.0])),
        scaled(torch.tensor([1.0, 3.0])),
        partial(first, sign=-1),
        partial(first, sign=2),
        partial(second, sign=2),
        with_default,
        Weighted(1.0),
        Weighted(2.0),
        Weighted(2.0).method,
        lambda logits, targets: helper(logits, targets),
        lambda logits, targets: logits[:, 0] * 7,
        lambda logits, targets: logits[:, 0] * 8,
    ]
    names = [identify(metric) for metric in different]
    assert len(set(names)) == len(names)


def test_the_same_metric_made_again_has_the_same_name():
    assert identify(scaled(2.0)) == identify(scaled(2.0))
    assert identify(Weighted(2.0)) == identify(Weighted(2.0))
    assert identify(Weighted(2.0).method) == identify(Weighted(2.0).method)
    assert identify(partial(first, sign=2)) == identify(partial(first, sign=2))


def test_an_object_that_holds_itself_has_a_name():
    metric = Weighted(1.0)
    metric.weight = metric
    assert identify(metric) == identify(metric)


NAMES_OF_METRICS = """
import torch
from circuitspex.tasks import identify

def outer(words):
    inner = lambda values: torch.softmax(values, -1)
    soft = torch.softmax
    def metric(logits, targets):
        bad = "a" in {"a", "b", "c", "d"} and (lambda: 1)()
        return inner(logits)[:, len(words)] + soft(logits, 0)[:, 0] + bad
    return metric

class Thing:
    def __init__(self):
        self.words = {"x", "y", "z"}
    def __call__(self, logits, targets):
        return logits[:, 0]

print(identify(outer({"p", "q", "r", "s"})), identify(Thing()))
"""


@pytest.mark.slow
def test_names_are_the_same_in_every_process():
    printed = set(outputs_by_hash_seed(NAMES_OF_METRICS))
    assert len(printed) == 1, printed
    assert "metric@" in printed.pop()


def margin(logits, targets):
    return (
        logits.gather(-1, targets.answers[:, None])[:, 0]
        - logits.gather(-1, targets.wrong_answers)[:, 0]
    )


def test_a_metric_declares_which_tokens_it_reads(toy):
    task, masks = cs.tasks.induction(toy, n_prompts=3), random_masks(5, 8)
    widths, values = {}, {}
    for reads, function in (
        ("all", margin),
        ("answers", declare(reads="answers")(partial(margin))),
    ):

        def note(logits, targets, reads=reads, function=function):
            widths[reads] = logits.shape[1]
            return function(logits, targets)

        note.__dict__.update(function.__dict__)
        assert tokens_read(note) == reads
        with cs.CircuitSpex(toy, task, cs.heads(toy), metric=note) as spex:
            values[reads] = spex(masks)
    assert widths["all"] == toy.cfg.d_vocab > widths["answers"]
    assert_close(values["answers"], values["all"], rtol=0, atol=1e-5)


def test_what_metrics_declare():
    assert [name for name, metric in METRICS.items() if tokens_read(metric) == "answers"] == [
        "logit_difference"
    ]
    assert [name for name, metric in METRICS.items() if is_positive_when_solved(metric)] == [
        "logit_difference",
        "probability_difference",
    ]


def test_a_new_metric_is_one_function_and_one_line(monkeypatch, toy):
    monkeypatch.setitem(METRICS, "margin", margin)
    assert Settings(metric="margin").metric == "margin"
    task = cs.tasks.induction(toy, n_prompts=2)
    with cs.CircuitSpex(toy, task, cs.heads(toy), metric="margin") as spex:
        assert spex.spec.evaluation["metric"] == "margin"
        assert spex(cs.masks.all_kept(8)).isfinite().all()
