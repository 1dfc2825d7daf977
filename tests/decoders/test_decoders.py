"""The contract of decoders: one suite for all of them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from circuitspex import decoders
from circuitspex.decoders.measuring import Meter
from circuitspex.decoders.regression import SparseRegression
from circuitspex.errors import BudgetError, DecoderError, NonFiniteError
from circuitspex.games import PromptsGame, SparseGame, random_terms

ALL = sorted(decoders.DECODERS)
SAMPLED = [name for name in ALL if name != "exact"]
REGRESSIONS = [n for n in ALL if issubclass(decoders.DECODERS[n], SparseRegression)]
N_UNITS = 9
BUDGET = {"exact": 512, "moebius": 400, "coarse_to_fine": 400, "gradient": 400} | dict.fromkeys(
    ("lasso", "spex", "proxyspex", "hybrid"), 300
)
RATES = {"spex": [0.5]}
"""Keep rates of decoders that do not take every one."""


def rate_for(name, wanted):
    """Return the wanted keep rate, or the one that the decoder takes."""
    return RATES.get(name, [wanted])[0]


def claimed(names, rates):
    """Pair names with the keep rates they take, out of some."""
    return [(name, rate) for name in names for rate in rates if rate in RATES.get(name, rates)]


def sparse_game(keep_rate=0.5, order=2, n_units=N_UNITS, seed=0):
    """Draw a hierarchical game of a few singles, pairs and (for order 3) a triple of them."""
    rng = np.random.default_rng(seed)
    units = [int(unit) for unit in rng.choice(n_units, 5, replace=False)]
    support = [(), *((unit,) for unit in units)]
    support += [tuple(sorted(units[:2])), tuple(sorted(units[1:3]))]
    if order == 3:
        support.append(tuple(sorted(units[:3])))
    signs = rng.choice([-1, 1], len(support))
    return SparseGame(n_units, support, signs * rng.uniform(0.5, 1.5, len(support)), keep_rate)


@dataclass
class Counting:
    """A set function that counts, relabels, shifts, scales or breaks another one."""

    game: Any
    units: list[str] | None = None
    order: np.ndarray | None = None
    shift: float = 0.0
    scale: float = 1.0
    broken: tuple[int, ...] = ()
    n_evaluations: int = 0
    calls: list = field(default_factory=list)

    def __post_init__(self):
        self.n_units = self.game.n_units

    def __call__(self, masks):
        self.n_evaluations += len(masks)
        self.calls.append(masks)
        game_masks = masks if self.order is None else masks[:, self.order]
        values = self.game(game_masks) * self.scale + self.shift
        if self.broken:
            values[(~masks[:, list(self.broken)]).all(dim=1)] = torch.nan
        return values

    def value_and_gradient(self, masks):
        self.n_evaluations += 2 * len(masks)
        order = np.arange(self.n_units) if self.order is None else self.order
        gradient = torch.zeros(len(masks), self.n_units, dtype=torch.float64)
        gradient[:, order] = self.game.value_and_gradient(masks[:, order])[1] * self.scale
        return self(masks), gradient


def as_dict(interactions, tolerance=1e-9):
    """Return Fourier terms at the result's keep rate with more than rounding in them."""
    spectrum = interactions.to("fourier")
    pairs = zip(spectrum.support, spectrum.coefficients.tolist(), strict=True)
    return {term: value for term, value in pairs if abs(value) > tolerance}


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for term, value in expected.items():
        assert found[term] == pytest.approx(value, abs=tolerance)


@pytest.mark.parametrize(("name", "keep_rate"), claimed(ALL, [0.3, 0.5, 0.9]))
def test_noiseless_sparse_games_are_decoded_exactly(name, keep_rate):
    order = 2 if name == "lasso" else 3
    game = sparse_game(keep_rate, order)
    found = decoders.get(name, keep_rate=keep_rate).decode(game, budget=BUDGET[name], seed=0)
    truth = dict(zip(game.support, game.coefficients.tolist(), strict=True))
    assert_same(as_dict(found), truth, 1e-9)
    assert found.basis == ("moebius" if name == "moebius" else "fourier")
    assert found.keep_rate == keep_rate
    assert found.decoder == name
    if name != "exact":
        assert found.held_out_r2 == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_relabelling_units_relabels_the_answer(name):
    game = sparse_game(order=2)
    order = np.random.default_rng(1).permutation(N_UNITS)
    decoder = decoders.get(name)
    plain = as_dict(decoder.decode(game, budget=BUDGET[name], seed=2))
    moved = as_dict(decoder.decode(Counting(game, order=order), budget=BUDGET[name], seed=2))
    renamed = {tuple(sorted(int(order[unit]) for unit in term)): v for term, v in plain.items()}
    assert_same(moved, renamed, 1e-9)


