"""Values on coded masks in, the interactions that explain them out."""

from circuitspex.decoders.codes.adaptive import Adaptive
from circuitspex.decoders.codes.deletions import (
    Residuals,
    SpentError,
    run_side_by_side,
    search,
)
from circuitspex.decoders.codes.moebius_bins import decode_bins
from circuitspex.decoders.codes.peeling import (
    grow,
    search_bins,
    search_everything,
    search_extensions,
    search_pairs,
    search_parts,
    search_units,
)
