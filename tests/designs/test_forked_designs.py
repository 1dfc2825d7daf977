"""Masks that share their first layers: what they share, and what is made of rows that depend."""

from collections import Counter

import numpy as np
import pytest
import torch
from slow_truth import random_tokens
from torch.testing import assert_close

from circuitspex import decoders
from circuitspex.ablation import ablate
from circuitspex.decoders.measuring import gather
from circuitspex.decoders.regression import (
    SparseRegression,
    held_out_r2,
    r2_std_error,
    sparse_regression,
)
from circuitspex.decoders.regression.crossfit import crossfit
from circuitspex.designs import forked_masks
from circuitspex.errors import DecoderError, MaskError
from circuitspex.evaluation import Evaluation
from circuitspex.evaluation.store import MemoryStore
from circuitspex.games import PromptsGame, characters
from circuitspex.tasks import Task, logit_difference
from circuitspex.units import heads

LAYERS = np.arange(12).repeat(4)  # 12 layers of 4 units


def draw(n_masks, branches, keep_rate=0.8, seed=0):
    masks, groups = forked_masks(
        n_masks, LAYERS.tolist(), keep_rate, branches, np.random.default_rng(seed)
    )
    return masks.numpy(), groups.numpy()


@pytest.mark.parametrize("branches", [{}, {6: 2}, {3: 2, 9: 3}])
@pytest.mark.parametrize("place", [0, -1])
def test_any_one_mask_of_a_group_is_bernoulli(branches, place):
    n = 8000
    masks, groups = draw(n * int(np.prod([*branches.values()])), branches)
    sizes = np.bincount(groups)
    members = masks[np.cumsum(sizes) - 1 if place else np.cumsum(sizes) - sizes]
    assert len(members) == n
    assert np.abs(members.mean(axis=0) - 0.8).max() < 5 * np.sqrt(0.8 * 0.2 / n)
    assert np.abs(np.corrcoef(members.T) - np.eye(48)).max() < 6 / np.sqrt(n)


@pytest.mark.parametrize("layer", [1, 6, 11])
def test_groups_share_what_lies_below_their_branch_and_nothing_else(layer):
    masks, groups = draw(6000, {layer: 3})
    assert groups.tolist() == [i // 3 for i in range(6000)]
    first, second, third = masks[0::3], masks[1::3], masks[2::3]
    early = layer > LAYERS
    for other in (second, third):
        assert (first[:, early] == other[:, early]).all()
    for one, other in ((first, second), (first, third), (second, third)):
        agree = (one[:, ~early] == other[:, ~early]).mean(axis=0)
        assert np.abs(agree - (0.8**2 + 0.2**2)).max() < 0.05
    across = (first[:-1] == first[1:]).mean(axis=0)
    assert np.abs(across - (0.8**2 + 0.2**2)).max() < 0.05


def test_branches_nest():
    masks, groups = draw(600, {4: 2, 8: 3})
    assert groups.tolist() == [i // 6 for i in range(600)]
    trunk, limb = LAYERS < 4, LAYERS < 8
    of_trunk, of_limb = np.arange(600) // 6, np.arange(600) // 3
    assert len(np.unique(np.c_[of_trunk, masks[:, trunk]], axis=0)) == 100
    assert len(np.unique(np.c_[of_limb, masks[:, limb]], axis=0)) == 200
    twigs = masks[:, LAYERS >= 8].reshape(200, 3, -1)
    assert (twigs[:, 0] != twigs[:, 1]).any(axis=1).mean() > 0.99
    limbs = masks[:, (LAYERS >= 4) & (LAYERS < 8)].reshape(100, 2, 3, -1)
    assert (limbs[:, 0] != limbs[:, 1]).any(axis=(1, 2)).mean() > 0.95


def test_the_last_group_ends_where_there_are_enough_masks():
    masks, groups = draw(7, {6: 4})
    assert masks.shape == (7, 48)
    assert groups.tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_masks": 0}, r"needs n_masks >= 1, .* got n_masks=0, 48 units, keep_rate=0\.5"),
        ({"layers": []}, r"at least one unit .* got n_masks=10, 0 units"),
        ({"keep_rate": 1.0}, r"0 < keep_rate < 1; got .* keep_rate=1\.0"),
        ({"branches": {6: 1}}, r"branches=\{6: 1\}: 1 mask\(s\) from layer 6 on share nothing"),
        ({"branches": {0: 2}}, r"from layer 0 on .* at a layer from 1 to 11"),
        ({"branches": {12: 2}}, r"from layer 12 on .* at a layer from 1 to 11"),
    ],
)
def test_designs_that_cannot_be_are_refused(changes, message):
    given = {"n_masks": 10, "layers": LAYERS.tolist(), "keep_rate": 0.5, "branches": {6: 2}}
    with pytest.raises(DecoderError, match=message):
        forked_masks(**{**given, **changes}, rng=np.random.default_rng(0))


# ---- prompts ----


@pytest.fixture
def evaluate(gpt2):
    prompts = [random_tokens(gpt2, 1, n, seed=i)[0] for i, n in enumerate((5, 7, 5))]
    task = Task.from_prompts(gpt2, prompts, [3, 4, 5], [[8], [9], [11]])
    units = heads(gpt2)
    with ablate(gpt2, units) as ablated:
        yield Evaluation(ablated, task, logit_difference, MemoryStore(len(units), len(task)))


