"""The same truths on a real language model, SmolLM2-135M-Instruct."""

import shutil

import pytest
import torch
from slow_truth import slow_table
from torch.testing import assert_close

from circuitspex import models
from circuitspex.ablation import ablate
from circuitspex.algebra import ablate_only, all_kept
from circuitspex.errors import ModelError, TaskError
from circuitspex.evaluation import Evaluation
from circuitspex.evaluation.store import MemoryStore
from circuitspex.models import describe_model
from circuitspex.tasks import Task, ioi, logit_difference
from circuitspex.units import heads, neurons

pytestmark = [pytest.mark.slow, pytest.mark.real_model]


def test_it_has_the_units_it_should(smollm2):
    described = describe_model(smollm2)
    assert (described["architecture"], described["n_layers"]) == ("LlamaForCausalLM", 30)
    assert (described["processing"], described["dtype"]) == ("raw", "float32")
    assert smollm2.cfg.n_key_value_heads == 3
    assert len(heads(smollm2)) == 270
    assert len(neurons(smollm2)) == 46_080


def test_ioi_is_made_for_its_tokenizer(smollm2):
    task = ioi(smollm2, n_prompts=8, seed=0)
    assert task.strata.count("ABBA") == 4
    for tokens, answer, (wrong,) in zip(task.tokens, task.answers, task.wrong_answers, strict=True):
        text = smollm2.tokenizer.decode(tokens)
        names = [smollm2.tokenizer.decode(token) for token in (answer, wrong)]
        assert all(name.startswith(" ") for name in names)
        assert [text.count(name) for name in names] == [1, 2]
    assert task.counterfactuals is not None
    for tokens, other in zip(task.tokens, task.counterfactuals, strict=True):
        assert int((tokens != other).sum()) == 3


def test_an_answer_of_two_tokens_is_refused(smollm2):
    with pytest.raises(TaskError, match=r"answer ' Zbigniew' is \d tokens \[.*it must be one"):
        Task.from_prompts(smollm2, ["A book for"], [" Zbigniew"], [" Emma"])


def test_it_solves_ioi(smollm2):
    task = ioi(smollm2, n_prompts=16, seed=0)
    with ablate(smollm2, heads(smollm2)) as ablated:
        values = Evaluation(ablated, task, logit_difference, MemoryStore(270, 16)).per_prompt(
            all_kept(270)
        )
    assert values.mean() > 3
    assert (values > 0).all()


@pytest.mark.parametrize("choose", [heads, neurons])
def test_batched_rows_equal_one_mask_at_a_time(smollm2, choose):
    units = choose(smollm2)
    rng = torch.Generator().manual_seed(0)
    masks = torch.rand(5, len(units), generator=rng) < torch.tensor(
        [[0.99], [0.95], [0.9], [0.8], [0.5]]
    )
    masks = torch.cat([masks, ablate_only([[100]], len(units))])
    tokens = ioi(smollm2, n_prompts=2, seed=0).tokens[0][None]
    with ablate(smollm2, units) as ablated:
        batched = ablated(tokens, masks)
        single = torch.cat([ablated(tokens, mask[None]) for mask in masks])
    assert_close(batched, single, rtol=0, atol=1e-4)
    if choose is heads:  # thousands of neurons would need as many assignments a mask
        assert_close(batched, slow_table(smollm2, tokens, masks, units), rtol=0, atol=1e-4)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.9999])
def test_a_file_that_is_cut_short_is_refused(smollm2_file, tmp_path, share):
    cut = shutil.copyfile(smollm2_file, tmp_path / "cut.gguf")
    with cut.open("r+b") as file:
        file.truncate(int(share * smollm2_file.stat().st_size))
    with pytest.raises(ModelError, match=r"is cut short.*Download it again"):
        models.load(str(cut))
