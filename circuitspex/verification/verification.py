r"""Interactions measured again, one by one, and what that says about each.

A decoder estimates coefficients from masks in which everything varies at once. Once a set T is
named, its effect takes only ``2**|T|`` masks (``measurement``) and nothing is
fitted. What is left to chance is the choice of prompts, and of contexts where they are random.

Verdicts, from the measured mean m, its standard error and the estimate e:

===========  ====================================================================================
verified     m has the sign of e, at least a tenth of its size, and differs from zero by a t-test
             over prompts (and contexts), at a false discovery rate of 5 % over all that was
             measured (Benjamini–Hochberg)
refuted      not so, and the 95 % interval of m leaves out everything from half of e on: whatever
             these units do together, it is not what was claimed
undecided    neither: there are too few prompts to tell
not checked  above the largest order, beyond the ``top`` ones, or not affordable
===========  ====================================================================================

Where there is one prompt, or a plain function, and no random context, m is exact and has no error:
it is verified if it has the sign of e, at least a tenth of its size and more than rounding in
single precision can make of its ``2**|T|`` values; else refuted. A measured m replaces e: an
estimate of twice the true size is verified, and the table says how large the effect is.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from circuitspex._shared import SetFunction
from circuitspex.algebra import Interactions, Verdict, all_kept
from circuitspex.errors import ResultError
from circuitspex.verification.measurement import (
    MAX_MEASURED_ORDER,
    MeasurementPlan,
    plan_measurement,
)
from circuitspex.verification.record import Verification
from circuitspex.verification.verdicts import discoveries, judge, mean_over_draws

_ROUNDING = 1e-6  # relative, of one value in single precision after a forward pass
_CANCELLED = 1e-12  # of the largest: what rounding leaves of terms that a conversion cancels


@runtime_checkable
class KeptUnits(Protocol):
    """A circuit as a context: which units it keeps, all others being ablated."""

    @property
    def n_units(self) -> int:
        """How many units there are."""
        ...

    @property
    def indices(self) -> tuple[int, ...]:
        """Those that are kept."""
        ...

    def mask(self) -> Bool[Tensor, "1 units"]:
        """The same as a keep-mask."""
        ...


def verify_interactions(
    set_function: SetFunction,
    interactions: Interactions,
    *,
    top: int = 20,
    max_order: int = 4,
    min_order: int = 2,
    around: KeptUnits | Literal["intact", "contexts"] = "intact",
    n_contexts: int = 16,
    budget: int | None = None,
    seed: int = 0,
    held_out: bool = False,
    label: str = "",
) -> Verification:
    r"""Measure the largest interactions of a result exactly, and judge each.

    The effect of a set T is what ablating all of it does beyond what ablating its parts does,

    .. math:: \theta_z(T) = \sum_{S \subseteq T} (-1)^{|T| - |S|} \, v\big((z \cup T) \setminus
        S\big),

    in the context z: everything kept, ``"intact"``, where it is the Möbius coefficient; the units
    of a circuit kept and all others ablated but those of T, so that for T inside the circuit it
    says what T's parts do for each other there, and for other T around the circuit with T added;
    or the mean over ``"contexts"`` drawn by keeping every unit at the result's keep rate p, which
    is an unbiased estimate of :math:`(-1)^{|T|} F(T) / (p (1 - p))^{|T| / 2}`, F being the Fourier
    coefficient. What it is compared with is the decoder's own number for the same quantity, and
    by the size of that number interactions are ranked. Around the intact model that is what the
    decoder measured there itself, where it did (``diagnostics["verified"]``).

    Args:
        set_function: What to measure on; per prompt if it offers ``per_prompt``.
        interactions: What a decoder found, in any basis.
        top: How many interactions to measure: the largest estimates of ``min_order`` to
            ``max_order`` units. The others are listed as not checked.
        max_order: Most units in a measured interaction, which takes ``2**|T|`` masks.
        min_order: Fewest units in a listed interaction.
        around: The intact model, a circuit, or random contexts.
        n_contexts: How many random contexts; each costs ``2**|T|`` masks, and all interactions are
            measured in the same ones.
        budget: Evaluations to spend at most, masks × prompts each, or masks for a plain function;
            an interaction that does not fit into what is left is not checked.
        seed: Seed of the contexts.
        held_out: Whether its prompts are others than those of the discovery.
        label: Name of the task or the run.

    Returns:
        What was measured. With several prompts the standard error is over their draw, with random
        contexts over the draw of both, crossed.

    Raises:
        ResultError: If numbers of units differ, or a number is out of its range.

    Note:
        Interactions were chosen because they are large on the prompts of the discovery, and the
        errors here do not know that. Whether they are there on *other* prompts is best asked of
        others.

    References:
        Benjamini & Hochberg (1995), "Controlling the false discovery rate", JRSS B 57(1);
        Satterthwaite (1946), Biometrics Bulletin 2(6), for the degrees of freedom of a mean over
        prompts and contexts.
    """  # noqa: DOC502 - raised by the checks
    _check_request(set_function, interactions, top, max_order, min_order, n_contexts, budget)
    estimates = _estimate(interactions, around, min_order)
    wanted = [term for term in estimates if len(term) <= max_order][:top]
    n_prompts = getattr(set_function, "n_prompts", None) if _has_prompts(set_function) else None
    plan = plan_measurement(
        wanted,
        _contexts(interactions, around, n_contexts, seed),
        None if budget is None else budget // (n_prompts or 1),
    )
    found = _measure(set_function, plan, estimates)
    rows = [found.get(term, _Finding("not checked")) for term in estimates]
    in_contexts = around == "contexts"
    return Verification(
        units=interactions.units,
        around="circuit" if isinstance(around, KeptUnits) else around,
        support=tuple(estimates),
        estimates=tuple(estimates.values()),
        verdicts=tuple(row.verdict for row in rows),
        measured=tuple(row.mean for row in rows),
        std_errors=tuple(row.std_error for row in rows),
        intervals=tuple(row.interval for row in rows),
        p_values=tuple(row.p_value for row in rows),
        prompt_values=tuple(row.prompt_values for row in rows),
        n_prompts=n_prompts,
        n_evaluations=len(plan.masks) * (n_prompts or 1),
        circuit=around.indices if isinstance(around, KeptUnits) else None,
        keep_rate=interactions.keep_rate if in_contexts else None,
        n_contexts=n_contexts if in_contexts else None,
        held_out=held_out,
        label=label,
    )


class _Finding(NamedTuple):
    """What a measurement says about one interaction."""

    verdict: Verdict
    mean: float | None = None
    std_error: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    prompt_values: tuple[float, ...] | None = None


def _measure(
    set_function: SetFunction, plan: MeasurementPlan, estimates: Mapping[tuple[int, ...], float]
) -> dict[tuple[int, ...], _Finding]:
    if not plan.terms:
        return {}
    if _has_prompts(set_function):
        values = set_function.per_prompt(plan.masks)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        values = set_function(plan.masks)[:, None]
    effects = plan.coefficients(values)
    largest = float(values.abs().max()) * _ROUNDING
    means = [
        mean_over_draws(effect, largest * 2 ** len(term))
        for term, effect in zip(plan.terms, effects, strict=True)
    ]
    discovered = discoveries([mean.p_value for mean in means])
    return {
        term: _Finding(
            judge(estimates[term], mean, significant),
            mean.mean,
            mean.std_error,
            mean.interval,
            mean.p_value,
            tuple(effect.mean(0).tolist()),
        )
        for term, effect, mean, significant in zip(
            plan.terms, effects, means, discovered, strict=True
        )
    }


def _estimate(
    interactions: Interactions, around: KeptUnits | Literal["intact", "contexts"], min_order: int
) -> dict[tuple[int, ...], float]:
    """Return the decoder's own numbers for what will be measured, the largest first."""
    if around == "contexts":
        spectrum = interactions.to("fourier")
        scale = -((spectrum.keep_rate * (1 - spectrum.keep_rate)) ** 0.5)
        terms = zip(spectrum.support, spectrum.coefficients.tolist(), strict=True)
        effects = {term: value / scale ** len(term) for term, value in terms}
    else:
        everything = range(interactions.n_units)
        kept = around.indices if isinstance(around, KeptUnits) else everything
        effects = _effects_around(interactions, set(kept))
        if around == "intact":
            effects |= _measured_by_decoder(interactions)
    smallest = _CANCELLED * max(map(abs, effects.values()), default=0.0)
    listed = [t for t, e in effects.items() if len(t) >= min_order and abs(e) > smallest]
    listed.sort(key=lambda term: (-abs(effects[term]), len(term), term))
    return {term: effects[term] for term in listed}


