"""Interactions as rows for people: what a set of units does beyond its parts, with its interval."""

from typing import NamedTuple

from circuitspex.algebra import NORMAL_95, Interactions, kind
from circuitspex.errors import ResultError
from circuitspex.verification import CheckedInteraction, Verification

_FIRST = ("verified", "undecided", "refuted")  # then what was not checked
_CANCELLED = 1e-12  # of the largest: what rounding leaves of terms that a conversion cancels

NO_JOINT_TERMS = (
    "No interaction of two or more units helped to predict held-out masks. That is what these "
    "evaluations can tell, not that there is none. A larger budget, a lower keep rate, which "
    "ablates more units together, or fewer units would show more."
)
"""What to say where :func:`interaction_rows` has nothing of order 2 or more."""


class InteractionRow(NamedTuple):
    """One interaction, the way tables and tooltips show it."""

    rank: int
    """From 1, verified ones first, the largest effect first."""
    indices: tuple[int, ...]
    """Indices of the units in a mask."""
    units: tuple[str, ...]
    """Their labels."""
    order: int
    """How many units."""
    coefficient: float
    """The decoder's Möbius coefficient at the intact origin: what ablating all of them does beyond
    their parts."""
    low: float | None
    """Lower end of its 95 % interval; None where no errors are known."""
    high: float | None
    """Upper end."""
    fourier: float
    """Fourier coefficient at the keep rate: what the set contributes on average over masks."""
    significant: bool | None = None
    """Whether it is among those of which at most 5 % are expected to be chance, single units and
    sets apart; None where that is not known."""
    check: CheckedInteraction | None = None
    """The same coefficient measured, with a verdict; None if it was not measured."""

    @property
    def std_error(self) -> float | None:
        """Of the decoder's coefficient; None where no errors are known."""
        return None if self.high is None else (self.high - self.coefficient) / NORMAL_95

    @property
    def effect(self) -> float:
        """What is known best: the measured coefficient, else the decoder's."""
        measured = None if self.check is None else self.check.measured
        return self.coefficient if measured is None else measured

    @property
    def kind(self) -> str:
        """One of "synergistic", "redundant", or "" where a sign cannot tell, or refuted."""
        refuted = self.check is not None and self.check.verdict == "refuted"
        return "" if refuted else kind(self.effect, self.order, "intact") or ""


def interaction_rows(
    interactions: Interactions,
    k: int | None = None,
    *,
    min_order: int = 1,
    verification: Verification | None = None,
) -> list[InteractionRow]:
    """Rank interactions by what ablating them together does beyond their parts.

    Args:
        interactions: The result, in any basis.
        k: How many rows at most; all when None.
        min_order: Smallest number of units.
        verification: What was measured of them around the intact model.

    Returns:
        The largest effect first. Where there is a verification: verified ones first, then
        undecided, refuted, and those that were not checked.

    Raises:
        ResultError: If the verification is of other units, or not around the intact model.
    """  # noqa: DOC502 - raised by the check
    intact = interactions.to("moebius", origin="intact")
    fourier = interactions.to("fourier")
    averages = dict(zip(fourier.support, fourier.coefficients.tolist(), strict=True))
    sizes = intact.coefficients.abs().tolist()
    smallest = _CANCELLED * max(sizes, default=0.0)
    at_least = max(min_order, 1)
    listed = None
    if intact.p_values is not None:
        found = [*intact.significant(max_order=1), *intact.significant(min_order=2)]
        listed = {ranked.units for ranked in found}
    checks = _checks(intact, verification)

    def place(i: int) -> tuple[int, float]:
        check = checks.get(intact.support[i])
        if check is None or check.measured is None:
            return len(_FIRST), -sizes[i]
        return _FIRST.index(check.verdict), -abs(check.measured)

    terms = enumerate(intact.support)
    chosen = [i for i, term in terms if len(term) >= at_least and sizes[i] > smallest]
    chosen.sort(key=place)
    return [
        _row(
            rank,
            intact,
            i,
            averages.get(intact.support[i], 0.0),
            listed,
            checks.get(intact.support[i]),
        )
        for rank, i in enumerate(chosen[:k], start=1)
    ]


def _checks(
    intact: Interactions, verification: Verification | None
) -> dict[tuple[int, ...], CheckedInteraction]:
    if verification is None:
        return {}
    if verification.around != "intact" or verification.units != intact.units:
        raise ResultError(
            "interactions are shown beside what was measured around the intact model, of the same "
            f"{intact.n_units} units; got a verification of {len(verification.units)} units, "
            f'around="{verification.around}".'
        )
    return {row.indices: row for row in verification.checked}


def _row(
    rank: int,
    intact: Interactions,
    i: int,
    fourier: float,
    listed: set[tuple[str, ...]] | None,
    check: CheckedInteraction | None,
) -> InteractionRow:
    indices, coefficient = intact.support[i], float(intact.coefficients[i])
    units = tuple(intact.units[unit] for unit in indices)
    error = None if intact.std_errors is None else NORMAL_95 * float(intact.std_errors[i])
    return InteractionRow(
        rank=rank,
        indices=indices,
        units=units,
        order=len(indices),
        coefficient=coefficient,
        low=None if error is None else coefficient - error,
        high=None if error is None else coefficient + error,
        fourier=fourier,
        significant=None if listed is None else units in listed,
        check=check,
    )


def single_effects(interactions: Interactions) -> dict[int, float]:
    """Return what ablating each unit alone does to the intact model's value.

    Args:
        interactions: The result, in any basis.

    Returns:
        Unit index to effect; units without a term of their own are left out.
    """
    intact = interactions.to("moebius", origin="intact")
    terms = zip(intact.support, intact.coefficients.tolist(), strict=True)
    return {term[0]: effect for term, effect in terms if len(term) == 1}


def number(value: float | None, digits: int = 3) -> str:
    """Write a number for people, with a true minus sign; an en dash where there is none.

    Args:
        value: The number.
        digits: Digits after the point.

    Returns:
        Such as "−0.250".
    """
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    negative = text.startswith("-") and text.strip("-0.") != ""
    return ("−" if negative else "") + text.lstrip("-")


def measured(row: InteractionRow) -> str:
    """Write what was measured for people, an en dash where nothing was.

    Args:
        row: The interaction.

    Returns:
        Such as "−1.328 ± 0.206"; ± is the standard error.
    """
    if row.check is None:
        return "–"
    error = row.check.std_error
    return number(row.check.measured) + ("" if error is None else f" ± {number(error)}")
