"""Values of masks in, coefficients in any basis out: set functions and interactions as values."""

from circuitspex.algebra import indices, masks, transforms
from circuitspex.algebra.indices import IndexValues
from circuitspex.algebra.interactions import Interactions, kind
from circuitspex.algebra.masks import (
    ablate_only,
    all_ablated,
    all_kept,
    digest,
    enumerate_masks,
    keep_only,
    pack,
    unpack,
)
from circuitspex.algebra.ranking import NORMAL_95, RankedInteraction
from circuitspex.algebra.subsets import (
    alternating_signs,
    alternating_sum,
    inclusion_exclusion,
    membership,
    signs_of,
    subsets,
)
from circuitspex.algebra.transforms import (
    BasisName,
    Coordinates,
    Origin,
    basis_functions,
    convert,
    evaluate,
    expand,
    fourier,
    inverse_fourier,
    inverse_moebius,
    moebius,
)

__all__ = [
    "NORMAL_95",
    "BasisName",
    "Coordinates",
    "IndexValues",
    "Interactions",
    "Origin",
    "RankedInteraction",
    "ablate_only",
    "all_ablated",
    "all_kept",
    "alternating_signs",
    "basis_functions",
    "convert",
    "digest",
    "enumerate_masks",
    "evaluate",
    "expand",
    "fourier",
    "indices",
    "inverse_fourier",
    "inverse_moebius",
    "keep_only",
    "kind",
    "masks",
    "moebius",
    "pack",
    "signs_of",
    "transforms",
    "unpack",
]
