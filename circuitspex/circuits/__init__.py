"""A set function or its interactions in, circuits and what they show out."""

from circuitspex.circuits import criteria
from circuitspex.circuits.circuit import Circuit
from circuitspex.circuits.criteria import CircuitReport, verify_circuit
from circuitspex.circuits.integer_program import best_circuit

__all__ = ["Circuit", "CircuitReport", "best_circuit", "criteria", "verify_circuit"]