@pytest.mark.parametrize("name", ALL)
def test_shift_changes_the_empty_term_only_and_scale_scales(name):
    game, decoder, budget = sparse_game(order=2), decoders.get(name), BUDGET[name]
    plain = as_dict(decoder.decode(game, budget=budget, seed=3))
    moved = as_dict(decoder.decode(Counting(game, shift=100.0, scale=-4.0), budget=budget, seed=3))
    expected = {
        term: -4.0 * value + (100.0 if term == () else 0.0) for term, value in plain.items()
    }
    assert_same(moved, expected, 1e-8)


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_gives_the_same_masks_and_bits(name):
    games = [Counting(sparse_game()) for _ in range(2)]
    np.random.seed(0)
    first, second = (
        decoders.get(name, keep_rate=rate_for(name, 0.8)).decode(game, budget=BUDGET[name], seed=4)
        for game in games
        if np.random.random() < 2  # the global generator must not matter
    )
    torch.testing.assert_close(torch.cat(games[0].calls), torch.cat(games[1].calls))
    assert first.support == second.support
    torch.testing.assert_close(first.coefficients, second.coefficients, rtol=0, atol=0)
    assert first.held_out_r2 == second.held_out_r2


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("extra", [0, 1, 88])
def test_evaluations_are_counted_and_never_pass_the_budget(name, extra):
    game = Counting(sparse_game())
    found = decoders.get(name).decode(game, budget=BUDGET[name] + extra, seed=0)
    assert found.n_evaluations == game.n_evaluations <= BUDGET[name] + extra


@pytest.mark.parametrize(
    ("name", "prompts_per_mask"),
    [("exact", "all"), *((name, prompts) for name in SAMPLED for prompts in ("all", 1, 3))],
)
def test_prompts_are_counted_too(name, prompts_per_mask):
    game = PromptsGame(6, 7)
    decoder = decoders.get(name, prompts_per_mask=prompts_per_mask)
    found = decoder.decode(game, budget=64 * 7, seed=0)
    assert found.n_evaluations == game.n_evaluations <= 64 * 7


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("budget", [0, -1, True])
def test_a_budget_is_a_positive_integer(name, budget):
    with pytest.raises(BudgetError, match=r"budget must be an integer of at least 1"):
        decoders.get(name).decode(sparse_game(), budget=budget, seed=0)


def test_small_budgets_say_what_is_needed():
    with pytest.raises(BudgetError, match=r"cost 512 evaluations; the budget is 511. Raise it to"):
        decoders.get("exact").decode(sparse_game(), budget=511, seed=0)
    for name in SAMPLED:
        with pytest.raises(BudgetError, match=r"need at least 16 masks .* the budget is 15"):
            decoders.get(name).decode(sparse_game(), budget=15, seed=0)
        needed = r"16 masks at 7 evaluation.s. each, 112 in all"
        if name == "gradient":
            needed = r"16 masks and 8 gradients at 7 prompt.s. each, 280 evaluations"
        with pytest.raises(BudgetError, match=needed):
            decoder = decoders.get(name, prompts_per_mask="all")
            decoder.decode(PromptsGame(6, 7), budget=100, seed=0)


@pytest.mark.parametrize("name", ALL)
def test_the_smallest_budget_gives_a_result(name):
    budget = {"exact": 512, "gradient": 40}.get(name, 16)
    found = decoders.get(name).decode(sparse_game(), budget=budget, seed=0)
    assert torch.isfinite(found.coefficients).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [0.0, 7.25])
def test_constant_values_are_a_constant(name, value):
    game = SparseGame(N_UNITS, [()], np.array([value]))
    decoder = decoders.get(name, keep_rate=rate_for(name, 0.9))
    found = decoder.decode(game, budget=512, seed=0)
    assert found.support == ((),)
    torch.testing.assert_close(found.coefficients, torch.tensor([value], dtype=torch.float64))
    assert found.held_out_r2 is None


