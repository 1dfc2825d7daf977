"""The gradient decoder against brute force: what it verifies, proposes, fits and reports."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

import circuitspex as cs
from circuitspex import decoders
from circuitspex.decoders.around_intact import Neighbourhood, explore
from circuitspex.decoders.around_intact.candidates import rank
from circuitspex.decoders.measuring import Meter
from circuitspex.decoders.process import (
    ExpansionMean,
    LinearMean,
    QuadraticMean,
    clip_lengths,
    unit_weights,
)
from circuitspex.decoders.process.process import (
    Prior,
    Process,
    Rows,
    characters_of_units,
    choose_prior,
    symmetric_polynomials,
)
from circuitspex.decoders.process.process_fit import _Spectrum
from circuitspex.designs import bernoulli_masks
from circuitspex.errors import BudgetError, DecoderError, NonFiniteError
from circuitspex.games import PromptsGame


class Deletions:
    """A sum of Möbius terms around the intact model, bent by a saturating curve if asked."""

    def __init__(self, n_units, terms, bend=None):
        self.n_units, self.terms, self.bend = n_units, terms, bend
        self.n_evaluations = 0

    def _values(self, gates):
        parts = [
            weight * (1 - gates[:, list(term)]).prod(dim=1) for term, weight in self.terms.items()
        ]
        total = torch.stack(parts).sum(dim=0)
        return total if self.bend is None else self.bend * torch.tanh(total / self.bend)

    def __call__(self, masks):
        self.n_evaluations += len(masks)
        return self._values(masks.double())

    def value_and_gradient(self, masks):
        self.n_evaluations += 3 * len(masks)
        with torch.enable_grad():
            gates = masks.double().requires_grad_()
            values = self._values(gates)
            (gradient,) = torch.autograd.grad(values.sum(), gates)
        return values.detach(), gradient

    def theta(self, term):
        """Return the exact coefficient around the intact model, subset by subset."""
        parts = [part for size in range(len(term) + 1) for part in combinations(term, size)]
        signs = torch.tensor([(-1.0) ** (len(term) - len(part)) for part in parts])
        return float(signs.double() @ self(without(parts, self.n_units)))

    def all_pairs(self):
        """Return the exact coefficient of every pair."""
        pairs = list(combinations(range(self.n_units), 2))
        single = self(without([(unit,) for unit in range(self.n_units)], self.n_units))
        both, intact = self(without(pairs, self.n_units)), self(without([()], self.n_units))
        first, second = torch.tensor(pairs).T
        theta = both - single[first] - single[second] + intact
        return dict(zip(pairs, theta.tolist(), strict=True))


def without(terms, n_units):
    """Return one mask a term that ablates its units."""
    masks = torch.ones(len(terms), n_units, dtype=torch.bool)
    for mask, term in zip(masks, terms, strict=True):
        mask[list(term)] = False
    return masks


def planted(n_units=30, bend=None, seed=0, *, hubs=True):
    """Draw singles of all units, twelve pairs and four triples of them.

    Of each pair one unit is one of six hubs, as in a network interactions share units, or any.
    """
    rng = np.random.default_rng(seed)
    terms: dict[tuple[int, ...], float] = {
        (unit,): float(rng.normal(0, 0.3)) for unit in range(n_units)
    }
    for _ in range(12):
        hub = int(rng.integers(6)) * (n_units // 6) if hubs else int(rng.integers(n_units))
        pair = tuple(sorted({hub, int(rng.choice([u for u in range(n_units) if u != hub]))}))
        terms[pair] = float(rng.choice([-1, 1]) * rng.uniform(1, 3))
    for pair in [term for term in terms if len(term) == 2][:4]:
        third = int(rng.choice([u for u in range(n_units) if u not in pair]))
        terms[tuple(sorted((*pair, third)))] = float(rng.choice([-1, 1]) * rng.uniform(1, 3))
    return Deletions(n_units, terms, bend)


def rows_of(game, n_rows=60, keep_rate=0.8, n_prompts=1, seed=0):
    rng = np.random.default_rng(seed)
    masks = bernoulli_masks(n_rows, game.n_units, keep_rate, rng).numpy()
    values = game(torch.from_numpy(masks)).numpy() + rng.normal(size=n_rows)
    prompts = rng.integers(n_prompts, size=n_rows)
    folds = rng.permutation(np.arange(n_rows) % 5)
    folds[:6] = -1
    return Rows(masks, values, prompts, n_prompts, folds, np.stack([np.zeros(n_rows), masks[:, 0]]))


# ---- around the intact model ----


@pytest.mark.parametrize("bend", [None, 6.0])
@pytest.mark.parametrize("max_order", [2, 3])
def test_what_is_verified_is_what_ablation_says(bend, max_order):
    game = planted(bend=bend)
    found = decoders.get("gradient", keep_rate=0.8, max_order=max_order).decode(
        game, budget=900, seed=0
    )
    verified = found.diagnostics["verified"]
    assert len(verified) >= 11
    assert {len(entry["units"]) for entry in verified} == set(range(2, max_order + 1))
    for entry in verified[:60]:
        term = tuple(int(unit) for unit in entry["units"])
        assert entry["coefficient"] == pytest.approx(game.theta(term), abs=1e-9)
        assert entry["std_error"] is None
    sizes = [abs(entry["coefficient"]) for entry in verified]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("bend", [None, 6.0])
@pytest.mark.parametrize("hubs", [True, False])
def test_the_strongest_pairs_are_among_the_verified(bend, hubs):
    for seed in range(4):
        game = planted(60, bend, seed, hubs=hubs)
        found = decoders.get("gradient", keep_rate=0.9, max_order=2).decode(
            game, budget=500, seed=seed
        )
        verified = {tuple(int(u) for u in e["units"]) for e in found.diagnostics["verified"]}
        exact = game.all_pairs()
        strongest = sorted(exact, key=lambda pair: -abs(exact[pair]))[:12]
        assert len(verified) < 400
        assert len(verified & set(strongest)) >= 11, (seed, set(strongest) - verified)


@pytest.mark.slow
@pytest.mark.parametrize(("hubs", "share"), [(True, 0.85), (False, 0.7)])
def test_four_evaluations_per_unit_find_most_pairs(hubs, share):
    n_found = 0
    for seed in range(8):
        game = planted(120, None, seed, hubs=hubs)
        rng = np.random.default_rng(seed)
        found = explore(Meter(game, 1000), None, 400, (1.0,), rng)
        assert len(found.contexts) < 100
        exact = game.all_pairs()
        strongest = sorted(exact, key=lambda pair: -abs(exact[pair]))[:12]
        n_found += len(found.verified.keys() & set(strongest))
    assert n_found >= share * 12 * 8


def test_among_some_units_everything_verified_has_its_own_label():
    game: Any = planted()
    game.units = [f"U{unit}" for unit in range(30)]
    chosen = tuple(range(5, 30))
    found = decoders.get("gradient", keep_rate=0.8, max_order=2, among=chosen).decode(
        game, budget=900, seed=0
    )
    assert len(found.diagnostics["verified"]) >= 8
    for entry in found.diagnostics["verified"][:30]:
        term = tuple(int(label.removeprefix("U")) for label in entry["units"])
        assert set(term) <= set(chosen)
        assert entry["coefficient"] == pytest.approx(game.theta(term), abs=1e-9)
    named = {label for context in found.diagnostics["contexts"] for label in context.split("+")}
    assert named <= {f"U{unit}" for unit in chosen}
    assert len(named) > 5


def test_triples_that_no_context_showed_are_proposed_by_their_strong_pairs():
    pairs = {(0, 1): 2.0, (0, 2): -1.5, (1, 2): 1.0, (3, 4): 0.5}
    terms = {(unit,): 0.1 for unit in range(12)} | pairs | {(0, 1, 2): 2.0}
    meter = Meter(Deletions(12, terms), 10_000)
    found = explore(meter, None, 80, (1.0,), np.random.default_rng(0))  # contexts of one unit only
    assert {len(context) for context in found.contexts} == {1}
    proposed = rank(found, 3, 50)
    assert proposed[0] == (0, 1, 2)
    strength = {
        term: sum(abs(pairs.get(pair, 0.0)) for pair in combinations(term, 2)) for term in proposed
    }
    assert list(strength.values()) == pytest.approx(sorted(strength.values(), reverse=True))
    touched = set(combinations(range(5), 3))  # no other unit is in a pair
    assert set(proposed) == {t for t in touched if set(combinations(t, 2)) & pairs.keys()}


@pytest.mark.slow
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.3, 0.7)])
def test_the_strongest_triples_are_verified(shares):
    n_found = 0
    for seed in range(4):
        game = planted(30, None, seed)
        found = explore(Meter(game, 1000), None, 500, shares, np.random.default_rng(seed))
        triples = {term for term in game.terms if len(term) == 3}
        n_found += len(found.verified.keys() & triples)
    assert n_found >= 15


def test_gradients_at_contexts_are_exact_where_gates_are_multilinear():
    game = planted()
    meter = Meter(game, 10_000)
    found = explore(meter, None, 2000, (0.5, 0.5), np.random.default_rng(0))
    sizes = {len(context) for context in found.contexts}
    assert sizes == {1, 2}
    for context in [*list(found.contexts)[:3], *list(found.contexts)[-3:]]:
        estimates = found.estimates(context)
        for unit in range(0, 30, 7):
            expected = game.theta(tuple(sorted((*context, unit)))) if unit not in context else 0
            assert estimates[unit] == pytest.approx(expected, abs=1e-9)


def test_contexts_that_interact_are_taken_first():
    terms = {(unit,): 0.1 for unit in range(100)}
    terms |= {(90, other): 2.0 for other in range(5, 12)} | {(91, 92): -3.0}
    terms = {tuple(sorted(term)): weight for term, weight in terms.items()} | {(5,): 1.0}
    found = explore(Meter(Deletions(100, terms), 200), None, 200, (1.0,), np.random.default_rng(0))
    taken = list(found.contexts)
    assert (90,) in taken[:6]  # seen from unit 5, whose own gradient is the largest
    assert {term for term in terms if 90 in term and len(term) == 2} <= set(found.verified)


def test_nothing_is_measured_without_evaluations():
    meter = Meter(planted(), 100)
    found = explore(meter, None, 0, (1.0,), np.random.default_rng(0))
    assert meter.n_evaluations == 0
    assert not found.masks
    assert not found.intact_gradient.any()
    assert ExpansionMean(found, 0.8).support == []


@pytest.mark.parametrize("n_evaluations", [50, 123, 300])
def test_the_search_stays_within_its_share(n_evaluations):
    meter = Meter(planted(), 1000)
    explore(meter, None, n_evaluations, (0.6, 0.4), np.random.default_rng(0))
    assert meter.n_evaluations <= n_evaluations


# ---- the process ----


def test_symmetric_polynomials_are_sums_over_subsets():
    rng = np.random.default_rng(0)
    left, right, weights = rng.normal(size=(4, 6)), rng.normal(size=(3, 6)), rng.random(6)
    found = symmetric_polynomials(left, right, weights)
    for order in (1, 2, 3):
        expected = sum(
            np.prod([weights[i] * np.outer(left[:, i], right[:, i]) for i in term], axis=0)
            for term in combinations(range(6), order)
        )
        np.testing.assert_allclose(found[order - 1], expected, atol=1e-12)


@pytest.mark.parametrize("n_prompts", [1, 4])
def test_held_out_folds_are_what_refitting_without_them_says(n_prompts):
    rows = rows_of(planted(12), n_prompts=n_prompts)
    weights = unit_weights(np.ones((1, 12)), {}, 0.8)
    prior = Prior(noise=0.3, slopes=0.2 if n_prompts > 1 else 0.0)
    process = Process(rows, weights, 0.8, prior)
    for out, residuals, dual in process.held_out():
        kept = np.setdiff1d(np.arange(len(rows.values)), out)
        without = Process(rows.take(kept), weights, 0.8, prior)
        # The same amplitudes: those of a part are in variances of that part.
        vars(without)["scale"] = process.scale
        np.testing.assert_allclose(dual[kept], without.dual, atol=1e-8)
        np.testing.assert_allclose(dual[out], 0, atol=1e-8)
        predicted = without.variation(rows.masks[out]) + rows.means[1, out]
        level = without.level(without.dual)[rows.prompts[out]]
        if n_prompts == 1:
            expected = rows.values[out] - predicted - level
            np.testing.assert_allclose(residuals, expected, atol=1e-8)


def test_coefficients_and_errors_are_those_of_the_explicit_features():
    """All terms of six units as columns: a ridge regression with the prior's variances."""
    game = planted(6)
    rows = rows_of(game, 40)
    weights = unit_weights(np.random.default_rng(1).normal(size=(5, 6)), {(0, 1): 2.0}, 0.8)
    process = Process(rows, weights, 0.8, Prior(noise=0.5, mean=0))
    spectrum = _Spectrum(process, LinearMean(np.zeros((1, 6)), 0.8))
    terms = [term for order in (1, 2, 3) for term in combinations(range(6), order)]
    z = characters_of_units(rows.masks, 0.8)
    columns = np.stack([z[:, list(term)].prod(axis=1) for term in terms], axis=1)
    amplitudes = process.prior.amplitudes
    prior = process.scale * np.array(
        [amplitudes[len(term) - 1] * weights[list(term)].prod() for term in terms]
    )
    design = np.c_[np.ones(len(z)), columns]
    precision = np.diag(np.r_[1 / (100 * process.scale), 1 / prior])
    noise = 0.5 * process.scale
    covariance = np.linalg.inv(precision + design.T @ design / noise)
    expected = covariance @ design.T @ rows.values / noise
    np.testing.assert_allclose(process.level(process.dual)[0], expected[0], rtol=1e-6)
    by_order = [[term for term in terms if len(term) == order] for order in (1, 2, 3)]
    found = np.concatenate([spectrum.coefficients(part, process.dual) for part in by_order])
    np.testing.assert_allclose(found, expected[1:], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(spectrum.covariance(terms), covariance[1:, 1:], atol=1e-9)
    listed, _ = spectrum.strongest(3, [])
    assert set(listed) <= set(terms)
    np.testing.assert_allclose(process.variation(rows.masks), columns @ found, atol=1e-9)


def test_a_prior_is_changed_only_beyond_doubt():
    rng = np.random.default_rng(0)
    rows = rows_of(planted(12), 100)
    weights = np.full(12, 1 / 12)
    exact = Rows(
        rows.masks,
        rows.values,
        rows.prompts,
        1,
        rows.folds,
        np.stack([rows.values, 0 * rows.values]),
    )
    chosen, tried = choose_prior(exact, weights, 0.8, rng)
    assert chosen.mean == 0  # the values themselves, against nothing
    alike = replace(rows, means=np.zeros((2, len(rows.values))))
    chosen, tried = choose_prior(alike, weights, 0.8, rng)
    assert chosen.mean == Prior().mean
    assert len(tried) > 5


def test_units_that_interact_have_weight_without_a_gradient():
    gradients = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    assert unit_weights(gradients, {}, 0.5) == pytest.approx([0.1 / 3 + 0.9, 0.1 / 3, 0.1 / 3])
    weights = unit_weights(gradients, {(1, 2): 2.0}, 0.5)
    assert weights == pytest.approx([0.1 / 3 + 0.9 / 5] + [0.1 / 3 + 0.9 * 2 / 5] * 2)
    assert unit_weights(np.zeros((2, 3)), {}, 0.5) == pytest.approx([1 / 3] * 3)


def test_one_long_gradient_does_not_rule_the_mean():
    gradients = np.ones((20, 3))
    gradients[0] = [1e6, 0, 0]
    clipped = clip_lengths(gradients, gradients)
    assert clipped.mean(axis=0) == pytest.approx([1.0, 0.95, 0.95], abs=0.05)


@pytest.mark.parametrize("kind", ["linear", "quadratic", "expansion"])
def test_means_predict_what_their_coefficients_say(kind):
    game, rng = planted(8), np.random.default_rng(0)
    masks = bernoulli_masks(40, 8, 0.8, rng)
    values, gradients = game.value_and_gradient(masks)
    found = explore(Meter(game, 300), None, 200, (1.0,), rng)
    linear = LinearMean(gradients.numpy(), 0.8)
    verified = dict(list(found.measured().items())[:5])
    mean = {
        "linear": linear,
        "quadratic": QuadraticMean(
            linear, masks.numpy(), gradients.numpy(), np.full(8, 1 / 8), verified, 0.7
        ),
        "expansion": ExpansionMean(found, 0.8),
    }[kind]
    terms = [[t for t in combinations(range(8), order)] for order in (1, 2, 3)]
    z = characters_of_units(masks.numpy(), 0.8)
    expected = sum(
        np.stack([z[:, list(t)].prod(axis=1) for t in part], axis=1) @ mean.coefficients(part)
        for part in terms
    )
    np.testing.assert_allclose(mean.predict(masks.numpy()), expected, atol=1e-9)
    assert np.corrcoef(expected, values)[0, 1] > 0.3


# ---- the decoder ----


@pytest.mark.slow
@pytest.mark.parametrize(("bend", "least"), [(None, 0.97), (6.0, 0.9)])
def test_it_predicts_fresh_masks_and_knows_how_well(bend, least):
    scores, reports = [], []
    for seed in range(3):
        game = planted(40, bend, seed)
        found = decoders.get("gradient", keep_rate=0.85).decode(game, budget=800, seed=seed)
        masks = bernoulli_masks(500, 40, 0.85, np.random.default_rng(seed + 100))
        truth = game(masks)
        scores.append(float(1 - (found.predict(masks) - truth).square().mean() / truth.var()))
        reports.append(found.held_out_r2)
    assert np.mean(scores) > least
    assert np.mean(reports) == pytest.approx(np.mean(scores), abs=0.1)


@pytest.mark.slow
def test_intervals_cover_the_truth_of_a_random_dense_game():
    covered = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        support = [(), *((i,) for i in range(10)), *combinations(range(10), 2)]
        game = PromptsGame(10, 1, seed=seed, keep_rate=0.7)
        game.support = support
        game.coefficients = rng.normal(size=(1, len(support))) * 0.5
        found = decoders.get("gradient", keep_rate=0.7, search_share=0.0, max_order=2).decode(
            game, budget=150, seed=seed
        )
        truth = dict(zip(support, game.coefficients[0], strict=True))
        errors = np.asarray(found.std_errors)
        for term, value, error in zip(found.support, found.coefficients, errors, strict=True):
            if term:
                covered.append(abs(float(value) - truth[term]) <= 1.96 * error + 1e-12)
    assert np.mean(covered) > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("prompts_per_mask", ["auto", 2, "all"])
def test_the_average_game_of_prompts_is_decoded(prompts_per_mask):
    game = PromptsGame(25, 8, keep_rate=0.8, spread=0.3)
    decoder = decoders.get("gradient", keep_rate=0.8, prompts_per_mask=prompts_per_mask)
    found = decoder.decode(game, budget=2400, seed=0)
    masks = bernoulli_masks(300, 25, 0.8, np.random.default_rng(9))
    truth = torch.from_numpy(game.truth(masks))
    assert 1 - (found.predict(masks) - truth).square().mean() / truth.var() > 0.9
    constant = found.coefficients[found.support.index(())]
    assert float(constant) == pytest.approx(float(game.coefficients.mean(axis=0)[0]), abs=0.2)
    assert found.n_evaluations <= 2400
    for entry in found.diagnostics["verified"]:
        assert entry["std_error"] >= 0


@pytest.mark.slow
def test_redundant_heads_of_a_real_model_are_verified():
    model = cs.models.load("toy-redundant")
    task = cs.tasks.induction(model, n_prompts=4, seed=0)
    with cs.CircuitSpex(model, task, units=cs.heads(model)) as spex:
        found = spex.discover("gradient", budget=700, keep_rate=0.8, prompts_per_mask="all")
        intact = spex.discover("exact", budget=1024).to("moebius", origin="intact")
        before = spex.evaluation.n_evaluated
        spex.discover("gradient", budget=700, keep_rate=0.8, prompts_per_mask="all")
        assert spex.evaluation.n_evaluated - before <= 3 * 700
    exact = dict(zip(intact.support, intact.coefficients.tolist(), strict=True))
    assert found.diagnostics["verified"]
    for entry in found.diagnostics["verified"]:
        term = tuple(found.units.index(label) for label in entry["units"])
        assert entry["coefficient"] == pytest.approx(exact[term], abs=1e-3)


# ---- errors ----


def test_a_black_box_is_refused():
    def blind(masks):
        return masks.double().sum(dim=1)

    blind.n_units = 30  # pyright: ignore[reportFunctionMemberAccess]
    with pytest.raises(DecoderError, match=r"with value_and_gradient\(\); function has none"):
        decoders.get("gradient").decode(blind, budget=500, seed=0)  # pyright: ignore[reportArgumentType]


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(DecoderError, match=r"'gradient': max_order must be .* from 1 to 6; got 7"):
        decoders.get("gradient", max_order=7)
    with pytest.raises(
        DecoderError, match=r"search_share must be a number from 0 to 1 or None; got 1.5"
    ):
        decoders.get("gradient", search_share=1.5)
    for shares in ((1.0,), (0.5, 0.4)):
        with pytest.raises(DecoderError, match="one share for each order from 2 to max_order=3"):
            decoders.get("gradient", order_shares=shares)
    with pytest.raises(
        DecoderError, match=r"order_shares must be a list, each a number of at leas"
    ):
        decoders.get("gradient", order_shares=(1.5, -0.5))


def test_budgets_that_leave_a_part_without_say_so():
    with pytest.raises(BudgetError, match=r"need at least 16 masks and 8 gradients at 1 prompt"):
        decoders.get("gradient").decode(planted(), budget=39, seed=0)
    with pytest.raises(BudgetError, match=r"intact model's gradient, 24 evaluations, but"):
        decoders.get("gradient", search_share=0.01, prompts_per_mask=1).decode(
            PromptsGame(25, 8), budget=500, seed=0
        )
    with pytest.raises(BudgetError, match=r"beside the 95 of the search; the budget is 100"):
        decoders.get("gradient", search_share=0.95).decode(planted(), budget=100, seed=0)


def test_gradients_that_are_not_finite_are_named():
    game = planted()
    plain = game.value_and_gradient

    def broken(masks):
        values, gradient = plain(masks)
        return values, torch.where(masks.all(dim=1, keepdim=True), gradient, torch.nan)

    game.value_and_gradient = broken
    with pytest.raises(NonFiniteError, match="NaN or infinite under"):
        decoders.get("gradient").decode(game, budget=500, seed=0)


def test_the_neighbourhood_starts_empty():
    found = Neighbourhood(3)
    assert found.measured() == {}
    assert found.singles() == {}
