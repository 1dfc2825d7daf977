"""Every index against its definition, summed over all sets or orders, and against shapiq."""

import math
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from scipy.special import bernoulli

from circuitspex import indices
from circuitspex.algebra import Coordinates, Interactions, enumerate_masks, fourier, moebius
from circuitspex.algebra.indices import INDICES, check_index, index_conversion
from circuitspex.errors import MissingExtraError, ResultError

COORDINATES = [
    Coordinates("moebius", "ablated"),
    Coordinates("moebius", "intact"),
    Coordinates("fourier", None, 0.2),
    Coordinates("fourier", None, 0.5),
    Coordinates("fourier", None, 0.9),
]
N_UNITS = 5


def subsets(units, max_size=None):
    units = sorted(units)
    sizes = range(1 + (len(units) if max_size is None else min(max_size, len(units))))
    return [term for size in sizes for term in combinations(units, size)]


def bits(term):
    return sum(2**unit for unit in term)


def random_table(n_units=N_UNITS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2**n_units, generator=generator, dtype=torch.float64)


def interactions_of(table, coordinates, covariance=None):
    """Write a dense table of values as interactions in some coordinates."""
    n_units = len(table).bit_length() - 1
    if coordinates.basis == "fourier":
        dense = fourier(table, coordinates.keep_rate)
    else:
        dense = moebius(table, origin=coordinates.origin)
    support = tuple(subsets(range(n_units)))
    return Interactions(
        n_units=n_units,
        units=tuple(f"L0H{i}" for i in range(n_units)),
        basis=coordinates.basis,
        origin=coordinates.origin,
        keep_rate=coordinates.keep_rate,
        support=support,
        coefficients=dense[[bits(term) for term in support]],
        covariance=covariance,
    )


def as_dict(values):
    return dict(zip(values.support, values.values.tolist(), strict=True))


def assert_equals(found, expected, tolerance=1e-9):
    """Compare, with 0 for what is missing on either side."""
    for term in found.keys() | expected.keys():
        assert found.get(term, 0.0) == pytest.approx(expected.get(term, 0.0), abs=tolerance), term


# The definitions, each as slow and as literal as possible.


def derivative(v, term, others):
    return sum(
        (-1) ** (len(term) - len(part)) * float(v[bits(part) + bits(others)])
        for part in subsets(term)
    )


def rest(n_units, term):
    return [unit for unit in range(n_units) if unit not in term]


def shapley_values(v, n_units, order):
    """Average the gain of each unit over all orders of keeping one unit after the other."""
    found = dict.fromkeys([(), *((i,) for i in range(n_units))], 0.0)
    for sequence in permutations(range(n_units)):
        for place, unit in enumerate(sequence):
            found[unit,] += derivative(v, (unit,), sequence[:place]) / math.factorial(n_units)
    return found | {(): float(v[0])}


def banzhaf_values(v, n_units, order):
    return banzhaf_interactions(v, n_units, 1) | {(): float(v[0])}


def shapley_interactions(v, n_units, order):
    found = {}
    for term in subsets(range(n_units), order):
        n_others = n_units - len(term)
        found[term] = sum(
            derivative(v, term, others) / ((n_others + 1) * math.comb(n_others, len(others)))
            for others in subsets(rest(n_units, term))
        )
    return found


def banzhaf_interactions(v, n_units, order):
    return {
        term: sum(derivative(v, term, others) for others in subsets(rest(n_units, term)))
        / 2 ** (n_units - len(term))
        for term in subsets(range(n_units), order)
    }


def k_shapley(v, n_units, order):
    """Build the values of order k from those of order k − 1, as Bordt & von Luxburg define them."""
    shapley = shapley_interactions(v, n_units, order)
    numbers = bernoulli(order)
    found = {}
    for k in range(1, order + 1):
        before, found = found, {}
        for term in subsets(range(n_units), k):
            above = [
                tuple(sorted(term + more))
                for more in combinations(rest(n_units, term), k - len(term))
            ]
            gained = numbers[k - len(term)] * sum(shapley[larger] for larger in above)
            found[term] = before.get(term, 0.0) + gained
    return found | {(): float(v[0])}


