"""A set function near the intact model in, its expansion there out.

Two decoders search here, on common ground: ``contexts`` reads gradients where sets are ablated and
says what they change beyond their parts, ``affordable_parts`` plans what to ablate for the terms
that are wanted most, and effects are measured by inclusion-exclusion over all subsets. The ways
of choosing are two, because they answer to different numbers of units:

* ``exploration`` with ``candidates`` (the decoder ``gradient``, hundreds of units) takes contexts
  one handful after the other where the last ones changed most, learns from each verified term how
  far to trust estimates around its units, and keeps every value for the fit;
* ``coarse_search`` with ``blocks`` and ``lattice`` (``coarse_to_fine``, up to a hundred thousand
  units) could not rank pairs of all units so. It ablates blocks first, measures the units that
  answer, halves what is left unexplained, and ranks terms by whole matrices in single precision.

Each misses what the other finds: without blocks and halving, units that are silent under every
derivative; without learnt errors, interactions whose estimates are small.
"""

from circuitspex.decoders.around_intact.coarse_search import Search
from circuitspex.decoders.around_intact.exploration import explore
from circuitspex.decoders.around_intact.neighbourhood import Neighbourhood, describe_measured
from circuitspex.decoders.around_intact.weights import Weights, fit_weights
