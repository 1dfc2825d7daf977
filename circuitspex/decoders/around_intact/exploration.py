r"""Interactions around the intact model: gradients propose them, ablations decide.

With :math:`\theta(T) = \sum_{S \subseteq T} (-1)^{|T| - |S|} v(N \setminus S)`, the Möbius
coefficient at the intact origin, and g the gradient by the gates, a function that is multilinear in
its gates has

.. math:: \theta(C \cup k) = -\sum_{S \subseteq C} (-1)^{|C| - |S|} g_k(N \setminus S),

so one gradient at a *context*, the model without the units C, estimates :math:`\theta(C \cup k)` of
every unit k at once. A network is not multilinear: estimates only rank candidates, and the best are
measured exactly, by ablating every subset.

Few contexts see most interactions, because an interaction shows from each of its units: after a
few, the units whose gradients they changed most are the contexts worth taking next. What they miss
is interactions among units that all have few of them; a search that can afford it takes every unit.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, combinations
from math import comb

import numpy as np
import torch
from jaxtyping import Bool, Int

from circuitspex._shared import Interaction
from circuitspex.algebra import alternating_sum, membership, subsets
from circuitspex.decoders.around_intact.candidates import rank
from circuitspex.decoders.around_intact.contexts import Contexts, affordable_parts
from circuitspex.decoders.around_intact.neighbourhood import Neighbourhood
from circuitspex.decoders.measuring import Meter

_CONTEXT_SHARE = 0.2  # of the search's evaluations, where they are too few for every context
_AT_ONCE = 8  # contexts taken before the next are chosen
_FIRST = 5  # contexts chosen by the size of their own gradient
_MAX_ROUNDS = 5  # of contexts and verification, where few candidates leave evaluations over
_PARTS = (0.5, 0.17, 0.17, 0.16)  # of a round's verification; each ranks anew by those before it


def explore(
    meter: Meter,
    n_drawn: int | None,
    n_evaluations: int,
    order_shares: Sequence[float],
    rng: np.random.Generator,
) -> Neighbourhood:
    """Find and verify the strongest interactions around the intact model.

    Args:
        meter: The metered set function, differentiable.
        n_drawn: Prompts for each gradient; None for all of them. Verification takes them all.
        n_evaluations: Most that may be spent; with 0 nothing is measured.
        order_shares: Shares of the evaluations for order 2, 3, …; they sum to 1.
        rng: Draws the prompts.

    Returns:
        Everything measured.
    """
    limit = meter.n_evaluations + n_evaluations
    found = Neighbourhood(meter.n_units)
    if n_evaluations == 0:
        return found
    contexts = Contexts(meter, n_drawn, rng, precision=np.float64, note=found.note)
    found.contexts = contexts.changes
    verifier = _Verifier(meter, found)
    for _ in range(_MAX_ROUNDS):
        left = limit - meter.n_evaluations
        n_contexts = len(found.contexts)
        for order, share in enumerate(order_shares, start=2):
            n_new = _count_contexts(meter.n_units, order - 1, int(share * left) // contexts.cost)
            _take_contexts(contexts, found, order - 1, n_new)
        left = limit - meter.n_evaluations
        for order, share in enumerate(order_shares, start=2):
            for part in _PARTS:
                verifier.verify(rank(found, order, left), int(part * share * left))
        if len(found.contexts) == n_contexts:
            break
    # What one order had no candidates for goes to the others.
    for order in range(2, 2 + len(order_shares)):
        left = limit - meter.n_evaluations
        verifier.verify(rank(found, order, left), left)
    return found


def _count_contexts(n_units: int, size: int, n_affordable: int) -> int:
    """Return how many contexts of a size to take: all of them where half the evaluations do."""
    every = comb(n_units, size)
    return every if 2 * every <= n_affordable else int(_CONTEXT_SHARE * n_affordable)


def _take_contexts(contexts: Contexts, found: Neighbourhood, size: int, n_new: int) -> None:
    """Take gradients at the contexts of a size that promise most."""
    limit = len(found.contexts) + n_new
    while len(found.contexts) < limit:
        n_next = limit - len(found.contexts)
        n_next = min(n_next, _AT_ONCE if found.contexts else _FIRST)
        chosen = _next_contexts(contexts, found, size)[:n_next]
        if not chosen:
            break
        contexts.take(chosen)


def _next_contexts(contexts: Contexts, found: Neighbourhood, size: int) -> list[Interaction]:
    """Return untaken contexts, those first whose own interactions seem strongest.

    An interaction of the context and one more unit has shown already if that unit, with all but one
    of the context's, was a context.
    """
    mass: dict[Interaction, np.ndarray] = defaultdict(lambda: np.zeros(found.n_units))
    for context in found.contexts:
        if len(context) == size:
            squares = found.estimates(context) ** 2
            for rest in combinations(context, size - 1):
                mass[rest] += squares
    if size == 1:
        alone = np.square(contexts.gradients).mean(axis=0)
        order = np.argsort(-(mass[()] if mass else alone), kind="stable")
        return [(unit,) for unit in order.tolist() if (unit,) not in found.contexts]
    smaller = [context for context in found.contexts if len(context) == size - 1]
    units = sorted(set(chain.from_iterable(smaller)))
    promise: dict[Interaction, float] = defaultdict(float)
    for context in smaller:
        estimates = found.estimates(context)
        for unit in units:
            term = tuple(sorted((*context, unit)))
            parts = combinations(term, size - 1)
            if unit not in context and all(part in found.contexts for part in parts):
                seen = sum(mass[(*term[:i], *term[i + 1 :])][u] for i, u in enumerate(term))
                promise[term] = max(promise[term], float(estimates[unit] ** 2 + seen))
    new = [term for term in promise if term not in found.contexts]
    return sorted(new, key=lambda term: (-promise[term], term))


class _Verifier:
    """Measures Möbius coefficients exactly; subsets that terms share are evaluated once."""

    def __init__(self, meter: Meter, found: Neighbourhood) -> None:
        self._meter, self._found = meter, found
        self._n_read = 0

    def verify(self, candidates: Iterable[Interaction], n_evaluations: int) -> None:
        self._read_gradients()
        n_most = n_evaluations // self._meter.n_prompts
        terms, needed = affordable_parts(candidates, self._found.known, n_most)
        self._evaluate(needed)
        for term in terms:
            parts = subsets(term)
            values = [self._found.known[part] for part in parts]
            self._found.verified[term] = alternating_sum(parts, values)

    def _read_gradients(self) -> None:
        """Remember the values that came with gradients, which with one prompt need no other."""
        if self._meter.n_prompts == 1:
            new = slice(self._n_read, None)
            for mask, value in zip(self._found.masks[new], self._found.values[new], strict=True):
                self._found.known.setdefault(_ablated(mask), np.array([value]))
            self._n_read = len(self._found.masks)

    def _evaluate(self, terms: list[Interaction]) -> None:
        if not terms:
            return
        masks = ~membership(terms, self._found.n_units)
        table = self._meter.per_prompt(torch.from_numpy(masks))
        for term, mask, values in zip(terms, masks, table, strict=True):
            self._found.known[term] = values
            for prompt, value in enumerate(values):
                self._found.add(mask, float(value), prompt)


def _ablated(mask: Bool[np.ndarray, " units"]) -> Interaction:
    units: Int[np.ndarray, " ablated"] = np.flatnonzero(~mask)
    return tuple(units.tolist())
