"""Planted games with their exact truth, for tests, benchmarks and people who write decoders."""

from circuitspex.games.planted import (
    GAMES,
    Game,
    HeadsGame,
    PromptsGame,
    SparseGame,
    characters,
    gates,
    hierarchy,
    peak,
    random_terms,
    slopes,
)

__all__ = [
    "GAMES",
    "Game",
    "HeadsGame",
    "PromptsGame",
    "SparseGame",
    "characters",
    "gates",
    "hierarchy",
    "peak",
    "random_terms",
    "slopes",
]
