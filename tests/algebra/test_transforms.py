import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuitspex.algebra import (
    Coordinates,
    basis_functions,
    convert,
    enumerate_masks,
    evaluate,
    fourier,
    inverse_fourier,
    inverse_moebius,
    moebius,
)
from circuitspex.errors import MaskError, ResultError

ABLATED = Coordinates("moebius", "ablated")
INTACT = Coordinates("moebius", "intact")
BASES = [
    ABLATED,
    INTACT,
    Coordinates("fourier"),
    Coordinates("fourier", None, 0.9),
    Coordinates("fourier", None, 0.23),
]

tables = st.integers(0, 5).flatmap(
    lambda n: st.lists(st.floats(-10, 10), min_size=2**n, max_size=2**n)
)
rates = st.floats(0.05, 0.95)


def assert_near(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def table(values):
    return torch.tensor(values, dtype=torch.float64)


def random_table(n_units, seed=0, *batch):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2**n_units, *batch, generator=generator, dtype=torch.float64)


def subsets(units):
    return [set(c) for size in range(len(units) + 1) for c in combinations(sorted(units), size)]


def index(units):
    return sum(2**unit for unit in units)


def units_of(position, n_units):
    return {unit for unit in range(n_units) if position >> unit & 1}


def transform(values, coordinates):
    if coordinates.basis == "fourier":
        return fourier(values, coordinates.keep_rate)
    return moebius(values, origin=coordinates.origin)


def moebius_by_definition(values, origin, n_units):
    """Alternating sums over subsets, one coefficient at a time."""
    everything = set(range(n_units))
    coefficients = []
    for position in range(2**n_units):
        whole = units_of(position, n_units)
        coefficients.append(
            sum(
                (-1) ** (len(whole) - len(part))
                * float(values[index(part if origin == "ablated" else everything - part)])
                for part in subsets(whole)
            )
        )
    return table(coefficients)


def fourier_by_definition(values, rate, n_units):
    """Expectations over masks, weighted by their probability, one coefficient at a time."""
    scale = math.sqrt(rate * (1 - rate))
    coefficients = []
    for position in range(2**n_units):
        total = 0.0
        for mask in range(2**n_units):
            kept = units_of(mask, n_units)
            product = math.prod(
                ((unit in kept) - rate) / scale for unit in units_of(position, n_units)
            )
            weight = rate ** len(kept) * (1 - rate) ** (n_units - len(kept))
            total += weight * product * float(values[mask])
        coefficients.append(total)
    return table(coefficients)


@pytest.mark.parametrize("origin", ["ablated", "intact"])
@pytest.mark.parametrize("n_units", [0, 1, 4])
def test_moebius_is_its_definition(origin, n_units):
    values = random_table(n_units)
    assert_near(moebius(values, origin=origin), moebius_by_definition(values, origin, n_units))


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.23])
@pytest.mark.parametrize("n_units", [0, 1, 4])
def test_fourier_is_its_definition(rate, n_units):
    values = random_table(n_units)
    assert_near(fourier(values, rate), fourier_by_definition(values, rate, n_units))


def test_fourier_at_one_half_is_walsh_hadamard_with_kept_as_plus_one():
    values = random_table(3)
    signs = table([[(-1) ** len(units_of(t & ~s, 3)) for s in range(8)] for t in range(8)])
    assert_near(fourier(values), signs @ values / 8)


@given(values=tables, rate=rates)
def test_inverses_undo_their_transforms(values, rate):
    values = table(values)
    assert_near(inverse_fourier(fourier(values, rate), rate), values, 1e-6)
    for origin in ("ablated", "intact"):
        assert_near(inverse_moebius(moebius(values, origin=origin), origin=origin), values)


@given(values=tables, rate=rates)
def test_parseval_under_the_law_of_the_masks(values, rate):
    values = table(values)
    n_units = len(values).bit_length() - 1
    kept = enumerate_masks(n_units).sum(1).double()
    weights = rate**kept * (1 - rate) ** (n_units - kept)
    assert_near(fourier(values, rate).square().sum(), (weights * values.square()).sum(), 1e-7)


@given(seed=st.integers(0, 1000), order=st.permutations(range(4)))
def test_relabelling_units_relabels_coefficients(seed, order):
    values = random_table(4, seed)
    # unit i of the old game is unit order[i] of the new one
    moved = [index(order[unit] for unit in units_of(p, 4)) for p in range(16)]
    relabelled = torch.empty_like(values)
    relabelled[moved] = values
    for coordinates in BASES:
        assert_near(transform(relabelled, coordinates)[moved], transform(values, coordinates))


@pytest.mark.parametrize("coordinates", BASES)
def test_a_batch_is_transformed_entry_by_entry(coordinates):
    values = random_table(3, 0, 2, 5)
    batch = transform(values, coordinates)
    assert batch.shape == values.shape
    assert_near(batch[:, 1, 3], transform(values[:, 1, 3], coordinates))


