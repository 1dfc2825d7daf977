"""A set function and a budget in, sparse interactions out; one method a file."""

from circuitspex.decoders.coarse_to_fine import CoarseToFineDecoder
from circuitspex.decoders.exact import ExactDecoder
from circuitspex.decoders.gradient import GradientDecoder
from circuitspex.decoders.hybrid import HybridDecoder
from circuitspex.decoders.lasso import LassoDecoder
from circuitspex.decoders.measuring import Decoder
from circuitspex.decoders.moebius import MoebiusDecoder
from circuitspex.decoders.proxyspex import ProxySpexDecoder
from circuitspex.decoders.registry import (
    AUTO,
    DECODERS,
    Choice,
    all_options,
    choose,
    get,
    options_of,
)
from circuitspex.decoders.spex import SpexDecoder

__all__ = [
    "AUTO",
    "DECODERS",
    "Choice",
    "CoarseToFineDecoder",
    "Decoder",
    "ExactDecoder",
    "GradientDecoder",
    "HybridDecoder",
    "LassoDecoder",
    "MoebiusDecoder",
    "ProxySpexDecoder",
    "SpexDecoder",
    "all_options",
    "choose",
    "get",
    "options_of",
]
