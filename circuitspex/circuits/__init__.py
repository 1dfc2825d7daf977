"""A set function or its interactions in, circuits and what they show out."""

from circuitspex.circuits import criteria
from circuitspex.circuits.circuit import Circuit
from circuitspex.circuits.criteria import (
    MIB_FRACTIONS,
    CircuitReport,
    cmd,
    cpr,
    faithfulness,
    faithfulness_curve,
    incompleteness,
    minimality,
    verify_circuit,
)
from circuitspex.circuits.integer_program import best_circuit

__all__ = [
    "MIB_FRACTIONS",
    "Circuit",
    "CircuitReport",
    "best_circuit",
    "cmd",
    "cpr",
    "criteria",
    "faithfulness",
    "faithfulness_curve",
    "incompleteness",
    "minimality",
    "verify_circuit",
]
