"""Any Python function of keep-masks, with labels for what it keeps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitspex._shared import check_masks
from circuitspex.errors import LensError, UnitError


class FunctionLens:
    """A function of keep-masks as a set function with labelled units."""

    def __init__(self, call: Callable[[Tensor], Any], units: tuple[str, ...]) -> None:
        """Wrap a function; :func:`function` checks what it is given first.

        Args:
            call: Maps keep-masks to one value each.
            units: One label per unit.
        """
        self._call = call
        self.units = units
        self.n_units = len(units)

    def __call__(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, " masks"]:
        """Return the function's values, in float64."""
        checked = check_masks(masks, self.n_units)
        return _as_floats(self._call(checked), (len(checked),), "the function")


class DifferentiableFunctionLens(FunctionLens):
    """A function of keep-masks together with its gradient."""

    def __init__(
        self, call: Callable[[Tensor], Any], units: tuple[str, ...], gradient: Callable[..., Any]
    ) -> None:
        """Wrap a function and its gradient.

        Args:
            call: Maps keep-masks to one value each.
            units: One label per unit.
            gradient: Maps keep-masks to the derivatives of each value.
        """
        super().__init__(call, units)
        self._gradient = gradient

    def value_and_gradient(
        self, masks: Bool[Tensor, "masks units"]
    ) -> tuple[Float[Tensor, " masks"], Float[Tensor, "masks units"]]:
        """Return the values and their derivatives by every unit's gate, in float64."""
        shape = (len(masks), self.n_units)
        return self(masks), _as_floats(self._gradient(masks), shape, "the gradient")


def function(
    call: Callable[[Tensor], Any],
    units: Sequence[str],
    gradient: Callable[[Tensor], Any] | None = None,
) -> FunctionLens:
    """Look at any Python function of keep-masks through named units.

    Args:
        call: Maps bool masks, shape ``(masks, units)``, True = kept, to one number per mask: a
            tensor, an array or a list.
        units: A label for each unit; results carry them.
        gradient: Maps the same masks to the derivatives of each value by every unit's gate, shape
            ``(masks, units)``. Decoders that need gradients run only where it is given.

    Returns:
        A set function that any decoder, verification and circuit search takes.

    Raises:
        LensError: If the function or its gradient cannot be called.
        UnitError: If there are no labels, or one occurs twice.

    Example:
        Do two features of a recommender back each other up?

        >>> from circuitspex import decoders
        >>> def score(kept):
        ...     age, income, history = kept.T
        ...     return 2.0 * age + 3.0 * (income | history)
        >>> lens = function(score, units=["age", "income", "history"])
        >>> found = decoders.get("exact").decode(lens, budget=8, seed=0)
        >>> pair = found.to("moebius", "intact").top(1, min_order=2)[0]
        >>> pair.units, round(pair.coefficient, 6)
        (('income', 'history'), -3.0)
    """
    for given, optional in ((call, False), (gradient, True)):
        if not (callable(given) or (optional and given is None)):
            raise LensError(
                "call and gradient must be functions of keep-masks; got "
                f"{type(given).__name__}. Pass the function itself, not its values."
            )
    labels = tuple(map(str, units))
    if isinstance(units, str) or not labels or len(set(labels)) < len(labels):
        raise UnitError(f"units must be a list of different labels, one per unit; got {units!r}.")
    if gradient is None:
        return FunctionLens(call, labels)
    return DifferentiableFunctionLens(call, labels, gradient)


def _as_floats(values: object, shape: tuple[int, ...], what: str) -> Tensor:
    try:
        floats = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LensError(
            f"{what} must return numbers of shape {shape}; got {type(values).__name__} ({error})."
        ) from error
    if floats.shape != shape:
        raise LensError(
            f"{what} must return numbers of shape {shape}; got shape {tuple(floats.shape)}. It is "
            "called with many masks at once, one per row."
        )
    return floats.detach()
