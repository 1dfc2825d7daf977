"""A set function of some of the units, all others being kept."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitspex._shared import SetFunction
from circuitspex.errors import DecoderError

_ANSWERS = ("per_prompt", "sample")
_GRADIENTS = ("value_and_gradient", "sample_gradients")  # second in their answers, units last


class Restricted:
    """A set function whose masks cover some units of another one, and offer what that one does."""

    def __init__(self, whole: SetFunction, chosen: tuple[int, ...], labels: Sequence[str]) -> None:
        """Take over what the set function of all units can be asked.

        Args:
            whole: The set function of all units.
            chosen: Indices of the units that masks shall cover, ascending.
            labels: Labels of all units.
        """
        self.whole, self.chosen, self.n_units = whole, list(chosen), len(chosen)
        self.units = tuple(labels[unit] for unit in chosen)
        if hasattr(whole, "n_prompts"):
            self.n_prompts: int = whole.n_prompts  # pyright: ignore[reportAttributeAccessIssue]
        for name in (*_ANSWERS, *_GRADIENTS):
            if hasattr(whole, name):
                setattr(self, name, partial(self._ask, getattr(whole, name), name in _GRADIENTS))

    def __call__(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, " masks"]:
        """Return the value of every mask, all other units being kept."""
        return self.whole(self._widen(masks))

    def _ask(self, method: Callable, with_gradients: bool, masks: Tensor, *more: Any) -> Any:
        answer = method(self._widen(masks), *more)
        if not with_gradients:
            return answer
        values, gradients, *prompts = answer
        return values, gradients[..., self.chosen], *prompts

    def _widen(self, masks: Tensor) -> Tensor:
        """Return masks, or gates between 0 and 1, over all units."""
        wide = torch.ones(len(masks), self.whole.n_units, dtype=masks.dtype)
        wide[:, self.chosen] = masks
        return wide


def find_units(named: Sequence[int | str], labels: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of units given by index or label, ascending.

    Args:
        named: Indices or labels.
        labels: Labels of all units.

    Returns:
        The indices.

    Raises:
        DecoderError: If one does not exist or comes twice, or there is none.
    """
    where = {label: index for index, label in enumerate(labels)}
    found = []
    for name in named:
        index = where.get(name) if isinstance(name, str) else int(name)
        if index is None or not 0 <= index < len(labels):
            raise DecoderError(
                f"among names {name!r}, which is not a unit. Give labels such as {labels[0]!r}, or "
                f"indices from 0 to {len(labels) - 1}."
            )
        found.append(index)
    if len(set(found)) < max(1, len(found)):
        raise DecoderError(f"among must name at least one unit, each once; got {tuple(named)}.")
    return tuple(sorted(found))
