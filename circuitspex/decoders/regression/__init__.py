"""Masks with values in, sparse Fourier terms with honest errors out."""

from circuitspex.decoders.regression.crossfit import held_out_r2, r2_std_error
from circuitspex.decoders.regression.least_squares import (
    characters,
    ridge,
    scores,
    solve,
    solve_gram,
    strongest_units,
    without_weaker_half,
)
from circuitspex.decoders.regression.row_fit import RowFit, Rows, fit_rows
from circuitspex.decoders.regression.selection import Candidates, combine
from circuitspex.decoders.regression.sparse_regression import SparseRegression
from circuitspex.decoders.regression.strongest_sets import (
    covariances,
    leftover,
    noise_level,
    strongest_pairs,
    strongest_triples,
)
from circuitspex.decoders.regression.trees import Tree, as_terms, tree_fourier
