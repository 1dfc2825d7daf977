"""The exhaustive design: every mask there is."""

from jaxtyping import Bool
from torch import Tensor

from circuitspex.algebra import enumerate_masks
from circuitspex.errors import BudgetError


def exhaustive_masks(
    n_units: int, *, budget: int, evaluations_per_mask: int = 1
) -> Bool[Tensor, "masks units"]:
    """Return all ``2**n_units`` masks, if the budget covers them.

    Args:
        n_units: How many units; at most 24.
        budget: Evaluations that may be spent.
        evaluations_per_mask: What one mask costs: the number of prompts, or 1.

    Returns:
        Masks, shape ``(2**n_units, n_units)``, unit i kept where bit i of the row is set.

    Raises:
        BudgetError: If the budget does not cover all masks.
    """
    needed = 2**n_units * evaluations_per_mask
    if budget < needed:
        raise BudgetError(
            f"all masks of {n_units} units on {evaluations_per_mask} prompt(s) each cost {needed} "
            f"evaluations; the budget is {budget}. Raise it to {needed}, restrict the units, or "
            "use a sparse decoder such as 'proxyspex'."
        )
    return enumerate_masks(n_units)