def test_a_group_shares_its_prompts_and_prompts_are_balanced_over_groups(evaluate):
    rng = np.random.default_rng(0)
    masks, groups = forked_masks(24, [0] * 4 + [1] * 4, 0.5, {1: 4}, rng)
    order = torch.from_numpy(rng.permutation(24))
    masks, groups = masks[order], groups[order]
    values, prompts = evaluate.sample(masks, 1, rng, groups)
    of_group = {}
    for group, prompt in zip(groups.tolist(), prompts[:, 0].tolist(), strict=True):
        assert of_group.setdefault(group, prompt) == prompt
    assert Counter(of_group.values()) == {0: 2, 1: 2, 2: 2}
    assert_close(values, evaluate.per_prompt(masks).gather(1, prompts), rtol=0, atol=1e-4)


def test_every_mask_is_its_own_group_unless_told(evaluate):
    masks = torch.rand(9, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    _, plain = evaluate.sample(masks, 2, np.random.default_rng(5))
    _, told = evaluate.sample(masks, 2, np.random.default_rng(5), torch.arange(9))
    assert plain.tolist() == told.tolist()


@pytest.mark.usefixtures("unchecked")
def test_groups_that_do_not_fit_the_masks_are_refused(evaluate):
    masks = torch.ones(4, 8, dtype=torch.bool)
    with pytest.raises(MaskError, match=r"one number per mask, shape \(4,\); got \(3,\)"):
        evaluate.sample(masks, 1, np.random.default_rng(0), torch.arange(3))


# ---- fits ----


def measured(seed=0, keep_rate=0.5):
    rng = np.random.default_rng(seed)
    game = PromptsGame(48, 4, seed, spread=0.2, keep_rate=keep_rate)
    masks, groups = forked_masks(240, LAYERS.tolist(), keep_rate, {6: 4}, rng)
    values, prompts = game.sample(masks, 2, rng)
    return masks, values, prompts, groups


def lasso():
    decoder = decoders.get("lasso")
    assert isinstance(decoder, SparseRegression)
    return decoder


def test_a_group_is_held_out_as_one_and_is_one_cluster(monkeypatch):
    masks, values, prompts, groups = measured()
    reports = []

    def spy(samples, *rest):
        reports.append((samples, crossfit(samples, *rest)))
        return reports[-1][1]

    monkeypatch.setattr(sparse_regression, "crossfit", spy)
    decoder = lasso()

    def fit(**options):
        found = decoder.fit(
            masks, values, np.random.default_rng(0), prompts=prompts, n_prompts=4, **options
        )
        folds = reports[-1][1].folds
        return found, [len(set(folds[groups == group].tolist())) for group in range(60)]

    together, spread = fit(groups=groups)
    assert spread == [1] * 60
    apart, spread = fit()
    assert max(spread) == 4  # the check can fail
    samples, report = reports[0]
    columns = characters(masks.numpy(), together.support, 0.5)
    design = np.c_[columns, np.delete(samples.incidence, 0, axis=1)]
    bread = np.linalg.inv(design.T @ design)
    leverage = ((design @ bread) * design).sum(axis=1)
    scores = design * (report.residuals / np.sqrt(1 - leverage))[:, None]
    sums = np.stack([scores[groups == group].sum(axis=0) for group in range(60)])
    slow = np.sqrt(np.diag(bread @ sums.T @ sums @ bread))[1 : len(together.support)]
    assert together.diagnostics["ridge"] == 0  # or what the penalty took would be an error too
    assert together.std_errors is not None
    np.testing.assert_allclose(together.std_errors.numpy()[1:], slow, rtol=1e-9)
    assert together.support[1:4] == apart.support[1:4]


def test_rows_of_one_mask_stay_together_whatever_the_groups():
    masks = np.array([[0, 0], [0, 1], [1, 0], [0, 0], [1, 1], [1, 0], [0, 1]], dtype=bool)
    samples = gather(masks, np.zeros((7, 1)), None, 1, 0.8)
    # The masks 0 and 3 are one, 1 and 6, 2 and 5; the groups add 0 with 4 and 2 with 6.
    together = samples.keep_together(np.array([7, 1, 2, 3, 7, 5, 2])).groups
    assert len(set(together[[0, 3, 4]])) == len(set(together[[1, 2, 5, 6]])) == 1
    assert len(set(together)) == 2


@pytest.mark.usefixtures("unchecked")
def test_one_group_per_row_is_needed():
    masks, values, prompts, groups = measured()
    with pytest.raises(DecoderError, match=r"one number per mask, shape \(240,\); got \(239,\)"):
        lasso().fit(
            masks, values, np.random.default_rng(0), prompts=prompts, n_prompts=4, groups=groups[1:]
        )


def test_repeated_rows_do_not_make_the_r2_look_surer():
    rng = np.random.default_rng(0)
    masks = rng.random((50, 30)) < 0.8
    draws = rng.normal(size=(50, 1))
    once = gather(masks, draws, None, 1, 0.8)
    again = np.tile(np.arange(50), 4)
    four = gather(masks[again], draws[again], None, 1, 0.8)
    residuals = draws - 0.5 * masks[:, :1]
    plain = r2_std_error(once, residuals, draws)
    assert plain is not None
    assert r2_std_error(four, residuals[again], draws[again]) == pytest.approx(plain)


def test_no_r2_of_the_average_is_claimed_where_no_mask_has_two_prompts():
    masks, values, prompts, _ = measured()
    found = lasso().fit(
        masks, values[:, :1], np.random.default_rng(0), prompts=prompts[:, :1], n_prompts=4
    )
    assert found.held_out_r2 is None
    assert found.diagnostics["held_out_r2_std_error"] is None
    samples = gather(masks.numpy(), values[:, :1].numpy(), prompts[:, :1].numpy(), 4, 0.5)
    assert held_out_r2(samples, samples.draws, samples.draws) is None