def _measured_by_decoder(interactions: Interactions) -> dict[tuple[int, ...], float]:
    """Return what the decoder ablated itself around the intact model: no fit knows it better.

    Raises:
        ResultError: If that is not a list of measured interactions.
    """
    index = {label: unit for unit, label in enumerate(interactions.units)}
    try:
        return {
            tuple(sorted(index[label] for label in entry["units"])): float(entry["coefficient"])
            for entry in interactions.diagnostics.get("verified", ())
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ResultError(
            "diagnostics['verified'] must list what the decoder measured, each with units of the "
            f"result and a coefficient; it cannot be read ({type(error).__name__}: {error}). "
            "Decode again."
        ) from error


def _effects_around(interactions: Interactions, kept: set[int]) -> dict[tuple[int, ...], float]:
    """Return the decoder's effects where all units but these are ablated.

    There, every term of the intact model is a term of those of its units that are kept, and of
    these and any of the others where they are put back as part of the set.
    """
    intact = interactions.to("moebius", origin="intact")
    effects: dict[tuple[int, ...], float] = {}
    for term, value in zip(intact.support, intact.coefficients.tolist(), strict=True):
        inside = [unit for unit in term if unit in kept]
        outside = [unit for unit in term if unit not in kept]
        for size in range(len(outside) + 1):
            for added in combinations(outside, size):
                part = tuple(sorted([*inside, *added]))
                effects[part] = effects.get(part, 0.0) + value
    return effects


def _contexts(
    interactions: Interactions,
    around: KeptUnits | Literal["intact", "contexts"],
    n_contexts: int,
    seed: int,
) -> Bool[Tensor, "contexts units"]:
    if isinstance(around, KeptUnits):
        if around.n_units != interactions.n_units:
            raise ResultError(
                f"the circuit is over {around.n_units} units, the interactions over "
                f"{interactions.n_units}. Take both from one discovery."
            )
        return around.mask()
    if around == "intact":
        return all_kept(interactions.n_units)
    if around != "contexts":
        raise ResultError(f'around must be "intact", "contexts" or a circuit; got {around!r}.')
    # Independent draws: a design without duplicates would not be the law the coefficients are of.
    uniform = np.random.default_rng(seed).random((n_contexts, interactions.n_units))
    return torch.from_numpy(uniform < interactions.keep_rate)


def _has_prompts(set_function: SetFunction) -> bool:
    return hasattr(set_function, "per_prompt")


def _check_request(
    set_function: SetFunction,
    interactions: Interactions,
    top: int,
    max_order: int,
    min_order: int,
    n_contexts: int,
    budget: int | None,
) -> None:
    if interactions.n_units != set_function.n_units:
        raise ResultError(
            f"the interactions are over {interactions.n_units} units, the set function over "
            f"{set_function.n_units}. Measure them on the units they were found on."
        )
    if top < 0 or (budget is not None and budget < 0):
        raise ResultError(f"top and budget must not be negative; got top={top}, budget={budget}.")
    if not 1 <= min_order <= max_order <= MAX_MEASURED_ORDER:
        raise ResultError(
            f"orders must satisfy 1 <= min_order <= max_order <= {MAX_MEASURED_ORDER}; got "
            f"min_order={min_order}, max_order={max_order}. A set of k units takes 2**k masks."
        )
    if n_contexts < 2:
        raise ResultError(f"random contexts need n_contexts >= 2; got {n_contexts}.")
