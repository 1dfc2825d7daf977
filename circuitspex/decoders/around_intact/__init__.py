"""A set function near the intact model in, its expansion there out."""

from circuitspex.decoders.around_intact.coarse_search import Search
from circuitspex.decoders.around_intact.exploration import explore
from circuitspex.decoders.around_intact.neighbourhood import Neighbourhood, describe_measured
from circuitspex.decoders.around_intact.weights import Weights, fit_weights
