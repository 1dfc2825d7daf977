"""A task's average game: the mean of one game per prompt, which can be read prompt by prompt."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex.algebra import Coordinates, Interactions
from circuitspex.games.game import Game, check_n_units
from circuitspex.games.sparse import characters, slopes, sparse_truth


@dataclass
class PromptsGame(Game):
    """Six single units and four pairs with coefficients of their own on every prompt.

    Counts its evaluations as a decoder should: masks times prompts, a gradient three times.
    """

    n_units: int
    """How many units a mask covers."""
    n_prompts: int = 16
    """How many prompts there are."""
    seed: int = 0
    """Of the draw of the game."""
    spread: float = 1.0
    """Standard deviation of a coefficient over prompts."""
    keep_rate: float = 0.5
    """Rate at which the game is sparse in the Fourier basis."""
    n_evaluations: int = field(default=0, init=False)
    """How many were asked for."""

    def __post_init__(self) -> None:
        """Draw the average game and every prompt's departure from it."""
        check_n_units(self.n_units, 6)
        self.coordinates = Coordinates("fourier", None, self.keep_rate).check()
        rng = np.random.default_rng(self.seed)
        singles = [(int(unit),) for unit in rng.choice(self.n_units, 6, replace=False)]
        pairs = [tuple(sorted(map(int, rng.choice(self.n_units, 2, False)))) for _ in range(4)]
        self.support = list(dict.fromkeys([(), *singles, *pairs]))
        average = rng.uniform(0.5, 1.0, len(self.support)) * rng.choice([-1, 1], len(self.support))
        departures = rng.normal(0.0, self.spread, (self.n_prompts, len(self.support)))
        self.coefficients = average + departures - departures.mean(axis=0)

    def truth(self, masks: Bool[Tensor, "masks units"]) -> Float[np.ndarray, " masks"]:
        """Return the values of the average game."""
        return self._values(masks).mean(axis=1)

    def _values(self, masks: Bool[Tensor, "masks units"]) -> Float[np.ndarray, "masks prompts"]:
        return characters(masks.numpy(), self.support, self.keep_rate) @ self.coefficients.T

    def __call__(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, " masks"]:
        """Return the mean over all prompts."""
        return self.per_prompt(masks).mean(dim=1)

    def per_prompt(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, "masks prompts"]:
        """Return every prompt's values."""
        self.n_evaluations += len(masks) * self.n_prompts
        return torch.from_numpy(self._values(masks))

    def sample(
        self, masks: Bool[Tensor, "masks units"], prompts_per_mask: int, rng: np.random.Generator
    ) -> tuple[Float[Tensor, "masks drawn"], Int[Tensor, "masks drawn"]]:
        """Evaluate each mask on a few prompts, dealt like cards so that prompts are balanced.

        Args:
            masks: Keep-masks.
            prompts_per_mask: How many different prompts each is evaluated on.
            rng: Of every draw.

        Returns:
            The values and, for each, the index of its prompt.
        """
        n_decks = -(-len(masks) * prompts_per_mask // self.n_prompts)
        scores = rng.random((len(masks), self.n_prompts))
        prompts = np.argsort(scores, axis=1)[:, :prompts_per_mask]
        if prompts_per_mask == 1:
            decks = [rng.permutation(self.n_prompts) for _ in range(n_decks)]
            prompts = np.concatenate(decks)[: len(masks), None]
        self.n_evaluations += prompts.size
        values = np.take_along_axis(self._values(masks), prompts, axis=1)
        return torch.from_numpy(values), torch.from_numpy(prompts)

    def value_and_gradient(
        self, masks: Bool[Tensor, "masks units"]
    ) -> tuple[Float[Tensor, " masks"], Float[Tensor, "masks units"]]:
        """Return the mean over all prompts and its derivatives; each row counts three times."""
        average = self.coefficients.mean(axis=0)
        gradient = slopes(masks.numpy(), self.support, average, self.coordinates)
        self.n_evaluations += 2 * len(masks) * self.n_prompts
        return self(masks), torch.from_numpy(gradient)

    def sample_gradients(
        self, masks: Bool[Tensor, "masks units"], prompts_per_mask: int, rng: np.random.Generator
    ) -> tuple[
        Float[Tensor, "masks drawn"], Float[Tensor, "masks drawn units"], Int[Tensor, "masks drawn"]
    ]:
        """Evaluate each mask with its gradient on a few prompts.

        Args:
            masks: Keep-masks.
            prompts_per_mask: How many different prompts each is evaluated on.
            rng: Of every draw.

        Returns:
            The values, the gradients and, for each, the index of its prompt.
        """
        values, prompts = self.sample(masks, prompts_per_mask, rng)
        self.n_evaluations += 2 * prompts.numel()
        each = [slopes(masks.numpy(), self.support, c, self.coordinates) for c in self.coefficients]
        rows = torch.arange(len(masks))[:, None]
        return values, torch.from_numpy(np.stack(each, axis=1))[rows, prompts], prompts

    def interactions(self) -> Interactions:
        """Return the terms with their mean coefficients, and every prompt's own."""
        each = torch.from_numpy(self.coefficients.T.copy())
        average = self.coefficients.mean(axis=0)
        return sparse_truth(self.n_units, self.support, average, self.coordinates, each)
