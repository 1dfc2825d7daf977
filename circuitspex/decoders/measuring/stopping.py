"""When more evaluations would change little: whether to stop a decoding in rounds."""

from dataclasses import dataclass, field
from typing import Any

from circuitspex.algebra import Interactions

_N_TOP = 10
_LEAST_OVERLAP = 0.8  # two lists of ten that share nine have nine of eleven in common
_IN_A_ROW = 2


@dataclass
class StoppingRule:
    """What each round of a decoding found, and whether that has settled."""

    tolerance: float | None
    """Rise of the held-out R² that is too small to go on for; None never to stop early."""

    n_planned: int
    """Rounds that the budget is split into."""

    rounds: list[dict[str, Any]] = field(default_factory=list)
    """Evaluations so far, held-out R², and overlap of the largest terms with the round before."""

    _top: set[tuple[str, ...]] | None = None

    def settles(self, found: Interactions) -> bool:
        """Take note of a round's result.

        Args:
            found: What was decoded from all rounds so far.

        Returns:
            Whether to stop: the last rounds brought neither a better R² nor other terms.
        """
        top = {ranked.units for ranked in found.top(_N_TOP)}
        overlap = None
        if self._top is not None:
            either = top | self._top
            overlap = len(top & self._top) / len(either) if either else 1.0
        self._top = top
        self.rounds.append(
            {
                "n_evaluations": found.n_evaluations,
                "held_out_r2": found.held_out_r2,
                "top_overlap": overlap,
            }
        )
        return self.tolerance is not None and all(
            self._settled(i) for i in range(len(self.rounds) - _IN_A_ROW, len(self.rounds))
        )

    def _settled(self, i: int) -> bool:
        if i < 1 or self.tolerance is None:
            return False
        before, after = self.rounds[i - 1]["held_out_r2"], self.rounds[i]["held_out_r2"]
        if before is None or after is None:
            return False
        return after - before <= self.tolerance and (
            self.rounds[i]["top_overlap"] >= _LEAST_OVERLAP
        )

    def describe(self) -> dict[str, Any]:
        """Return plain values for the diagnostics."""
        return {
            "tolerance": self.tolerance,
            "stopped_early": len(self.rounds) < self.n_planned,
            "rounds": self.rounds,
        }
