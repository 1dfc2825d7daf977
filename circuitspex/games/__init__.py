"""A name and a number of units in, a planted game and its exact truth out.

For tests, benchmarks and people who write decoders: a game is a set function that knows its truth.
``truth(masks)`` are the values without noise, ``interactions()`` the coefficients that a perfect
decoder would find.
"""

from collections.abc import Callable
from typing import Any

from circuitspex._shared import did_you_mean
from circuitspex.errors import GameError
from circuitspex.games.game import Game
from circuitspex.games.gates import and_gate, gates, or_gate, redundant, xor_gate
from circuitspex.games.heads import HeadsGame
from circuitspex.games.noisy import NoisyGame
from circuitspex.games.prompts import PromptsGame
from circuitspex.games.sparse import SparseGame, characters, random_terms
from circuitspex.games.spectra import additive, constant, hierarchy, peak

__all__ = [
    "GAMES",
    "Game",
    "HeadsGame",
    "NoisyGame",
    "PromptsGame",
    "SparseGame",
    "additive",
    "and_gate",
    "characters",
    "constant",
    "gates",
    "hierarchy",
    "make",
    "or_gate",
    "peak",
    "random_terms",
    "redundant",
    "xor_gate",
]

GAMES: dict[str, Callable[..., Game]] = {
    "constant": constant,
    "additive": additive,
    "and": and_gate,
    "or": or_gate,
    "xor": xor_gate,
    "redundant": redundant,
    "gates": gates,
    "peak": peak,
    "hierarchy": hierarchy,
    "heads": HeadsGame,
    "prompts": PromptsGame,
}
"""Every game by its name; each is made from a number of units and a seed."""


def make(name: str, n_units: int, seed: int = 0, **options: Any) -> Game:
    """Draw one of the planted games.

    Args:
        name: A key of :data:`GAMES`.
        n_units: How many units it has.
        seed: Of every draw; the same seed is the same game.
        **options: The game's own options, such as ``n_inputs`` of a gate.

    Returns:
        The game.

    Raises:
        GameError: If there is no game of that name, or it needs more units.

    Example:
        Three units that need each other, and a decoder that finds them:

        >>> from circuitspex import decoders
        >>> game = make("and", n_units=8, n_inputs=3)
        >>> found = decoders.get("exact").decode(game, budget=256, seed=0)
        >>> found.to("moebius", "ablated").top(1)[0].units == game.interactions().top(1)[0].units
        True
    """
    if name not in GAMES:
        raise GameError(
            f"there is no game {name!r}; choose one of {', '.join(GAMES)}"
            f"{did_you_mean(name, GAMES)}."
        )
    return GAMES[name](n_units, seed=seed, **options)
