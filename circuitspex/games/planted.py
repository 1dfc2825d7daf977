"""Planted games with known truth: what decoders are tested and measured on.

Each game is a set function with ``n_units``; ``truth`` is what it would return without noise.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from circuitspex._shared import Interaction


def characters(masks: np.ndarray, support: Sequence[Interaction], keep_rate: float) -> np.ndarray:
    """Return the Fourier characters of every term, one column each, written out term by term."""
    sd = np.sqrt(keep_rate * (1 - keep_rate))
    columns = [((masks[:, list(term)] - keep_rate) / sd).prod(axis=1) for term in support]
    return np.stack(columns, axis=1)


def slopes(
    masks: np.ndarray, support: Sequence[Interaction], coefficients: np.ndarray, keep_rate: float
) -> np.ndarray:
    """Return the derivative of a sum of characters by every unit's gate, term by term."""
    sd = np.sqrt(keep_rate * (1 - keep_rate))
    gradient = np.zeros(masks.shape)
    for term, coefficient in zip(support, coefficients, strict=True):
        for unit in term:
            others = tuple(other for other in term if other != unit)
            gradient[:, unit] += coefficient / sd * characters(masks, [others], keep_rate)[:, 0]
    return gradient


@dataclass
class SparseGame:
    """A sum of a few Fourier characters of the keep rate."""

    n_units: int
    support: list[Interaction]
    coefficients: np.ndarray
    keep_rate: float = 0.5

    def truth(self, masks: Tensor) -> np.ndarray:
        """Return the values, in float64."""
        return characters(masks.numpy(), self.support, self.keep_rate) @ self.coefficients

    def __call__(self, masks: Tensor) -> Tensor:
        """Return the values as a tensor."""
        return torch.from_numpy(self.truth(masks))

    def value_and_gradient(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values and their derivatives by every gate."""
        gradient = slopes(masks.numpy(), self.support, self.coefficients, self.keep_rate)
        return self(masks), torch.from_numpy(gradient)


@dataclass
class HeadsGame:
    """Accuracy on 120 questions: logistic in a sparse linear part, ORs and ANDs of units.

    The shape of an attention-head game: pairs that back each other up, pairs and triples that need
    each other, a bounded value, and binomial noise from counting questions.
    """

    n_units: int
    seed: int = 0
    n_questions: int = 120
    noise: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        """Draw the game."""
        rng = np.random.default_rng(self.seed)
        self.noise = np.random.default_rng([self.seed, 1])
        self.weights = np.zeros(self.n_units)
        n_linear = max(2, self.n_units // 4)
        chosen = rng.choice(self.n_units, n_linear, replace=False)
        self.weights[chosen] = rng.normal(0.0, 0.4, n_linear)
        draw = lambda size: rng.choice(self.n_units, min(size, self.n_units), replace=False)  # noqa: E731
        self.ors = [(draw(2), rng.uniform(0.5, 1.5)) for _ in range(6)]
        self.ands = [(draw(2), rng.uniform(0.5, 1.5)) for _ in range(6)]
        self.ands += [(draw(3), rng.uniform(0.5, 2.0)) for _ in range(3)]
        self.offset = -(
            self.weights.sum() / 2
            + sum(weight * 0.75 for _, weight in self.ors)
            + sum(weight * 0.5 ** len(units) for units, weight in self.ands)
        )

    def truth(self, masks: Tensor) -> np.ndarray:
        """Return the accuracy expected under every mask."""
        kept = masks.numpy()
        logit = self.offset + kept @ self.weights
        for units, weight in self.ors:
            logit = logit + weight * kept[:, units].any(axis=1)
        for units, weight in self.ands:
            logit = logit + weight * kept[:, units].all(axis=1)
        return 1 / (1 + np.exp(-logit))

    def __call__(self, masks: Tensor) -> Tensor:
        """Return the share of questions answered correctly."""
        share = self.noise.binomial(self.n_questions, self.truth(masks)) / self.n_questions
        return torch.from_numpy(share)


@dataclass
class PromptsGame:
    """The mean of one sparse game per prompt; ``spread`` is how much prompts differ."""

    n_units: int
    n_prompts: int
    seed: int = 0
    spread: float = 1.0
    keep_rate: float = 0.5

    def __post_init__(self) -> None:
        """Draw the average game and every prompt's departure from it."""
        rng = np.random.default_rng(self.seed)
        singles = [(int(unit),) for unit in rng.choice(self.n_units, 6, replace=False)]
        pairs = [tuple(sorted(map(int, rng.choice(self.n_units, 2, False)))) for _ in range(4)]
        self.support = list(dict.fromkeys([(), *singles, *pairs]))
        average = rng.uniform(0.5, 1.0, len(self.support)) * rng.choice([-1, 1], len(self.support))
        departures = rng.normal(0.0, self.spread, (self.n_prompts, len(self.support)))
        self.coefficients = average + departures - departures.mean(axis=0)
        self.n_evaluations = 0

    def truth(self, masks: Tensor) -> np.ndarray:
        """Return the values of the average game."""
        return self._values(masks).mean(axis=1)

    def _values(self, masks: Tensor) -> np.ndarray:
        return characters(masks.numpy(), self.support, self.keep_rate) @ self.coefficients.T

    def __call__(self, masks: Tensor) -> Tensor:
        """Return the mean over all prompts."""
        return self.per_prompt(masks).mean(dim=1)

    def per_prompt(self, masks: Tensor) -> Tensor:
        """Return every prompt's values."""
        self.n_evaluations += len(masks) * self.n_prompts
        return torch.from_numpy(self._values(masks))

    def sample(
        self, masks: Tensor, prompts_per_mask: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return each mask on a few prompts, dealt like cards so that prompts are balanced."""
        n_decks = -(-len(masks) * prompts_per_mask // self.n_prompts)
        scores = rng.random((len(masks), self.n_prompts))
        prompts = np.argsort(scores, axis=1)[:, :prompts_per_mask]
        if prompts_per_mask == 1:
            decks = [rng.permutation(self.n_prompts) for _ in range(n_decks)]
            prompts = np.concatenate(decks)[: len(masks), None]
        self.n_evaluations += prompts.size
        values = np.take_along_axis(self._values(masks), prompts, axis=1)
        return torch.from_numpy(values), torch.from_numpy(prompts)

    def value_and_gradient(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean over all prompts and its derivatives; each row counts three times."""
        average = self.coefficients.mean(axis=0)
        gradient = slopes(masks.numpy(), self.support, average, self.keep_rate)
        self.n_evaluations += 2 * len(masks) * self.n_prompts
        return self(masks), torch.from_numpy(gradient)

    def sample_gradients(
        self, masks: Tensor, prompts_per_mask: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return each mask with its gradient on a few prompts."""
        values, prompts = self.sample(masks, prompts_per_mask, rng)
        self.n_evaluations += 2 * prompts.numel()
        each = [slopes(masks.numpy(), self.support, c, self.keep_rate) for c in self.coefficients]
        rows = torch.arange(len(masks))[:, None]
        return values, torch.from_numpy(np.stack(each, axis=1))[rows, prompts], prompts


def random_terms(
    n_units: int, n_terms: int, order: int, rng: np.random.Generator
) -> list[Interaction]:
    """Return distinct random terms of one order."""
    terms: dict[Interaction, None] = {}
    while len(terms) < n_terms:
        term = sorted(int(unit) for unit in rng.choice(n_units, order, replace=False))
        terms[tuple(term)] = None
    return list(terms)


def peak(n_units: int, seed: int = 0) -> SparseGame:
    """Return ten terms of order 5 and nothing below them (ProxySPEX, "Synthetic-Peak")."""
    rng = np.random.default_rng(seed)
    support = random_terms(n_units, 10, min(5, n_units), rng)
    return SparseGame(n_units, support, rng.uniform(-1, 1, len(support)))


def hierarchy(n_units: int, seed: int = 0) -> SparseGame:
    """Return ten terms of order 5 with all subsets (ProxySPEX, "Synthetic-Complete-Hierarchy")."""
    rng = np.random.default_rng(seed)
    terms: dict[Interaction, None] = {}
    for top in random_terms(n_units, 10, min(5, n_units), rng):
        for bits in range(2 ** len(top)):
            terms[tuple(unit for i, unit in enumerate(top) if bits >> i & 1)] = None
    return SparseGame(n_units, list(terms), rng.uniform(-1, 1, len(terms)))


def gates(n_units: int, seed: int = 0) -> SparseGame:
    """Return the sum of five ORs, ANDs and XORs each, of two to four units, weighted at random.

    Hierarchical terms (of ORs and ANDs) beside terms with nothing below them (of XORs).
    """
    rng = np.random.default_rng(seed)
    spectrum: dict[Interaction, float] = {(): 0.0}
    for gate in (np.any, np.all, lambda kept, axis: kept.sum(axis=axis) % 2 == 1):
        for _ in range(5):
            units = random_terms(n_units, 1, int(rng.integers(2, 5)), rng)[0]
            weight = rng.uniform(0.5, 1.5)
            kept = np.array(list(itertools.product([False, True], repeat=len(units))))
            subsets = [tuple(np.flatnonzero(row).tolist()) for row in kept]
            shares = characters(kept, subsets, 0.5).T @ gate(kept, axis=1) / len(kept)
            for subset, share in zip(subsets, shares, strict=True):
                term = tuple(units[i] for i in subset)
                spectrum[term] = spectrum.get(term, 0.0) + weight * share
    kept_terms = [term for term, value in spectrum.items() if abs(value) > 1e-12]
    return SparseGame(n_units, kept_terms, np.array([spectrum[term] for term in kept_terms]))


Game = SparseGame | HeadsGame
GAMES: dict[str, Callable[[int, int], Game]] = {
    "heads": HeadsGame,
    "sch": hierarchy,
    "peak": peak,
    "gates": gates,
}
