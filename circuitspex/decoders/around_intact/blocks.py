"""Blocks: random partitions of all units, each block ablated as a whole.

Every round puts each unit into one block, with other units each time, so that what a block-mate
did is not taken for the unit's own doing twice.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitspex.decoders.around_intact.contexts import Contexts


@dataclass(frozen=True)
class BlockTests:
    """What ablating the blocks of all rounds tells about every unit."""

    blocks: Int[np.ndarray, "rounds units"]
    """Block of every unit."""
    own: Float[np.ndarray, "rounds units"]
    """How the derivative by a unit's own gate changes where its block, and so the unit itself, is
    ablated: whether the unit's effect is what its derivative says."""
    response: Float[np.ndarray, "rounds units"]
    """Largest change of the derivative where other blocks are ablated: no smaller than the unit's
    largest interaction, unless another of the same block cancels it."""
    values: Float[np.ndarray, "rounds blocks"]
    """How the value changes where a block is ablated."""
    prompts: Int[np.ndarray, "rounds blocks drawn"]
    """The prompts that this was read on."""

    def own_change(self) -> Float[np.ndarray, " units"]:
        """Return how much each unit's derivative depends on its own gate.

        The median of several rounds, the smaller of two: what only one set of mates showed is
        theirs.
        """
        return _agreed(np.abs(self.own))

    def largest_change(self) -> Float[np.ndarray, " units"]:
        """Return how much each unit's derivative depends on any gate, likewise.

        A round counts by its own change too: there its partner may have been in the same block.
        """
        return _agreed(np.maximum(np.abs(self.own), self.response))


def as_blocks(block: Int[np.ndarray, " units"]) -> Bool[np.ndarray, "blocks units"]:
    """Return a partition as one set to ablate per block."""
    return block[None] == np.arange(block.max() + 1)[:, None]


def measure_blocks(
    contexts: Contexts, n_blocks: int, n_rounds: int, rng: np.random.Generator
) -> BlockTests:
    """Ablate random blocks of units, all of them in every round, with gradients.

    Args:
        contexts: Reads them.
        n_blocks: Blocks per round, at most as many as units.
        n_rounds: Rounds, at least one.
        rng: Draws the partitions.

    Returns:
        What the blocks show.
    """
    n_units = contexts.meter.n_units
    every = np.arange(n_units)
    blocks, own, response, values, prompts = [], [], [], [], []
    for _ in range(n_rounds):
        block = rng.permutation(n_units) % n_blocks
        changes = contexts.read(as_blocks(block))
        blocks.append(block)
        own.append(changes.gradients[block, every])
        changes.gradients[block, every] = 0
        response.append(np.abs(changes.gradients).max(axis=0))
        values.append(changes.values)
        prompts.append(changes.prompts)
    return BlockTests(*map(np.stack, (blocks, own, response, values, prompts)))


def _agreed(sizes: Float[np.ndarray, "rounds units"]) -> Float[np.ndarray, " units"]:
    return np.sort(sizes, axis=0)[(len(sizes) - 1) // 2]