def shapley_taylor(v, n_units, order):
    """Credit top-order sets with what they add to the units before the first of them."""
    found = {
        term: derivative(v, term, ()) if len(term) < order else 0.0
        for term in subsets(range(n_units), order)
    }
    for sequence in permutations(range(n_units)):
        for term in combinations(range(n_units), order):
            before = sequence[: min(map(sequence.index, term))]
            found[term] += derivative(v, term, before) / math.factorial(n_units)
    return found


def design(n_units, order):
    """Return one row per mask, one column per set of up to ``order`` units: is all of it kept."""
    terms = subsets(range(n_units), order)
    masks = enumerate_masks(n_units).numpy()
    return terms, np.stack([masks[:, list(term)].all(axis=1) for term in terms], 1).astype(float)


def faithful_shapley(v, n_units, order):
    """Solve the weighted least squares with both ends as constraints."""
    terms, columns = design(n_units, order)
    sizes = enumerate_masks(n_units).sum(1).numpy()
    inner = (sizes > 0) & (sizes < n_units)
    weights = [(n_units - 1) / (math.comb(n_units, s) * s * (n_units - s)) for s in sizes[inner]]
    root = np.sqrt(np.array(weights))[:, None]
    ends = columns[[0, -1]]
    weighted = columns[inner] * root
    system = np.block([[weighted.T @ weighted, ends.T], [ends, np.zeros((2, 2))]])
    right = np.r_[weighted.T @ (v.numpy()[inner] * root[:, 0]), v.numpy()[[0, -1]]]
    solution = np.linalg.lstsq(system, right, rcond=None)[0]
    return dict(zip(terms, solution[: len(terms)].tolist(), strict=True))


def faithful_banzhaf(v, n_units, order):
    terms, columns = design(n_units, order)
    return dict(
        zip(terms, np.linalg.lstsq(columns, v.numpy(), rcond=None)[0].tolist(), strict=True)
    )


def either(v, n_units, order):
    """Solve for the coefficients of "at least one unit of the set is kept"."""
    terms = subsets(range(n_units))
    masks = enumerate_masks(n_units).numpy()
    columns = np.stack([masks[:, list(t)].any(axis=1) if t else masks[:, 0] >= 0 for t in terms], 1)
    found = dict(zip(terms, np.linalg.solve(columns.astype(float), v.numpy()), strict=True))
    return {term: float(value) for term, value in found.items() if len(term) <= order}


def conjunctions(v, n_units, order):
    return {term: derivative(v, term, ()) for term in subsets(range(n_units), order)}


DEFINITIONS = {
    "SV": shapley_values,
    "BV": banzhaf_values,
    "SII": shapley_interactions,
    "BII": banzhaf_interactions,
    "k-SII": k_shapley,
    "STII": shapley_taylor,
    "FSII": faithful_shapley,
    "FBII": faithful_banzhaf,
    "OR": either,
    "Moebius": conjunctions,
}
EFFICIENT = ["SV", "k-SII", "STII", "FSII"]
CASES = [
    (name, order)
    for name in INDICES
    for order in ([1] if name in ("SV", "BV") else range(1, N_UNITS + 1))
]


@pytest.mark.parametrize(("name", "order"), CASES)
def test_indices_are_what_they_are_defined_to_be(name, order):
    table = random_table()
    expected = DEFINITIONS[name](table, N_UNITS, order)
    for coordinates in COORDINATES:
        found = interactions_of(table, coordinates).index(name, order)
        assert (found.index, found.max_order) == (name, order)
        assert_equals(as_dict(found), expected)
        assert found.baseline == pytest.approx(float(table[0]), abs=1e-9)


@pytest.mark.parametrize("name", EFFICIENT)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_efficient_indices_add_up_to_the_intact_model(name, order):
    table = random_table(7, seed=1)
    for coordinates in COORDINATES:
        found = interactions_of(table, coordinates).index(name, 1 if name == "SV" else order)
        assert float(found.values.sum()) == pytest.approx(float(table[-1]), abs=1e-9)


