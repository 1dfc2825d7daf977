"""A model, a task and units in, a set function out; it asks its store first."""

from circuitspex.evaluation import store
from circuitspex.evaluation.evaluation import Evaluation, Progress, describe_evaluation
from circuitspex.evaluation.noise_floor import noise_floor
from circuitspex.evaluation.runner import LocalRunner, Runner, Workers