@pytest.mark.parametrize(("name", "keep_rate"), claimed(ALL, [0.5, 0.9]))
@pytest.mark.parametrize("n_units", [1, 2, 4])
def test_a_handful_of_units_is_transformed(name, n_units, keep_rate):
    game = SparseGame(n_units, [(), (n_units - 1,)], np.array([1.0, 2.0]), keep_rate)
    found = decoders.get(name, keep_rate=keep_rate).decode(game, budget=1000, seed=0)
    assert_same(as_dict(found), {(): 1.0, (n_units - 1,): 2.0}, 1e-12)
    assert found.n_evaluations == 2**n_units


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("prompts_per_mask", [1, 2])
@pytest.mark.parametrize("n_units", [1, 2, 3])
def test_few_units_with_few_prompts_each_are_fitted(name, n_units, prompts_per_mask):
    game = SingleUnitPrompts(n_units)
    decoder = decoders.get(name, prompts_per_mask=prompts_per_mask)
    found = decoder.decode(game, budget=200, seed=0)
    assert as_dict(found, 0.1) == pytest.approx({(): 1.0, (0,): 2.0}, abs=1e-4)


class SingleUnitPrompts:
    """Prompts that differ by a constant, in all of which unit 0 adds the same."""

    n_prompts = 5

    def __init__(self, n_units):
        self.n_units = n_units

    def per_prompt(self, masks):
        offsets = torch.arange(5.0, dtype=torch.float64) - 2.0
        return 1.0 + 2.0 * (2.0 * masks[:, :1] - 1.0) + offsets

    def __call__(self, masks):
        return self.per_prompt(masks).mean(dim=1)

    def sample(self, masks, prompts_per_mask, rng):
        scores = rng.random((len(masks), 5))
        prompts = torch.from_numpy(np.argsort(scores, axis=1)[:, :prompts_per_mask])
        return self.per_prompt(masks).gather(1, prompts), prompts

    def value_and_gradient(self, masks):
        gradient = torch.zeros(masks.shape, dtype=torch.float64)
        gradient[:, 0] = 4.0
        return self(masks), gradient

    def sample_gradients(self, masks, prompts_per_mask, rng):
        values, prompts = self.sample(masks, prompts_per_mask, rng)
        gradient = self.value_and_gradient(masks)[1]
        return values, gradient[:, None].expand(-1, prompts_per_mask, -1), prompts


@pytest.mark.parametrize("name", ALL)
def test_values_that_are_not_finite_are_named_by_their_masks(name):
    game = Counting(sparse_game(), broken=(1, 4))
    with pytest.raises(
        NonFiniteError, match=r"NaN or infinite under \d+ of \d+ masks: the mask th"
    ):
        decoders.get(name).decode(game, budget=512, seed=0)
    assert game.n_evaluations > 0


def test_a_nearly_intact_mask_is_named_by_what_it_ablates():
    game = Counting(sparse_game(), broken=(2, 5))
    with pytest.raises(NonFiniteError, match=r"the mask that ablates units \[2, 5\]"):
        decoders.get("lasso", keep_rate=0.9).decode(game, budget=300, seed=1)


@pytest.mark.parametrize("name", ALL)
def test_set_functions_may_return_numpy_or_single_precision(name):
    game = sparse_game()

    def single(masks):
        return game.truth(masks).astype(np.float32)

    def single_gradient(masks):
        return single(masks), game.value_and_gradient(masks)[1].float()

    single.n_units = N_UNITS  # pyright: ignore[reportFunctionMemberAccess]
    single.value_and_gradient = single_gradient  # pyright: ignore[reportFunctionMemberAccess]
    decoder: Any = decoders.get(name)
    found = as_dict(decoder.decode(single, budget=BUDGET[name], seed=0), 1e-4)
    assert found == pytest.approx(
        dict(zip(game.support, game.coefficients.tolist(), strict=True)), abs=1e-5
    )


