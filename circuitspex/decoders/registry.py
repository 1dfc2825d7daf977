"""Every decoder by its name, and how one is chosen where none is named."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from circuitspex._shared import Declared, declared, did_you_mean
from circuitspex.decoders.coarse_to_fine import CoarseToFineDecoder
from circuitspex.decoders.exact import ExactDecoder
from circuitspex.decoders.gradient import GradientDecoder
from circuitspex.decoders.hybrid import HybridDecoder
from circuitspex.decoders.lasso import LassoDecoder
from circuitspex.decoders.measuring import MAX_EXACT_UNITS, Decoder
from circuitspex.decoders.moebius import MoebiusDecoder
from circuitspex.decoders.proxyspex import ProxySpexDecoder
from circuitspex.decoders.spex import SpexDecoder
from circuitspex.errors import DecoderError

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

AUTO = "auto"
"""Stands for the decoder that :func:`choose` picks."""


def get(
    name: str,
    *,
    keep_rate: float | None = None,
    max_order: int | None = None,
    prompts_per_mask: Any = None,
    **options: Any,
) -> Decoder:
    """Make a decoder.

    Args:
        name: One of :data:`DECODERS`.
        keep_rate: Probability with which masks keep a unit; ½ when None.
        max_order: Most units in one interaction; the decoder's own default when None.
        prompts_per_mask: ``all``, how many prompts each mask is evaluated on, or ``auto``, the
            default, for as few as the decoder can use.
        **options: The decoder's other options; :func:`options_of` lists them.

    Returns:
        The decoder.

    Raises:
        DecoderError: If there is no decoder of this name, it has no such option, or it cannot use
            the value of one.

    Example:
        >>> get("lasso", keep_rate=0.9).max_order
        2
    """
    if name not in DECODERS:
        raise DecoderError(
            f"there is no decoder {name!r}{did_you_mean(name, DECODERS) or '.'} "
            f"Choose one of {', '.join(DECODERS)}."
        )
    known = options_of(name)
    for option in options:
        if option not in known:
            raise DecoderError(
                f"the decoder {name!r} has no option {option!r}"
                f"{did_you_mean(option, known) or '.'} Its options are {', '.join(known)}."
            )
    shared = {
        "keep_rate": keep_rate,
        "max_order": max_order,
        "prompts_per_mask": prompts_per_mask,
    }
    given = {option: value for option, value in shared.items() if value is not None}
    return DECODERS[name].make(**given, **options)


def options_of(name: str) -> Mapping[str, Declared]:
    """Return a decoder's options by name: type, bounds, default and help of each.

    Example:
        >>> options_of("proxyspex")["max_candidates"].default
        800
    """
    return declared(DECODERS[name])


def all_options() -> dict[str, dict[str, Declared]]:
    """Return every option there is by name, and its declaration by each decoder that has it."""
    found: dict[str, dict[str, Declared]] = {}
    for decoder in DECODERS:
        for option, field in options_of(decoder).items():
            found.setdefault(option, {})[decoder] = field
    return found


@dataclass(frozen=True)
class Choice:
    """A decoder for a model, with all of its options."""

    decoder: Decoder
    """The decoder."""
    reason: str
    """Why it is this one."""


def choose(
    decoder: str | Decoder = AUTO,
    *,
    budget: int | None = None,
    n_units: int | None = None,
    n_prompts: int = 1,
    **options: Any,
) -> Choice:
    """Make the decoder that is named, or pick one, for a set function made of a model.

    A decoder that was made already is taken as it is, and brings all of its options along.

    ``auto`` is ``exact`` where all masks fit the budget, else ``hybrid``; where these cannot use
    the options that are asked for, it is the first of the others that can. A keep rate that is
    not asked for is the decoder's :attr:`~circuitspex.decoders.Decoder.model_keep_rate`; any other
    option that is None is the decoder's default.

    Args:
        decoder: One of :data:`DECODERS`, ``auto``, or a decoder.
        budget: Evaluations to spend; None where it is not known yet.
        n_units: How many units there are; None where it is not known yet.
        n_prompts: How many prompts there are.
        **options: Options of the decoder.

    Returns:
        The decoder and why it is this one.

    Raises:
        DecoderError: If the decoder has no such option or cannot use its value; with ``auto``, if
            none can; or if options are given beside a decoder that was made already.
    """
    given = {option: value for option, value in options.items() if value is not None}
    if not isinstance(decoder, str):
        if given:
            raise DecoderError(
                f"{', '.join(given)} cannot be given beside a decoder that was made already. Give "
                f"them to {type(decoder).__name__}(...), or name the decoder."
            )
        return Choice(decoder, "it was passed")
    if decoder != AUTO:
        return Choice(_for_model(decoder, given), "it was asked for")
    for option in given:
        if option not in all_options():
            hint = did_you_mean(option, all_options()) or "."
            raise DecoderError(
                f"no decoder has an option {option!r}{hint} There are {', '.join(all_options())}."
            )
    affordable, why = _all_masks_fit(budget, n_units, n_prompts, given.get("among"))
    first = ["exact", "hybrid"] if affordable else ["hybrid"]
    refusals: dict[str, DecoderError] = {}
    for candidate in [*first, *(other for other in DECODERS if other not in first)]:
        try:
            made = _for_model(candidate, given)
        except DecoderError as refusal:
            refusals[candidate] = refusal
            continue
        refused = next(iter(refusals.values()), None)
        return Choice(made, why if refused is None else str(refused).partition(". ")[0])
    raise DecoderError(_telling(refusals, given))


def _for_model(name: str, given: Mapping[str, Any]) -> Decoder:
    rate = DECODERS[name].model_keep_rate if name in DECODERS else None
    return get(name, **{"keep_rate": rate, **given})


def _all_masks_fit(
    budget: int | None, n_units: int | None, n_prompts: int, among: Any
) -> tuple[bool, str]:
    if budget is None or n_units is None:
        return False, "the budget is not known"
    n_units = min(n_units, len(among)) if isinstance(among, list | tuple) else n_units
    fit = n_units <= MAX_EXACT_UNITS and 2**n_units * n_prompts <= budget
    cost = f"2^{n_units} masks × {n_prompts} prompts"
    return fit, f"{cost} {'fit' if fit else 'are more than'} the budget of {budget:,}"


def _telling(refusals: Mapping[str, DecoderError], given: Iterable[str]) -> str:
    """Return the refusal by a decoder that has every option, for it says which value is wrong."""
    for name, refusal in refusals.items():
        if set(given) <= options_of(name).keys():
            return str(refusal)
    rare = [option for option in given if len(all_options()[option]) < len(DECODERS)]
    return f"no decoder has all of {', '.join(rare)}. Name a decoder, and give options that it has."
