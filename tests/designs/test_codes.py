"""BCH codes against slow polynomial arithmetic and exhaustive search."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from circuitspex.designs import MAX_UNITS, bch
from circuitspex.designs.bch import bch_code
from circuitspex.errors import DecoderError

DEGREES = sorted(bch._PRIMITIVE)


def remainder(dividend, divisor):
    """Divide polynomials over GF(2) on paper, their coefficients as bits."""
    while dividend.bit_length() >= divisor.bit_length():
        dividend ^= divisor << (dividend.bit_length() - divisor.bit_length())
    return dividend


def product(a, b):
    """Multiply polynomials over GF(2) on paper."""
    total = 0
    for i in range(b.bit_length()):
        if b >> i & 1:
            total ^= a << i
    return total


def power_of_x(exponent, modulus):
    """Return x^exponent modulo a polynomial, by squaring."""
    result, square = 1, remainder(2, modulus)
    while exponent:
        if exponent & 1:
            result = remainder(product(result, square), modulus)
        square, exponent = remainder(product(square, square), modulus), exponent >> 1
    return result


def checks_of(code, units):
    """Return the check bits of a set of units: the remainder of its message, on paper."""
    message = sum(1 << (code.n_checks + unit) for unit in units)
    rest = remainder(message, code.generator)
    return np.array([rest >> i & 1 for i in range(code.n_checks)], dtype=bool)


def as_sets(found):
    return [tuple(unit for unit in row if unit >= 0) for row in found.tolist()]


@pytest.mark.parametrize("degree", DEGREES)
def test_primitive_polynomials_generate_the_field(degree):
    polynomial, order = bch._PRIMITIVE[degree], 2**degree - 1
    assert polynomial.bit_length() == degree + 1
    assert power_of_x(order, polynomial) == 1
    assert all(power_of_x(i, polynomial) != 1 for i in range(1, order) if order % i == 0)
    field = bch._Field(degree)
    assert sorted(field.powers[:order].tolist()) == list(range(1, order + 1))


@given(st.sampled_from([3, 4, 5, 8, 11]), st.data())
def test_the_field_multiplies_and_divides_like_polynomials(degree, data):
    elements = st.integers(0, 2**degree - 1)
    a, b = data.draw(elements), data.draw(elements)
    field, polynomial = bch._field(degree), bch._PRIMITIVE[degree]
    wanted = remainder(product(a, b), polynomial)
    assert field.multiply(np.array([a]), np.array([b])).tolist() == [wanted]
    if b:
        assert field.divide(np.array([wanted]), np.array([b])).tolist() == [a]


@pytest.mark.parametrize("max_errors", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("n_units", [1, 7, 40, 300, 3000, MAX_UNITS])
def test_generators_divide_what_makes_codes_cyclic(n_units, max_errors):
    code = bch_code(n_units, max_errors)
    assert code.generator & 1  # so x^(2^m) = x modulo it says that it divides x^(2^m - 1) - 1
    assert power_of_x(2**code.degree, code.generator) == remainder(2, code.generator)
    assert code.n_checks <= max_errors * code.degree
    assert code.n_checks + n_units <= 2**code.degree - 1
    if code.degree <= 10:
        assert remainder(1 << (2**code.degree - 1) ^ 1, code.generator) == 0


@pytest.mark.parametrize(("n_units", "max_errors"), [(1, 3), (5, 3), (11, 1), (96, 5), (700, 4)])
def test_generators_have_the_roots_that_give_the_distance(n_units, max_errors):
    """Powers 1 to 2t of the field's generator, evaluated by Horner's rule on paper."""
    code = bch_code(n_units, max_errors)
    primitive = bch._PRIMITIVE[code.degree]
    for exponent in range(1, 2 * max_errors + 1):
        root, value = power_of_x(exponent, primitive), 0
        for i in reversed(range(code.n_checks + 1)):
            value = remainder(product(value, root), primitive) ^ (code.generator >> i & 1)
        assert value == 0


@pytest.mark.parametrize(("n_units", "max_errors"), [(1, 1), (1, 7), (11, 5), (96, 5), (500, 2)])
def test_rows_of_checks_are_remainders(n_units, max_errors):
    code = bch_code(n_units, max_errors)
    assert code.checks.shape == (n_units, code.n_checks)
    for unit, row in enumerate(code.checks):
        assert row.tolist() == checks_of(code, [unit]).tolist()


@pytest.mark.parametrize(
    ("first", "last", "n_checks"),
    [
        (8, 11, 20),
        (12, 36, 27),
        (37, 92, 35),
        (93, 215, 40),
        (216, 466, 45),
        (467, 973, 50),
        (974, 1992, 55),
    ],
)
def test_codes_for_five_errors_have_as_many_checks_as_published(first, last, n_checks):
    for n_units in {first, first + 1, (first + last) // 2, last - 1, last}:
        assert bch_code(n_units, 5).n_checks == n_checks


@settings(max_examples=80)
@given(st.integers(1, 3000), st.integers(1, 6), st.data())
def test_every_set_is_decoded_from_checks_some_of_which_are_wrong(n_units, max_errors, data):
    code = bch_code(n_units, max_errors)
    size = data.draw(st.integers(0, min(max_errors, n_units)))
    units = data.draw(st.sets(st.integers(0, n_units - 1), min_size=size, max_size=size))
    places = st.integers(0, code.n_checks - 1)
    most = min(max_errors - size, code.n_checks)
    wrong = data.draw(st.sets(places, min_size=0, max_size=most))
    bits = checks_of(code, units)
    bits[list(wrong)] ^= True
    found, decoded = code.decode(bits[None])
    assert decoded.tolist() == [True]
    assert found.tolist() == [[-1] * (max_errors - size) + sorted(units)]


@pytest.mark.parametrize(("n_units", "max_errors"), [(3000, 6), (96, 5), (45, 3), (4, 1)])
def test_many_words_are_decoded_at_once(n_units, max_errors):
    code, rng = bch_code(n_units, max_errors), np.random.default_rng(0)
    words, truth = [], []
    for _ in range(300):
        size = int(rng.integers(0, max_errors + 1))
        units = rng.choice(n_units, size, replace=False)
        wrong = rng.choice(code.n_checks, int(rng.integers(0, max_errors - size + 1)), False)
        bits = code.checks[units].sum(axis=0) % 2 == 1
        bits[wrong] ^= True
        words.append(bits)
        truth.append(tuple(sorted(units.tolist())))
    found, decoded = code.decode(np.array(words))
    assert decoded.all()
    assert as_sets(found) == truth


def search_everything(code, word):
    """Return every set of units within distance t of a word, by trying all sets of at most t."""
    within = []
    for size in range(min(code.max_errors, code.n_units) + 1):
        for units in combinations(range(code.n_units), size):
            checks = code.checks[list(units)].sum(axis=0) % 2 == 1
            if size + (checks ^ word).sum() <= code.max_errors:
                within.append(units)
    return within


def assert_decodes_like_exhaustive_search(code, words):
    found, decoded = code.decode(words)
    for word, row, known in zip(words, found, decoded, strict=True):
        within = search_everything(code, word)
        assert len(within) <= 1  # else the code does not correct t errors
        assert bool(known) == bool(within)
        if within:
            padding = code.max_errors - len(within[0])
            assert row.tolist() == [-1] * padding + list(within[0])
        else:
            assert (row == -1).all()


@pytest.mark.parametrize(
    ("n_units", "max_errors"),
    [(1, 1), (4, 1), (2, 2), (7, 2), (5, 3), (1, 3), (1, 4), (11, 1), (26, 1), (20, 1)],
)
def test_every_word_there_is_decodes_like_exhaustive_search(n_units, max_errors):
    code = bch_code(n_units, max_errors)
    assert code.n_checks <= 10 or (n_units, max_errors) == (1, 4)
    words = np.arange(2**code.n_checks)[:, None] >> np.arange(code.n_checks) & 1 == 1
    assert_decodes_like_exhaustive_search(code, words[:: max(1, len(words) // 512)])


@settings(max_examples=60)
@given(st.integers(1, 14), st.integers(1, 4), st.integers(0, 2**32), st.integers(0, 8))
@example(9, 3, 0, 4)  # one error too many
def test_random_words_decode_like_exhaustive_search(n_units, max_errors, seed, n_wrong):
    code, rng = bch_code(n_units, max_errors), np.random.default_rng(seed)
    words = rng.random((4, code.n_checks)) < 0.5
    for word in words[:3]:  # and words around sets, where decoding may go wrong
        size = int(rng.integers(0, min(max_errors + 1, n_units) + 1))
        word[:] = checks_of(code, rng.choice(n_units, size, replace=False).tolist())
        word[rng.choice(code.n_checks, min(n_wrong, code.n_checks), replace=False)] ^= True
    assert_decodes_like_exhaustive_search(code, words)


@settings(max_examples=40)
@given(st.integers(1, 3000), st.integers(1, 6), st.integers(0, 2**32))
def test_what_is_decoded_lies_within_reach_of_its_word(n_units, max_errors, seed):
    code, rng = bch_code(n_units, max_errors), np.random.default_rng(seed)
    words = rng.random((40, code.n_checks)) < 0.5
    for word in words[:30]:  # more errors than are corrected, which now and then decode to others
        size = min(max_errors, n_units)
        word[:] = code.checks[rng.choice(n_units, size, replace=False)].sum(axis=0) % 2 == 1
        word[rng.choice(code.n_checks, int(rng.integers(0, 4)), replace=False)] ^= True
    found, decoded = code.decode(words)
    assert (found[~decoded] == -1).all()
    for word, units, known in zip(words, as_sets(found), decoded.tolist(), strict=True):
        if not known:
            continue
        assert all(unit < n_units for unit in units)
        assert len(set(units)) == len(units)
        checks = code.checks[list(units)].sum(axis=0) % 2 == 1
        assert len(units) + (checks ^ word).sum() <= max_errors


def test_no_words_decode_to_nothing():
    found, decoded = bch_code(96, 5).decode(np.zeros((0, 40), dtype=bool))
    assert found.shape == (0, 5)
    assert decoded.shape == (0,)


@pytest.mark.slow
def test_the_longest_code_decodes():
    code, rng = bch_code(MAX_UNITS, 5), np.random.default_rng(0)
    assert code.n_checks == 85
    truth = [(), (MAX_UNITS - 1,), (0, 1, 2, 3, 4)]
    truth += [tuple(sorted(rng.choice(MAX_UNITS, 4, False).tolist())) for _ in range(70)]
    words = np.array([checks_of(code, units) for units in truth])
    words[3:, 17] ^= True
    found, decoded = code.decode(words)
    assert decoded.all()
    assert as_sets(found) == truth


@pytest.mark.parametrize(("n_units", "max_errors"), [(MAX_UNITS + 1, 5), (0, 5), (96, 0)])
def test_codes_that_do_not_exist_are_refused(n_units, max_errors):
    with pytest.raises(
        DecoderError,
        match=r"takes 1 to 65536 units and corrects at least 1 error; got n_units=\d+ and "
        r"max_errors=\d\. Restrict the units that are ablated",
    ):
        bch_code(n_units, max_errors)


def test_more_errors_than_any_field_has_room_for_are_refused():
    with pytest.raises(
        DecoderError,
        match=r"no BCH code of degree up to 17 has 10 units and corrects 70000 errors\. Lower max_",
    ):
        bch_code(10, 70_000)
