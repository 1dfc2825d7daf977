"""Every mask there is, and the dense transform: what all decoders do where the budget allows."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitspex.algebra import Interactions, fourier
from circuitspex.decoders.measuring.decoder import Decoder, unit_labels
from circuitspex.decoders.measuring.rounds import MIN_MASKS
from circuitspex.decoders.measuring.samples import Meter
from circuitspex.designs import exhaustive_masks
from circuitspex.errors import DecoderError

MAX_EXACT_UNITS = 20
"""Units up to which every mask is ever evaluated."""
_CHUNK = 4096  # masks asked for at once, so that a long table can be resumed
_NEGLIGIBLE = 1e-12  # relative to the largest coefficient: rounding, not signal
_MAX_COVARIANCE = 1000  # terms up to which the full covariance is kept


def is_worth_transforming(meter: Meter, n_drawn: int | None) -> bool:
    """Return whether there are so few masks that a regression would have nothing to estimate.

    Args:
        meter: The metered set function.
        n_drawn: Prompts for each mask; None for all of them.

    Returns:
        Whether all masks are few and affordable.
    """
    n_all = 2 ** min(meter.n_units, 60)
    return n_drawn is None and n_all <= MIN_MASKS and n_all * meter.n_prompts <= meter.budget


def transform_all(decoder: Decoder, meter: Meter) -> Interactions:
    """Evaluate every mask and transform.

    Args:
        decoder: Whose keep rate, order and name the result has.
        meter: The metered set function.

    Returns:
        The interactions.

    Raises:
        DecoderError: If there are more than 20 units.
    """
    if meter.n_units > MAX_EXACT_UNITS:
        raise DecoderError(
            f"the exact decoder takes at most {MAX_EXACT_UNITS} units, 2**{MAX_EXACT_UNITS} masks; "
            f"got {meter.n_units}. Restrict the units, or use a sparse decoder such as 'proxyspex'."
        )
    masks = exhaustive_masks(
        meter.n_units, budget=meter.budget, evaluations_per_mask=meter.n_prompts
    )
    table = np.concatenate([meter.per_prompt(chunk) for chunk in masks.split(_CHUNK)])
    spectrum = fourier(torch.from_numpy(table), keep_rate=decoder.keep_rate)
    coefficients = spectrum.mean(dim=1)
    kept = _significant(coefficients, masks.sum(dim=1), decoder.max_order)
    std_errors, covariance = errors_over_prompts(spectrum[kept])
    return Interactions(
        n_units=meter.n_units,
        units=unit_labels(meter),
        basis="fourier",
        origin=None,
        keep_rate=decoder.keep_rate,
        support=tuple(tuple(masks[index].nonzero().flatten().tolist()) for index in kept.tolist()),
        coefficients=coefficients[kept],
        std_errors=std_errors,
        covariance=covariance,
        prompt_coefficients=spectrum[kept] if spectrum.shape[1] > 1 else None,
        error_source="prompts" if spectrum.shape[1] > 1 else "none",
        n_evaluations=meter.n_evaluations,
        held_out_r2=None,
        decoder=decoder.name,
        diagnostics={"design": "exhaustive", "n_masks": len(masks), "n_prompts": meter.n_prompts},
    )


def _significant(
    coefficients: Float[Tensor, " masks"], orders: Int[Tensor, " masks"], max_order: int | None
) -> Int[Tensor, " kept"]:
    """Return where coefficients are more than rounding, the constant included in any case."""
    wanted = coefficients.abs() > _NEGLIGIBLE * coefficients.abs().max()
    if max_order is not None:
        wanted &= orders <= max_order
    wanted[0] = True
    return wanted.nonzero().flatten()


def errors_over_prompts(
    spectrum: Float[Tensor, "coefficients prompts"],
) -> tuple[Float[Tensor, " coefficients"], Float[Tensor, "coefficients coefficients"] | None]:
    """Return the standard errors of the mean over prompts, and its covariance if it is small.

    Args:
        spectrum: Every prompt's own coefficients.

    Returns:
        Standard errors, and the covariance of up to 1,000 coefficients.
    """
    n_terms, n_prompts = spectrum.shape
    departures = spectrum - spectrum.mean(dim=1, keepdim=True)
    departures = departures / max(1, n_prompts * (n_prompts - 1)) ** 0.5
    covariance = departures @ departures.T if n_terms <= _MAX_COVARIANCE else None
    return departures.square().sum(dim=1).sqrt(), covariance
