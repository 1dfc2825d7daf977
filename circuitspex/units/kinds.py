"""Kinds of units: attention heads, MLP neurons, blocks of neurons, whole layers.

A unit is an inert name. Where it lives in the model is its hook point, and which entries of the
activation's last named axis belong to it (all of them for a whole layer).
"""

import re
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from circuitspex.errors import UnitError


@dataclass(frozen=True, order=True)
class _InLayer:
    """What every unit has."""

    layer: int
    axis: ClassVar[str | None] = None
    """``head`` or ``neuron``; None for a whole layer."""
    point: ClassVar[str]
    """Name of the hook point within the layer."""

    @property
    def hook(self) -> str:
        """Name of the hook point."""
        return f"blocks.{self.layer}.{self.point}"

    @property
    def span(self) -> range | None:
        """Entries of the hook's axis that belong to this unit; None where all do."""
        return None


@dataclass(frozen=True, order=True)
class Head(_InLayer):
    """One attention head, ablated at its output before W_O. Query heads under grouped queries."""

    head: int
    axis = "head"
    point = "attn.hook_z"

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @property
    def span(self) -> range:
        """Entries of the hook's axis that belong to this unit."""
        return range(self.head, self.head + 1)


@dataclass(frozen=True, order=True)
class Neuron(_InLayer):
    """One hidden unit of an MLP, ablated after nonlinearity and gate."""

    neuron: int
    axis = "neuron"
    point = "mlp.hook_post"

    def __str__(self) -> str:
        return f"L{self.layer}N{self.neuron}"

    @property
    def span(self) -> range:
        """Entries of the hook's axis that belong to this unit."""
        return range(self.neuron, self.neuron + 1)


@dataclass(frozen=True, order=True)
class NeuronBlock(_InLayer):
    """Neurons ``start`` to ``stop - 1`` of one MLP, ablated together."""

    start: int
    stop: int
    axis = "neuron"
    point = "mlp.hook_post"

    def __str__(self) -> str:
        return f"L{self.layer}N{self.start}-{self.stop - 1}"

    @property
    def span(self) -> range:
        """Entries of the hook's axis that belong to this unit."""
        return range(self.start, self.stop)


@dataclass(frozen=True, order=True)
class AttentionLayer(_InLayer):
    """The whole attention output of one layer, as it is added to the residual stream."""

    point = "hook_attn_out"

    def __str__(self) -> str:
        return f"L{self.layer}attn"


@dataclass(frozen=True, order=True)
class MLP(_InLayer):
    """The whole MLP output of one layer, as it is added to the residual stream."""

    point = "hook_mlp_out"

    def __str__(self) -> str:
        return f"L{self.layer}mlp"


Unit: TypeAlias = Head | Neuron | NeuronBlock | AttentionLayer | MLP

_LABEL = re.compile(
    r"L(?P<layer>\d+)(?:H(?P<head>\d+)|N(?P<start>\d+)(?:-(?P<last>\d+))?|(?P<whole>attn|mlp))"
)


def parse_unit(label: str) -> Unit:
    """Read a unit back from its label; the inverse of ``str(unit)``.

    Args:
        label: Such as ``L3H1``, ``L3N17``, ``L3N0-63``, ``L3attn`` or ``L3mlp``.

    Returns:
        The unit.

    Raises:
        UnitError: If the label is of no known form.

    Example:
        >>> parse_unit("L3N0-63")
        NeuronBlock(layer=3, start=0, stop=64)
    """
    match = _LABEL.fullmatch(label)
    if match is None:
        raise UnitError(
            f"{label!r} is not the label of a unit. Labels look like L3H1 (head), L3N17 (neuron), "
            "L3N0-63 (block of neurons), L3attn or L3mlp (a whole layer)."
        )
    layer = int(match["layer"])
    if match["head"] is not None:
        return Head(layer, int(match["head"]))
    if match["whole"] is not None:
        return AttentionLayer(layer) if match["whole"] == "attn" else MLP(layer)
    if match["last"] is not None:
        return NeuronBlock(layer, int(match["start"]), int(match["last"]) + 1)
    return Neuron(layer, int(match["start"]))
