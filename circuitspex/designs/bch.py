"""BCH codes: which units flip a parity, read from the parities of a few random-looking subsets.

The check bits of a binary BCH code serve as delays of the affine design: check j of a set T is
whether an odd number of T's units belong to subset j. From all checks of an unknown T of at most t
units, some of them possibly wrong, the code gives T back as long as units and wrong checks number
no more than t together.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Int

from circuitspex.errors import DecoderError

_PRIMITIVE = {
    3: 0xB,
    4: 0x13,
    5: 0x25,
    6: 0x43,
    7: 0x89,
    8: 0x11D,
    9: 0x211,
    10: 0x409,
    11: 0x805,
    12: 0x1053,
    13: 0x201B,
    14: 0x4443,
    15: 0x8003,
    16: 0x1100B,
    17: 0x20009,
}
"""A primitive polynomial for each degree, coefficients as bits (Lidl & Niederreiter, table D)."""

MAX_UNITS = 65_536
"""Most units a code is made for."""

_BLOCK = 2**22  # table look-ups at once in a search for roots


class _Field:
    """GF(2^m): elements are integers below 2^m, multiplied through tables of logarithms."""

    def __init__(self, degree: int) -> None:
        self.degree = degree
        self.order = 2**degree - 1
        powers = np.empty(self.order, dtype=np.int64)
        element = 1
        for i in range(self.order):
            powers[i] = element
            element <<= 1
            if element > self.order:
                element ^= _PRIMITIVE[degree]
        self.logarithms = np.zeros(self.order + 1, dtype=np.int64)
        self.logarithms[powers] = np.arange(self.order)
        self.powers = np.concatenate([powers, powers])
        """Powers of the generator, twice over, so that sums of two logarithms need no remainder."""

    def multiply(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the product, element by element."""
        product = self.powers[self.logarithms[a] + self.logarithms[b]]
        return np.where((a == 0) | (b == 0), 0, product)

    def divide(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return a / b, element by element; b must not be zero where a is not."""
        quotient = self.powers[self.logarithms[a] - self.logarithms[b] + self.order]
        return np.where(a == 0, 0, quotient)


@lru_cache(maxsize=8)
def _field(degree: int) -> _Field:
    return _Field(degree)


@dataclass(frozen=True)
class BchCode:
    """A shortened systematic binary BCH code, narrow-sense and primitive.

    Positions 0 to ``n_checks - 1`` of a codeword are check bits, the next ``n_units`` the message.

    References:
        Bose & Ray-Chaudhuri (1960), "On a class of error correcting binary group codes",
        Information and Control 3(1); Massey (1969), "Shift-register synthesis and BCH decoding",
        IEEE Transactions on Information Theory 15(1); Chien (1964), "Cyclic decoding procedures
        for BCH codes", IEEE Transactions on Information Theory 10(4).
    """

    n_units: int
    """Length of the message."""

    max_errors: int
    """t: how many units and wrong checks together are told."""

    degree: int
    """m: the code lives in GF(2^m)."""

    generator: int
    """Generator polynomial, its coefficients as bits."""

    @property
    def n_checks(self) -> int:
        """How many check bits there are."""
        return self.generator.bit_length() - 1

    @cached_property
    def checks(self) -> Bool[np.ndarray, "units checks"]:
        """Which checks each unit takes part in: x^(n_checks + i) modulo the generator."""
        remainder, rows = 1 << self.n_checks, []
        for _ in range(self.n_units):
            if remainder >> self.n_checks:
                remainder ^= self.generator
            rows.append(remainder)
            remainder <<= 1
        shifts = range(self.n_checks)
        return np.array([[row >> i & 1 for i in shifts] for row in rows], dtype=bool)

    def decode(
        self, bits: Bool[np.ndarray, "words checks"]
    ) -> tuple[Int[np.ndarray, "words errors"], Bool[np.ndarray, " words"]]:
        """Find the set of units behind every word of check bits.

        Args:
            bits: Check bits, some of them possibly wrong.

        Returns:
            The units of each word, ascending behind a padding of -1, and whether the word lies
            within ``max_errors`` of a codeword. The units of a word that does not are all -1.
        """
        found = np.full((len(bits), self.max_errors), -1)
        decoded = np.asarray(~bits.any(axis=1))
        locators, sizes = self._locators(self._syndromes(bits))
        for size in range(1, self.max_errors + 1):
            words = np.flatnonzero(sizes == size)
            words = words[self._splits(locators[words, : size + 1])]
            positions = self._roots(locators[words, : size + 1])
            complete = (positions >= 0).all(axis=1)
            units = np.where(positions >= self.n_checks, positions - self.n_checks, -1)
            found[words[complete], -size:] = np.sort(units[complete], axis=1)
            decoded[words[complete]] = True
        return found, decoded

    def _syndromes(self, bits: np.ndarray) -> np.ndarray:
        """Return the received polynomial at powers 1 … 2t of the generator of the field."""
        field, n_words = _field(self.degree), len(bits)
        syndromes = np.zeros((n_words, 2 * self.max_errors), dtype=np.int64)
        for power in range(1, 2 * self.max_errors + 1, 2):
            values = field.powers[power * np.arange(self.n_checks) % field.order]
            syndrome = np.bitwise_xor.reduce(np.where(bits, values, 0), axis=1)
            while power <= 2 * self.max_errors:  # squares are free in characteristic 2
                syndromes[:, power - 1] = syndrome
                power, syndrome = 2 * power, field.multiply(syndrome, syndrome)
        return syndromes

    def _locators(self, syndromes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the error locators (Berlekamp–Massey on all words at once) and their degrees.

        The degree is 0 where there is no locator of degree at most t.
        """
        field, (n_words, n_steps) = _field(self.degree), syndromes.shape
        locator = np.zeros((n_words, n_steps + 2), dtype=np.int64)
        locator[:, 0] = 1
        earlier, size = locator.copy(), np.zeros(n_words, dtype=np.int64)
        earlier_discrepancy = np.ones(n_words, dtype=np.int64)
        for step in range(n_steps):
            earlier = np.roll(earlier, 1, axis=1)
            products = field.multiply(locator[:, : step + 1], syndromes[:, step::-1])
            discrepancy = np.bitwise_xor.reduce(products, axis=1)
            factor = field.divide(discrepancy, earlier_discrepancy)
            corrected = locator ^ field.multiply(factor[:, None], earlier)
            grows = (discrepancy != 0) & (2 * size <= step)
            earlier = np.where(grows[:, None], locator, earlier)
            earlier_discrepancy = np.where(grows, discrepancy, earlier_discrepancy)
            size = np.where(grows, step + 1 - size, size)
            locator = corrected
        rows = np.arange(n_words)
        good = (size <= self.max_errors) & (locator[rows, np.minimum(size, n_steps)] != 0)
        good &= ~locator[:, self.max_errors + 1 :].any(axis=1)
        return locator, np.where(good, size, 0)

    def _splits(self, locators: np.ndarray) -> Bool[np.ndarray, " words"]:
        """Return which locators have as many different roots as their degree.

        They divide x^(2^m) - x, so m squarings of x modulo the locator give x back.
        """
        field, size = _field(self.degree), locators.shape[1] - 1
        if size == 1 or len(locators) == 0:
            return np.ones(len(locators), dtype=bool)
        tail = field.divide(locators[:, :-1], locators[:, -1:])  # x^size in terms of lower powers
        power = np.zeros((len(locators), size), dtype=np.int64)
        power[:, 0] = 1
        squares = [power]
        for _ in range(size - 1):
            for _ in range(2):  # times x, modulo the locator
                carry = power[:, -1:]
                power = np.concatenate([np.zeros_like(carry), power[:, :-1]], axis=1)
                power = power ^ field.multiply(carry, tail)
            squares.append(power)
        start = np.zeros_like(power)
        start[:, 1] = 1
        image = start
        for _ in range(self.degree):
            image = field.multiply(image, image)
            image = np.bitwise_xor.reduce(
                [field.multiply(image[:, i, None], squares[i]) for i in range(size)]
            )
        return (image == start).all(axis=1)

    def _roots(self, locators: np.ndarray) -> Int[np.ndarray, "words errors"]:
        """Return the positions that locators point at, -1 where one lies outside the code.

        Chien's search: the locator is evaluated at every position's inverse.
        """
        field, size = _field(self.degree), locators.shape[1] - 1
        length = self.n_checks + self.n_units
        positions = np.full((len(locators), size), -1)
        logarithms = field.logarithms[locators]
        step = max(1, _BLOCK // length)
        for first in range(0, len(locators), step):
            part = slice(first, first + step)
            total = np.broadcast_to(locators[part, :1], (len(locators[part]), length)).copy()
            for i in range(1, size + 1):
                exponents = -i * np.arange(length) % field.order
                values = field.powers[logarithms[part, i, None] + exponents]
                total ^= np.where(locators[part, i, None] == 0, 0, values)
            word, position = np.nonzero(total == 0)
            rank = np.arange(len(word)) - np.searchsorted(word, word)
            positions[first + word, rank] = position
        return positions


@lru_cache(maxsize=32)
def bch_code(n_units: int, max_errors: int) -> BchCode:
    """Make the shortest BCH code for so many units.

    Args:
        n_units: Length of the message.
        max_errors: t, how many units and wrong checks together shall be told.

    Returns:
        The code.

    Raises:
        DecoderError: If there are more than 65,536 units, or a number is below 1.

    Example:
        >>> code = bch_code(96, 5)
        >>> code.n_checks
        40
        >>> bits = code.checks[[7, 31, 80]].sum(axis=0) % 2 == 1
        >>> code.decode(bits[None])[0]
        array([[-1, -1,  7, 31, 80]])
    """
    if not (1 <= n_units <= MAX_UNITS and max_errors >= 1):
        raise DecoderError(
            f"a BCH code takes 1 to {MAX_UNITS} units and corrects at least 1 error; got "
            f"n_units={n_units} and max_errors={max_errors}. Restrict the units that are ablated."
        )
    for degree in range(max(3, (2 * max_errors + 1).bit_length()), max(_PRIMITIVE) + 1):
        generator = _generator(degree, max_errors)
        if 2**degree - generator.bit_length() >= n_units:
            return BchCode(n_units, max_errors, degree, generator)
    raise DecoderError(
        f"no BCH code of degree up to {max(_PRIMITIVE)} has {n_units} units and corrects "
        f"{max_errors} errors. Lower max_order, or restrict the units that are ablated."
    )


def _generator(degree: int, max_errors: int) -> int:
    """Return the product of the minimal polynomials of the first 2t powers of the generator."""
    field = _field(degree)
    exponents: set[int] = set()
    for power in range(1, 2 * max_errors, 2):
        exponents |= {power * 2**i % field.order for i in range(degree)}
    polynomial = np.array([1], dtype=np.int64)
    for exponent in sorted(exponents):  # times (x + root)
        shifted = np.concatenate([[0], polynomial])
        scaled = field.multiply(np.append(polynomial, 0), field.powers[exponent : exponent + 1])
        polynomial = shifted ^ scaled
    return int(sum(int(bit) << i for i, bit in enumerate(polynomial.tolist())))