@pytest.mark.parametrize("name", INDICES)
def test_idle_units_get_nothing_and_equal_units_the_same(name):
    # unit 1 is idle, units 0 and 2 are alike
    masks = enumerate_masks(4).double()
    values = 2 * masks[:, 0] * masks[:, 2] + (masks[:, 0] + masks[:, 2]) * masks[:, 3] + 1
    for coordinates in COORDINATES:
        found = as_dict(interactions_of(values, coordinates).index(name))
        assert all(abs(value) < 1e-9 for term, value in found.items() if 1 in term)
        swapped = {
            tuple(sorted({0: 2, 2: 0}.get(unit, unit) for unit in term)): value
            for term, value in found.items()
        }
        assert_equals(found, swapped)


@pytest.mark.parametrize(
    ("name", "single"),
    [("SII", "SV"), ("k-SII", "SV"), ("STII", "SV"), ("FSII", "SV"), ("BII", "BV"), ("FBII", "BV")],
)
def test_at_order_one_there_are_two_values_only(name, single):
    result = interactions_of(random_table(seed=2), COORDINATES[2])
    found, expected = as_dict(result.index(name, 1)), as_dict(result.index(single))
    assert_equals(found | {(): 0.0}, expected | {(): 0.0})


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize("coordinates", COORDINATES, ids=str)
def test_covariances_are_carried_through_the_linear_map(name, coordinates):
    root = torch.randn(2**4, 2**4, generator=torch.Generator().manual_seed(0)).double()
    result = interactions_of(random_table(4), coordinates, root @ root.T)
    found = result.index(name)
    # the map, found by sending one coefficient at a time through the index
    columns = []
    for i in range(2**4):
        unit = torch.eye(2**4, dtype=torch.float64)[i]
        values = as_dict(replace(result, coefficients=unit, covariance=None).index(name))
        columns.append([values.get(term, 0.0) for term in found.support])
    matrix = torch.tensor(columns, dtype=torch.float64).T
    expected = matrix @ (root @ root.T) @ matrix.T
    assert found.covariance is not None
    assert found.std_errors is not None
    torch.testing.assert_close(found.covariance, expected, atol=1e-8, rtol=1e-9)
    torch.testing.assert_close(found.std_errors, expected.diagonal().sqrt(), atol=1e-8, rtol=1e-9)
    low, high = found.top(1)[0].interval or (math.nan, math.nan)
    order = found.values.abs().argsort(descending=True, stable=True).tolist()
    first = next(i for i in order if found.support[i])
    assert high - low == pytest.approx(2 * 1.959964 * float(found.std_errors[first]), rel=1e-6)


def test_errors_that_cannot_be_added_up_are_not():
    table = random_table(3)
    errors = torch.ones(8, dtype=torch.float64)
    known = replace(interactions_of(table, COORDINATES[0]), std_errors=errors)
    assert known.index("SII").std_errors is None
    assert known.index("Moebius").std_errors is not None


@pytest.mark.parametrize("coordinates", COORDINATES[:4], ids=str)
def test_a_term_of_high_order_is_never_expanded(coordinates):
    term = tuple(range(3, 900, 30))
    assert len(term) == 30
    conversion = {
        name: index_conversion(name, [(), term], coordinates, order)
        for name, order in [("SV", 1), ("BV", 1), ("SII", 2), ("k-SII", 2), ("FSII", 2)]
    }
    for name, (support, matrix) in conversion.items():
        assert len(support) <= 1 + 30 + 435
        assert np.isfinite(matrix.data).all(), name


def test_one_term_of_order_thirty_among_a_thousand_units_is_never_expanded():
    term = tuple(range(3, 900, 30))
    for coordinates in (*COORDINATES[:2], COORDINATES[3]):
        result = Interactions(
            n_units=1000,
            units=tuple(map(str, range(1000))),
            basis=coordinates.basis,
            origin=coordinates.origin,
            keep_rate=coordinates.keep_rate,
            support=((), term),
            coefficients=torch.tensor([1.0, 3.0]),
        )
        found = result.index("SV")
        ends = torch.tensor([[False], [True]]).expand(2, 1000)
        ablated, intact = result.predict(ends).tolist()
        shares = {(unit,): (intact - ablated) / 30 for unit in term}
        # an even number of characters agrees at both ends: everybody's share is exactly nothing
        assert len(found.support) == (1 if coordinates.basis == "fourier" else 31)
        assert_equals(as_dict(found), {(): ablated, **shares})
        assert found.baseline == pytest.approx(ablated)


