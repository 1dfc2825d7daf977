"""Three first guesses at a set function that gradients make: the prior means of the process."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float

from circuitspex._shared import Interaction
from circuitspex.algebra import Coordinates, convert, evaluate
from circuitspex.decoders.around_intact import Neighbourhood
from circuitspex.decoders.process.process import characters_of_units, inverse_of
from circuitspex.decoders.regression import characters

_RIDGES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Mean(ABC):
    """A guess at the variation of the average game, without its constant."""

    name: ClassVar[str]

    @abstractmethod
    def predict(self, masks: Bool[np.ndarray, "rows units"]) -> Float[np.ndarray, " rows"]:
        """Return the guess for every mask."""

    @abstractmethod
    def coefficients(self, terms: Sequence[Interaction]) -> Float[np.ndarray, " terms"]:
        """Return the guess's Fourier coefficients of terms of one order."""


class LinearMean(Mean):
    r"""The mean gradient.

    The Fourier coefficient of unit i is :math:`\sqrt{p(1-p)}\,E[v(x_i = 1) - v(x_i = 0)]`, which
    the mean gradient over masks of the keep rate estimates for all units at once. Gradients have
    heavy tails: a plain mean can be ruled by one mask, so lengths are clipped at their median.
    """

    name: ClassVar[str] = "linear"

    def __init__(self, gradients: Float[np.ndarray, "rows units"], keep_rate: float) -> None:
        self.keep_rate = keep_rate
        self.slopes = gradients.mean(axis=0) * np.sqrt(keep_rate * (1 - keep_rate))

    def predict(self, masks: Bool[np.ndarray, "rows units"]) -> Float[np.ndarray, " rows"]:
        """Return the guess for every mask."""
        return characters_of_units(masks, self.keep_rate) @ self.slopes

    def coefficients(self, terms: Sequence[Interaction]) -> Float[np.ndarray, " terms"]:
        """Return the slopes of single units; 0 for larger terms."""
        if len(terms) == 0 or len(terms[0]) != 1:
            return np.zeros(len(terms))
        return self.slopes[[term[0] for term in terms]]


class QuadraticMean(Mean):
    """The mean gradient, how gradients change from mask to mask, and what was verified.

    Each unit's gradient is regressed on the masks, by a ridge that one inverse serves for all
    units; the two estimates of a pair, from either unit's gradient, are averaged. Terms that were
    measured exactly around the intact model have their measured value instead, or a share of it:
    where masks ablate many units, far from that model, interactions are others, and all of the
    measured value costs more than it tells (benchmarks/white_box.md).
    """

    name: ClassVar[str] = "quadratic"

    def __init__(
        self,
        linear: LinearMean,
        masks: Bool[np.ndarray, "rows units"],
        gradients: Float[np.ndarray, "rows units"],
        weights: Float[np.ndarray, " units"],
        verified: Mapping[Interaction, float],
        trust: float,
    ) -> None:
        """Regress gradients on masks.

        Args:
            linear: The mean gradient.
            masks: Where gradients were taken, the intact model's neighbourhood included.
            gradients: Of these masks.
            weights: Of the units.
            verified: Möbius coefficients at the intact origin.
            trust: Share of these that is taken over, the rest being what was regressed.
        """
        self.linear, self.keep_rate = linear, linear.keep_rate
        spread = np.sqrt(self.keep_rate * (1 - self.keep_rate))
        z = characters_of_units(masks, self.keep_rate)
        self._left = z * weights  # B = (leftᵀ dual + dualᵀ left) / 2, never formed
        self._dual = _regress((z * weights) @ z.T, gradients * spread - linear.slopes)
        # (1 - x) = (1 - p) - sqrt(p (1 - p)) z: a Möbius term's own Fourier coefficient.
        measured = {term: v * (-spread) ** len(term) for term, v in verified.items()}
        self._measured: dict[Interaction, float] = {}
        for order in sorted({len(term) for term in measured if trust > 0}):
            terms = [term for term in measured if len(term) == order]
            for term, regressed in zip(terms, self._regressed(terms), strict=True):
                self._measured[term] = trust * measured[term] + (1 - trust) * float(regressed)

    def predict(self, masks: Bool[np.ndarray, "rows units"]) -> Float[np.ndarray, " rows"]:
        """Return the guess for every mask."""
        z = characters_of_units(masks, self.keep_rate)
        squares = (z**2) @ (self._left * self._dual).sum(axis=0)
        pairs = ((z @ self._left.T) * (z @ self._dual.T)).sum(axis=1)
        guess = self.linear.predict(masks) + (pairs - squares) / 2
        for order in sorted({len(term) for term in self._measured}):
            terms = [term for term in self._measured if len(term) == order]
            more = np.array([self._measured[term] for term in terms]) - self._regressed(terms)
            guess += characters(masks, terms, self.keep_rate) @ more
        return guess

    def coefficients(self, terms: Sequence[Interaction]) -> Float[np.ndarray, " terms"]:
        """Return the slopes of single units and of pairs, and what was measured."""
        guess = self._regressed(terms)
        return np.array(
            [self._measured.get(tuple(t), g) for t, g in zip(terms, guess, strict=True)]
        )

    def _regressed(self, terms: Sequence[Interaction]) -> Float[np.ndarray, " terms"]:
        if len(terms) == 0 or len(terms[0]) != 2:
            return self.linear.coefficients(terms)
        i, j = np.array(terms).T
        both = self._left[:, i] * self._dual[:, j] + self._left[:, j] * self._dual[:, i]
        return both.sum(axis=0) / 2


