import json
import math
import pickle
import sys
from dataclasses import FrozenInstanceError
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitspex import decoders, transforms
from circuitspex.algebra import Interactions, enumerate_masks, fourier, keep_only, moebius
from circuitspex.algebra import interactions as module
from circuitspex.algebra.term import kind
from circuitspex.errors import MaskError, MissingExtraError, ResultError
from circuitspex.games import SparseGame

TARGETS = [
    ("moebius", "ablated", None),
    ("moebius", "intact", None),
    ("fourier", None, 0.8),
    ("fourier", None, 0.3),
]


def assert_near(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def make(support=((), (0,), (2,), (0, 2), (1, 2, 3)), n_units=4, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    fields = {
        "n_units": n_units,
        "units": tuple(f"L0H{i}" for i in range(n_units)),
        "basis": "fourier",
        "origin": None,
        "keep_rate": 0.8,
        "support": support,
        "coefficients": torch.randn(len(support), generator=generator, dtype=torch.float64),
    }
    return Interactions(**fields | changes)


def random_covariance(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return root @ root.T


def full(n_units):
    return tuple(t for size in range(n_units + 1) for t in combinations(range(n_units), size))


def test_terms_are_sorted_with_all_that_belongs_to_them():
    covariance = random_covariance(3)
    result = make(
        support=((3, 1), (2,), (0,)),
        coefficients=torch.tensor([1.0, 2.0, 3.0]),
        std_errors=torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
        covariance=covariance,
    )
    assert result.support == ((0,), (2,), (1, 3))
    assert_near(result.coefficients, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    assert_near(result.std_errors, torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64))
    assert_near(result.covariance, covariance.flip(0, 1))


def test_the_value_does_not_change_with_what_it_was_made_from():
    coefficients = torch.ones(1, dtype=torch.float64)
    result = make(support=((0,),), coefficients=coefficients)
    coefficients += 1
    assert_near(result.coefficients, torch.ones(1, dtype=torch.float64))
    with pytest.raises(FrozenInstanceError, match="cannot assign to field"):
        result.keep_rate = 0.5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": ("a",)}, "one label per unit; got 1 for n_units=4"),
        ({"keep_rate": 1.0}, "strictly between 0 and 1; got 1.0"),
        ({"origin": "intact"}, "the Fourier basis has no origin"),
        ({"basis": "moebius"}, "need an origin; got None"),
        ({"support": ((0, 4),)}, r"distinct units in 0\.\.3; got \(0, 4\)"),
        ({"support": ((1, 1),)}, r"distinct units in 0\.\.3; got \(1, 1\)"),
        ({"support": ((-1,),)}, r"distinct units in 0\.\.3; got \(-1,\)"),
        ({"support": ((0, 1), (1, 0))}, r"once; \(0, 1\) occurs more often"),
        ({"coefficients": torch.ones(2)}, r"coefficients must have shape \(5,\).*got \(2,\)"),
        ({"coefficients": torch.full((5,), math.nan)}, "must be finite; 5 entries are not"),
        ({"std_errors": -torch.ones(5)}, "std_errors must not be negative"),
    ],
)
def test_what_makes_no_result_is_refused(changes, message):
    with pytest.raises(ResultError, match=message):
        make(**changes)


def test_std_errors_come_from_the_covariance():
    covariance = random_covariance(5)
    assert_near(make(covariance=covariance).std_errors, covariance.diagonal().sqrt())


@pytest.mark.parametrize(("basis", "origin", "rate"), TARGETS)
def test_predictions_do_not_depend_on_the_basis(basis, origin, rate):
    result = make()
    masks = enumerate_masks(4)
    converted = result.to(basis, origin, rate)
    assert converted.coordinates == (basis, origin, rate or 0.8)
    assert_near(converted.predict(masks), result.predict(masks))
    # and by name of the basis: the dense transform of the predictions
    values = result.predict(masks)
    wanted = fourier(values, rate or 0.8) if basis == "fourier" else moebius(values, origin=origin)
    actual = torch.zeros(16, dtype=torch.float64)
    actual[[sum(2**i for i in term) for term in converted.support]] = converted.coefficients
    assert_near(actual, wanted)


@settings(max_examples=30)
@given(st.sampled_from(TARGETS), st.sampled_from(TARGETS), st.integers(0, 99))
def test_converting_there_and_back_changes_no_prediction_or_error(first, second, seed):
    result = make(full(3), 3, seed, covariance=random_covariance(8, seed)).to(*first)
    back = result.to(*second).to(*first)
    assert back.support == result.support
    assert_near(back.coefficients, result.coefficients, 1e-7)
    assert_near(back.covariance, result.covariance, 1e-6)


@pytest.mark.parametrize(("basis", "origin", "rate"), TARGETS)
def test_covariances_are_carried_exactly(basis, origin, rate):
    covariance = random_covariance(8)
    result = make(full(3), 3, covariance=covariance)
    # the dense linear map, column by column: convert each unit vector
    columns = [
        make(full(3), 3, coefficients=torch.eye(8, dtype=torch.float64)[i])
        .to(basis, origin, rate)
        .coefficients
        for i in range(8)
    ]
    dense = torch.stack(columns, 1)
    converted = result.to(basis, origin, rate)
    assert_near(converted.covariance, dense @ covariance @ dense.T)
    assert_near(converted.std_errors, (dense @ covariance @ dense.T).diagonal().sqrt())


def test_a_large_covariance_is_dropped_but_its_diagonal_is_not(monkeypatch):
    result = make(full(3), 3, covariance=random_covariance(8))
    expected = result.to("moebius", "intact").std_errors
    monkeypatch.setattr(module, "_MAX_COVARIANCE_TERMS", 3)
    converted = result.to("moebius", "intact")
    assert converted.covariance is None
    assert_near(converted.std_errors, expected)


def test_errors_without_covariance_survive_only_where_nothing_mixes():
    single = make(support=((0, 2),), std_errors=torch.tensor([0.1], dtype=torch.float64))
    converted = single.to("moebius", "ablated")
    assert converted.std_errors is not None
    # the pair's own coefficient is F / (p (1 − p)) with p = 0.8
    assert_near(converted.std_errors[-1], torch.tensor(0.1 / 0.16, dtype=torch.float64))
    mixed = make(std_errors=torch.full((5,), 0.1, dtype=torch.float64))
    assert mixed.to("moebius", "ablated").std_errors is None
    assert mixed.to("fourier") is mixed


def test_moebius_needs_an_origin_by_name():
    with pytest.raises(ResultError, match=r'need an origin; got None\. Pass origin="intact"'):
        make().to("moebius")


def test_prediction_over_all_neurons_of_a_model():
    n_units = 46_080
    result = make(
        support=(*((i,) for i in range(0, n_units, 9)), (0, n_units - 1)),
        n_units=n_units,
        basis="moebius",
        origin="intact",
    )
    sets = [range(n_units), [], range(9, n_units), range(n_units - 1)]
    predicted = result.predict(keep_only(sets, n_units).repeat(250, 1))
    # the coefficients of unit 0 alone and of everything; the pair needs both ends ablated
    first, total = result.coefficients[0], result.coefficients.sum()
    assert_near(predicted, torch.stack([first * 0, total, first, first * 0]).repeat(250))


@pytest.mark.parametrize("entries", [1, 13, 64])
def test_prediction_in_blocks_is_the_same(monkeypatch, entries):
    whole = make().predict(enumerate_masks(4))
    sizes = []
    products = transforms._products

    def spy(masks, *rest):
        sizes.append(5 * len(masks))
        return products(masks, *rest)

    monkeypatch.setattr(transforms, "_BLOCK_ENTRIES", entries)
    monkeypatch.setattr(transforms, "_products", spy)
    assert_near(make().predict(enumerate_masks(4)), whole)
    assert max(sizes) <= max(5, entries)


def test_prediction_refuses_masks_of_other_units():
    with pytest.raises(MaskError, match=r"must have shape \(masks, 4\)"):
        make().predict(enumerate_masks(3))


def test_prediction_of_no_masks_and_no_terms():
    assert make().predict(enumerate_masks(4)[:0]).shape == (0,)
    empty = make(support=()).to("moebius", "intact")
    assert_near(empty.predict(enumerate_masks(4)), torch.zeros(16, dtype=torch.float64))


def test_top_ranks_by_size_within_orders():
    result = make(
        support=((), (0,), (1,), (0, 1), (0, 2)),
        coefficients=torch.tensor([9.0, -3.0, 1.0, 3.0, -4.0]),
        std_errors=torch.full((5,), 0.5, dtype=torch.float64),
    )
    assert [r.units for r in result.top(9)] == [
        ("L0H0", "L0H2"),
        ("L0H0",),
        ("L0H0", "L0H1"),
        ("L0H1",),
    ]
    assert [r.coefficient for r in result.top(1, min_order=0)] == [9.0]
    assert [r.units for r in result.top(1, max_order=1)] == [("L0H0",)]
    pair = result.top(1, min_order=2)[0]
    assert pair.interval == pytest.approx((-4 - 0.979982, -4 + 0.979982))
    assert make().top(1)[0].interval is None


def test_energy_is_the_variance_of_each_order():
    result = make(keep_rate=0.7)
    expected = {1: 0.0, 2: 0.0, 3: 0.0}
    for term, coefficient in zip(result.support, result.coefficients.tolist(), strict=True):
        if term:
            expected[len(term)] += coefficient**2
    assert result.energy_by_order() == pytest.approx(expected)
    assert result.to("moebius", "intact").energy_by_order() == pytest.approx(expected)
    masks = enumerate_masks(4)
    weights = 0.7 ** masks.sum(1).double() * 0.3 ** (4 - masks.sum(1).double())
    values = result.predict(masks)
    variance = (weights * (values - (weights * values).sum()).square()).sum()
    assert sum(expected.values()) == pytest.approx(float(variance))


def saved(path, **changes):
    result = make(
        covariance=random_covariance(5),
        error_source="masks",
        n_evaluations=8192,
        held_out_r2=0.1 + 0.2,
        decoder="lasso",
        diagnostics={"alpha": 0.1, "path": [1, 2], "note": "ü"},
        **changes,
    )
    result.save(path)
    return result


def test_saving_and_loading_keeps_every_bit(tmp_path):
    path = tmp_path / "result.json"
    result = saved(path)
    loaded = Interactions.load(path)
    for name in ("coefficients", "std_errors", "covariance"):
        assert torch.equal(getattr(loaded, name), getattr(result, name))
    for name in set(module._FIELDS) - {"coefficients", "std_errors", "covariance"}:
        assert getattr(loaded, name) == getattr(result, name)
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    make().save(path)
    assert Interactions.load(path).std_errors is None


def test_every_truncation_is_a_result_error(tmp_path):
    path = tmp_path / "result.json"
    saved(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ResultError, match="not a whole JSON file"):
            Interactions.load(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "circuitspex.interactions/2", "must be of format 'circuitspex.interactions/1'"),
        ("format", None, "got None"),
        ("surprise", 1, "missing or unknown fields: surprise"),
        ("n_units", True, "field 'n_units' of .* must be int; it holds 'True'"),
        ("n_units", 2.5, "must be int"),
        ("n_units", 10**400, "must be int"),
        ("units", ["a", 2, "c", "d"], r"must be list\[str\]"),
        ("basis", "walsh", "must be .*'fourier', 'moebius'"),
        ("origin", "ablated", "the Fourier basis has no origin"),
        ("keep_rate", "0.8", "must be float"),
        ("keep_rate", 1, "strictly between"),
        ("support", [[0], 1], r"must be list\[list\[int\]\]"),
        ("support", [[0]], r"coefficients must have shape \(1,\)"),
        ("coefficients", [1.0, None, 1.0, 1.0, 1.0], r"must be list\[float\]"),
        ("coefficients", [math.nan] * 5, "must be finite"),
        ("coefficients", [10**400] * 5, r"must be list\[float\]"),
        ("std_errors", [1.0], r"std_errors must have shape \(5,\)"),
        ("covariance", "no base64!", "the covariance in .* is damaged"),
        ("covariance", "AAAA", "the covariance in .* is damaged"),
        ("covariance", "eJwDAAAAAAE=", "does not cover 5 terms"),
        ("diagnostics", [], "must be"),
        ("held_out_r2", "good", "must be float | None"),
    ],
)
def test_ill_typed_files_are_result_errors(tmp_path, field, value, message):
    path = tmp_path / "result.json"
    saved(path)
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {field: value}))
    with pytest.raises(ResultError, match=message):
        Interactions.load(path)


