"""Values and gradients in, the coefficients of a Gaussian process out."""

from circuitspex.decoders.process.gradient_means import (
    ExpansionMean,
    LinearMean,
    QuadraticMean,
    clip_lengths,
)
from circuitspex.decoders.process.process import MAX_ORDER, unit_weights
from circuitspex.decoders.process.process_fit import Gradients, ProcessFit, fit_process
