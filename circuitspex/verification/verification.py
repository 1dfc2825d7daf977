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

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    get_args,
    runtime_checkable,
)

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from circuitspex._shared import SetFunction, read_document, write_document
from circuitspex.algebra import Interactions, all_kept
from circuitspex.errors import ResultError
from circuitspex.verification.measurement import (
    MAX_MEASURED_ORDER,
    MeasurementPlan,
    plan_measurement,
)
from circuitspex.verification.verdicts import Verdict, discoveries, judge, mean_over_draws

if TYPE_CHECKING:
    import pandas as pd

Around: TypeAlias = Literal["intact", "circuit", "contexts"]

_ROUNDING = 1e-6  # relative, of one value in single precision after a forward pass
_CANCELLED = 1e-12  # of the largest: what rounding leaves of terms that a conversion cancels
_N_SHOWN = 20
_FIELDS = {
    "units": list[str],
    "around": Around,
    "support": list[list[int]],
    "estimates": list[float],
    "verdicts": list[Verdict],
    "measured": list[float | None],
    "std_errors": list[float | None],
    "intervals": list[list[float] | None],
    "p_values": list[float | None],
    "prompt_values": list[list[float] | None],
    "n_prompts": int | None,
    "n_evaluations": int,
    "circuit": list[int] | None,
    "keep_rate": float | None,
    "n_contexts": int | None,
    "held_out": bool,
    "label": str,
}


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


class CheckedInteraction(NamedTuple):
    """One interaction of the list, with what was claimed and what was found."""

    indices: tuple[int, ...]
    """Indices of the units in a mask."""
    units: tuple[str, ...]
    """Their labels."""
    estimate: float
    """What the decoder says."""
    verdict: Verdict
    """What the measurement says about that."""
    measured: float | None = None
    """Mean over prompts (and contexts) of the measured effect; None if it was not measured."""
    std_error: float | None = None
    """Of that mean; None where it is exact, too."""
    interval: tuple[float, float] | None = None
    """95 % interval of that mean, by the t distribution."""
    p_value: float | None = None
    """Two-sided, of a mean of zero, before any correction."""
    prompt_values: tuple[float, ...] | None = None
    """The effect on every prompt, averaged over contexts."""

    @property
    def order(self) -> int:
        """How many units."""
        return len(self.indices)


