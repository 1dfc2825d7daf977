"""Which rows go through the model together, and which of them share layers: the plan of a pass.

A row is one mask on one prompt. This file only plans; :mod:`circuitspex.ablation.ablated` runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex.ablation.batching import Batcher, Room
from circuitspex.ablation.forking import SharedLayers, plan
from circuitspex.units import UnitSet

_LEAST_SAVING = 0.02
"""Rows are sorted and forked where that saves at least this share of the work."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Masks on prompts: row i is mask ``mask_of_row[i]`` on prompt ``prompt_of_row[i]``."""

    masks: Bool[Tensor, "masks units"] | Float[Tensor, "masks units"]
    """Keep-masks; or gates between 0 and 1, where gradients are wanted."""
    mask_of_row: Int[Tensor, " rows"]
    prompt_of_row: Int[Tensor, " rows"]
    """Index into the task's prompts."""

    def __len__(self) -> int:
        return len(self.prompt_of_row)

    @classmethod
    def of_table(
        cls,
        masks: Bool[Tensor, "masks units"] | Float[Tensor, "masks units"],
        prompts: Int[Tensor, "masks prompts"],
    ) -> "Rows":
        """Return every mask on its own prompts, mask by mask."""
        which = repeat(torch.arange(len(masks)), "masks -> (masks n)", n=prompts.shape[1])
        return cls(masks, which, rearrange(prompts, "masks prompts -> (masks prompts)"))

    def take(self, rows: Int[Tensor, " _"]) -> "Rows":
        """Return some of the rows."""
        return Rows(self.masks, self.mask_of_row[rows], self.prompt_of_row[rows])

    @property
    def own_masks(self) -> Bool[Tensor, "rows units"] | Float[Tensor, "rows units"]:
        """The mask of every row."""
        return self.masks[self.mask_of_row]


@dataclass(frozen=True, eq=False)
class Pass:
    """Rows that go through the model together; they can be run by themselves, anywhere."""

    rows: Int[Tensor, " pass"]
    """Which ones."""
    forked: bool = False
    """Whether masks share layers."""


@dataclass(frozen=True, eq=False)
class EachAlone:
    """The plan in which every row runs through all layers."""

    rows: Rows
    forked: ClassVar[bool] = False

    def groups(self) -> Iterator[slice]:
        """Yield leaves that may run together: all."""
        yield slice(0, len(self.rows))

    def alive(self, batch_size: int) -> float:
        """Return that all rows run in all layers."""
        return 1.0

    def inputs(self, leaves: slice) -> tuple[Tensor, Tensor, None]:
        """Return prompts of what goes in, masks of what comes out, and that nothing forks."""
        return self.rows.prompt_of_row[leaves], self.rows.mask_of_row[leaves], None

    def rows_of(self, leaves: slice) -> tuple[Tensor, Tensor]:
        """Return the rows that some leaves stand for, and of each the leaf among these."""
        return torch.arange(leaves.start, leaves.stop), torch.arange(leaves.stop - leaves.start)


Plan: TypeAlias = EachAlone | SharedLayers
"""Rows in an order, as leaves: what comes out of a pass for one or more identical rows."""


class Planner:
    """Plans passes for one model and its units."""

    def __init__(
        self, model: Any, units: UnitSet, batch_size: int | None, room: Room | None
    ) -> None:
        self.batcher = Batcher(model, batch_size, room=room)
        self.gradient_batcher = Batcher(model, batch_size, gradients=True, room=room)
        self._n_layers = model.cfg.n_layers
        self._layer_of_unit = torch.tensor([unit.layer for unit in units])

    def plan(self, rows: Rows, n_positions: int, *, forks: bool) -> Plan:
        """Plan rows.

        Args:
            rows: Masks on prompts of one length.
            n_positions: Tokens per row.
            forks: Whether masks may share layers; then they do where that saves time.

        Returns:
            The plan.
        """
        if forks:
            shared = self.share(rows)
            flat_size = self.batcher.size(n_positions)
            size = self.batcher.size(n_positions, alive=shared.alive(flat_size))
            if shared.saving(size, flat_size) >= _LEAST_SAVING:
                return shared
        return EachAlone(rows)

    def share(self, rows: Rows) -> SharedLayers:
        """Return a plan in which masks share layers, whether it saves time or not."""
        return plan(
            rows.masks, rows.prompt_of_row, rows.mask_of_row, self._layer_of_unit, self._n_layers
        )

    def passes(self, plan: Plan, n_positions: int, *, gradients: bool = False) -> Iterator[Pass]:
        """Say which rows run together.

        Args:
            plan: Of all rows.
            n_positions: Tokens per row.
            gradients: Whether they run backward too.

        Yields:
            The passes.
        """
        batcher = self.gradient_batcher if gradients else self.batcher
        alive = plan.alive(batcher.size(n_positions))
        for group in plan.groups():
            for batch in batcher(group, n_positions, alive=alive):
                yield Pass(plan.rows_of(batch.rows)[0], plan.forked)
