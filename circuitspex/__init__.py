"""Find which parts of a language model work together.

The names below are grouped by the stage of the data flow that they belong to.
"""

# isort: off
# what can be ablated, and how
from circuitspex import models, units
from circuitspex.units import UnitSet, attention_layers, heads, mlps, neuron_blocks, neurons
from circuitspex.units import mean, resample
from circuitspex.ablation import ablate

# what is measured
from circuitspex import tasks
from circuitspex.tasks import Task, metrics

# what can be decoded
from circuitspex import lenses
from circuitspex._shared import GRADIENT_COST, DifferentiableSetFunction, Interaction
from circuitspex._shared import SampledSetFunction, SetFunction

# decoding
from circuitspex import decoders, designs, games
from circuitspex.algebra import IndexValues, Interactions, Term, indices, masks, transforms

# interactions measured one by one, circuits and their criteria
from circuitspex import circuits, verification
from circuitspex.verification import Verification, measurement, verify_interactions
from circuitspex.circuits import Circuit, CircuitReport, best_circuit, criteria

# keeping and showing results
from circuitspex import errors
from circuitspex.evaluation import store
from circuitspex._shared import Spec
from circuitspex.findings import Findings, load
from circuitspex.tracking import wandb_tracker

# where it runs
from circuitspex import cluster

# the whole path
from circuitspex.spex import CircuitSpex
# isort: on

__all__ = [
    "GRADIENT_COST",
    "Circuit",
    "CircuitReport",
    "CircuitSpex",
    "DifferentiableSetFunction",
    "Findings",
    "IndexValues",
    "Interaction",
    "Interactions",
    "SampledSetFunction",
    "SetFunction",
    "Spec",
    "Task",
    "Term",
    "UnitSet",
    "Verification",
    "ablate",
    "attention_layers",
    "best_circuit",
    "circuits",
    "cluster",
    "criteria",
    "decoders",
    "designs",
    "errors",
    "games",
    "heads",
    "indices",
    "lenses",
    "load",
    "masks",
    "mean",
    "measurement",
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
    "verification",
    "verify_interactions",
    "wandb_tracker",
]
