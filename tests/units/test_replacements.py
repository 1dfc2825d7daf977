"""What stands in for an ablated activation, and which row takes which stand-in."""

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

import circuitspex as cs
from circuitspex.errors import AblationError
from circuitspex.runs import Settings
from circuitspex.units import (
    REPLACEMENTS,
    Mean,
    Replacement,
    Resample,
    StandIns,
    Zero,
    mean,
    resample,
)
from circuitspex.units.replacements import get, read_sequences

PROMPTS = [[1, 2, 3], [4, 5]]


def as_lists(replacement):
    return [tokens.tolist() for tokens in replacement.sequences]


def test_zero_needs_no_sequences():
    assert isinstance(get("zero"), Zero)
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
    assert not Mean.one_per_prompt


def test_resample_gives_every_row_its_own_counterfactual():
    values = torch.arange(24.0).reshape(3, 2, 4)
    assert_close(resample(PROMPTS).combine(values), values, rtol=0, atol=0)
    assert Resample.one_per_prompt


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


def stand_ins_of(replacement, prompts, n_positions):
    """What stands in for the activations of some prompts at a hook that gives token ids back."""
    stand_ins = StandIns(replacement)
    stand_ins.compute(lambda tokens: {"hook": tokens.float()})
    return stand_ins.of(torch.tensor(prompts), n_positions)("hook")


def test_every_row_takes_the_stand_in_of_its_length_and_where_it_has_one_its_own():
    sequences = [[1, 2, 3], [4, 5], [7, 8, 9]]
    assert stand_ins_of(resample(sequences), [2, 0, 2], 3).tolist() == [
        [7, 8, 9],
        [1, 2, 3],
        [7, 8, 9],
    ]
    assert stand_ins_of(mean(sequences), [2, 0], 3).tolist() == [[4, 5, 6]] * 2
    assert stand_ins_of(mean(sequences), [2], 2).tolist() == [[4, 5]]
    assert stand_ins_of(Zero(), [2, 0], 3).shape == ()


@dataclass(frozen=True, eq=False)
class Largest(Replacement):
    """A kind that the package does not have: what is largest among reference prompts."""

    name = "largest"

    @classmethod
    def of_prompts(cls, reference, counterfactuals):
        assert reference is not None
        return cls(read_sequences(reference, "largest needs reference prompts"))

    def combine(self, activations):
        return activations.amax(dim=0, keepdim=True)


def test_a_new_ablation_is_one_class_and_one_line(monkeypatch, toy):
    monkeypatch.setitem(REPLACEMENTS, "largest", Largest)
    assert stand_ins_of(get("largest", reference=[[1, 9], [8, 2]]), [5], 2).tolist() == [[8, 9]]
    assert Settings(ablation="largest").ablation == "largest"
    with pytest.raises(AblationError, match="must be 'zero', 'mean', 'resample' or 'largest'; got"):
        get("smallest")
    task, masks = cs.tasks.induction(toy, n_prompts=2), cs.masks.ablate_only([[3], []], 8)
    values = []
    for ablation in ("largest", "zero"):
        with cs.CircuitSpex(toy, task, cs.heads(toy), ablation) as spex:
            values.append(spex(masks))
            assert spex.spec.evaluation["ablation"]["name"] == ablation
    assert abs(values[0][0] - values[1][0]) > 0.1
    assert values[0][1] == values[1][1]