def test_weights_that_cancel_are_exactly_zero():
    even, odd = (0, 1), (0, 1, 2)
    for rate in (0.5, 0.2, 0.3, 0.9):
        support, _ = index_conversion("BII", [even, odd], Coordinates("fourier", None, rate), 3)
        wanted = ((0, 1), (0, 1, 2)) if rate == 0.5 else tuple(subsets(odd))
        assert support == wanted
    assert index_conversion("SV", [even], Coordinates("fourier")).support == ((),)
    found = index_conversion("SV", [odd], Coordinates("fourier")).matrix.toarray()[1:, 0]
    np.testing.assert_array_equal(found, [2 / 3] * 3)


def test_weights_of_large_terms_are_right_to_the_last_digits():
    size, rate = 40, Fraction(1, 10)
    # the exact integral of β^t (α + βq)^(s − t) over q, the multilinear extension on the diagonal
    for of in (1, 2):
        alpha, beta = -1, 10
        power = size - of + 1
        exact = Fraction(beta**of * ((alpha + beta) ** power - alpha**power), beta * power)
        wanted = float(exact / (9 ** (size // 2)))
        term = tuple(range(size))
        coordinates = Coordinates("fourier", None, float(rate))
        matrix = index_conversion("SII", [term], coordinates, of).matrix
        assert matrix.data[-1] == pytest.approx(wanted, rel=1e-14)


def test_numbers_of_bernoulli_are_those_of_scipy():
    found = [float(indices._bernoulli(n)) for n in range(12)]
    np.testing.assert_allclose(found, bernoulli(11), atol=1e-14)


@pytest.mark.parametrize(
    ("name", "order", "message"),
    [
        ("Shapley", None, "no index 'Shapley'; use one of SV, BV, SII, BII, k-SII"),
        ("SII", 0, "max_order must be an integer >= 1; got 0"),
        ("SII", True, "max_order must be an integer >= 1; got True"),
        ("SV", 2, 'SV is of single units; got max_order=2. For sets of units use "k-SII"'),
        ("BV", 3, 'BV is of single units; got max_order=3. For sets of units use "FBII"'),
    ],
)
def test_what_is_no_index_is_refused(name, order, message):
    with pytest.raises(ResultError, match=message):
        check_index(name, order)
    with pytest.raises(ResultError, match=message):
        interactions_of(random_table(2), COORDINATES[0]).index(name, order)


def test_too_many_subsets_and_too_large_weights_are_refused():
    term = tuple(range(64))
    with pytest.raises(
        ResultError,
        match=r"SII up to order 8 of 1 terms of up to 64 units .* 4194304 .* a smaller max_order",
    ):
        index_conversion("SII", [term], Coordinates("fourier", None, 0.9), 8)
    assert len(index_conversion("Moebius", [term], Coordinates("moebius", "ablated")).support) == 1
    with pytest.raises(ResultError, match="of 1000 units would weigh more than any floating-point"):
        index_conversion("SV", [tuple(range(1000))], Coordinates("fourier", None, 0.9))


def test_nothing_has_an_index_too():
    empty = Interactions(2, ("a", "b"), "fourier", None, 0.5, (), torch.zeros(0))
    for name in INDICES:
        found = empty.index(name)
        assert found.support == ()
        assert found.baseline == 0.0
        assert str(found).endswith("no values")


def test_values_are_ranked_and_laid_out_with_names():
    table = torch.tensor([1.0, 1.0, 1.0, 4.0], dtype=torch.float64)
    found = interactions_of(table, COORDINATES[0]).index("k-SII")
    pair = found.top(1)[0]
    assert (pair.units, pair.coefficient, pair.interval) == (("L0H0", "L0H1"), 3.0, None)
    assert (pair.basis, pair.origin, pair.kind) == ("k-SII", None, None)
    assert [ranked.units for ranked in found.top(5, max_order=1)] == [("L0H0",), ("L0H1",)]
    frame = found.to_dataframe()
    assert list(frame.columns) == ["units", "order", "value", "std_error", "low", "high", "basis"]
    assert frame.units[0] == "L0H0 + L0H1"
    assert frame.std_error.isna().all()
    assert repr(found) == "IndexValues(k-SII up to order 2; 2 units, 4 values; baseline 1)"
    assert "L0H0 + L0H1" in str(found)


SHAPIQ = [("SV", 1), ("BV", 1), *((n, k) for n in list(INDICES)[2:8] for k in (1, 2, 3))]


@pytest.mark.parametrize(("name", "order"), SHAPIQ)
def test_shapiq_computes_the_same(name, order):
    shapiq = pytest.importorskip("shapiq")
    table = random_table(6, seed=3)

    def game(coalitions):
        return table.numpy()[np.asarray(coalitions, dtype=int) @ 2 ** np.arange(6)]

    reference = shapiq.ExactComputer(n_players=6, game=game)(name, order)
    for coordinates in COORDINATES:
        values = interactions_of(table, coordinates).to_shapiq(name, order)
        assert (values.index, values.max_order) == (reference.index, reference.max_order)
        assert (values.min_order, values.n_players) == (0, 6)
        found, expected = dict(values.interactions), dict(reference.interactions)
        # shapiq 1.4.1 disagrees with itself about what empty sets get in Banzhaf values
        empty = found.pop(()), expected.pop(())
        assert_equals(found, expected, 1e-5)  # its ends are penalties of 1e7, not constraints
        if reference.index != "BV":
            assert empty[0] == pytest.approx(empty[1], abs=1e-6)
            assert values.baseline_value == pytest.approx(reference.baseline_value, abs=1e-6)


def decoded():
    """Return a sparse result with estimated coefficients, as decoders give it."""
    return Interactions(
        n_units=6,
        units=tuple(f"L0H{i}" for i in range(6)),
        basis="fourier",
        origin=None,
        keep_rate=0.8,
        support=((), (0,), (2,), (0, 2), (1, 2, 3)),
        coefficients=torch.tensor([2.0, 1.0, -0.5, 0.7, 0.4]),
        error_source="masks",
        n_evaluations=64,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SV", "k-SII", "FSII", "STII", "Moebius"])
def test_the_plots_of_shapiq_draw_it(name):
    pytest.importorskip("shapiq")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    result = decoded()
    values = result.to_shapiq(name)
    ends = torch.tensor([[False], [True]]).expand(2, 6)
    ablated, intact = result.predict(ends).tolist()
    assert values.baseline_value == pytest.approx(ablated)
    assert sum(values.interactions.values()) == pytest.approx(intact)
    assert (values.estimated, values.estimation_budget) == (True, 64)
    names = list(result.units)
    plots = ["upset", "force", "waterfall", "stacked_bar", "si_graph"]
    for plot in plots + ["network"] * (values.max_order > 1):
        drawn = getattr(values, f"plot_{plot}")(show=False, feature_names=names)
        pyplot.close("all")
        assert drawn is not None


def test_graphs_of_shapiq_place_units_without_values_of_their_own():
    pytest.importorskip("shapiq")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pair = replace(
        decoded(), basis="moebius", origin="ablated", support=((2, 4),), coefficients=torch.ones(1)
    )
    values = pair.to_shapiq()
    assert values.interactions == {(): 0.0, (2,): 0.0, (4,): 0.0, (2, 4): 1.0}
    assert values.plot_si_graph(show=False) is not None
    pyplot.close("all")


def test_shapiq_knows_no_or():
    pytest.importorskip("shapiq")
    with pytest.raises(ResultError, match='shapiq has no index "OR"'):
        decoded().to_shapiq("OR")


def test_without_shapiq_an_index_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "shapiq", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'circuitspex\[shapiq\]'"):
        decoded().index("SV").to_shapiq()