class TwoValues:
    """No set function: two values a mask."""

    def __call__(self, masks):
        return torch.ones(len(masks), 2, dtype=torch.float64)

    def value_and_gradient(self, masks):
        return self(masks), torch.zeros(masks.shape, dtype=torch.float64)


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_a_set_function_is_refused(name):
    decoder = decoders.get(name)
    for n_units in (0, 2.0, None):
        wrong: Any = SparseGame(0, [()], np.ones(1))
        wrong.n_units = n_units
        with pytest.raises(DecoderError, match="callable on masks and have an integer n_units >="):
            decoder.decode(wrong, budget=100, seed=0)
    with pytest.raises(DecoderError, match=r"got function with n_units=None. For a plain function"):
        Meter(lambda masks: masks.sum(1), 100)
    with pytest.raises(BudgetError, match=r"budget must be an integer of at least 1; got 2\.5"):
        Meter(sparse_game(), 2.5)
    short = Counting(sparse_game())
    short.game = TwoValues()
    with pytest.raises(DecoderError, match="must return values of shape"):
        decoder.decode(short, budget=512, seed=0)


@pytest.mark.parametrize("name", ALL)
def test_labels_come_from_the_set_function(name):
    labels = [f"L0H{i}" for i in range(N_UNITS)]
    found = decoders.get(name).decode(Counting(sparse_game(), labels), budget=512, seed=0)
    assert found.units == tuple(labels)
    with pytest.raises(DecoderError, match="n_units=9 but labels 8 units"):
        decoders.get(name).decode(Counting(sparse_game(), labels[:8]), budget=512, seed=0)


@pytest.mark.parametrize("name", ALL)
def test_options_out_of_range_are_refused(name):
    with pytest.raises(
        DecoderError, match=r"keep_rate must be .*; got 1.0. .* try 0.95|equal to 0.5; got 1.0"
    ):
        decoders.get(name, keep_rate=1.0)
    with pytest.raises(
        DecoderError, match=r"max_order must be a whole number (above 0|from 1 to \d+)\b.*; got 0"
    ):
        decoders.get(name, max_order=0)
    with pytest.raises(DecoderError, match=r"prompts_per_mask must be .*'all' or 'auto'; got 0"):
        decoders.get(name, prompts_per_mask=0)
    with pytest.raises(DecoderError, match=r"no option 'keep_rates?x'; did you mean 'keep_rate'"):
        decoders.get(name, keep_ratex=0.4)


@pytest.mark.usefixtures("unchecked")
def test_names_and_options_of_their_own_are_checked():
    with pytest.raises(DecoderError, match=r"no decoder 'proxispex'; did you mean 'proxyspex'\?"):
        decoders.get("proxispex")
    with pytest.raises(
        DecoderError, match=r"n_folds must be a whole number of at least 2 .*; got 1"
    ):
        decoders.get("lasso", n_folds=1)
    with pytest.raises(DecoderError, match=r"max_pairs must be a whole number above 0 .*; got 0"):
        decoders.get("lasso", max_pairs=0)
    with pytest.raises(
        DecoderError, match=r"'proxyspex': max_order must be a whole number from 1 to 16; got No"
    ):
        decoders.ProxySpexDecoder(max_order=None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        DecoderError, match=r"learning_rate must be a number above 0 and of at most 1; got 0.0"
    ):
        decoders.get("proxyspex", learning_rate=0.0)


@pytest.mark.parametrize("name", SAMPLED)
def test_prompts_that_do_not_exist_are_refused(name):
    with pytest.raises(DecoderError, match="prompts_per_mask=2 needs a set function made from"):
        decoders.get(name, prompts_per_mask=2).decode(sparse_game(), budget=100, seed=0)
    with pytest.raises(DecoderError, match="prompts_per_mask=8 is more than the 7 prompt"):
        decoders.get(name, prompts_per_mask=8).decode(PromptsGame(6, 7), budget=900, seed=0)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_fit_takes_what_was_measured_elsewhere(name):
    game = sparse_game(order=2)
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((300, N_UNITS)) < 0.5)  # many of them duplicates
    decoder = decoders.get(name)
    assert isinstance(decoder, SparseRegression)
    found = decoder.fit(masks, game(masks), rng)
    truth = dict(zip(game.support, game.coefficients.tolist(), strict=True))
    assert_same(as_dict(found), truth, 1e-9)
    assert found.n_evaluations == 300
    with pytest.raises(DecoderError, match="one value per mask; got 299 for 300"):
        decoder.fit(masks, game(masks)[:299], rng)
    with pytest.raises(NonFiniteError, match="300 of 300 values are NaN"):
        decoder.fit(masks, game(masks) * torch.nan, rng)