@pytest.mark.parametrize("content", ["[]", "3", "{}", "[" * 100_000, "\x00", '{"format": 1}'])
def test_foreign_files_are_result_errors(tmp_path, content):
    path = tmp_path / "foreign.json"
    path.write_text(content)
    with pytest.raises(ResultError, match=r"not a whole JSON file|must be of format"):
        Interactions.load(path)


def test_a_missing_field_or_file_is_named(tmp_path):
    path = tmp_path / "result.json"
    saved(path)
    document = json.loads(path.read_text())
    del document["support"]
    path.write_text(json.dumps(document))
    with pytest.raises(ResultError, match="missing or unknown fields: support"):
        Interactions.load(path)
    with pytest.raises(ResultError, match=r"cannot be read: .*Check the path"):
        Interactions.load(tmp_path / "nowhere.json")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    saved(path)
    before = path.read_bytes()
    with pytest.raises(ResultError, match=r"cannot be saved.*Diagnostics may hold only"):
        make(diagnostics={"model": object()}).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ResultError, match="cannot be written"):
        make().save(tmp_path / "missing" / "result.json")


def test_a_save_cut_short_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    saved(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk on fire")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ResultError, match=r"cannot be written: disk on fire\. Choose"):
        make().save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_results_travel_between_processes():
    result = make(diagnostics={"a": 1})
    copy = pickle.loads(pickle.dumps(result))  # noqa: S301 (its own bytes)
    assert_near(copy.coefficients, result.coefficients)


def test_the_table_holds_every_term():
    frame = make(
        support=((), (0, 1)),
        coefficients=torch.tensor([1.0, -2.0]),
        std_errors=torch.tensor([0.0, 1.0], dtype=torch.float64),
    ).to_dataframe()
    numbers = ["coefficient", "std_error", "low", "high"]
    assert list(frame.columns) == ["units", "order", *numbers, "basis"]
    assert frame.units.tolist() == ["L0H0 + L0H1", "∅"]
    assert frame.order.tolist() == [2, 0]
    assert frame.high.tolist() == pytest.approx([-2 + 1.959964, 1.0])
    assert make().to_dataframe().low.isna().all()
    assert len(make(support=()).to_dataframe()) == 0
    intact = make(basis="moebius", origin="intact").to_dataframe()
    assert list(intact.columns) == ["units", "order", *numbers, "kind", "basis", "origin"]
    assert set(intact.origin) == {"intact"}


def test_shapiq_gets_the_same_game():
    pytest.importorskip("shapiq")
    result = make()
    values = result.to_shapiq()
    assert (values.index, values.n_players, values.max_order) == ("Moebius", 4, 3)
    masks = enumerate_masks(4)
    predicted = [
        sum(v for t, v in values.interactions.items() if all(mask[i] for i in t)) for mask in masks
    ]
    assert_near(torch.tensor(predicted, dtype=torch.float64), result.predict(masks))


def test_without_shapiq_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "shapiq", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'circuitspex\[shapiq\]'"):
        make().to_shapiq()


def test_the_text_says_what_it_is():
    text = repr(make(held_out_r2=0.8, decoder="lasso", n_evaluations=64, error_source="masks"))
    assert text == (
        "Interactions(4 units, fourier, keep rate 0.8; 5 terms: 1 of order 0, 2 of order 1, "
        "1 of order 2, 1 of order 3; held-out R² 0.800; errors about masks; decoder lasso, "
        "64 evaluations)"
    )
    assert "intact origin" in repr(make().to("moebius", "intact"))
    assert "L0H0 + L0H2" in str(make())
    assert str(make(support=())).endswith("no terms")


@pytest.mark.parametrize("origin", ["ablated", "intact"])
@pytest.mark.parametrize("n_units", [2, 3, 4])
def test_kind_agrees_with_and_and_or_games(origin, n_units):
    masks = enumerate_masks(n_units)
    both = moebius(masks.all(1).double(), origin=origin)[-1].item()
    either = moebius(masks.any(1).double(), origin=origin)[-1].item()
    assert both == ((-1) ** n_units if origin == "intact" else 1)
    assert either == (-1 if origin == "intact" else (-1) ** (n_units + 1))
    if n_units % 2 == 0:
        assert kind(both, n_units, origin) == "synergistic"
        assert kind(either, n_units, origin) == "redundant"
    else:
        # AND and OR have the same sign here, so the sign must not be read
        assert both == either
        assert kind(both, n_units, origin) is None


def test_kind_says_nothing_where_nothing_can_be_said():
    assert kind(1.0, 2, None, "fourier") is None
    assert kind(0.0, 2, "intact") is None
    assert kind(1.0, 1, "intact") is None
    assert kind(1.0, 0, "ablated") is None


# ------------------------------------------------------------------------------------------------
# Held-out estimates, p-values and lists of terms with controlled errors


def normal_p_value(estimate, error):
    """Return the two-sided p-value, from the standard library's error function."""
    if error == 0:
        return float(estimate == 0)
    return math.erfc(abs(estimate / error) / math.sqrt(2))


def with_estimates(estimates, errors, n_units=5, **changes):
    """Return a result whose terms, by order and index, have these held-out estimates."""
    support = full(n_units)[: len(estimates)]
    return make(
        support,
        n_units,
        held_out_coefficients=torch.tensor(estimates, dtype=torch.float64),
        std_errors=torch.tensor(errors, dtype=torch.float64),
        **changes,
    )


def slow_significant(result, rate, min_order, max_order, any_dependence):
    """List terms by the book: sort, compare each p-value with its level, cut at the last below."""
    family = []
    for term, value in zip(result.support, result.p_values.tolist(), strict=True):
        if term and min_order <= len(term) <= max_order:
            family.append((value, term))
    family.sort()
    m, last = len(family), 0
    penalty = sum(1 / i for i in range(1, m + 1)) if any_dependence else 1
    for rank, (value, _) in enumerate(family, start=1):
        if value <= rank * rate / (m * penalty):
            last = rank
    return {tuple(f"L0H{unit}" for unit in term) for _, term in family[:last]}


def test_p_values_are_of_the_held_out_estimates():
    estimates, errors = [0.3, -1.96, 0.0, 40.0, 0.0, 1e-9], [0.1, 1.0, 2.0, 1.0, 0.0, 0.0]
    result = with_estimates(estimates, errors)
    wanted = [normal_p_value(*pair) for pair in zip(estimates, errors, strict=True)]
    assert result.p_values is not None
    assert_near(result.p_values, torch.tensor(wanted, dtype=torch.float64))
    assert result.p_values.tolist()[1:] == pytest.approx([0.0499958, 1.0, 0.0, 1.0, 0.0], abs=1e-7)
    frame = result.to_dataframe()
    by_units = dict(zip(frame.units, frame.p_value, strict=True))
    assert by_units["∅"] == pytest.approx(wanted[0])
    assert by_units["L0H0"] == pytest.approx(wanted[1])


def test_without_held_out_rows_or_errors_there_are_no_p_values():
    ones = torch.ones(5, dtype=torch.float64)
    for result in (make(), make(held_out_coefficients=ones), make(std_errors=ones)):
        assert result.p_values is None
        assert "p_value" not in result.to_dataframe().columns
        with pytest.raises(
            ResultError, match=r"\(decoder unknown\) have no p-values: they need rows that were"
        ):
            result.significant()
    # errors that did not survive a conversion take the p-values with them
    mixed = make(held_out_coefficients=ones, std_errors=ones).to("moebius", "ablated")
    assert mixed.held_out_coefficients is not None
    assert mixed.p_values is None


@settings(max_examples=120)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.5, 2.0, 2.2, 2.5, 3.0, 4.0]), min_size=1, max_size=26),
    st.sampled_from([0.01, 0.05, 0.2, 0.6]),
    st.integers(0, 3),
    st.sampled_from([None, 1, 2, 3]),
    st.booleans(),
)
def test_significant_terms_are_those_of_the_textbook(
    scores, rate, min_order, max_order, any_dependence
):
    result = with_estimates(scores, [1.0] * len(scores))
    found = result.significant(rate, min_order, max_order, any_dependence=any_dependence)
    longest = 5 if max_order is None else max_order
    assert {ranked.units for ranked in found} == slow_significant(
        result, rate, min_order, longest, any_dependence
    )
    sizes = [abs(ranked.coefficient) for ranked in found]
    assert sizes == sorted(sizes, reverse=True)


