"""A set function and a budget in, sparse interactions out; one method a file."""

from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from circuitspex.decoders.coarse_to_fine import CoarseToFineDecoder
from circuitspex.decoders.exact import ExactDecoder
from circuitspex.decoders.gradient import GradientDecoder
from circuitspex.decoders.hybrid import HybridDecoder
from circuitspex.decoders.lasso import LassoDecoder
from circuitspex.decoders.measuring import Decoder
from circuitspex.decoders.moebius import MoebiusDecoder
from circuitspex.decoders.proxyspex import ProxySpexDecoder
from circuitspex.decoders.spex import SpexDecoder
from circuitspex.errors import DecoderError

__all__ = [
    "DECODERS",
    "CoarseToFineDecoder",
    "Decoder",
    "ExactDecoder",
    "GradientDecoder",
    "HybridDecoder",
    "LassoDecoder",
    "MoebiusDecoder",
    "ProxySpexDecoder",
    "SpexDecoder",
    "get",
]

DECODERS: dict[str, type[Decoder]] = {
    decoder.name: decoder
    for decoder in (
        ExactDecoder,
        LassoDecoder,
        MoebiusDecoder,
        SpexDecoder,
        ProxySpexDecoder,
        HybridDecoder,
        GradientDecoder,
        CoarseToFineDecoder,
    )
}
"""Every decoder by its name."""


def get(
    name: str, *, keep_rate: float = 0.5, max_order: int | None = None, **options: Any
) -> Decoder:
    """Make a decoder.

    Args:
        name: One of :data:`DECODERS`.
        keep_rate: Probability with which masks keep a unit.
        max_order: Most units in one interaction; None for the decoder's own default: every order
            for ``exact``, 2 for ``lasso``, 3 for ``gradient``, 4 for ``moebius`` and
            ``proxyspex``, 5 for ``spex`` and ``hybrid``.
        **options: The decoder's own options, such as ``prompts_per_mask``.

    Returns:
        The decoder.

    Raises:
        DecoderError: If there is no decoder of this name, or it has no such option.

    Example:
        >>> get("lasso", keep_rate=0.9).max_order
        2
    """
    if name not in DECODERS:
        raise DecoderError(
            f"there is no decoder {name!r}{_nearest(name, list(DECODERS))}. "
            f"Choose one of {', '.join(DECODERS)}."
        )
    known = [field.name for field in fields(DECODERS[name]) if field.init]
    for option in options:
        if option not in known:
            raise DecoderError(
                f"the decoder {name!r} has no option {option!r}{_nearest(option, known)}. "
                f"Its options are {', '.join(known)}."
            )
    if max_order is not None:
        options["max_order"] = max_order
    return DECODERS[name](keep_rate=keep_rate, **options)


def _nearest(name: str, known: list[str]) -> str:
    matches = get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; did you mean {matches[0]!r}?" if matches else ""