@pytest.mark.parametrize("name", SAMPLED)
def test_diagnostics_are_json(name):
    import json

    found = decoders.get(name).decode(sparse_game(), budget=300, seed=0)
    stored = json.loads(json.dumps(dict(found.diagnostics)))
    assert stored == dict(found.diagnostics)
    assert stored["n_rows" if name in REGRESSIONS else "n_masks"] <= 300
    if name in REGRESSIONS:
        assert stored["n_rows"] == 300


@pytest.mark.parametrize("name", SAMPLED)
def test_max_order_is_kept(name):
    found = decoders.get(name, max_order=1).decode(sparse_game(order=3), budget=300, seed=0)
    assert max(map(len, found.support)) == 1


def test_lasso_refuses_orders_that_it_does_not_look_for():
    with pytest.raises(DecoderError, match=r"'lasso': max_order must be .* from 1 to 3; got 4"):
        decoders.get("lasso", max_order=4)


def test_exact_keeps_every_order_unless_told():
    rng = np.random.default_rng(0)
    table = torch.from_numpy(rng.normal(size=2**6))

    def values(masks):
        return table[(masks * 2 ** torch.arange(6)).sum(dim=1)]

    lookup: Any = values
    lookup.n_units = 6
    for keep_rate in (0.5, 0.85):
        full = decoders.get("exact", keep_rate=keep_rate).decode(lookup, budget=64, seed=0)
        masks = torch.from_numpy(rng.random((50, 6)) < 0.5)
        torch.testing.assert_close(full.predict(masks), lookup(masks), rtol=0, atol=1e-9)
        assert len(full.support) == 64
        assert full.held_out_r2 is None
        low = decoders.get("exact", keep_rate=keep_rate, max_order=2)
        cut = low.decode(lookup, budget=64, seed=0)
        assert as_dict(cut) == {t: v for t, v in as_dict(full).items() if len(t) <= 2}


def test_exact_errors_are_about_prompts():
    game = PromptsGame(6, 12, seed=1)
    found = decoders.get("exact").decode(game, budget=64 * 12, seed=0)
    assert found.error_source == "prompts"
    expected = game.coefficients.std(axis=0, ddof=1) / np.sqrt(12)
    index = [found.support.index(term) for term in game.support]
    assert found.std_errors is not None
    torch.testing.assert_close(found.std_errors[index], torch.from_numpy(expected))
    plain = decoders.get("exact").decode(sparse_game(), budget=512, seed=0)
    assert plain.error_source == "none"
    assert plain.std_errors is not None
    assert not plain.std_errors.any()


def test_exact_refuses_many_units_and_few_prompts():
    with pytest.raises(DecoderError, match=r"at most 20 units, 2..20 masks; got 21"):
        decoders.get("exact").decode(SparseGame(21, [()], np.ones(1)), budget=2**22, seed=0)
    with pytest.raises(
        DecoderError,
        match=r"'exact': prompts_per_mask must be 'all' or 'auto'; got 1\. All",
    ):
        decoders.get("exact", prompts_per_mask=1)


def test_terms_without_lower_order_traces_are_not_invented():
    rng = np.random.default_rng(0)
    game = SparseGame(40, random_terms(40, 5, 5, rng), rng.uniform(0.5, 1.0, 5))
    found = decoders.get("proxyspex", max_order=5).decode(game, budget=300, seed=0)
    assert found.held_out_r2 is not None
    assert found.held_out_r2 > -0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLED)
def test_wide_games_fit_into_memory(name):
    """Ten thousand units, where a float matrix of all pairs could not exist."""
    rng = np.random.default_rng(0)
    support = [(), *random_terms(10_000, 4, 1, rng)]
    support.append(tuple(sorted(support[1] + support[2])))
    keep_rate = rate_for(name, 0.9)
    game = SparseGame(10_000, support, np.array([1.0, 3.0, -3.0, 2.0, 2.0, 3.0]), keep_rate)
    options = {"n_trees": 60} if name == "proxyspex" else {}
    decoder = decoders.get(name, keep_rate=keep_rate, max_order=2, **options)
    found = decoder.decode(game, budget=500, seed=0)
    assert_same(as_dict(found), dict(zip(support, game.coefficients.tolist(), strict=True)), 1e-9)
