"""A model in, what can be ablated out: where it lives, and what stands in for it."""

from circuitspex.units import replacements
from circuitspex.units.kinds import MLP, AttentionLayer, Head, Neuron, NeuronBlock, Unit, parse_unit
from circuitspex.units.replacements import (
    REPLACEMENTS,
    Mean,
    Replacement,
    Resample,
    Zero,
    mean,
    resample,
)
from circuitspex.units.sites import Site, plan_sites
from circuitspex.units.stand_ins import ByHook, StandIns, ones, zeros
from circuitspex.units.unit_sets import (
    UnitSet,
    attention_layers,
    check_units,
    heads,
    mlps,
    neuron_blocks,
    neurons,
    parse_units,
)

__all__ = [
    "MLP",
    "REPLACEMENTS",
    "AttentionLayer",
    "ByHook",
    "Head",
    "Mean",
    "Neuron",
    "NeuronBlock",
    "Replacement",
    "Resample",
    "Site",
    "StandIns",
    "Unit",
    "UnitSet",
    "Zero",
    "attention_layers",
    "check_units",
    "heads",
    "mean",
    "mlps",
    "neuron_blocks",
    "neurons",
    "ones",
    "parse_unit",
    "parse_units",
    "plan_sites",
    "replacements",
    "resample",
    "zeros",
]