def _regress(
    kernel: Float[np.ndarray, "rows rows"], values: Float[np.ndarray, "rows units"]
) -> Float[np.ndarray, "rows units"]:
    """Return the dual of a kernel ridge regression, its penalty chosen by leaving rows out."""
    best, found = np.inf, values
    for ridge in _RIDGES:
        inverse = inverse_of(kernel + ridge * np.eye(len(kernel)))
        dual = inverse @ values
        error = np.square(dual / np.diag(inverse)[:, None]).sum()
        if error < best:
            best, found = error, dual
    return found


class ExpansionMean(Mean):
    """What was measured around the intact model, continued to masks far from it.

    Exact for functions whose interactions around the intact model were all found.
    """

    name: ClassVar[str] = "expansion"

    def __init__(self, found: Neighbourhood, keep_rate: float) -> None:
        theta: dict[Interaction, float] = {
            (unit,): -float(slope) for unit, slope in enumerate(found.intact_gradient)
        }
        theta |= {term: float(values.mean()) for term, values in found.singles().items()}
        theta |= found.measured()
        self._intact = Coordinates("moebius", "intact", keep_rate)
        self._support, self._theta = list(theta), torch.tensor(list(theta.values()))
        support, matrix = convert(
            self._support, self._intact, Coordinates("fourier", None, keep_rate)
        )
        values = matrix @ self._theta.double().numpy()
        self._fourier = dict(zip(support, values.tolist(), strict=True))

    def predict(self, masks: Bool[np.ndarray, "rows units"]) -> Float[np.ndarray, " rows"]:
        """Return the guess for every mask."""
        values = evaluate(
            torch.from_numpy(masks), self._support, self._theta.double(), self._intact
        )
        return values.numpy() - self._fourier.get((), 0.0)

    def coefficients(self, terms: Sequence[Interaction]) -> Float[np.ndarray, " terms"]:
        """Return the coefficients of terms that were measured, and of their parts."""
        return np.array([self._fourier.get(tuple(term), 0.0) for term in terms])

    @property
    def support(self) -> list[Interaction]:
        """Terms of two units or more with a coefficient."""
        return [term for term in self._fourier if len(term) > 1]


def clip_lengths(
    gradients: Float[np.ndarray, "rows units"], at: Float[np.ndarray, "some units"]
) -> Float[np.ndarray, "rows units"]:
    """Return gradients shortened to the median length of some of them."""
    longest = np.median(np.linalg.norm(at, axis=1))
    lengths = np.maximum(np.linalg.norm(gradients, axis=1), np.finfo(float).tiny)
    return gradients * np.minimum(1.0, longest / lengths)[:, None]
