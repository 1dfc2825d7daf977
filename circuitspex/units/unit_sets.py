"""Choices of units: their order fixes the columns of every mask.

A :class:`UnitSet` is made by :func:`heads` and the like, or read from text as the command line
takes it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

from circuitspex.errors import UnitError
from circuitspex.units.kinds import MLP, AttentionLayer, Head, Neuron, NeuronBlock, Unit


class UnitSet(Sequence[Unit]):
    """An ordered choice of units without overlaps; unit i is column i of every mask.

    Sets are joined with ``+``: ``cs.heads(model) + cs.mlps(model)``.
    """

    def __init__(self, units: Iterable[Unit]) -> None:
        self._units = tuple(units)
        self._check_disjoint()

    def _check_disjoint(self) -> None:
        taken: dict[tuple[str, int | None], Unit] = {}
        for unit in self._units:
            for entry in (None,) if unit.span is None else unit.span:
                other = taken.setdefault((unit.hook, entry), unit)
                if other is not unit:
                    raise UnitError(
                        f"{unit} and {other} overlap at {unit.hook}; a mask could not say whether "
                        "the shared part is kept. Leave one of them out."
                    )

    def __len__(self) -> int:
        return len(self._units)

    @overload
    def __getitem__(self, index: int) -> Unit: ...
    @overload
    def __getitem__(self, index: slice) -> "UnitSet": ...
    def __getitem__(self, index: int | slice) -> "Unit | UnitSet":
        if isinstance(index, slice):
            return UnitSet(self._units[index])
        return self._units[index]

    def __iter__(self) -> Iterator[Unit]:
        return iter(self._units)

    def __add__(self, other: "UnitSet") -> "UnitSet":
        return UnitSet(self._units + other._units)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnitSet) and self._units == other._units

    def __hash__(self) -> int:
        return hash(self._units)

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self._units[:4]))
        return f"UnitSet({len(self)} units: {shown}{', …' if len(self) > 4 else ''})"

    @property
    def labels(self) -> tuple[str, ...]:
        """Label of every unit, in mask order."""
        return tuple(map(str, self._units))


def heads(model: Any, layers: Iterable[int] | None = None) -> UnitSet:
    """Choose all attention heads, or those of some layers.

    Args:
        model: A TransformerBridge.
        layers: Layer indices; all layers when None.

    Returns:
        Query heads, layer by layer.
    """
    n_heads = model.cfg.n_heads
    return UnitSet(Head(layer, h) for layer in _layers(model, layers) for h in range(n_heads))


def neurons(
    model: Any, layers: Iterable[int] | None = None, indices: Iterable[int] | None = None
) -> UnitSet:
    """Choose MLP neurons.

    Args:
        model: A TransformerBridge.
        layers: Layer indices; all layers when None.
        indices: Neurons to take in each layer; all when None.

    Returns:
        Neurons, layer by layer.

    Raises:
        UnitError: If the model has no MLPs, or no such neuron.
    """
    d_mlp = _d_mlp(model)
    chosen = range(d_mlp) if indices is None else list(indices)
    if any(not 0 <= i < d_mlp for i in chosen):
        raise UnitError(f"neurons must lie in 0..{d_mlp - 1}; got {chosen}.")
    return UnitSet(Neuron(layer, i) for layer in _layers(model, layers) for i in chosen)


def neuron_blocks(model: Any, size: int = 64, layers: Iterable[int] | None = None) -> UnitSet:
    """Choose blocks of neighbouring MLP neurons; the last of a layer may be smaller.

    Args:
        model: A TransformerBridge.
        size: Neurons a block.
        layers: Layer indices; all layers when None.

    Returns:
        Blocks, layer by layer.

    Raises:
        UnitError: If the size is not positive.
    """
    if size < 1:
        raise UnitError(f"a block needs at least one neuron; got size={size}.")
    d_mlp = _d_mlp(model)
    return UnitSet(
        NeuronBlock(layer, start, min(start + size, d_mlp))
        for layer in _layers(model, layers)
        for start in range(0, d_mlp, size)
    )


def attention_layers(model: Any, layers: Iterable[int] | None = None) -> UnitSet:
    """Choose whole attention layers.

    Args:
        model: A TransformerBridge.
        layers: Layer indices; all layers when None.

    Returns:
        One unit per layer.
    """
    return UnitSet(AttentionLayer(layer) for layer in _layers(model, layers))


def mlps(model: Any, layers: Iterable[int] | None = None) -> UnitSet:
    """Choose whole MLP layers.

    Args:
        model: A TransformerBridge.
        layers: Layer indices; all layers when None.

    Returns:
        One unit per layer.
    """
    _d_mlp(model)
    return UnitSet(MLP(layer) for layer in _layers(model, layers))


def parse_units(text: str, model: Any) -> UnitSet:
    """Read a choice of units as the command line takes it.

    Args:
        text: ``heads``, ``neurons``, ``blocks`` (of 64 neurons; ``blocks16`` of 16), ``attention``
            or ``mlps``, joined by ``+``; each may be restricted to layers: ``heads@0-3,7``.
        model: A TransformerBridge.

    Returns:
        The units.

    Raises:
        UnitError: If the text is not of this form.
    """
    total = UnitSet([])
    for part in text.split("+"):
        match = _CHOICE.fullmatch(part.strip())
        if match is None:
            raise UnitError(
                f"{part!r} names no units; write heads, neurons, blocks, blocks16, attention or "
                "mlps, joined by + and restricted to layers as in heads@0-3,7."
            )
        layers = None if match["layers"] is None else _read_layers(match["layers"])
        if match["kind"] == "blocks":
            total = total + neuron_blocks(model, int(match["size"] or 64), layers)
        else:
            total = total + _MAKERS[match["kind"]](model, layers)
    return total


def check_units(units: UnitSet, model: Any) -> None:
    """Refuse units that the model does not have.

    Args:
        units: The units to look up.
        model: A TransformerBridge.

    Raises:
        UnitError: If a unit's layer or index is outside the model, or there are no units at all.
    """
    if len(units) == 0:
        raise UnitError("there are no units to ablate; pass at least one, such as cs.heads(model).")
    for unit in units:
        _layers(model, [unit.layer])
        if unit.span is not None:
            size = model.cfg.n_heads if unit.axis == "head" else _d_mlp(model)
            if not 0 <= unit.span.start < unit.span.stop <= size:
                raise UnitError(
                    f"{unit} does not exist: layer {unit.layer} has {unit.axis}s 0..{size - 1}."
                )


_CHOICE = re.compile(
    r"(?P<kind>heads|neurons|attention|mlps|blocks(?=\d|@|$))(?P<size>(?<=blocks)\d+)?"
    r"(?:@(?P<layers>\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*))?"
)
_MAKERS: dict[str, Callable[..., UnitSet]] = {
    "heads": heads,
    "neurons": neurons,
    "attention": attention_layers,
    "mlps": mlps,
}


def _read_layers(text: str) -> list[int]:
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    return [layer for end in ends for layer in range(end[0], end[-1] + 1)]


def _layers(model: Any, layers: Iterable[int] | None) -> list[int]:
    n_layers = model.cfg.n_layers
    if layers is None:
        return list(range(n_layers))
    chosen = list(layers)
    wrong = [layer for layer in chosen if not 0 <= layer < n_layers]
    if wrong:
        raise UnitError(f"the model has layers 0..{n_layers - 1}; got {wrong}.")
    return chosen


def _d_mlp(model: Any) -> int:
    d_mlp = getattr(model.cfg, "d_mlp", None)
    if not d_mlp or getattr(model.cfg, "attn_only", False):
        raise UnitError("the model has no MLPs; choose heads or attention layers instead.")
    return d_mlp
