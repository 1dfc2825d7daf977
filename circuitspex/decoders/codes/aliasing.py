"""Subsampled Möbius transforms: which bin a set falls into, and least squares without a matrix.

A sample belongs to a group, an index ℓ and a delay d; a set T is in its mask if T's bin is within
ℓ and pool d misses T. So all inner products of two sets' columns are products of counts, one over
ℓ and one over d, and the normal equations of hundreds of sets on a million samples take no time.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from circuitspex._shared import Interaction
from circuitspex.algebra import inverse_moebius, moebius, row_keys, unpack
from circuitspex.designs import aliased_masks

_CHUNK = 2**26  # mask entries in memory at once, while duplicates are looked for


@dataclass(frozen=True)
class Aliasing:
    """The bits and pools of several subsampled Möbius transforms."""

    bits: Bool[np.ndarray, "groups bits units"]
    """Bits of every unit in each group."""

    pools: Bool[np.ndarray, "delays units"]
    """Pools ablated in each delay; the first is empty."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, bins and delays: the samples of the whole design."""
        return len(self.bits), 2 ** self.bits.shape[1], len(self.pools)

    @property
    def n_units(self) -> int:
        """How many units a mask covers."""
        return self.bits.shape[2]

    def masks(
        self,
    ) -> tuple[Bool[np.ndarray, "distinct units"], Int[np.ndarray, "groups bins delays"]]:
        """Return the distinct masks of all samples, and which of them each sample has."""
        parts = []
        for bits in self.bits:
            kept = aliased_masks(bits)
            step = max(1, _CHUNK // self.pools.size)
            for start in range(0, len(kept), step):
                both = kept[start : start + step, None] & ~self.pools
                parts.append(row_keys(both.reshape(-1, self.n_units)))
        keys, which = np.unique(np.concatenate(parts), return_inverse=True)
        distinct = unpack(keys.view(np.uint8).reshape(len(keys), -1), self.n_units).numpy()
        return distinct, which.reshape(self.shape)

    def places(self, sets: Bool[np.ndarray, "sets units"]) -> Int[np.ndarray, "groups sets"]:
        """Return the bin of every set in each group: the OR of its units' bits."""
        weights = 1 << np.arange(self.bits.shape[1])
        hit = sets.astype(np.float32) @ self.bits.astype(np.float32).transpose(0, 2, 1) > 0
        return hit @ weights

    def missed(self, sets: Bool[np.ndarray, "sets units"]) -> Bool[np.ndarray, "sets delays"]:
        """Return which pools miss which sets."""
        return sets.astype(np.float32) @ self.pools.T.astype(np.float32) == 0

    def analyse(
        self, values: Float[np.ndarray, "groups bins delays"]
    ) -> Float[np.ndarray, "groups bins delays"]:
        """Return what every bin holds: the Möbius transform over the index of the samples."""
        return np.stack([moebius(torch.from_numpy(group)).numpy() for group in values])

    def synthesise(
        self, bins: Float[np.ndarray, "groups bins delays"]
    ) -> Float[np.ndarray, "groups bins delays"]:
        """Return the samples of given bins: the inverse of :meth:`analyse`."""
        return np.stack([inverse_moebius(torch.from_numpy(group)).numpy() for group in bins])

    def subtract(
        self,
        bins: Float[np.ndarray, "groups bins delays"],
        sets: Bool[np.ndarray, "sets units"],
        coefficients: Float[np.ndarray, " sets"],
    ) -> None:
        """Take sets out of the bins, in place."""
        held = coefficients[:, None] * self.missed(sets)
        for group, places in zip(bins, self.places(sets), strict=True):
            np.subtract.at(group, places, held)

    def gram(self, sets: Bool[np.ndarray, "sets units"]) -> Float[np.ndarray, "sets sets"]:
        """Return the inner products of the sets' columns over all samples."""
        n_bits = self.bits.shape[1]
        missed = self.missed(sets).astype(np.float64)
        shared = np.zeros((len(sets), len(sets)))
        for places in self.places(sets):
            union = places[:, None] | places
            shared += 2.0 ** (n_bits - _popcount(union, n_bits))
        return shared * (missed @ missed.T)

    def project(
        self,
        values: Float[np.ndarray, "groups bins delays"],
        sets: Bool[np.ndarray, "sets units"],
    ) -> Float[np.ndarray, " sets"]:
        """Return the inner products of the sets' columns with values of all samples."""
        total = np.zeros((len(sets), len(self.pools)))
        for group, places in zip(superset_sums(values), self.places(sets), strict=True):
            total += group[places]
        return np.einsum("sd,sd->s", total, self.missed(sets))


def superset_sums(
    values: Float[np.ndarray, "groups bins delays"],
) -> Float[np.ndarray, "groups bins delays"]:
    """Return for every index the sum of the values at all indices that contain it."""
    sums = values.copy()
    for bit in range(values.shape[1].bit_length() - 1):
        pairs = sums.reshape(len(values), -1, 2, 2**bit, values.shape[2])
        pairs[:, :, 0] += pairs[:, :, 1]
    return sums


def bit_counts(n_bits: int) -> Int[np.ndarray, " bins"]:
    """Return how many bits each bin has."""
    return _popcount(np.arange(2**n_bits), n_bits)


def as_terms(sets: Bool[np.ndarray, "sets units"]) -> list[Interaction]:
    """Return rows of booleans as terms."""
    return [tuple(np.flatnonzero(row).tolist()) for row in sets]


def _popcount(numbers: np.ndarray, n_bits: int) -> np.ndarray:
    return sum((numbers >> bit & 1 for bit in range(n_bits)), np.zeros_like(numbers))
