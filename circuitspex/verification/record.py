"""The record of a verification: what was claimed, what was measured, and the verdicts."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, get_args

from circuitspex._shared import Saved
from circuitspex.algebra import Measured, Term, Verdict, as_text, to_dataframe
from circuitspex.errors import ResultError

if TYPE_CHECKING:
    import pandas as pd

Around: TypeAlias = Literal["intact", "circuit", "contexts"]

_N_SHOWN = 20


@dataclass(frozen=True)
class Verification(Saved):
    """What was measured of a list of interactions, the largest estimate first.

    Example:
        >>> import circuitspex as cs
        >>> model = cs.models.load("toy-redundant")
        >>> task = cs.tasks.induction(model, n_prompts=4, seed=0)
        >>> with cs.CircuitSpex(model, task, units=cs.heads(model)) as spex:
        ...     interactions = spex.discover("exact", budget=1024)
        ...     verification = spex.verify_interactions(interactions, top=5, max_order=2)
        >>> verification.terms[0].order, len(verification.checked)
        (2, 5)
    """

    document: ClassVar[str] = "verified_interactions"

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
    """One per interaction; ``verification.py`` says when which is given."""
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

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """Every listed interaction, the largest estimate first; its coefficient is the estimate."""
        columns = (self.support, self.estimates, self.verdicts, self.measured, self.std_errors)
        more = (self.intervals, self.p_values, self.prompt_values)
        return tuple(
            Term(
                units=tuple(self.units[unit] for unit in indices),
                indices=indices,
                basis="moebius",
                origin=self.around,
                coefficient=estimate,
                measured=None if effect is None else Measured(effect, *rest),
                verdict=verdict,
            )
            for indices, estimate, verdict, effect, *rest in zip(*columns, *more, strict=True)
        )

    @cached_property
    def checked(self) -> tuple[Term, ...]:
        """Those that were measured."""
        return tuple(term for term in self.terms if term.measured is not None)

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many got which verdict."""
        found = Counter(self.verdicts)
        return {verdict: found[verdict] for verdict in get_args(Verdict)}

    def to_dataframe(self) -> "pd.DataFrame":
        """Lay the list out as a table, the largest estimate first.

        Returns:
            As for :meth:`Interactions.to_dataframe
            <circuitspex.algebra.interactions.Interactions.to_dataframe>`; ``coefficient`` is the
            estimate.
        """
        return to_dataframe(self.terms)

    def __repr__(self) -> str:
        """Return one line: what was measured where, and how often it held."""
        counts = ", ".join(f"{n} {verdict}" for verdict, n in self.counts.items() if n)
        return (
            f"Verification({counts or 'no interactions'}; {describe_place(self)}; "
            f"{self.n_evaluations:,} evaluations)"
        )

    def __str__(self) -> str:
        """Return that line and what was measured of the first twenty."""
        headings = {"units": "units", "coefficient": "estimate"}
        headings |= {"measured": "measured", "verdict": "verdict"}
        return f"{self!r}\n{as_text(self.checked, headings, 'nothing was measured', _N_SHOWN)}"


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
