"""Games seen through noise."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitspex.algebra import Interactions
from circuitspex.games.game import Game


@dataclass
class NoisyGame(Game):
    """A game seen through normal noise, drawn anew at every evaluation.

    Example:
        >>> from circuitspex.games import and_gate
        >>> quiet = and_gate(5)
        >>> noisy = NoisyGame(quiet, 0.1, np.random.default_rng(0))
        >>> mask = torch.ones(1, 5, dtype=torch.bool)
        >>> bool(noisy(mask) == quiet(mask)), bool(noisy.truth(mask) == quiet.truth(mask))
        (False, True)
    """

    game: Game
    """What is behind the noise."""
    sd: float | Callable[[Bool[Tensor, "masks units"]], Float[np.ndarray, " masks"]]
    """The noise's standard deviation, or a function from masks to theirs."""
    rng: np.random.Generator
    """Where every call draws its noise from."""

    def __post_init__(self) -> None:
        """Take over the number of units."""
        self.n_units = self.game.n_units

    def truth(self, masks: Bool[Tensor, "masks units"]) -> Float[np.ndarray, " masks"]:
        """Return the values behind the noise."""
        return self.game.truth(masks)

    def __call__(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, " masks"]:
        """Return noisy values."""
        sd = self.sd(masks) if callable(self.sd) else self.sd
        return self.game(masks) + torch.from_numpy(self.rng.normal(0.0, sd, len(masks)))

    def interactions(self) -> Interactions:
        """Return the coefficients behind the noise."""
        return self.game.interactions()