def test_a_p_value_may_pass_on_the_strength_of_larger_ones():
    """0.045 alone does not pass at rank 1 of 3, but with three such values all do."""
    score = 2.0047  # two-sided p of 0.045
    assert len(with_estimates([9.0] + [score] * 3, [1.0] * 4).significant(0.05)) == 3
    assert with_estimates([9.0, score, 0.0, 0.0], [1.0] * 4).significant(0.05) == []
    # under any dependence the levels are 1 + 1/2 + 1/3 times smaller
    both = with_estimates([9.0] + [score] * 3, [1.0] * 4)
    assert both.significant(0.05, any_dependence=True) == []
    assert len(both.significant(0.09, any_dependence=True)) == 3


def test_the_family_is_the_range_of_orders_and_never_the_constant():
    scores = [9.0, 2.0, 0.0, 0.0, 0.0, 0.0, 2.3]  # ∅, five single units, one pair
    result = with_estimates(scores, [1.0] * 7)
    assert result.significant(0.05) == []
    assert [ranked.units for ranked in result.significant(0.05, min_order=2)] == [("L0H0", "L0H1")]
    assert result.significant(0.05, min_order=3) == []
    assert all(ranked.units for ranked in result.significant(0.99, min_order=0))


def test_the_largest_order_bounds_the_family_from_above():
    """2.3 (p of 0.021) passes at 0.1 / 3, among single units, and not at 0.1 / 7, among all."""
    scores = [9.0, 2.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    result = with_estimates(scores, [1.0] * 8, n_units=3)
    assert result.significant(0.1) == []
    assert [ranked.units for ranked in result.significant(0.1, max_order=1)] == [("L0H0",)]
    pair = with_estimates([9.0, 0.0, 0.0, 0.0, 9.0], [1.0] * 5, n_units=3)
    assert pair.significant(0.1, max_order=1) == []
    assert [ranked.units for ranked in pair.significant(0.1, max_order=2)] == [("L0H0", "L0H1")]


@pytest.mark.parametrize(("r2", "n_listed"), [(-0.1, 0), (0.0, 0), (1e-9, 1), (None, 1)])
def test_nothing_stands_out_where_nothing_is_predicted(r2, n_listed):
    result = with_estimates([0.0, 5.0], [1.0, 1.0], held_out_r2=r2)
    assert len(result.significant()) == n_listed


def test_variances_that_rounding_makes_negative_are_zero():
    """The covariance is not positive: F(∅) and F(0) are equal, but for their last bits."""
    covariance = torch.tensor([[1.0, 1.0 + 1e-9], [1.0 + 1e-9, 1.0]], dtype=torch.float64)
    carried = make(((), (0,)), 2, covariance=covariance, keep_rate=0.5).to("moebius", "ablated")
    assert carried.std_errors is not None
    assert_near(carried.std_errors, torch.tensor([0.0, 2.0], dtype=torch.float64))
    given = make(((), (0,)), 2, covariance=torch.diag(torch.tensor([1.0, -1e-12])))
    assert given.std_errors is not None
    assert given.std_errors.tolist() == [1.0, 0.0]


def test_ranked_terms_carry_coefficients_that_predict_and_their_intervals():
    result = with_estimates([0.0, 5.0], [0.5, 0.5], coefficients=torch.tensor([1.0, 3.0]))
    (ranked,) = result.significant()
    assert ranked.coefficient == 3.0
    assert ranked.interval == pytest.approx((3 - 0.979982, 3 + 0.979982))


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5, 5.0])
def test_false_discovery_rates_are_shares(rate):
    with pytest.raises(ResultError, match=rf"must lie between 0 and 1; got {rate}\."):
        with_estimates([1.0], [1.0]).significant(rate)


