"""A set function and a budget in, masks with measured values out."""

from circuitspex.decoders.measuring.decoder import Decoder, unit_labels
from circuitspex.decoders.measuring.exhaustive import (
    MAX_EXACT_UNITS,
    errors_over_prompts,
    is_worth_transforming,
    transform_all,
)
from circuitspex.decoders.measuring.reading import Reader, explained_share, rounding_of
from circuitspex.decoders.measuring.rounds import (
    MIN_MASKS,
    describe_designs,
    evaluate_round,
    plan_rounds,
    prompts_to_draw,
)
from circuitspex.decoders.measuring.samples import (
    Meter,
    Samples,
    gather,
    join,
    variance_components,
)
from circuitspex.decoders.measuring.stopping import StoppingRule
