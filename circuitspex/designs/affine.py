r"""The affine design of SPEX: masks on which every interaction shows up in one bin of each group.

A group holds the masks that ablate :math:`M \bar\ell + d + s` (modulo 2), for all words
:math:`\ell` of b bits and all delays d. Over the words of one delay, the Fourier coefficients of
all T with the same :math:`j = M^T 1_T` alias into bin j; over the delays, which are the checks of a
BCH code, each T changes sign in a pattern of its own. M is random, so other terms share T's bin in
every group.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitspex.designs.bch import BchCode, bch_code
from circuitspex.errors import BudgetError

MIN_BITS = 2
"""Fewest bits of a group: with fewer bins, hardly any term has one for itself."""

MIN_GROUPS = 3
"""Groups below which bins are not doubled: terms that meet in one group must part in another."""


@dataclass(frozen=True)
class AffineGroup:
    """The masks of one subsampling matrix."""

    directions: Bool[np.ndarray, "units bits"]
    """M: which units each bit of a word ablates together."""

    shift: Bool[np.ndarray, " units"]
    """s: makes every mask of the group uniformly random."""

    @property
    def n_bits(self) -> int:
        """How many bits a word has; bins are 2 to this power."""
        return self.directions.shape[1]

    def bins(self, units: Int[np.ndarray, "terms order"]) -> Int[np.ndarray, " terms"]:
        """Return the bin of every set of units; a unit of -1 is padding."""
        words = self.directions.astype(np.int64) @ (1 << np.arange(self.n_bits))
        return np.bitwise_xor.reduce(np.append(words, 0)[units], axis=1)

    def half(self, upper: bool) -> "AffineGroup":
        """Return the group that the words with a set (``upper``) or clear last bit form."""
        shift = self.shift if upper else self.shift ^ self.directions[:, -1]
        return AffineGroup(self.directions[:, :-1], shift)


@dataclass(frozen=True)
class AffineDesign:
    """Groups of masks that share a code for their delays."""

    code: BchCode
    """Whose checks are the delays; before them comes a delay of zero."""

    groups: tuple[AffineGroup, ...]
    """The groups; they may differ in size."""

    def flips(self, units: Int[np.ndarray, "terms order"]) -> Bool[np.ndarray, "terms delays"]:
        """Return at which delays every set of units changes sign; a unit of -1 is padding."""
        checks = np.pad(self.code.checks, ((0, 1), (1, 0)))
        return np.bitwise_xor.reduce(checks[units], axis=1)

    @property
    def n_delays(self) -> int:
        """Masks per word of a group."""
        return self.code.n_checks + 1

    @property
    def n_masks(self) -> int:
        """Masks of all groups."""
        return sum(2**group.n_bits for group in self.groups) * self.n_delays

    def masks(self) -> Bool[Tensor, "masks units"]:
        """Return the masks, ordered by group, word and delay; True means kept."""
        delays = np.concatenate([np.zeros((1, self.code.n_units), dtype=bool), self.code.checks.T])
        parts = []
        for group in self.groups:
            absent = ~_words(group.n_bits)
            ablated = absent.astype(np.int64) @ group.directions.T.astype(np.int64) % 2 == 1
            ablated = (ablated ^ group.shift)[:, None] ^ delays
            parts.append(~ablated.reshape(-1, self.code.n_units))
        return torch.from_numpy(np.concatenate(parts))

    def cells(self) -> Int[np.ndarray, "masks 3"]:
        """Return group, word and delay of every mask."""
        parts = [
            np.stack(
                [
                    np.full(2**group.n_bits * self.n_delays, i),
                    np.repeat(np.arange(2**group.n_bits), self.n_delays),
                    np.tile(np.arange(self.n_delays), 2**group.n_bits),
                ],
                axis=1,
            )
            for i, group in enumerate(self.groups)
        ]
        return np.concatenate(parts)


def affine_design(
    n_units: int, n_masks: int, max_errors: int, rng: np.random.Generator
) -> AffineDesign:
    """Make the design that fits best into a number of masks.

    As many bins as three groups allow, then as many groups as fit: three to five. If not even
    three groups of four bins fit, the code corrects less, down to two errors.

    Args:
        n_units: How many units.
        n_masks: Most masks that may be used; the design seldom uses all.
        max_errors: t of the code: the highest order it tells, less what noise costs.
        rng: Draws the groups.

    Returns:
        The design.

    Raises:
        BudgetError: If the smallest design has more masks, or repeats most of the masks there are.

    References:
        Kang et al. (2025), "SPEX: Scaling feature interaction explanations for LLMs",
        arXiv:2502.13870; Li et al. (2015), "SPRIGHT: A fast and robust framework for sparse
        Walsh-Hadamard transform", arXiv:1508.06336, for shared delays and random matrices.
    """
    size = affine_size(n_units, n_masks, max_errors)
    if size is None:
        least = MIN_GROUPS * 2**MIN_BITS * (bch_code(n_units, min(2, max_errors)).n_checks + 1)
        raise BudgetError(
            f"coded masks for {n_units} units need a budget of at least {least} masks, and at most "
            f"a quarter of all masks there are; got {n_masks}. Raise the budget, or use a decoder "
            "with random masks such as 'lasso' or 'proxyspex'."
        )
    errors, n_bits, n_groups = size
    groups = tuple(
        AffineGroup(_full_rank(n_units, n_bits, rng), rng.random(n_units) < 0.5)
        for _ in range(n_groups)
    )
    return AffineDesign(bch_code(n_units, errors), groups)


def affine_size(n_units: int, n_masks: int, max_errors: int) -> tuple[int, int, int] | None:
    """Return errors corrected, bits and groups of the design that fits best, None if none does.

    Args:
        n_units: How many units.
        n_masks: Most masks that may be used.
        max_errors: Most errors to correct.

    Returns:
        The three numbers.
    """
    if n_units < 60:
        n_masks = min(n_masks, 2**n_units // 4)
    for errors in range(max_errors, min(2, max_errors) - 1, -1):
        words = n_masks // (bch_code(n_units, errors).n_checks + 1)
        n_bits = (words // MIN_GROUPS).bit_length() - 1
        if n_bits >= MIN_BITS:
            return errors, n_bits, words >> n_bits
    return None


def _words(n_bits: int) -> Bool[np.ndarray, "words bits"]:
    return (np.arange(2**n_bits)[:, None] >> np.arange(n_bits) & 1).astype(bool)


def _full_rank(n_units: int, n_bits: int, rng: np.random.Generator) -> Bool[np.ndarray, "u b"]:
    """Return a random matrix whose columns are independent modulo 2: no mask comes twice."""
    while True:
        matrix = rng.random((n_units, n_bits)) < 0.5
        if _rank(matrix) == n_bits:
            return matrix


def _rank(matrix: Bool[np.ndarray, "rows columns"]) -> int:
    """Return the rank modulo 2."""
    columns = [int.from_bytes(np.packbits(column).tobytes()) for column in matrix.T]
    pivots: list[int] = []
    for column in columns:
        for pivot in pivots:
            column = min(column, column ^ pivot)
        if column:
            pivots = [min(pivot, pivot ^ column) for pivot in pivots]
            pivots.append(column)
    return len(pivots)
