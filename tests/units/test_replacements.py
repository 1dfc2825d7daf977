"""What stands in for an ablated activation, and which row takes which stand-in."""

import pytest
import torch
from torch.testing import assert_close

from circuitspex.errors import AblationError
from circuitspex.units.replacements import Mean, Resample, Zero, get, mean, resample

PROMPTS = [[1, 2, 3], [4, 5]]


def as_lists(replacement):
    return [tokens.tolist() for tokens in replacement.sequences]


def test_zero_needs_no_sequences():
    assert get("zero") == Zero()
    assert Zero().sequences == ()


def test_names_become_replacements_of_what_was_given():
    assert as_lists(get("mean", reference=PROMPTS)) == PROMPTS
    assert as_lists(get("resample", counterfactuals=PROMPTS, reference=[[9]])) == PROMPTS
    assert isinstance(get("mean", reference=PROMPTS), Mean)
    assert isinstance(get("resample", counterfactuals=PROMPTS), Resample)


@pytest.mark.parametrize("replacement", [Zero(), mean(PROMPTS), resample(PROMPTS)])
def test_a_replacement_is_returned_as_it_is(replacement):
    assert get(replacement, reference=[[9]], counterfactuals=[[9]]) is replacement


def test_names_are_recorded():
    assert [r.name for r in (Zero(), mean(PROMPTS), resample(PROMPTS))] == [
        "zero",
        "mean",
        "resample",
    ]


def test_a_tensor_is_a_batch_of_sequences():
    tokens = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)
    assert as_lists(mean(tokens)) == [[1, 2], [3, 4]]
    assert mean(tokens).sequences[0].dtype == torch.long


def test_the_mean_is_one_stand_in_for_every_row():
    values = torch.arange(24.0).reshape(3, 2, 4)
    by_hand = (values[0] + values[1] + values[2]) / 3
    assert_close(mean(PROMPTS).combine(values), by_hand[None])
    assert mean(PROMPTS).rows(torch.tensor([2, 0, 1])).tolist() == [0, 0, 0]


def test_resample_gives_every_row_its_own_counterfactual():
    values = torch.arange(24.0).reshape(3, 2, 4)
    assert_close(resample(PROMPTS).combine(values), values, rtol=0, atol=0)
    assert resample(PROMPTS).rows(torch.tensor([2, 0, 1])).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: get("mean"), r"ablation='mean' needs a reference batch.*cs\.mean"),
        (lambda: get("resample"), r"ablation='resample' needs counterfactual.*cs\.resample"),
        (lambda: get("noise"), "must be 'zero', 'mean' or 'resample'; got 'noise'"),
        (lambda: mean([]), r"mean ablation needs reference prompts: .*got shapes \[\]"),
        (lambda: mean([[1], []]), r"got shapes \[\(1,\), \(0,\)\]"),
        (lambda: mean(torch.tensor([1, 2])), r"got shapes \[\(\), \(\)\]"),
        (lambda: resample(torch.ones(1, 2, 3)), r"counterfactual prompts.*got shapes \[\(2, 3\)\]"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named(call, words):
    with pytest.raises(AblationError, match=words):
        call()