@dataclass(frozen=True)
class Verification:
    """What was measured of a list of interactions, the largest estimate first.

    Example:
        >>> import circuitspex as cs
        >>> model = cs.models.load("toy-redundant")
        >>> task = cs.tasks.induction(model, n_prompts=4, seed=0)
        >>> with cs.CircuitSpex(model, task, units=cs.heads(model)) as spex:
        ...     interactions = spex.discover("exact", budget=1024)
        ...     verification = spex.verify_interactions(interactions, top=5, max_order=2)
        >>> verification.rows[0].order, len(verification.checked)
        (2, 5)
    """

    units: tuple[str, ...]
    """Label of every unit there is, in mask order."""
    around: Around
    """Where the effects are measured: around the intact model, around a circuit (in which the
    set's own units outside it are kept as well), or on average over random contexts."""
    support: tuple[tuple[int, ...], ...]
    """Unit indices of every listed interaction."""
    estimates: tuple[float, ...]
    """What the decoder says that ablating each set does beyond its parts, in the same place."""
    verdicts: tuple[Verdict, ...]
    """One per interaction; this module says when which is given."""
    measured: tuple[float | None, ...]
    """The same effect measured, a mean over prompts and contexts; None if it was not measured."""
    std_errors: tuple[float | None, ...]
    """Of the mean, over the draw of prompts and contexts; None with one prompt and no context."""
    intervals: tuple[tuple[float, float] | None, ...]
    """95 % intervals of the mean."""
    p_values: tuple[float | None, ...]
    """Two-sided, of a mean of zero, before any correction."""
    prompt_values: tuple[tuple[float, ...] | None, ...]
    """The effect on every prompt; their mean is ``measured``."""
    n_prompts: int | None
    """How many prompts; None for a plain function of masks."""
    n_evaluations: int
    """Distinct masks times prompts."""
    circuit: tuple[int, ...] | None = None
    """Units of the circuit that was the context, if one was."""
    keep_rate: float | None = None
    """Of random contexts."""
    n_contexts: int | None = None
    """How many random contexts."""
    held_out: bool = False
    """Whether the prompts are others than those of the discovery."""
    label: str = ""
    """Name of the task or the run."""

    def __post_init__(self) -> None:
        """Check that the columns belong together."""
        _check_columns(self)

    @property
    def rows(self) -> list[CheckedInteraction]:
        """Every listed interaction, the largest estimate first."""
        columns = zip(
            self.support,
            (tuple(self.units[unit] for unit in term) for term in self.support),
            *(self.estimates, self.verdicts, self.measured, self.std_errors),
            *(self.intervals, self.p_values, self.prompt_values),
            strict=True,
        )
        return [CheckedInteraction(*row) for row in columns]

    @property
    def checked(self) -> list[CheckedInteraction]:
        """Those that were measured."""
        return [row for row in self.rows if row.measured is not None]

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many got which verdict."""
        found = Counter(self.verdicts)
        return {verdict: found[verdict] for verdict in get_args(Verdict)}

    def to_dataframe(self) -> "pd.DataFrame":
        """Lay the list out as a table, the largest estimate first.

        Returns:
            Columns ``units`` (such as "L0H3 + L1H2"), ``order``, ``estimate``, ``measured``,
            ``std_error``, ``low``, ``high`` (95 % interval), ``p_value`` and ``verdict``; missing
            values for what was not measured.
        """
        import pandas as pd  # takes longer to import than all the rest of this package

        numbers = ["measured", "std_error", "low", "high", "p_value"]
        rows = [
            (" + ".join(row.units), row.order, row.estimate, row.measured, row.std_error)
            + (row.interval or (None, None))
            + (row.p_value, row.verdict)
            for row in self.rows
        ]
        table = pd.DataFrame(rows, columns=["units", "order", "estimate", *numbers, "verdict"])
        return table.astype(dict.fromkeys(numbers, float))

    def save(self, path: str | Path) -> None:
        """Write the verification to a JSON file, in one step.

        Args:
            path: Where to; an existing file is replaced.
        """
        write_document(path, "verified_interactions", asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> "Verification":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The verification.
        """
        fields = read_document(path, "verified_interactions", _FIELDS)
        return cls(**{name: _as_tuples(value) for name, value in fields.items()})

    def __repr__(self) -> str:
        """Return one line: what was measured where, and how often it held."""
        counts = ", ".join(f"{n} {verdict}" for verdict, n in self.counts.items() if n)
        return (
            f"Verification({counts or 'no interactions'}; {describe_place(self)}; "
            f"{self.n_evaluations:,} evaluations)"
        )

    def __str__(self) -> str:
        """Return that line and what was measured of the first twenty."""
        rows = [
            (" + ".join(row.units), f"{row.estimate:+.3f}", _measured_text(row), row.verdict)
            for row in self.checked[:_N_SHOWN]
        ]
        if not rows:
            return f"{self!r}\nnothing was measured"
        table = [("units", "estimate", "measured", "verdict"), *rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            f"{units:<{widths[0]}}  {estimate:>{widths[1]}}  {measured:<{widths[2]}}  {verdict}"
            for units, estimate, measured, verdict in table
        ]
        hidden = len(self.checked) - len(rows)
        return "\n".join([repr(self), *lines, *([f"and {hidden} more"] if hidden else [])])


def _measured_text(row: CheckedInteraction) -> str:
    error = "" if row.std_error is None else f" ± {row.std_error:.3f}"
    return f"{row.measured:+.3f}{error}"


def describe_place(verification: Verification) -> str:
    """Say in words what was measured and on what.

    Args:
        verification: What was measured.

    Returns:
        Such as "around the intact model, on 16 prompts of the discovery".
    """
    prompts = verification.n_prompts
    place = {
        "intact": "around the intact model",
        "circuit": f"around a circuit of {len(verification.circuit or ())} units",
        "contexts": f"in {verification.n_contexts} random contexts at keep rate "
        f"{verification.keep_rate}",
    }[verification.around]
    if prompts is None:
        return place
    some = "1 prompt" if prompts == 1 else f"{prompts} prompts"
    which = "held out" if verification.held_out else "of the discovery"
    return f"{place}, on {some} {which}"


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


def _check_columns(verification: Verification) -> None:
    columns = ("estimates", "verdicts", "measured", "std_errors", "intervals", "p_values")
    n = len(verification.support)
    for name in (*columns, "prompt_values"):
        if len(getattr(verification, name)) != n:
            raise ResultError(
                f"{name} must have one entry per listed interaction, {n}; "
                f"got {len(getattr(verification, name))}."
            )
    for term in verification.support:
        if not term or not all(0 <= unit < len(verification.units) for unit in term):
            raise ResultError(
                f"an interaction must name units in 0..{len(verification.units) - 1}; got {term}."
            )
    for term, verdict, mean, estimate in zip(
        verification.support,
        verification.verdicts,
        verification.measured,
        verification.estimates,
        strict=True,
    ):
        if not math.isfinite(estimate) or not math.isfinite(mean or 0.0):
            raise ResultError(f"effects must be finite; those of {term} are {estimate}, {mean}.")
        if (mean is None) != (verdict == "not checked"):
            raise ResultError(
                f"interaction {term} is {verdict!r} and its measured effect is {mean}; only what "
                "was not checked has none."
            )


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