@pytest.mark.parametrize(("basis", "origin", "rate"), TARGETS)
def test_estimates_convert_by_the_matrix_of_the_coefficients(basis, origin, rate):
    """Each is a set function of its own: converting it as coefficients gives the same."""
    generator = torch.Generator().manual_seed(5)
    held_out = torch.randn(8, generator=generator, dtype=torch.float64)
    prompts = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    result = make(full(3), 3, held_out_coefficients=held_out, prompt_coefficients=prompts)
    converted = result.to(basis, origin, rate)
    assert converted.prompt_coefficients is not None
    alone = make(full(3), 3, coefficients=held_out).to(basis, origin, rate)
    assert_near(converted.held_out_coefficients, alone.coefficients)
    for i in range(3):
        alone = make(full(3), 3, coefficients=prompts[:, i]).to(basis, origin, rate)
        assert_near(converted.prompt_coefficients[:, i], alone.coefficients)


def test_estimates_are_sorted_and_saved_bit_by_bit(tmp_path):
    path, shuffled = tmp_path / "result.json", ((3, 1), (2,), (0,))
    held_out = torch.tensor([0.1 + 0.2, 1e-300, -0.0], dtype=torch.float64)
    prompts = torch.rand(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = make(shuffled, held_out_coefficients=held_out, prompt_coefficients=prompts)
    assert_near(result.held_out_coefficients, held_out.flip(0), 0.0)
    assert_near(result.prompt_coefficients, prompts.flip(0), 0.0)
    result.save(path)
    loaded = Interactions.load(path)
    for name in ("held_out_coefficients", "prompt_coefficients"):
        assert torch.equal(getattr(loaded, name), getattr(result, name))
    document = json.loads(path.read_text())
    for name, wrong in (
        ("held_out_coefficients", [1.0]),
        ("prompt_coefficients", [[1.0, 2.0]]),
    ):
        path.write_text(json.dumps(document | {name: wrong}))
        with pytest.raises(ResultError, match=rf"{name} must have shape \(3,"):
            Interactions.load(path)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out_coefficients": torch.ones(4)}, r"held_out_coefficients must have shape \(5,\)"),
        ({"held_out_coefficients": torch.full((5,), math.nan)}, "must be finite; 5 entries"),
        ({"prompt_coefficients": torch.ones(4, 2)}, r"shape \(5, 2\), .*; got \(4, 2\)"),
        ({"prompt_coefficients": torch.full((5, 2), math.inf)}, "must be finite; 10 entries"),
    ],
)
def test_estimates_that_fit_no_support_are_refused(changes, message):
    with pytest.raises(ResultError, match=message):
        make(**changes)


