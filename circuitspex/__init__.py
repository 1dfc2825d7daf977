"""Find which parts of a language model work together.

The names below are grouped by the stage of the data flow that they belong to.
"""

# isort: off
# what can be ablated, and how
from circuitspex import masks, metrics, models, units
from circuitspex.units import UnitSet, attention_layers, heads, mlps, neuron_blocks, neurons
from circuitspex.replacements import mean, resample
from circuitspex.ablation import ablate

# what is measured
from circuitspex import tasks
from circuitspex.tasks import Task

# decoding
from circuitspex import decoders, designs, indices, transforms
from circuitspex.indices import IndexValues
from circuitspex.interactions import Interactions

# circuits and their criteria
from circuitspex import criteria
from circuitspex.circuit import Circuit, best_circuit
from circuitspex.criteria import CircuitReport

# keeping and showing results
from circuitspex import errors, store
from circuitspex.spec import Spec
from circuitspex.tracking import wandb_tracker

# the whole path
from circuitspex.spex import CircuitSpex
# isort: on

__all__ = [
    "Circuit",
    "CircuitReport",
    "CircuitSpex",
    "IndexValues",
    "Interactions",
    "Spec",
    "Task",
    "UnitSet",
    "ablate",
    "attention_layers",
    "best_circuit",
    "criteria",
    "decoders",
    "designs",
    "errors",
    "heads",
    "indices",
    "masks",
    "mean",
    "metrics",
    "mlps",
    "models",
    "neuron_blocks",
    "neurons",
    "resample",
    "store",
    "tasks",
    "transforms",
    "units",
    "wandb_tracker",
]
