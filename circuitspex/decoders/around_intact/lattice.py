r"""From terms to larger terms: what does a unit's derivative do where a term is ablated?

Let :math:`\delta_A(j)` be how the derivative by unit j's gate changes where A is ablated. In a
multilinear game its Möbius inverse over the subsets of A is :math:`-\theta(A \cup \{j\})`, so the
contexts of known terms rank all terms that are one unit larger. In a network a derivative is
neither the effect of a whole ablation nor always awake. Hence two rankings, taken in turns: the
change itself, scaled down where a unit's measured effect is smaller than its derivative; and the
product of how much A and j each change everybody's derivatives, which also sees pairs whose
derivatives are flat.
"""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

import numpy as np
from jaxtyping import Float, Int

from circuitspex._shared import Interaction
from circuitspex.decoders.around_intact.contexts import Contexts, affordable_parts, beyond_parts


class Lattice:
    """Contexts of terms, and what they say about terms that are one unit larger."""

    def __init__(self, contexts: Contexts, tolerance: float) -> None:
        """Start with what contexts have been read.

        Args:
            contexts: Reads them.
            tolerance: Change of a derivative that is rounding.
        """
        self.contexts, self.tolerance = contexts, tolerance

    def read(self, terms: Iterable[Interaction], limit: int) -> None:
        """Read the contexts of terms and of all their parts, in order, while the budget lasts.

        Args:
            terms: Terms to ablate, most wanted first.
            limit: Evaluations after which no more are spent.
        """
        known = {(), *self.contexts.changes}
        _, fresh = affordable_parts(terms, known, self.contexts.affordable(limit))
        if fresh:
            self.contexts.take(fresh)

    def extensions(
        self, order: int, trust: Float[np.ndarray, " units"], n_wanted: int
    ) -> list[Interaction]:
        """Rank terms of an order by what the contexts of their parts show.

        Args:
            order: Units in a term, at least 2.
            trust: By what share each unit's derivative counts.
            n_wanted: Most terms from either ranking.

        Returns:
            The terms, most promising first.
        """
        changes = self.contexts.changes
        bases = [term for term in changes if len(term) == order - 1]
        if not bases:
            return []
        pure = np.stack([beyond_parts(changes, base) for base in bases])
        units = [term[0] for term in changes if len(term) == 1]
        influence = np.zeros(pure.shape[1], dtype=np.float32)
        influence[units] = [np.linalg.norm(beyond_parts(changes, (unit,))) for unit in units]
        product = np.linalg.norm(pure, axis=1)[:, None] * influence
        for row, base in enumerate(bases):
            product[row, list(base)] = 0
        changed = np.abs(pure) * trust.astype(np.float32)
        rankings = [
            _largest(changed, bases, n_wanted, self.tolerance),
            _largest(product, bases, n_wanted, self.tolerance**2),
        ]
        return take_turns(rankings)


def take_turns(rankings: Sequence[Iterable]) -> list:
    """Merge rankings: the best of each, then the second of each, each entry once.

    Args:
        rankings: Best entry first.

    Returns:
        All entries.
    """
    turns = zip_longest(*rankings)
    return list(dict.fromkeys(entry for turn in turns for entry in turn if entry is not None))


def best_units(*scores: Float[np.ndarray, " units"]) -> list[int]:
    """Return units ranked by several scores in turns, without those that score nothing."""
    return take_turns([_descending(score) for score in scores])


def _descending(score: Float[np.ndarray, " units"]) -> list[int]:
    order = np.argsort(-score, kind="stable")
    return order[score[order] > 0].tolist()


def _largest(
    scores: Float[np.ndarray, "bases units"],
    bases: list[Interaction],
    n_wanted: int,
    tolerance: float,
) -> list[Interaction]:
    """Return the terms of the largest scores; a term may be reached from several bases."""
    n_entries = min(scores.size, len(bases[0]) * n_wanted + n_wanted)
    flat: Int[np.ndarray, " entries"] = np.argpartition(-scores, n_entries - 1, axis=None)
    flat = flat[:n_entries]
    flat = flat[np.lexsort((flat, -scores.flat[flat]))]
    rows, units = np.unravel_index(flat[scores.flat[flat] > tolerance], scores.shape)
    terms = (tuple(sorted((*bases[r], int(u)))) for r, u in zip(rows, units, strict=True))
    return list(dict.fromkeys(terms))[:n_wanted]
