"""Checks of what comes in from outside, shared by the halves of the package."""

from collections.abc import Iterable
from difflib import get_close_matches

import torch
from torch import Tensor

from circuitspex.errors import MaskError


def check_masks(masks: object, n_units: int) -> Tensor:
    """Return the masks unchanged if they are keep-masks over ``n_units`` units.

    Args:
        masks: What a caller passed; must be a bool tensor of shape ``(masks, n_units)``.
        n_units: How many units a mask must cover.

    Returns:
        The same tensor.

    Raises:
        MaskError: If it is not a two-dimensional bool tensor with one column per unit.
    """
    if not isinstance(masks, Tensor):
        raise MaskError(
            f"masks must be a torch bool tensor of shape (masks, {n_units}), True = kept; "
            f"got {type(masks).__name__}. Convert it with torch.as_tensor(masks, dtype=torch.bool)."
        )
    if masks.dtype != torch.bool:
        raise MaskError(
            f"masks must be bool, True = kept; got dtype {masks.dtype}. "
            "Write the comparison that makes it so, such as masks > 0.5."
        )
    if masks.ndim != 2 or masks.shape[1] != n_units:
        raise MaskError(
            f"masks must have shape (masks, {n_units}), one column per unit; "
            f"got {tuple(masks.shape)}. A single mask needs mask[None, :]."
        )
    return masks


def check_gates(gates: object, n_units: int) -> Tensor:
    """Return the gates unchanged if they are keep-masks, or numbers between 0 and 1, over units.

    Args:
        gates: What a caller passed; a bool or floating-point tensor of shape ``(masks, n_units)``.
        n_units: How many units must be covered.

    Returns:
        The same tensor.

    Raises:
        MaskError: If it has another type or shape, or a number that is not in 0..1.
    """
    if not isinstance(gates, Tensor) or gates.dtype == torch.bool:
        return check_masks(gates, n_units)
    if not gates.is_floating_point():
        raise MaskError(
            "gates must be bool, True = kept, or floating-point numbers between 0, ablated, and "
            f"1, kept; got dtype {gates.dtype}. Convert them with gates.bool() or gates.float()."
        )
    check_masks(gates.bool(), n_units)
    outside = (~((gates >= 0) & (gates <= 1))).nonzero()  # a NaN is not between either
    if len(outside):
        row, unit = outside[0].tolist()
        raise MaskError(
            f"gates must lie between 0, ablated, and 1, kept; {len(outside)} of {gates.numel()} "
            f"do not: the first is {gates[row, unit].item():.3g}, of unit {unit} in row {row}."
        )
    return gates


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a clause with the known name nearest to a misspelt one, or no text.

    Example:
        >>> did_you_mean("bugdet", ["budget", "seed"])
        "; did you mean 'budget'?"
    """
    matches = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
