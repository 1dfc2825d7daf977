"""Where units are drawn: layers from left to right, heads and MLPs above each other.

Labels that name no unit of a model, such as input features, are drawn in one row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from circuitspex.errors import UnitError
from circuitspex.units import MLP, AttentionLayer, Head, Neuron, NeuronBlock, Unit, parse_unit

_MAX_ROWS = 48  # more than this many rows are unreadable: stack what is shown instead
_MAX_COLUMNS = 40  # for a row of features


@dataclass(frozen=True)
class Layout:
    """Places of units in a grid of unit cells, and what to write beside it."""

    places: dict[int, tuple[float, float]]
    """Unit index to (column, row); row 0 is the lowest."""
    columns: dict[float, str]
    """Column to what is written under it."""
    rows: dict[float, str]
    """Row to what is written beside it; empty where rows mean nothing."""
    column_title: str
    """What the columns are."""
    short_labels: bool
    """Whether every label fits into a node."""

    @property
    def is_row(self) -> bool:
        """Whether all units lie in one row."""
        return not self.rows and len({row for _, row in self.places.values()}) <= 1


def arrange(labels: Sequence[str], shown: Iterable[int]) -> Layout:
    """Place units.

    Args:
        labels: Label of every unit, in mask order.
        shown: Units that must be placed. In a grid all are; elsewhere only these.

    Returns:
        The layout.
    """
    wanted = sorted(set(shown))
    units = parse_all(labels)
    if units is None:
        return _in_a_row(labels, wanted)
    keys = sorted({row_key(unit) for unit in units})
    if len(keys) <= _MAX_ROWS:
        rows = {key: float(row) for row, key in enumerate(keys)}
        places = {i: (float(unit.layer), rows[row_key(unit)]) for i, unit in enumerate(units)}
        names = {rows[row_key(unit)]: row_name(unit) for unit in units}
        short = not any(isinstance(unit, Neuron | NeuronBlock) for unit in units)
    else:
        places, names, short = _stacked(units, wanted), {}, False
    layers = range(min(unit.layer for unit in units), max(unit.layer for unit in units) + 1)
    return Layout(places, {float(layer): str(layer) for layer in layers}, names, "layer", short)


def parse_all(labels: Sequence[str]) -> list[Unit] | None:
    """Read labels as units of a model.

    Args:
        labels: Label of every unit.

    Returns:
        The units, or None if a label is of something else.
    """
    try:
        return [parse_unit(label) for label in labels]
    except UnitError:
        return None


def row_key(unit: Unit) -> tuple[int, int]:
    """Return what orders units within a layer: heads, then whole layers, then neurons."""
    match unit:
        case Head():
            return 0, unit.head
        case AttentionLayer():
            return 1, 0
        case MLP():
            return 2, 0
        case _:
            return 3, unit.span.start


def row_name(unit: Unit) -> str:
    """Return what a unit is called within its layer, such as "H3"."""
    return str(unit).removeprefix(f"L{unit.layer}")


def short_label(label: str) -> str:
    """Shorten a label so that it fits into a node: "12.5" for a head, "M12" for an MLP.

    Args:
        label: Label of a unit.

    Returns:
        The short form; labels of other things are cut to 18 characters.
    """
    units = parse_all([label])
    match units[0] if units else None:
        case Head(layer, head):
            return f"{layer}.{head}"
        case AttentionLayer(layer):
            return f"A{layer}"
        case MLP(layer):
            return f"M{layer}"
        case _:
            return label if len(label) <= 18 else f"{label[:17]}…"


def _in_a_row(labels: Sequence[str], wanted: list[int]) -> Layout:
    placed = list(range(len(labels))) if len(labels) <= _MAX_COLUMNS else wanted
    places = {unit: (float(column), 0.0) for column, unit in enumerate(placed)}
    columns = {places[unit][0]: short_label(labels[unit]) for unit in placed}
    return Layout(places, columns, {}, "", False)


def _stacked(units: Sequence[Unit], wanted: list[int]) -> dict[int, tuple[float, float]]:
    places, heights = {}, dict[int, int]()
    for i in sorted(wanted, key=lambda i: (units[i].layer, row_key(units[i]))):
        row = heights.get(units[i].layer, 0)
        places[i] = (float(units[i].layer), float(row))
        heights[units[i].layer] = row + 1
    return places