def test_the_table_is_left_unchanged_and_need_not_be_contiguous():
    values = random_table(3, 0, 2)
    before = values.clone()
    assert_near(moebius(values.T.contiguous().T), moebius(before))
    fourier(values)
    assert_near(values, before, 0)


def test_a_table_must_cover_all_masks():
    with pytest.raises(MaskError, match="power of two; got 3"):
        moebius(torch.zeros(3))
    with pytest.raises(MaskError, match="power of two; got 0"):
        inverse_fourier(torch.zeros(0))


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5, math.nan])
def test_a_keep_rate_at_the_edge_is_refused(rate):
    with pytest.raises(ResultError, match="strictly between 0 and 1"):
        fourier(torch.zeros(2), rate)


def test_coordinates_that_do_not_exist_are_refused():
    with pytest.raises(ResultError, match=r"need an origin; got None\. Pass origin="):
        Coordinates("moebius").check()
    with pytest.raises(ResultError, match="the Fourier basis has no origin; got 'intact'"):
        Coordinates("fourier", "intact").check()
    with pytest.raises(ResultError, match="there is no basis 'walsh'"):
        Coordinates("walsh").check()  # pyright: ignore[reportArgumentType]


def dense(support, coefficients, n_units):
    out = torch.zeros(2**n_units, dtype=torch.float64)
    out[[index(term) for term in support]] = coefficients
    return out


def inverse(coefficients, coordinates):
    if coordinates.basis == "fourier":
        return inverse_fourier(coefficients, coordinates.keep_rate)
    return inverse_moebius(coefficients, origin=coordinates.origin)


@pytest.mark.parametrize("source", BASES)
@pytest.mark.parametrize("target", BASES)
def test_sparse_conversion_agrees_with_the_dense_transforms(source, target):
    support = [(), (1,), (4,), (0, 2), (1, 4), (0, 1, 3), (1, 2, 3, 4)]
    coefficients = table([1.0, -2.0, 0.5, 3.0, -1.5, 2.5, 0.7])
    new_support, matrix = convert(support, source, target)
    converted = torch.from_numpy(matrix @ coefficients.numpy())
    values = inverse(dense(support, coefficients, 5), source)
    assert_near(dense(new_support, converted, 5), transform(values, target))
    assert list(new_support) == sorted(new_support, key=lambda term: (len(term), term))
    if source == target:
        assert list(new_support) == support


@given(
    st.lists(st.sets(st.integers(0, 9), max_size=5), max_size=6),
    st.sampled_from(BASES),
    st.sampled_from(BASES),
)
def test_converting_there_and_back_changes_nothing(terms, source, target):
    support = sorted({tuple(sorted(term)) for term in terms}, key=lambda t: (len(t), t))
    there = convert(support, source, target)
    back = convert(there.support, target, source)
    both = torch.from_numpy(back.matrix.toarray() @ there.matrix.toarray())
    expected = torch.zeros(len(back.support), len(support), dtype=torch.float64)
    for column, term in enumerate(support):
        expected[back.support.index(term), column] = 1
    assert_near(both, expected, 1e-8)


def test_a_term_too_large_to_expand_is_refused():
    large = [tuple(range(21))]
    with pytest.raises(ResultError, match=r"terms of up to 21 units would expand into 2097152"):
        convert(large, ABLATED, INTACT)
    assert convert(large, ABLATED, ABLATED).support == tuple(large)
    many = [tuple(range(i, i + 20)) for i in range(5)]
    with pytest.raises(ResultError, match="converting 5 terms"):
        convert(many, ABLATED, INTACT)


def test_converting_nothing_gives_nothing():
    support, matrix = convert([], ABLATED, INTACT)
    assert support == ()
    assert matrix.shape == (0, 0)


@pytest.mark.parametrize("coordinates", BASES)
def test_sparse_evaluation_agrees_with_the_dense_inverse(coordinates):
    support = [(), (1,), (0, 2), (0, 1, 3)]
    coefficients = table([1.0, -2.0, 3.0, 2.5])
    masks = enumerate_masks(4)
    expected = inverse(dense(support, coefficients, 4), coordinates)
    assert_near(evaluate(masks, support, coefficients, coordinates), expected)
    assert_near(basis_functions(masks, support, coordinates) @ coefficients, expected)


def test_basis_functions_are_orthonormal_under_the_law_of_the_masks():
    coordinates = Coordinates("fourier", None, 0.8)
    masks = enumerate_masks(4)
    support = [term for size in range(5) for term in combinations(range(4), size)]
    columns = basis_functions(masks, support, coordinates)
    kept = masks.sum(1).double()
    weights = 0.8**kept * 0.2 ** (4 - kept)
    assert_near(columns.T @ (weights[:, None] * columns), torch.eye(16, dtype=torch.float64))
