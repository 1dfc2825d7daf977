"""The search of the coarse-to-fine decoder: blocks, units, split, interactions."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitspex._shared import Interaction, SampledDifferentiableSetFunction
from circuitspex.decoders.around_intact.blocks import BlockTests, as_blocks, measure_blocks
from circuitspex.decoders.around_intact.contexts import Contexts
from circuitspex.decoders.around_intact.expansion import Expansion
from circuitspex.decoders.around_intact.lattice import Lattice, best_units
from circuitspex.decoders.codes import run_side_by_side, search
from circuitspex.decoders.measuring import Meter, Reader

_FEWEST_BLOCKS = 16
_CONTEXT_SHARE = 0.25  # of what a round of interactions may spend
_ROUND_SHARE = 2 / 3  # of what is left for interactions goes to the present order
_UNEXPLAINED = 5.0  # times the typical residual of a block, for it to be split


class Search:
    """What is known around the intact model, stage by stage.

    Every stage is told how many evaluations may be spent by its end.
    """

    def __init__(
        self, meter: Meter, n_drawn: int | None, max_order: int, rng: np.random.Generator
    ) -> None:
        """Read the intact model.

        Args:
            meter: The metered set function, which must have gradients.
            n_drawn: Prompts per context; None without prompts.
            max_order: Most units in one interaction.
            rng: Source of every draw.
        """
        self.meter, self.n_drawn, self.max_order, self.rng = meter, n_drawn, max_order, rng
        sampled = isinstance(meter.set_function, SampledDifferentiableSetFunction)
        self.contexts = Contexts(meter, n_drawn if sampled else None, rng)
        self.expansion = Expansion(self.contexts, Reader(meter, "all", "intact", rng))
        self.expansion.measure([()], meter.budget)
        scale = np.abs(self.contexts.values).max() + np.abs(self.contexts.gradient).max()
        self.lattice = Lattice(self.contexts, 1e-6 * float(scale))
        self.tests: BlockTests | None = None
        self.report: dict[str, Any] = {}
        """What was done, as plain values."""

    @property
    def n_masks(self) -> int:
        """How many masks were read so far."""
        return self.contexts.n_read + len(self.expansion.residuals.rows)

    def blocks(self, limit: int, n_blocks: int, n_rounds: int) -> None:
        """Ablate random blocks, as many as wanted or affordable."""
        affordable = self.contexts.affordable(limit)
        n_blocks = min(n_blocks, self.meter.n_units)
        n_rounds = min(n_rounds, max(1, affordable // min(_FEWEST_BLOCKS, n_blocks)))
        n_blocks = min(n_blocks, affordable // n_rounds)
        if n_blocks >= 2:
            self.tests = measure_blocks(self.contexts, n_blocks, n_rounds, self.rng)
        self.report |= {"n_blocks": n_blocks, "n_rounds": n_rounds if self.tests else 0}

    def units(self, limit: int) -> None:
        """Ablate one by one the units that derivatives say least about."""
        terms = [(unit,) for unit in self._notable()]
        self.report["n_units_measured"] = self.expansion.measure(terms, limit)

    def _notable(self) -> list[int]:
        """Return units ranked by how much their derivative depends on gates.

        Where it depends on none, it is the effect, however large; such units come last.
        """
        floor, plain = self.lattice.tolerance, best_units(np.abs(self.expansion.single()))
        if self.tests is None:
            return plain
        scores = (self.tests.own_change(), self.tests.largest_change())
        changing = best_units(*(np.where(score > floor, score, 0) for score in scores))
        return list(dict.fromkeys([*changing, *plain]))

    def split(self, limit: int) -> None:
        """Halve the blocks whose value is not explained, until the units behind it are found."""
        self.report |= {"n_blocks_split": 0, "n_found_by_splitting": 0}
        if self.tests is None:
            return
        for row in range(len(self.tests.blocks)):
            pools = as_blocks(self.tests.blocks[row])
            residuals = np.abs(self._unexplained(self.tests, row, pools))
            typical = max(float(np.median(residuals)), self.lattice.tolerance)
            order = np.argsort(-residuals, kind="stable")
            chosen = order[residuals[order] > _UNEXPLAINED * typical]
            chosen = chosen[: self._n_searches(limit)]
            found = self._halve(pools[chosen], residuals[chosen] / 2, limit)
            self.expansion.measure(found, limit)
            self.report["n_blocks_split"] += len(chosen)
            self.report["n_found_by_splitting"] += len(found)

    def _unexplained(
        self, tests: BlockTests, row: int, pools: Bool[np.ndarray, "blocks units"]
    ) -> Float[np.ndarray, " blocks"]:
        """Return what the blocks of a round do beyond what is known, on the prompts read."""
        explained = self.expansion.parts_of(pools, self.expansion.interactions()).sum(axis=2)
        if self.n_drawn is None:
            return tests.values[row] - explained.mean(axis=1)
        chosen = np.take_along_axis(explained, tests.prompts[row], axis=1)
        return tests.values[row] - chosen.mean(axis=1)

    def _n_searches(self, limit: int) -> int:
        """Return how many blocks can be halved down to two units each."""
        each = 2 * int(np.ceil(np.log2(self.meter.n_units))) * self.meter.n_prompts
        return max(1, (limit - self.meter.n_evaluations) // each)

    def _halve(
        self,
        pools: Bool[np.ndarray, "pools units"],
        needed: Float[np.ndarray, " pools"],
        limit: int,
    ) -> list[Interaction]:
        """Return the terms that searches by halving find, the strongest pools first."""
        game = self.expansion.search_beyond(limit)
        silent = game.relative_rounding * game.largest
        searches = [
            search(
                self.rng.permutation(np.flatnonzero(pool)),
                self.meter.n_units,
                self.max_order,
                float(least),
                silent,
            )
            for pool, least in zip(pools, needed, strict=True)
        ]
        found = run_side_by_side(searches, game, 1, 0)
        return list(dict.fromkeys(term for term in found if term))

    def interactions(self, limit: int) -> None:
        """Climb from units to pairs to triples: contexts of the strongest, then verification."""
        self.report["verified_by_order"] = {}
        bases: list[Interaction] = [(unit,) for unit in self._notable()]
        for order in range(2, self.max_order + 1):
            left = limit - self.meter.n_evaluations
            share = 1.0 if order == self.max_order else _ROUND_SHARE
            stop = self.meter.n_evaluations + int(share * left)
            self.lattice.read(bases, stop - int((1 - _CONTEXT_SHARE) * share * left))
            terms = self._candidates(
                order, (stop - self.meter.n_evaluations) // self.meter.n_prompts
            )
            verified = self.expansion.measure(terms, stop)
            self.report["verified_by_order"][str(order)] = verified
            bases = [
                term for term in self.expansion.of_order(order) if self.expansion.is_more(term)
            ]

    def _candidates(self, order: int, n_wanted: int) -> list[Interaction]:
        """Return terms to verify: what contexts point to, not measured so far."""
        if n_wanted < 1:
            return []
        single, derivative = np.abs(self.expansion.single()), np.abs(self.contexts.gradient)
        trust = np.minimum(1, single / np.maximum(derivative, self.lattice.tolerance))
        trust[derivative <= self.lattice.tolerance] = 1
        terms = self.lattice.extensions(order, trust, n_wanted + len(self.expansion.effects))
        return [term for term in terms if term not in self.expansion.effects][:n_wanted]
