"""A game of the shape that attention heads have: bounded, noisy, of ORs and ANDs."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitspex.games.game import Game, check_n_units


@dataclass
class HeadsGame(Game):
    """Accuracy on 120 questions: logistic in a sparse linear part, ORs and ANDs of units.

    Pairs that back each other up, pairs and triples that need each other, a bounded value, and
    binomial noise from counting questions.
    """

    n_units: int
    """How many units a mask covers."""
    seed: int = 0
    """Of the draw of the game, and of its noise."""
    n_questions: int = 120
    """How many questions accuracy is counted on."""
    noise: np.random.Generator = field(init=False)
    """Where every call draws its noise from."""

    def __post_init__(self) -> None:
        """Draw the game."""
        check_n_units(self.n_units, 3)
        rng = np.random.default_rng(self.seed)
        self.noise = np.random.default_rng([self.seed, 1])
        self.weights = np.zeros(self.n_units)
        n_linear = max(2, self.n_units // 4)
        chosen = rng.choice(self.n_units, n_linear, replace=False)
        self.weights[chosen] = rng.normal(0.0, 0.4, n_linear)
        draw = lambda size: rng.choice(self.n_units, size, replace=False)  # noqa: E731
        self.ors = [(draw(2), rng.uniform(0.5, 1.5)) for _ in range(6)]
        self.ands = [(draw(2), rng.uniform(0.5, 1.5)) for _ in range(6)]
        self.ands += [(draw(3), rng.uniform(0.5, 2.0)) for _ in range(3)]
        self.offset = -(
            self.weights.sum() / 2
            + sum(weight * 0.75 for _, weight in self.ors)
            + sum(weight * 0.5 ** len(units) for units, weight in self.ands)
        )

    def truth(self, masks: Bool[Tensor, "masks units"]) -> Float[np.ndarray, " masks"]:
        """Return the accuracy expected under every mask."""
        kept = masks.numpy()
        logit = self.offset + kept @ self.weights
        for units, weight in self.ors:
            logit = logit + weight * kept[:, units].any(axis=1)
        for units, weight in self.ands:
            logit = logit + weight * kept[:, units].all(axis=1)
        return 1 / (1 + np.exp(-logit))

    def __call__(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, " masks"]:
        """Return the share of questions answered correctly."""
        share = self.noise.binomial(self.n_questions, self.truth(masks)) / self.n_questions
        return torch.from_numpy(share)
