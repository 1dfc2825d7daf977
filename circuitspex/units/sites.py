"""Where units live in a model: one site per hook point, knowing which mask column rules what."""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex.errors import HookError
from circuitspex.units.unit_sets import UnitSet


@dataclass(frozen=True, eq=False)
class Site:
    """One hook point and the mask columns that rule it."""

    hook: str
    """Name of the hook point."""
    axis: str | None
    """``head``, ``neuron``, or None where one column rules the whole activation."""
    layer: int
    """Block that the hook point is in."""
    columns: Int[Tensor, " entries"]
    """Mask column of every entry of the axis; the column after the last means always kept."""

    @property
    def size(self) -> int | None:
        """Entries of the axis, None for a whole activation."""
        return None if self.axis is None else len(self.columns)

    def check_axis(self, activation: Tensor, n_rows: int, d_model: int) -> None:
        """Refuse an activation that is not laid out as this site needs it.

        Args:
            activation: What the hook point was called with.
            n_rows: Rows it should have.
            d_model: Width of the residual stream.

        Raises:
            HookError: If its shape is another one.
        """
        n_axes = 4 if self.axis == "head" else 3
        entries = d_model if self.size is None else self.size
        if activation.ndim != n_axes or activation.shape[2] != entries or len(activation) != n_rows:
            expected = f"({n_rows}, positions, {entries}{', d_head' if n_axes == 4 else ''})"
            raise HookError(
                f"{self.hook} has shape {tuple(activation.shape)}; {expected} was expected. "
                f"This architecture keeps its {self.axis or 'layer output'}s elsewhere."
            )

    def broadcast(
        self, gates: Bool[Tensor, "rows entries"] | Float[Tensor, "rows entries"]
    ) -> Bool[Tensor, "rows ..."] | Float[Tensor, "rows ..."]:
        """Give gates the axes of the activation.

        Args:
            gates: One per row and entry.

        Returns:
            The same numbers, with axes of size 1 where an activation has more.
        """
        if self.axis == "head":
            return rearrange(gates, "rows heads -> rows 1 heads 1")
        return rearrange(gates, "rows entries -> rows 1 entries")


def plan_sites(units: UnitSet, model: Any) -> tuple[Site, ...]:
    """Group units by hook point.

    Args:
        units: What a mask's columns stand for.
        model: A TransformerBridge.

    Returns:
        One site per hook point, in the order of first appearance.
    """
    sizes = {"head": model.cfg.n_heads, "neuron": getattr(model.cfg, "d_mlp", None), None: 1}
    always_kept = len(units)
    columns: dict[tuple[str, str | None, int], list[int]] = {}
    for column, unit in enumerate(units):
        key = (unit.hook, unit.axis, unit.layer)
        entries = columns.setdefault(key, [always_kept] * sizes[unit.axis])
        for entry in (0,) if unit.span is None else unit.span:
            entries[entry] = column
    return tuple(Site(*key, torch.tensor(entries)) for key, entries in columns.items())
