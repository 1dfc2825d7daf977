"""Single effects laid out layer by layer, as numbers for a figure and as pixels for a tracker."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from circuitspex.algebra import number
from circuitspex.findings import Findings
from circuitspex.report.layout import parse_all, row_key, row_name
from circuitspex.report.style import DIVERGING, INK

_MAX_ROWS = 64


@dataclass(frozen=True)
class EffectMap:
    """One cell per unit, or per few neighbouring units where a layer has too many to draw."""

    values: Float[np.ndarray, "cells layers"]
    """Effect of ablating the unit alone, the largest where a cell holds several; NaN: no unit."""
    in_circuit: Bool[np.ndarray, "cells layers"]
    """Whether a unit of the circuit lies in the cell."""
    hover: list[list[str]]
    """A sentence per cell."""
    row_names: list[str]
    """What each row holds."""
    column_names: list[str]
    """Layer of each column."""
    rows_per_cell: int
    """How many units of a layer share a cell."""

    @property
    def limit(self) -> float:
        """Largest size of an effect, for a colour scale that is centred at zero."""
        return float(np.nanmax(np.abs(self.values), initial=0.0)) or 1.0


def single_effects(findings: Findings) -> dict[int, float]:
    """Return what ablating each unit alone does to the intact model's value.

    Args:
        findings: What a run found.

    Returns:
        Unit index to effect; units without a term of their own are left out.
    """
    return {term.indices[0]: term.coefficient for term in findings.intact.terms if term.order == 1}


def make_effect_map(findings: Findings) -> EffectMap | None:
    """Lay single effects out by layer.

    Args:
        findings: What a run found.

    Returns:
        The map, or None if the units are not those of a model.
    """
    units = parse_all(findings.interactions.units)
    if units is None:
        return None
    keys = sorted({row_key(unit) for unit in units})
    per_cell = -(-len(keys) // _MAX_ROWS)
    cell_of = {key: number // per_cell for number, key in enumerate(keys)}
    first = min(unit.layer for unit in units)
    n_columns = max(unit.layer for unit in units) - first + 1
    values = np.full((cell_of[keys[-1]] + 1, n_columns), np.nan)
    in_circuit = np.zeros(values.shape, dtype=bool)
    hover = [[""] * n_columns for _ in values]
    names: dict[int, list[str]] = {}
    effects = single_effects(findings)
    for i, unit in enumerate(units):
        cell = cell_of[row_key(unit)], unit.layer - first
        names.setdefault(cell[0], []).append(row_name(unit))
        in_circuit[cell] |= i in findings.members
        effect = effects.get(i, 0.0)
        if not abs(effect) <= abs(values[cell]):  # NaN counts as smaller
            values[cell] = effect
            hover[cell[0]][cell[1]] = f"{unit}: {number(effect)} when ablated alone"
    return EffectMap(
        values=values,
        in_circuit=in_circuit,
        hover=hover,
        row_names=[_span(names[row]) for row in range(len(values))],
        column_names=[str(first + column) for column in range(n_columns)],
        rows_per_cell=per_cell,
    )


def _span(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else f"{unique[0]} … {unique[-1]}"


def head_map_image(
    findings: Findings, cell: int = 18
) -> UInt8[np.ndarray, "height width 3"] | None:
    """Render the map of single effects as pixels, without a browser or a plotting library.

    Args:
        findings: What a run found; the circuit's units are outlined.
        cell: Pixels a cell.

    Returns:
        RGB pixels, layers from left to right and the first head lowest; None if the units are not
        those of a model.
    """
    effects = make_effect_map(findings)
    if effects is None:
        return None
    stops = np.linspace(-effects.limit, effects.limit, len(DIVERGING))
    channels = [np.interp(effects.values, stops, channel) for channel in np.transpose(DIVERGING)]
    colours = np.stack(channels, axis=-1)
    colours[np.isnan(effects.values)] = 255
    pixels = colours.round().astype(np.uint8).repeat(cell, axis=0).repeat(cell, axis=1)
    outline = np.array([int(INK[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.uint8)
    for row, column in zip(*np.nonzero(effects.in_circuit), strict=True):
        box = pixels[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        for edge in (box[:2], box[-2:], box[:, :2], box[:, -2:]):
            edge[:] = outline
    return np.ascontiguousarray(pixels[::-1])
