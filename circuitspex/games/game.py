"""What every planted game offers: values, the truth behind them, and the truth's coefficients."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from circuitspex.algebra import Interactions, enumerate_masks, fourier
from circuitspex.errors import GameError

MAX_DENSE_UNITS = 16
"""Most units of a game whose coefficients are taken from the table of all its values."""


def check_n_units(n_units: int, least: int) -> None:
    """Refuse to make a game of fewer units than its parts need.

    Args:
        n_units: How many units the game was asked to have.
        least: How many it needs.

    Raises:
        GameError: If there are too few.
    """
    if n_units < least:
        raise GameError(f"this game needs at least {least} units; got n_units={n_units}.")


class Game(ABC):
    """A set function whose truth is known.

    A game of one's own needs ``n_units`` and :meth:`truth`. Games with noise override the call;
    games whose coefficients are known in closed form override :meth:`interactions`.

    Example:
        >>> class Majority(Game):
        ...     n_units = 3
        ...
        ...     def truth(self, masks):
        ...         return (masks.sum(dim=1) > 1).double().numpy()
        >>> Majority().interactions().to("moebius", "ablated").top(1)[0].units
        ('0', '1', '2')
    """

    n_units: int
    """How many units a mask covers."""

    @abstractmethod
    def truth(self, masks: Bool[Tensor, "masks units"]) -> Float[np.ndarray, " masks"]:
        """Return the value of every mask without noise, in float64."""

    def __call__(self, masks: Shaped[Tensor, "masks units"]) -> Float[Tensor, " masks"]:
        """Return what a decoder sees: the truth, unless the game is noisy."""
        return torch.from_numpy(self.truth(masks))

    def interactions(self) -> Interactions:
        """Write the truth as coefficients, exactly.

        Returns:
            The true coefficients in the basis in which the game is made; without one, in the
            Fourier basis at keep rate ½, from the table of all values.
            :meth:`~circuitspex.Interactions.to` writes them in any other.

        Raises:
            GameError: If the game has neither closed form nor few enough units for a table.
        """
        if self.n_units > MAX_DENSE_UNITS:
            raise GameError(
                f"the coefficients of {type(self).__name__} have no closed form, and a table of "
                f"all masks is made of at most {MAX_DENSE_UNITS} units; got {self.n_units}. Use "
                "fewer units, or compare predictions with truth(masks)."
            )
        masks = enumerate_masks(self.n_units)
        return Interactions(
            n_units=self.n_units,
            units=tuple(map(str, range(self.n_units))),
            basis="fourier",
            origin=None,
            keep_rate=0.5,
            support=tuple(tuple(mask.nonzero().flatten().tolist()) for mask in masks),
            coefficients=fourier(torch.from_numpy(self.truth(masks)), 0.5),
        )
