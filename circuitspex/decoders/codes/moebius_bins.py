"""The sparse Möbius transform from end to end: plan the samples, take them, peel, fit."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuitspex.decoders.codes.aliasing import Aliasing
from circuitspex.decoders.codes.moebius_peeling import BinSamples, Fit, peel_exactly, peel_noisily
from circuitspex.decoders.measuring import Reader, rounding_of
from circuitspex.designs import bin_matrix, pool_matrix, pools_needed
from circuitspex.errors import BudgetError

_GROUPS = 3  # as many as published; a set that is never alone in three bins is rare
_MOST_GROUPS = 5
_MOST_BITS = 13
_DENSITIES = (1.0, 0.7, 0.65, 0.25)
"""Sets that the bits of each group spread best, in units of ``max_order``: low orders too."""
_NOISY_POOLS = 2.0  # times as many pools where values are noisy
_REPAIRS = 16  # one mask in so many is kept for groups that resolve what three left over
_EXACT = 10  # times the rounding of values: a fit that leaves no more is exact


@dataclass(frozen=True)
class Plan:
    """How many groups, bits and pools the budget pays."""

    n_groups: int
    n_bits: int
    n_pools: int


@dataclass(frozen=True)
class Found:
    """What the bins told."""

    fit: Fit
    variance: float
    """Of the noise of one value; 0 if the fit is exact."""
    diagnostics: dict[str, Any]


def plan_samples(n_masks: int, n_units: int, max_order: int, *, noisy: bool) -> Plan:
    """Choose as many bits as the budget pays in three groups, then groups, then pools.

    Args:
        n_masks: Masks that may be read.
        n_units: How many units.
        max_order: Size of the largest sets.
        noisy: Whether values are noisy; pools then outnumber those that outcomes would need.

    Returns:
        The plan.

    Raises:
        BudgetError: If not even one bin can be read.
    """
    needed = pools_needed(n_units, max_order)
    if n_masks < needed + 1:
        raise BudgetError(
            f"{n_units} units with interactions of up to {max_order} need at least {needed + 1} "
            f"masks for a single bin; the budget allows {n_masks}. Raise it to many times that, "
            "lower max_order, restrict the units or lower prompts_per_mask."
        )
    if not noisy:
        n_masks = max(needed + 1, n_masks - n_masks // _REPAIRS)
    n_pools = math.ceil(needed * _NOISY_POOLS) if noisy else needed
    n_pools = min(n_pools, n_masks - 1)
    n_bits = max(0, int(math.log2(max(1.0, n_masks / (_GROUPS * (n_pools + 1))))))
    n_bits = min(n_bits, n_units, _MOST_BITS)
    n_groups = min(_MOST_GROUPS, n_masks // (2**n_bits * (n_pools + 1)))
    affordable = n_masks // (n_groups * 2**n_bits) - 1
    return Plan(n_groups, n_bits, min(affordable, (4 if noisy else 2) * n_pools))


def make_aliasing(
    plan: Plan, n_units: int, max_order: int, rng: np.random.Generator, *, noisy: bool
) -> Aliasing:
    """Draw the bits and pools of a plan; one pool per unit if that is enough and exact.

    Args:
        plan: How many.
        n_units: How many units.
        max_order: Size of the largest sets.
        rng: Source of every draw.
        noisy: Whether values are noisy.

    Returns:
        The design.
    """
    orders = [max(1, round(max_order * _DENSITIES[g % len(_DENSITIES)])) for g in range(5)]
    bits = [bin_matrix(plan.n_bits, n_units, order, rng) for order in orders[: plan.n_groups]]
    pools = pool_matrix(plan.n_pools, n_units, max_order, rng)
    if plan.n_pools >= n_units and not noisy:
        pools = np.eye(n_units, dtype=bool)
    return Aliasing(np.stack(bits), np.concatenate([np.zeros((1, n_units), dtype=bool), pools]))


def decode_bins(
    reader: Reader, limit: int, noise: float, max_order: int, rng: np.random.Generator
) -> Found:
    """Take samples, peel them and fit what was found.

    Args:
        reader: Reads masks.
        limit: Evaluations after which no more may be asked for.
        noise: Standard deviation of one value; 0 if values repeat.
        max_order: Most units in a set.
        rng: Source of every draw.

    Returns:
        The fit and how it came about.
    """
    n_masks = (limit - reader.meter.n_evaluations) // reader.cost
    n_units, noisy = reader.meter.n_units, noise > 0
    plan = plan_samples(n_masks, n_units, max_order, noisy=noisy)
    aliasing, masks, which = _fill(plan, n_masks, n_units, max_order, rng, noisy)
    values = reader.read(masks).mean(axis=1)
    samples = BinSamples(aliasing, values[which], which, masks)
    n_left = 0
    if noisy:
        fit = peel_noisily(samples, max_order, noise, samples.fit([()]))
        variance = samples.variance(fit)
    else:
        terms, n_left = peel_exactly(samples, max_order)
        for order in _repair_orders(max_order):
            larger = _add_group(reader, samples, order, n_masks, rng) if n_left else None
            if larger is None:
                break
            samples = larger
            terms, n_left = peel_exactly(samples, max_order)
        fit, variance = _refine(samples, terms, max_order)
    aliasing = samples.aliasing
    diagnostics = {
        "n_masks": len(masks),
        "n_groups": len(aliasing.bits),
        "n_bits": aliasing.bits.shape[1],
        "n_pools": len(aliasing.pools) - 1,
        "noise": float(noise),
        "n_unresolved_bins": n_left,
        "residual": float(np.sqrt(variance)),
    }
    return Found(fit, variance, diagnostics)


def _fill(
    plan: Plan,
    n_masks: int,
    n_units: int,
    max_order: int,
    rng: np.random.Generator,
    noisy: bool,
) -> tuple[Aliasing, np.ndarray, np.ndarray]:
    """Return a design, with more bits than planned where few units make many masks coincide."""
    aliasing = make_aliasing(plan, n_units, max_order, rng, noisy=noisy)
    masks, which = aliasing.masks()
    while n_units <= 16 and plan.n_bits < n_units:
        plan = Plan(plan.n_groups, plan.n_bits + 1, plan.n_pools)
        larger = make_aliasing(plan, n_units, max_order, rng, noisy=noisy)
        more, more_which = larger.masks()
        if len(more) > n_masks:
            break
        aliasing, masks, which = larger, more, more_which
    return aliasing, masks, which


def _repair_orders(max_order: int) -> list[int]:
    """Return the sets that added groups spread best: large and small ones in turn."""
    return [max(1, max_order // part) for part in (1, 3, 2, 6)]


def _add_group(
    reader: Reader, samples: BinSamples, order: int, n_masks: int, rng: np.random.Generator
) -> BinSamples | None:
    """Return the samples with a group of fewer bits added, for the few sets that are left.

    None if the budget does not pay two bins. Bits that are not used are empty, so that the masks
    of their bins coincide and cost nothing.
    """
    old = samples.aliasing
    _, n_bits, n_units = old.bits.shape
    affordable = (n_masks - len(samples.masks)) // len(old.pools)
    if affordable < 2:
        return None
    used = min(n_bits, int(math.log2(affordable)))
    bits = np.zeros((1, n_bits, n_units), dtype=bool)
    bits[0, :used] = bin_matrix(used, n_units, order, rng)
    aliasing = Aliasing(np.concatenate([old.bits, bits]), old.pools)
    masks, which = aliasing.masks()
    places = {
        row.tobytes(): row_of for row_of, row in enumerate(np.packbits(samples.masks, axis=1))
    }
    known = np.array([places.get(row.tobytes(), -1) for row in np.packbits(masks, axis=1)])
    read = np.zeros(len(samples.masks))
    read[samples.which.reshape(-1)] = samples.values.reshape(-1)
    values = read[known]
    values[known < 0] = reader.read(masks[known < 0]).mean(axis=1)
    return BinSamples(aliasing, values[which], which, masks)


def _refine(samples: BinSamples, terms: list, max_order: int) -> tuple[Fit, float]:
    """Return the fit of what exact peeling found; what is left is read as if it were noisy.

    The tail of small terms then counts as noise, whose size is what the last fit left over.
    """
    fit = samples.fit(list(dict.fromkeys([(), *terms])))
    variance = samples.variance(fit)
    exact = _EXACT * rounding_of(samples.values) * np.abs(samples.values).max(initial=0.0)
    for _ in range(4):
        if variance <= exact**2:
            return _drop_rounding(samples, fit, exact), 0.0
        again = peel_noisily(samples, max_order, float(np.sqrt(variance)), fit)
        left = samples.variance(again)
        if left >= variance:
            break
        fit, variance = again, left
    return fit, variance


def _drop_rounding(samples: BinSamples, fit: Fit, limit: float) -> Fit:
    sizes = dict(zip(fit.terms, np.abs(fit.coefficients).tolist(), strict=True))
    kept = [term for term, size in sizes.items() if not term or size > limit]
    return fit if len(kept) == len(fit.terms) else samples.fit(kept)
