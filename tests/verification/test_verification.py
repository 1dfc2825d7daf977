"""Verified interactions against planted truth, on games that need no model."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slow_truth import random_masks
from test_measurement import needed, slow_effect
from torch import Tensor

from circuitspex.algebra import (
    Interactions,
    Measured,
    Origin,
    Term,
    all_kept,
    enumerate_masks,
    moebius,
)
from circuitspex.circuits import Circuit
from circuitspex.errors import ResultError
from circuitspex.games import PromptsGame, SparseGame, gates
from circuitspex.verification import Verification, verify_interactions

N = 6


@dataclass
class PlainGame:
    """A set function without prompts that counts its masks."""

    values: Callable[[Tensor], Tensor]
    n_units: int = N
    n_masks: int = 0

    def __call__(self, masks: Tensor) -> Tensor:
        self.n_masks += len(masks)
        return self.values(masks)


@dataclass
class Prompts:
    """Möbius terms at the intact origin, with one coefficient per prompt."""

    terms: dict[tuple[int, ...], list[float]]
    n_units: int = N
    n_evaluations: int = 0

    @property
    def n_prompts(self) -> int:
        return len(next(iter(self.terms.values())))

    def per_prompt(self, masks: Tensor) -> Tensor:
        self.n_evaluations += len(masks) * self.n_prompts
        values = torch.zeros(len(masks), self.n_prompts, dtype=torch.float64)
        for term, coefficients in self.terms.items():
            lost = (~masks[:, list(term)]).all(1).double()
            values += lost[:, None] * torch.tensor(coefficients, dtype=torch.float64)
        return values

    def __call__(self, masks: Tensor) -> Tensor:
        return self.per_prompt(masks).mean(1)


def claims(terms: dict[tuple[int, ...], float], origin: Origin = "intact", n=N) -> Interactions:
    return Interactions(
        n_units=n,
        units=tuple(f"L0H{i}" for i in range(n)),
        basis="moebius",
        origin=origin,
        keep_rate=0.8,
        support=tuple(terms),
        coefficients=torch.tensor(list(terms.values()), dtype=torch.float64),
    )


def exactly(game: Any, n: int = N) -> Interactions:
    """Every Möbius coefficient of a game, as a decoder would report it."""
    table = moebius(game(enumerate_masks(n)), origin="intact")
    masks = enumerate_masks(n)
    return claims(
        {
            tuple(mask.nonzero()[:, 0].tolist()): float(c)
            for mask, c in zip(masks, table, strict=True)
        },
        n=n,
    )


def verdicts(verification: Verification) -> dict[tuple[int, ...], str]:
    return dict(zip(verification.support, verification.verdicts, strict=True))


def measured(term: Term) -> Measured:
    assert term.measured is not None
    return term.measured


# What is measured


def test_around_the_intact_model_estimates_of_the_truth_are_what_is_measured() -> None:
    game = PlainGame(gates(N, 0))
    found = verify_interactions(game, exactly(game), top=100, min_order=1, max_order=6)
    assert {row.order for row in found.terms} == {1, 2, 3, 4}
    assert found.measured == pytest.approx(found.estimates, abs=1e-9)
    assert set(found.verdicts) == {"verified"}
    assert list(map(abs, found.estimates)) == sorted(map(abs, found.estimates), reverse=True)


def test_what_the_decoder_measured_itself_ranks_and_is_judged_by_that() -> None:
    planted = SparseGame(N, [(2,), (1, 4), (0, 5)], np.array([1.0, 3.0, -1.0]))
    game = PlainGame(planted)
    kept = all_kept(N)[0]
    truth = {pair: slow_effect(game, pair, kept) for pair in combinations(range(N), 2)}
    best = max(truth, key=lambda pair: abs(truth[pair]))
    labels = [f"L0H{unit}" for unit in best]
    entry = {"units": labels, "coefficient": truth[best], "std_error": None}
    fitted = claims({(0,): 1.0, (0, 1): 0.01, best: 1e-3 * truth[best]})
    measured = replace(fitted, diagnostics={"verified": [entry]})
    assert verify_interactions(game, fitted, top=1).estimates[0] != pytest.approx(truth[best])
    found = verify_interactions(game, measured, top=1)
    assert found.support[0] == best
    assert found.estimates[0] == pytest.approx(truth[best])
    assert found.verdicts[0] == "verified"
    in_contexts = verify_interactions(game, measured, top=1, around="contexts")
    assert in_contexts.estimates[0] != pytest.approx(truth[best])


@pytest.mark.parametrize("listed", [5, [{"units": ["99", "1"], "coefficient": 1.0}], [{}]])
def test_a_list_of_what_was_measured_that_cannot_be_read_is_refused(listed: Any) -> None:
    odd = replace(claims({(0, 1): 1.0}), diagnostics={"verified": listed})
    with pytest.raises(ResultError, match=r"diagnostics\['verified'\] must list what the decoder"):
        verify_interactions(PlainGame(lambda masks: masks.sum(1).double()), odd)


def test_around_a_circuit_estimates_of_the_truth_are_what_is_measured() -> None:
    game = PlainGame(gates(N, 1))
    kept = (0, 2, 3)
    circuit = Circuit(kept, tuple(f"L0H{i}" for i in kept), N)
    found = verify_interactions(game, exactly(game), top=100, min_order=1, around=circuit)
    assert (found.around, found.circuit) == ("circuit", kept)
    for row in found.checked:
        expected = slow_effect(game, row.indices, circuit.mask()[0])
        assert measured(row).effect == pytest.approx(expected, abs=1e-9)
        assert row.coefficient == pytest.approx(expected, abs=1e-9)
    # Both those inside the circuit and those that add units to it.
    assert {set(row.indices) <= set(kept) for row in found.checked} == {True, False}


def test_a_backup_outside_the_circuit_is_no_backup_there() -> None:
    either = PlainGame(lambda masks: masks[:, :2].any(1).double() + masks[:, 2].double())
    without = Circuit((0, 2), ("a", "c"), N)
    found = verify_interactions(either, exactly(either), min_order=1, around=without)
    assert measured(found.terms[0]).effect == -1.0
    assert (0,) in found.support
    around_intact = verify_interactions(either, exactly(either), min_order=1)
    assert (0,) not in around_intact.support
    assert verdicts(around_intact)[0, 1] == "verified"


@pytest.mark.slow
@pytest.mark.parametrize("keep_rate", [0.5, 0.8])
def test_random_contexts_estimate_fourier_coefficients_without_bias(keep_rate: float) -> None:
    support = [(0,), (1, 2), (0, 3, 4), (1, 2, 3, 5)]
    game = SparseGame(N, support, np.array([1.0, -0.7, 0.5, 0.4]), keep_rate)
    decoded = Interactions(
        n_units=N,
        units=tuple("abcdef"),
        basis="fourier",
        origin=None,
        keep_rate=keep_rate,
        support=tuple(support),
        coefficients=torch.from_numpy(game.coefficients),
    )
    runs = [
        verify_interactions(game, decoded, min_order=1, around="contexts", n_contexts=8, seed=seed)
        for seed in range(200)
    ]
    truth = {
        term: (-1) ** len(term) * c / (keep_rate * (1 - keep_rate)) ** (len(term) / 2)
        for term, c in zip(support, game.coefficients, strict=True)
    }
    for i, term in enumerate(runs[0].support):
        assert runs[0].estimates[i] == pytest.approx(truth[term])
        means = np.array([run.measured[i] for run in runs], dtype=float)
        variances = np.array([run.std_errors[i] for run in runs], dtype=float) ** 2
        spread = means.std(ddof=1)
        assert abs(means.mean() - truth[term]) < 4 * spread / len(runs) ** 0.5 + 1e-12
        assert variances.mean() == pytest.approx(spread**2, rel=0.4, abs=1e-20)


def test_the_error_is_over_prompts() -> None:
    effects = [-1.0, -2.0, -0.5, -1.5]
    found = verify_interactions(Prompts({(0, 1): effects}), claims({(0, 1): -1.0}))
    (row,) = found.terms
    assert measured(row).prompt_values == pytest.approx(effects)
    assert row.effect == measured(row).effect == pytest.approx(np.mean(effects))
    assert measured(row).std_error == pytest.approx(np.std(effects, ddof=1) / 2)
    from scipy.stats import ttest_1samp

    test: Any = ttest_1samp(effects, 0.0)
    interval = test.confidence_interval(0.95)
    assert measured(row).p_value == pytest.approx(test.pvalue)
    assert measured(row).interval == pytest.approx((interval.low, interval.high))


@pytest.mark.slow
def test_the_error_in_contexts_covers_the_draw_of_prompts_too() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(300):
        # Effects vary over prompts (−1 ± 0.5) and, through a third unit, over contexts.
        game = Prompts(
            {
                (0, 1): (-1 + 0.5 * rng.normal(size=6)).tolist(),
                (0, 1, 2): rng.normal(1.0, 0.5, 6).tolist(),
            }
        )
        # In a context that ablates unit 2, at rate 0.2, the pair's effect is that of the triple too
        truth = -1 + 0.2 * 1.0
        (row, *_) = verify_interactions(
            game, claims({(0, 1): truth}), around="contexts", n_contexts=10, seed=seed
        ).terms
        low, high = measured(row).interval or (np.nan, np.nan)
        covered.append(low <= truth <= high)
    assert 0.92 <= np.mean(covered) <= 0.99


# What it costs


def test_the_masks_that_are_shared_are_evaluated_once() -> None:
    terms = {(0, 1): 1.0, (0, 2): 0.9, (1, 2): 0.8, (0, 1, 2): 0.7, (3, 4): 0.6}
    game = Prompts({term: [c, c, c] for term, c in terms.items()})
    found = verify_interactions(game, claims(terms))
    assert found.n_evaluations == game.n_evaluations == 3 * (8 + 3)
    plain = PlainGame(game)
    assert verify_interactions(plain, claims(terms)).n_evaluations == plain.n_masks == 11


def test_contexts_share_masks_too() -> None:
    plain = PlainGame(gates(N, 0))
    terms = {(0, 1): 1.0, (1, 2): 0.5}
    found = verify_interactions(plain, claims(terms), around="contexts", n_contexts=12, seed=3)
    contexts = torch.from_numpy(np.random.default_rng(3).random((12, N)) < 0.8)
    assert found.n_evaluations == plain.n_masks == len(needed(list(terms), contexts))
    assert (found.n_contexts, found.keep_rate) == (12, 0.8)


def test_the_largest_that_are_small_enough_are_checked_and_the_rest_is_listed() -> None:
    terms = {(0, 1, 2, 3, 4): 5.0, (0, 1): 2.0, (2, 3): -3.0, (1, 2): 1.0, (0,): 9.0}
    found = verify_interactions(
        Prompts({t: [c, c] for t, c in terms.items()}), claims(terms), top=2
    )
    assert found.support == ((0, 1, 2, 3, 4), (2, 3), (0, 1), (1, 2))
    assert [row.measured is None for row in found.terms] == [True, False, False, True]
    assert found.counts == {"verified": 2, "refuted": 0, "undecided": 0, "not checked": 2}
    assert [row.indices for row in found.checked] == [(2, 3), (0, 1)]


def test_a_budget_is_kept_and_spent_on_what_fits() -> None:
    terms = {(0, 1): 3.0, (2, 3, 4): 2.0, (0, 2): 1.0}
    game = Prompts({t: [c, c] for t, c in terms.items()})
    found = verify_interactions(game, claims(terms), budget=13)
    assert game.n_evaluations == found.n_evaluations == 12
    assert verdicts(found) == {
        (0, 1): "verified",
        (2, 3, 4): "not checked",
        (0, 2): "verified",
    }


@pytest.mark.parametrize("options", [{"top": 0}, {"budget": 3}, {"min_order": 3}])
def test_nothing_is_evaluated_where_nothing_is_to_be_checked(options: dict[str, Any]) -> None:
    game = Prompts({(0, 1): [1.0, 1.0]})
    found = verify_interactions(game, claims({(0, 1): 1.0}), **options)
    assert found.n_evaluations == game.n_evaluations == 0
    assert found.checked == ()
    assert "nothing was measured" in str(found)


# Verdicts


def judged(effects: list[float], estimate: float, **options: Any) -> str:
    game = Prompts({(0, 1): effects})
    return verify_interactions(game, claims({(0, 1): estimate}), **options).verdicts[0]


@pytest.mark.parametrize(
    ("effects", "estimate", "verdict"),
    [
        ([-1.0, -1.2, -0.8, -1.1], -1.0, "verified"),
        ([-1.0, -1.2, -0.8, -1.1], -9.0, "verified"),  # much smaller than claimed, and there
        ([-1.0, -1.2, -0.8, -1.1], -50.0, "refuted"),  # less than a tenth of the claim
        ([-1.0, -1.2, -0.8, -1.1], 1.0, "refuted"),  # of the other sign
        ([0.01, -0.01, 0.02, -0.02], -1.0, "refuted"),  # nothing there
        ([-0.6, 0.2, -0.5, 0.1], -3.0, "refuted"),  # perhaps something, not half the claim
        ([-0.6, 0.2, -0.5, 0.1], -1.5, "undecided"),
        ([-2.0, 1.5, -1.8, 1.0], -1.0, "undecided"),  # prompts disagree
        ([-2.0, -0.1], -1.0, "undecided"),  # too few of them
        ([-1.0, -1.0, -1.0], -1.0, "verified"),  # no spread at all
        ([0.0, 0.0, 0.0], -1.0, "refuted"),
    ],
)
def test_verdicts_over_prompts(effects: list[float], estimate: float, verdict: str) -> None:
    assert judged(effects, estimate) == verdict


@pytest.mark.parametrize(
    ("effect", "estimate", "verdict"),
    [
        (-0.5, -1.0, "verified"),
        (-0.11, -1.0, "verified"),
        (-0.09, -1.0, "refuted"),
        (0.5, -1.0, "refuted"),
        (0.0, 1.0, "refuted"),
    ],
)
def test_verdicts_on_one_prompt_need_the_sign_and_a_tenth_of_the_size(
    effect: float, estimate: float, verdict: str
) -> None:
    assert judged([effect], estimate) == verdict
    plain = PlainGame(Prompts({(0, 1): [effect]}))
    found = verify_interactions(plain, claims({(0, 1): estimate}))
    assert found.verdicts == (verdict,)
    assert found.n_prompts is None
    assert found.std_errors == found.intervals == found.p_values == (None,)


def test_what_rounding_can_make_is_not_verified() -> None:
    game = Prompts({(): [1000.0], (0, 1): [3e-3]})
    assert verify_interactions(game, claims({(0, 1): 3e-3})).verdicts == ("refuted",)
    game = Prompts({(): [1000.0], (0, 1): [5e-3]})
    assert verify_interactions(game, claims({(0, 1): 5e-3})).verdicts == ("verified",)


def test_a_false_interaction_planted_into_a_true_list_is_the_one_refuted() -> None:
    game = PromptsGame(20, n_prompts=16, seed=0, spread=0.2)
    fourier = Interactions(
        n_units=20,
        units=tuple(map(str, range(20))),
        basis="fourier",
        origin=None,
        keep_rate=0.5,
        support=tuple(game.support),
        coefficients=torch.from_numpy(game.coefficients.mean(0)),
    )
    truth = {t for t in game.support if len(t) == 2}
    intact = fourier.to("moebius", "intact")
    terms = dict(zip(intact.support, intact.coefficients.tolist(), strict=True))
    planted = next((i, j) for i in range(20) for j in range(i) if (j, i) not in truth)[::-1]
    found = verify_interactions(game, claims(terms | {planted: -3.0}, n=20))
    assert verdicts(found) == dict.fromkeys(truth, "verified") | {planted: "refuted"}


@pytest.mark.slow
def test_false_claims_are_verified_no_more_often_than_stated() -> None:
    """Noise over prompts and a mean of zero: no more than 5 % of lists hold a false discovery."""
    rng = np.random.default_rng(1)
    pairs = [(0, 1), (2, 3), (4, 5), (0, 2), (1, 3)]
    lists = []
    for _ in range(400):
        game = Prompts({pair: rng.normal(size=8).tolist() for pair in pairs})
        found = verify_interactions(game, claims(dict.fromkeys(pairs, 0.5)))
        lists.append(found.counts["verified"] > 0)
    # Two-sided tests of which half have the claimed sign.
    assert np.mean(lists) <= 0.05


@pytest.mark.slow
def test_of_what_is_verified_few_are_false_also_among_true_ones() -> None:
    rng = np.random.default_rng(2)
    true, false = [(0, 1), (2, 3), (4, 5)], [(0, 2), (1, 3), (0, 4), (1, 5), (2, 4)]
    shares, power = [], []
    for _ in range(300):
        terms = {pair: rng.normal(-1.5, 1, 10).tolist() for pair in true}
        terms |= {pair: rng.normal(0, 1, 10).tolist() for pair in false}
        found = verdicts(verify_interactions(Prompts(terms), claims(dict.fromkeys(terms, -1.0))))
        wrong = sum(found[pair] == "verified" for pair in false)
        right = sum(found[pair] == "verified" for pair in true)
        shares.append(wrong / max(1, wrong + right))
        power.append(right / len(true))
    assert np.mean(shares) <= 0.05
    assert np.mean(power) > 0.8


@pytest.mark.slow
def test_true_claims_are_hardly_ever_refuted() -> None:
    rng = np.random.default_rng(3)
    refuted = [judged(rng.normal(-1, 2, 6).tolist(), -1.0) == "refuted" for _ in range(400)]
    assert np.mean(refuted) <= 0.03


# As a value


@pytest.fixture
def verification() -> Verification:
    terms = {(0, 1): -2.0, (2, 3): 1.0, (0, 1, 2): -0.5, (4, 5): 0.1}
    game = Prompts({(0, 1): [-1.9, -2.1, -2.0], (2, 3): [-1.0, 0.1, -0.4]})
    return verify_interactions(game, claims(terms), top=3, label="ioi")


def test_it_comes_back_as_it_was_saved(verification: Verification, tmp_path: Path) -> None:
    verification.save(tmp_path / "verified.json")
    assert Verification.load(tmp_path / "verified.json") == verification
    around = replace(verification, around="circuit", circuit=(0, 1), n_prompts=None)
    around.save(tmp_path / "verified.json")
    assert Verification.load(tmp_path / "verified.json") == around


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdicts": ["maybe"] * 4}, "field 'verdicts' of"),
        ({"estimates": [1.0]}, "estimates must have one entry per listed interaction, 4; got 1"),
        ({"support": [[0, 1], [2, 3], [0, 1, 2], [4, 9]]}, r"units in 0\.\.5; got \(4, 9\)"),
        ({"measured": [None] * 4}, "only what was not checked has none"),
        ({"estimates": [float("nan")] * 4}, "effects must be finite"),
        ({"more": 1}, "missing or unknown fields: more"),
    ],
)
def test_damaged_files_are_refused(
    verification: Verification, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "verified.json"
    verification.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ResultError, match=message):
        Verification.load(path)


def test_a_file_cut_short_is_refused(verification: Verification, tmp_path: Path) -> None:
    path = tmp_path / "verified.json"
    verification.save(path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ResultError, match="not a whole JSON file"):
        Verification.load(path)


def test_it_reads_well(verification: Verification) -> None:
    assert repr(verification) == (
        "Verification(1 verified, 1 refuted, 1 undecided, 1 not checked; around the intact model, "
        "on 3 prompts of the discovery; 30 evaluations)"
    )
    lines = str(verification).splitlines()
    assert lines[1].split() == ["units", "estimate", "measured", "verdict"]
    assert lines[2] == "L0H0 + L0H1           −2.000  −2.000 ± 0.058  verified"
    assert len(lines) == 2 + 3


def test_the_table_holds_every_listed_interaction(verification: Verification) -> None:
    table = verification.to_dataframe()
    named = ["L0H0 + L0H1", "L0H2 + L0H3", "L0H0 + L0H1 + L0H2", "L0H4 + L0H5"]
    assert table["units"].tolist() == named
    assert table["verdict"].tolist() == list(verification.verdicts)
    assert table["measured"].isna().tolist() == [False, False, False, True]
    assert (table["measured_low"] <= table["measured"]).tolist()[:3] == [True] * 3
    assert table["coefficient"].tolist() == list(verification.estimates)
    assert table["measured"].tolist()[:3] == list(verification.measured)[:3]
    assert table["measured_p_value"].tolist()[:3] == list(verification.p_values)[:3]
    assert set(table["origin"]) == {"intact"}


def test_no_interactions_make_an_empty_list(tmp_path: Path) -> None:
    found = verify_interactions(PlainGame(gates(N, 0)), claims({(): 1.0, (2,): 3.0}))
    assert found.terms == ()
    assert "no interactions" in repr(found)
    found.save(tmp_path / "verified.json")
    assert Verification.load(tmp_path / "verified.json") == found


# Bad requests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": -1}, "must not be negative; got top=-1"),
        ({"budget": -5}, "budget=-5"),
        ({"min_order": 0}, "1 <= min_order <= max_order <= 12"),
        ({"max_order": 13}, r"A set of k units takes 2\*\*k masks"),
        ({"min_order": 3, "max_order": 2}, "got min_order=3, max_order=2"),
        ({"around": "contexts", "n_contexts": 1}, "n_contexts >= 2; got 1"),
        ({"around": Circuit((0,), ("a",), 3)}, "the circuit is over 3 units"),
    ],
)
def test_bad_requests_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ResultError, match=message):
        verify_interactions(PlainGame(gates(N, 0)), claims({(0, 1): 1.0}), **options)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_place_is_refused() -> None:
    around: Any = "somewhere"
    with pytest.raises(ResultError, match='"intact", "contexts" or a circuit; got \'somewhere\''):
        verify_interactions(PlainGame(gates(N, 0)), claims({(0, 1): 1.0}), around=around)


def test_interactions_of_other_units_are_refused() -> None:
    with pytest.raises(ResultError, match="over 6 units, the set function over 7"):
        verify_interactions(PlainGame(gates(7, 0), n_units=7), claims({(0, 1): 1.0}))


def test_the_basis_of_the_result_does_not_matter() -> None:
    game = PlainGame(gates(N, 0))
    exact = exactly(game)
    for other in (exact.to("fourier"), exact.to("moebius", "ablated")):
        a, b = (verify_interactions(game, it, top=5) for it in (exact, other))
        assert a.support[:5] == b.support[:5]
        assert a.estimates[:5] == pytest.approx(b.estimates[:5])
        assert a.measured[:5] == b.measured[:5]
    masks = random_masks(3, N)
    torch.testing.assert_close(exact.predict(masks), game(masks), rtol=0, atol=1e-9)
    assert all_kept(N).all()
