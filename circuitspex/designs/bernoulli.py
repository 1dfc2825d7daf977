"""The Bernoulli design: every unit kept independently with the same probability.

Under this law the Fourier characters of the keep rate are orthonormal, so a coefficient is a
plain average and the columns of a regression are nearly uncorrelated.
"""

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitspex.algebra import enumerate_masks, row_keys
from circuitspex.errors import DecoderError

_ENUMERABLE = 16  # up to here a short list of masks is completed from the full table
_ROUNDS = 20  # of redrawing duplicates, where the table is too long to enumerate


def bernoulli_masks(
    n_masks: int,
    n_units: int,
    keep_rate: float,
    rng: np.random.Generator,
    *,
    complementary: bool = False,
) -> Bool[Tensor, "masks units"]:
    """Draw masks that keep each unit with probability ``keep_rate``, distinct where possible.

    Duplicates are redrawn. With 16 units or fewer, what is still missing then is drawn without
    replacement from the full table, so all rows are distinct unless ``n_masks > 2**n_units``; with
    more units a bounded number of rounds is tried, which fails only at keep rates so extreme that
    few masks have any probability. What no distinct mask was found for repeats earlier ones.

    Where likely masks would often repeat (few units, or a keep rate near 0 or 1), distinct rows
    are spread more evenly than independent ones: a repeated mask would tell nothing new.

    Args:
        n_masks: How many masks.
        n_units: How many units.
        keep_rate: Probability of keeping a unit, strictly between 0 and 1.
        rng: Source of every draw.
        complementary: Draw rows 2i and 2i+1 as an antithetic pair: from uniform numbers u the
            first keeps where ``u < keep_rate``, the second where ``1 - u < keep_rate``. At
            ``keep_rate=0.5`` the two are complements, which separates odd from even orders
            exactly; at other rates they have the same marginals and are spread more evenly.

    Returns:
        Masks, shape ``(n_masks, n_units)``; True means kept.

    Raises:
        DecoderError: If ``n_masks`` or ``n_units`` is below 1 or the keep rate is not in (0, 1).

    Example:
        >>> bernoulli_masks(2, 3, 0.5, np.random.default_rng(0), complementary=True).sum().item()
        3
    """
    if n_masks < 1 or n_units < 1 or not 0 < keep_rate < 1:
        raise DecoderError(
            "a Bernoulli design needs n_masks >= 1, n_units >= 1 and 0 < keep_rate < 1; "
            f"got n_masks={n_masks}, n_units={n_units}, keep_rate={keep_rate}."
        )
    masks = _draw(n_masks, n_units, keep_rate, rng, complementary)
    for _ in range(_ROUNDS):
        kept = _first_occurrences(masks)
        if len(kept) == n_masks or n_units <= _ENUMERABLE:
            break
        fresh = _draw(n_masks - len(kept), n_units, keep_rate, rng, complementary)
        masks = np.concatenate([masks[kept], fresh])
    kept = _first_occurrences(masks)
    masks = masks[np.concatenate([kept, np.setdiff1d(np.arange(n_masks), kept)])]
    if len(kept) < n_masks and n_units <= _ENUMERABLE:
        rest = _unseen(masks[: len(kept)], n_masks - len(kept), keep_rate, rng)
        masks[len(kept) : len(kept) + len(rest)] = rest
    return torch.from_numpy(masks)


def _draw(
    n_masks: int, n_units: int, keep_rate: float, rng: np.random.Generator, complementary: bool
) -> Bool[np.ndarray, "masks units"]:
    """Return masks drawn without looking at duplicates."""
    if not complementary:
        return rng.random((n_masks, n_units), dtype=np.float32) < keep_rate
    uniform = rng.random((-(-n_masks // 2), n_units))
    pairs = np.stack([uniform < keep_rate, uniform >= 1 - keep_rate], axis=1)
    return pairs.reshape(-1, n_units)[:n_masks]


def _first_occurrences(masks: Bool[np.ndarray, "masks units"]) -> Int[np.ndarray, " kept"]:
    """Return the index of the first row of each kind, in order."""
    return np.sort(np.unique(row_keys(masks), return_index=True)[1])


def _unseen(
    seen: Bool[np.ndarray, "seen units"], n_masks: int, keep_rate: float, rng: np.random.Generator
) -> Bool[np.ndarray, "masks units"]:
    """Return unseen masks drawn without replacement, by probability (Gumbel's trick)."""
    table = enumerate_masks(seen.shape[1]).numpy()
    log_odds = np.log(keep_rate) - np.log1p(-keep_rate)
    scores = table.sum(axis=1) * log_odds + rng.gumbel(size=len(table))
    scores[seen @ (1 << np.arange(seen.shape[1]))] = -np.inf
    n_left = len(table) - len(seen)
    return table[np.argsort(-scores, kind="stable")[: min(n_masks, n_left)]]
