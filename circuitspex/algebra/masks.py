"""Keep-masks: boolean tensors of shape ``(masks, units)`` in which True means kept.

The one polarity of the whole package. Where masks are enumerated, bit i of a mask's index is unit
i, so index 0 is the fully ablated model and the last index the intact one.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Bool, Shaped, UInt8
from torch import Tensor

from circuitspex.algebra.subsets import membership
from circuitspex.errors import MaskError


def all_kept(n_units: int) -> Bool[Tensor, "1 units"]:
    """Return the mask of the intact model, shape ``(1, n_units)``."""
    return torch.ones(1, n_units, dtype=torch.bool)


def all_ablated(n_units: int) -> Bool[Tensor, "1 units"]:
    """Return the mask of the fully ablated model, shape ``(1, n_units)``."""
    return torch.zeros(1, n_units, dtype=torch.bool)


def keep_only(sets: Iterable[Iterable[int]], n_units: int) -> Bool[Tensor, "masks units"]:
    """Make one mask per set that keeps exactly the units of the set.

    Args:
        sets: Unit indices to keep, one collection per mask.
        n_units: How many units a mask covers.

    Returns:
        Masks, shape ``(len(sets), n_units)``.

    Raises:
        MaskError: If an index is outside ``range(n_units)``.

    Example:
        >>> keep_only([[0, 2]], 3)
        tensor([[ True, False,  True]])
    """
    rows = [sorted(set(indices)) for indices in sets]
    for indices in rows:
        if indices and not 0 <= indices[0] <= indices[-1] < n_units:
            raise MaskError(f"unit indices must lie in 0..{n_units - 1}; got {indices}.")
    return torch.from_numpy(membership(rows, n_units))


def ablate_only(sets: Iterable[Iterable[int]], n_units: int) -> Bool[Tensor, "masks units"]:
    """Make one mask per set that ablates exactly the units of the set.

    Args:
        sets: Unit indices to ablate, one collection per mask.
        n_units: How many units a mask covers.

    Returns:
        Masks, shape ``(len(sets), n_units)``.
    """
    return ~keep_only(sets, n_units)


def enumerate_masks(n_units: int) -> Bool[Tensor, "masks units"]:
    """Return all ``2**n_units`` masks, unit i kept where bit i of the row's index is set.

    Args:
        n_units: How many units; at most 24, where the table takes 400 MB.

    Returns:
        Masks, shape ``(2**n_units, n_units)``.

    Raises:
        MaskError: If there are more than 24 units.
    """
    if n_units > 24:
        raise MaskError(
            f"all masks of {n_units} units would be 2**{n_units} rows; at most 24 units can be "
            "enumerated. Use a sparse decoder, or restrict the units."
        )
    indices = torch.arange(2**n_units)[:, None]
    return (indices >> torch.arange(n_units)[None, :]) & 1 == 1


def pack(masks: Bool[Tensor, "masks units"]) -> UInt8[np.ndarray, "masks bytes"]:
    """Pack masks to bits, eight units a byte, first unit in the highest bit.

    Args:
        masks: Keep-masks.

    Returns:
        Bytes, shape ``(masks, ceil(units / 8))``.
    """
    return np.packbits(masks.cpu().numpy(), axis=1)


def unpack(packed: UInt8[np.ndarray, "masks bytes"], n_units: int) -> Bool[Tensor, "masks units"]:
    """Undo :func:`pack`.

    Args:
        packed: Bytes as :func:`pack` made them.
        n_units: How many units each mask covers.

    Returns:
        Keep-masks, shape ``(masks, n_units)``.

    Raises:
        MaskError: If a row has not just as many bytes as ``n_units`` need.
    """
    if packed.shape[1] != -(-n_units // 8):
        raise MaskError(
            f"{n_units} units pack into {-(-n_units // 8)} bytes; got {packed.shape[1]}."
        )
    return torch.from_numpy(np.unpackbits(packed, axis=1, count=n_units).astype(bool))


def row_keys(masks: Bool[np.ndarray, "masks units"]) -> Shaped[np.ndarray, " masks"]:
    """Return one entry per mask that is equal, and sorts, as the packed mask."""
    packed = np.ascontiguousarray(np.packbits(masks, axis=1))
    return packed.view(np.dtype((np.void, packed.shape[1]))).reshape(-1)


def digest(masks: Bool[Tensor, "masks units"]) -> list[bytes]:
    """Return a 16-byte BLAKE2b digest of every packed mask, the same on every machine.

    Args:
        masks: Keep-masks.

    Returns:
        One digest per mask.
    """
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in pack(masks)]
