"""A set function and a budget in, masks with measured values out."""

from circuitspex.decoders.measuring.decoder import Decoder, unit_labels
from circuitspex.decoders.measuring.exhaustive import errors_over_prompts, transform_all
from circuitspex.decoders.measuring.reading import Reader, rounding_of
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
    is_count,
    join,
    variance_components,
)
from circuitspex.decoders.measuring.stopping import Course

__all__ = [
    "MIN_MASKS",
    "Course",
    "Decoder",
    "Meter",
    "Reader",
    "Samples",
    "describe_designs",
    "errors_over_prompts",
    "evaluate_round",
    "gather",
    "is_count",
    "join",
    "plan_rounds",
    "prompts_to_draw",
    "rounding_of",
    "transform_all",
    "unit_labels",
    "variance_components",
]
