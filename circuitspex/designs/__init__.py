"""A number of units in, the masks to evaluate out; one rule a file."""

from circuitspex.designs.affine import AffineDesign, AffineGroup, affine_design, affine_size
from circuitspex.designs.bch import MAX_UNITS
from circuitspex.designs.bernoulli import bernoulli_masks
from circuitspex.designs.exhaustive import exhaustive_masks
from circuitspex.designs.forked import forked_masks
from circuitspex.designs.group_testing import aliased_masks, bin_matrix, pool_matrix, pools_needed

__all__ = [
    "MAX_UNITS",
    "AffineDesign",
    "AffineGroup",
    "affine_design",
    "affine_size",
    "aliased_masks",
    "bernoulli_masks",
    "bin_matrix",
    "exhaustive_masks",
    "forked_masks",
    "pool_matrix",
    "pools_needed",
]