class NoisyGame(SparseGame):
    """A sparse game seen through normal noise of standard deviation 1."""

    seed = 0

    def __call__(self, masks):
        noise = np.random.default_rng([self.seed, len(masks)]).normal(size=len(masks))
        return super().__call__(masks) + torch.from_numpy(noise)


def decode_noisy(name, seed, strong):
    support = [(), *strong]
    game = NoisyGame(16, support, np.r_[1.0, np.full(len(strong), 0.6)])
    game.seed = seed
    options = {"n_trees": 40} if name == "proxyspex" else {}
    return decoders.get(name, **options).decode(game, budget=160, seed=seed)


def false_share(found, strong):
    """Return which share of the terms that a result lists as significant are zero in truth."""
    listed = [tuple(sorted(map(int, ranked.units))) for ranked in found.significant()]
    return sum(term not in strong for term in listed) / max(1, len(listed))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n_games"), [("lasso", 25), ("proxyspex", 12)])
def test_strong_terms_are_listed_and_estimated_beside_few_false_ones(name, n_games):
    strong = ((2,), (5,), (2, 5), (7, 9))
    shares, estimates, n_listed = [], [], 0
    for seed in range(n_games):
        found = decode_noisy(name, seed, strong)
        assert found.held_out_coefficients is not None
        where = dict(zip(found.support, found.held_out_coefficients.tolist(), strict=True))
        estimates += [where.get(term, 0.0) for term in strong]
        shares.append(false_share(found, strong))
        n_listed += len(found.significant())
    assert np.mean(shares) < 0.05 + 2 * np.std(shares) / np.sqrt(n_games)
    assert n_listed > 0.85 * len(strong) * n_games
    assert 0.5 < np.mean(estimates) < 0.63  # near the true 0.6, if anything below


@pytest.mark.slow
def test_held_out_estimates_of_zero_terms_are_zero_on_average():
    """For every term, whether it was chosen or not: the form that makes the estimates honest."""
    total, n_games, n_terms = 0.0, 25, 16 + 16 * 15 // 2
    below = 0
    for seed in range(n_games):
        found = decode_noisy("lasso", seed, ())
        assert found.p_values is not None
        assert found.held_out_coefficients is not None
        total += float(found.held_out_coefficients[1:].sum())
        below += int((found.p_values[1:] < 0.05).sum())
    spread = 1 / np.sqrt(160 * n_terms * n_games)
    assert abs(total / n_terms / n_games) < 4 * spread
    assert below / n_terms / n_games < 0.05


@pytest.mark.slow
def test_on_noise_alone_hardly_any_game_has_significant_terms():
    n_games = 40
    some = [false_share(decode_noisy("lasso", seed, ()), ()) > 0 for seed in range(n_games)]
    assert np.mean(some) < 0.05 + 2 * np.sqrt(0.05 * 0.95 / n_games)
