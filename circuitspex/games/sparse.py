"""Games that are sums of a few products of units: sparse in one basis, dense in the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from circuitspex._shared import Interaction
from circuitspex.algebra import BasisName, Coordinates, Interactions, Origin
from circuitspex.errors import GameError
from circuitspex.games.game import Game


def characters(
    masks: Shaped[np.ndarray, "masks units"], support: Sequence[Interaction], keep_rate: float
) -> Float[np.ndarray, "masks coefficients"]:
    """Return the Fourier characters of every term, one column each, written out term by term."""
    return products(masks, support, Coordinates("fourier", None, keep_rate))


def products(
    masks: Shaped[np.ndarray, "masks units"],
    support: Sequence[Interaction],
    coordinates: Coordinates,
) -> Float[np.ndarray, "masks coefficients"]:
    """Return every term's product of units, one column each, written out term by term."""
    shift, scale = _shift_and_scale(coordinates)
    columns = [((masks[:, list(term)] - shift) / scale).prod(axis=1) for term in support]
    return np.stack(columns, axis=1)


def slopes(
    masks: Shaped[np.ndarray, "masks units"],
    support: Sequence[Interaction],
    coefficients: Float[np.ndarray, " coefficients"],
    coordinates: Coordinates,
) -> Float[np.ndarray, "masks units"]:
    """Return the derivative of a sum of products by every unit's gate, term by term."""
    _, scale = _shift_and_scale(coordinates)
    gradient = np.zeros(masks.shape)
    for term, coefficient in zip(support, coefficients, strict=True):
        for unit in term:
            others = tuple(other for other in term if other != unit)
            gradient[:, unit] += coefficient / scale * products(masks, [others], coordinates)[:, 0]
    return gradient


def _shift_and_scale(coordinates: Coordinates) -> tuple[float, float]:
    """Return a and b of a unit's factor (x − a) / b."""
    if coordinates.basis == "fourier":
        return coordinates.keep_rate, np.sqrt(coordinates.keep_rate * (1 - coordinates.keep_rate))
    return (0.0, 1.0) if coordinates.origin == "ablated" else (1.0, -1.0)


@dataclass
class SparseGame(Game):
    """A sum of a few products of units, with gradients.

    Gates between 0 and 1 are taken too: each product is linear in every gate.

    Example:
        Two units that back each other up: only losing both costs anything.

        >>> game = SparseGame(3, [(), (0, 2)], np.array([5.0, -2.0]), basis="moebius",
        ...                   origin="intact")
        >>> game(torch.tensor([[True, True, False], [False, True, False]]))
        tensor([5., 3.], dtype=torch.float64)
    """

    n_units: int
    """How many units a mask covers."""
    support: Sequence[Interaction]
    """The terms: sorted unit indices; ``()`` is the constant."""
    coefficients: Float[np.ndarray, " coefficients"]
    """One per term."""
    keep_rate: float = 0.5
    """Rate that the Fourier characters refer to."""
    basis: BasisName = "fourier"
    """Which products the coefficients multiply."""
    origin: Origin | None = None
    """The model that Möbius products start from; None in the Fourier basis."""

    def __post_init__(self) -> None:
        """Check that there is a coefficient for every term, and that its units exist."""
        self.coordinates = Coordinates(self.basis, self.origin, self.keep_rate).check()
        self._check_terms()

    def _check_terms(self) -> None:
        if not 0 < len(self.support) == len(self.coefficients):
            raise GameError(
                "a sparse game needs one coefficient for each of its terms, and at least one; got "
                f"{len(self.coefficients)} for {len(self.support)}. The term () is the constant."
            )
        outside = [t for t in self.support if t and not 0 <= min(t) <= max(t) < self.n_units]
        if outside:
            raise GameError(
                f"terms must name units in 0..{self.n_units - 1}; got {outside[0]}. Give the game "
                "more units, or the term other ones."
            )

    def truth(self, masks: Shaped[Tensor, "masks units"]) -> Float[np.ndarray, " masks"]:
        """Return the values, in float64."""
        return products(masks.numpy(), self.support, self.coordinates) @ self.coefficients

    def value_and_gradient(
        self, masks: Shaped[Tensor, "masks units"]
    ) -> tuple[Float[Tensor, " masks"], Float[Tensor, "masks units"]]:
        """Return the values and their derivatives by every gate."""
        gradient = slopes(masks.numpy(), self.support, self.coefficients, self.coordinates)
        return self(masks), torch.from_numpy(gradient)

    def interactions(self) -> Interactions:
        """Return the game's own terms and coefficients."""
        return sparse_truth(self.n_units, self.support, self.coefficients, self.coordinates)


def sparse_truth(
    n_units: int,
    support: Sequence[Interaction],
    coefficients: Float[np.ndarray, " coefficients"],
    coordinates: Coordinates,
    prompt_coefficients: Float[Tensor, "coefficients prompts"] | None = None,
) -> Interactions:
    """Return planted terms as the result that a perfect decoder would give."""
    return Interactions(
        n_units=n_units,
        units=tuple(map(str, range(n_units))),
        basis=coordinates.basis,
        origin=coordinates.origin,
        keep_rate=coordinates.keep_rate,
        support=tuple(support),
        coefficients=torch.as_tensor(coefficients, dtype=torch.float64),
        prompt_coefficients=prompt_coefficients,
    )


def random_terms(
    n_units: int, n_terms: int, order: int, rng: np.random.Generator
) -> list[Interaction]:
    """Draw distinct terms of one order.

    Args:
        n_units: How many units there are to choose from.
        n_terms: How many terms to draw.
        order: How many units each has.
        rng: Of every draw.

    Returns:
        The terms in the order of their draws, each sorted.

    Raises:
        GameError: If there are not so many different terms.
    """
    if n_terms > comb(n_units, order):
        raise GameError(
            f"{n_units} units have {comb(n_units, order)} different terms of order {order}, and "
            f"this game needs {n_terms}. Use more units."
        )
    terms: dict[Interaction, None] = {}
    while len(terms) < n_terms:
        term = sorted(int(unit) for unit in rng.choice(n_units, order, replace=False))
        terms[tuple(term)] = None
    return list(terms)
