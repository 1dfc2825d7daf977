"""One interaction as a value, and the one way it is written: in numbers and in words.

Whatever shows, saves or logs interactions takes their cells from here, :meth:`Term.numbers` for
machines and :meth:`Term.words` for people, and adds only its own markup.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

Kind: TypeAlias = Literal["synergistic", "redundant"]
Verdict: TypeAlias = Literal["verified", "refuted", "undecided", "not checked"]

NORMAL_95 = 1.959963984540054
"""Standard errors from an estimate to either end of its 95 % interval."""


ALIGNED_RIGHT = ("order", "coefficient", "estimate", "interval", "average", "measured")
"""Words of a term that tables align to the right."""


class Measured(NamedTuple):
    """An interaction measured by itself, nothing fitted."""

    effect: float
    """Mean over prompts, and over contexts where they are random."""
    std_error: float | None = None
    """Of that mean; None where it is exact, too."""
    interval: tuple[float, float] | None = None
    """95 % interval of that mean, by the t distribution."""
    p_value: float | None = None
    """Two-sided, of a mean of zero, before any correction."""
    prompt_values: tuple[float, ...] | None = None
    """The effect on every prompt, averaged over contexts."""


class Term(NamedTuple):
    """One interaction: what was decoded, and what was measured of it.

    Example:
        >>> pair = Term(("L0H0", "L1H0"), (0, 2), "moebius", "intact", -2.5)
        >>> print(pair)
        L0H0 + L1H0: −2.500, redundant
    """

    units: tuple[str, ...]
    """Labels of the units that act together."""
    indices: tuple[int, ...]
    """Their indices in a mask."""
    basis: str
    """What the coefficient multiplies: ``moebius``, ``fourier``, or the name of an index."""
    origin: str | None
    """Where a Möbius coefficient counts from: ``ablated`` or ``intact``; or, of an effect measured
    elsewhere, ``circuit`` or ``contexts``. None in the Fourier basis."""
    coefficient: float
    """The decoder's coefficient, or the value of an index, in the units of the value (logits)."""
    std_error: float | None = None
    """Of the coefficient; None where no errors are known."""
    interval: tuple[float, float] | None = None
    """95 % interval of the coefficient; None where no errors are known."""
    p_value: float | None = None
    """Two-sided, from cross-fitted estimates; None where there are none."""
    average: float | None = None
    """Fourier coefficient at the keep rate: what the set contributes on average over masks."""
    significant: bool | None = None
    """Whether it is among those of which at most 5 % are expected to be chance."""
    measured: Measured | None = None
    """The same effect measured; None if it was not."""
    verdict: Verdict | None = None
    """What the measurement says about the coefficient; None where nothing was to be measured."""

    @property
    def order(self) -> int:
        """How many units."""
        return len(self.indices)

    @property
    def label(self) -> str:
        """The units in words, such as "L0H3 + L1H2"; "∅" for the constant."""
        return " + ".join(self.units) or "∅"

    @property
    def effect(self) -> float:
        """What is known best: the measured effect, else the coefficient."""
        return self.coefficient if self.measured is None else self.measured.effect

    @property
    def kind(self) -> Kind | None:
        """Synergistic or redundant; None where a sign cannot tell, or the claim is refuted."""
        if self.verdict == "refuted":
            return None
        return kind(self.effect, self.order, self.origin, self.basis)

    @property
    def is_clear(self) -> bool:
        """Whether errors leave the coefficient's sign standing."""
        return self.interval is None or self.interval[0] > 0 or self.interval[1] < 0

    def words(self) -> dict[str, str]:
        """Write every cell that people may be shown; an en dash where there is nothing to show.

        Returns:
            ``units``, ``order``, ``kind``, ``coefficient`` alone, the same as an ``estimate`` with
            its standard error, its ``interval``, ``average``, ``measured`` with its standard
            error, and ``verdict``.
        """
        star = " ★" if self.significant else ""
        measured = "–"
        if self.measured is not None:
            measured = with_error(self.measured.effect, self.measured.std_error)
        low, high = self.interval or (None, None)
        return {
            "units": self.label,
            "order": str(self.order),
            "kind": self.kind or "–",
            "coefficient": number(self.coefficient),
            "estimate": with_error(self.coefficient, self.std_error) + star,
            "interval": "–" if low is None else f"{number(low)} … {number(high)}{star}",
            "average": number(self.average),
            "measured": measured,
            "verdict": self.verdict or "not checked",
        }

    def numbers(self) -> dict[str, Any]:
        """Return every cell of a table: numbers and labels, None where there is nothing.

        Returns:
            ``units``, ``order``, ``coefficient`` with ``std_error``, ``low``, ``high`` (95 %
            interval) and ``p_value``, ``average``, ``significant``, ``kind``, the ``measured``
            effect with the same as ``measured_std_error`` and so on, ``verdict``, ``basis``,
            ``origin``.
        """
        low, high = self.interval or (None, None)
        effect, error, interval, p_value, _ = self.measured or (None,) * 5
        measured_low, measured_high = interval or (None, None)
        return {
            "units": self.label,
            "order": self.order,
            "coefficient": self.coefficient,
            "std_error": self.std_error,
            "low": low,
            "high": high,
            "p_value": self.p_value,
            "average": self.average,
            "significant": self.significant,
            "kind": self.kind,
            "measured": effect,
            "measured_std_error": error,
            "measured_low": measured_low,
            "measured_high": measured_high,
            "measured_p_value": p_value,
            "verdict": self.verdict,
            "basis": self.basis,
            "origin": self.origin,
        }

    def __str__(self) -> str:
        """Return the term in one line of words."""
        words = self.words()
        facts = [words["coefficient"]]
        if self.measured is not None:
            facts = [f"{words['measured']} {words['verdict']}", f"estimate {words['coefficient']}"]
        if self.interval is not None:
            facts.append(f"95 % interval {words['interval']}")
        return f"{self.label}: {', '.join([*facts, *filter(None, [self.kind])])}"

    def __repr__(self) -> str:
        """Return the same, and what the coefficient is one of."""
        place = "" if self.origin is None else f" at {self.origin}"
        return f"Term({self}, {self.basis}{place})"


def kind(coefficient: float, order: int, origin: str | None, basis: str = "moebius") -> Kind | None:
    """Say whether units need each other or back each other up, as far as a sign can tell.

    ==========================  ==================  ===================
    coefficient of all k units  AND of the k units  OR of the k units
    ==========================  ==================  ===================
    origin ablated              +1                  (−1)^(k + 1)
    origin intact               (−1)^k              −1
    ==========================  ==================  ===================

    For even k the two differ at either origin: positive is synergistic, negative redundant. For
    odd k they agree, so the sign of one coefficient says nothing; look at the pairs inside it.

    Args:
        coefficient: Möbius coefficient, of a value for which higher is better.
        order: How many units it is of.
        origin: Its origin.
        basis: Its basis.

    Returns:
        "synergistic" (the units need each other, or cancel), "redundant" (they back each other
        up), or None for odd orders, the constant, zero, and everything but Möbius coefficients,
        which average over masks.
    """
    if basis != "moebius" or origin is None or order < 2 or order % 2 == 1 or coefficient == 0:
        return None
    return "synergistic" if coefficient > 0 else "redundant"


def rank(
    units: tuple[str, ...],
    support: Sequence[tuple[int, ...]],
    coefficients: Tensor,
    std_errors: Tensor | None,
    p_values: Tensor | None = None,
    *,
    basis: str,
    origin: str | None = None,
) -> tuple[Term, ...]:
    """Make terms of columns.

    Args:
        units: Label of every unit.
        support: Unit indices of every term.
        coefficients: One per term.
        std_errors: One per term, where known.
        p_values: One per term, where known.
        basis: What the coefficients multiply.
        origin: Where they count from.

    Returns:
        The largest first; equal ones in the order of the support.
    """
    unknown = [None] * len(support)
    errors = unknown if std_errors is None else std_errors.tolist()
    chances = unknown if p_values is None else p_values.tolist()
    values = coefficients.tolist()
    return tuple(
        Term(
            units=tuple(units[unit] for unit in support[i]),
            indices=support[i],
            basis=basis,
            origin=origin,
            coefficient=values[i],
            std_error=errors[i],
            interval=_normal_interval(values[i], errors[i]),
            p_value=chances[i],
        )
        for i in coefficients.abs().argsort(descending=True, stable=True).tolist()
    )


def largest(
    terms: Iterable[Term], k: int, min_order: int, max_order: int | None = None
) -> list[Term]:
    """Return the first ``k`` of ranked terms within a range of orders."""
    inside = (
        term
        for term in terms
        if min_order <= term.order and (max_order is None or term.order <= max_order)
    )
    return [*inside][:k]


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


def with_error(value: float, std_error: float | None) -> str:
    """Return a number with its standard error for people, such as "−1.328 ± 0.206"."""
    return number(value) + ("" if std_error is None else f" ± {number(std_error)}")


def as_text(
    terms: Sequence[Term], headings: Mapping[str, str], nothing: str, n_shown: int = 10
) -> str:
    """Write the first terms as lines of a table, numbers to the right.

    Args:
        terms: The terms.
        headings: Which words of a term to show, and what to write above them.
        nothing: What to write where there are no terms.
        n_shown: How many terms to write; the rest is counted.

    Returns:
        The headings and one line a term.
    """
    if not terms:
        return nothing
    rows = [headings, *(term.words() for term in terms[:n_shown])]
    aligned = []
    for name in headings:
        width = max(len(row[name]) for row in rows)
        align = str.rjust if name in ALIGNED_RIGHT else str.ljust
        aligned.append([align(row[name], width) for row in rows])
    lines = ["  ".join(cells).rstrip() for cells in zip(*aligned, strict=True)]
    hidden = len(terms) - n_shown
    return "\n".join([*lines, *([f"and {hidden} more"] if hidden > 0 else [])])


def as_columns(terms: Sequence[Term]) -> dict[str, list[Any]]:
    """Lay terms out as columns of numbers and labels; None where there is nothing.

    Args:
        terms: The terms.

    Returns:
        The columns of :meth:`Term.numbers`. ``std_error``, ``low`` and ``high`` are there always,
        those of what was measured where any term has a verdict, others where any has a value.
    """
    rows = [term.numbers() for term in terms]
    columns = {name: [row[name] for row in rows] for name in _BLANK.numbers()}
    judged = any(term.verdict is not None for term in terms)
    return {
        name: values
        for name, values in columns.items()
        if name in _ALWAYS
        or (judged and name.startswith("measured"))
        or any(value is not None for value in values)
    }


def to_dataframe(terms: Sequence[Term]) -> "pd.DataFrame":
    """Return terms as a table, with the columns of :func:`as_columns`."""
    import pandas as pd  # takes longer to import than all the rest of this package

    columns = as_columns(terms)
    numbers = [name for name in columns if name.endswith(_FLOATS)]
    return pd.DataFrame(columns).astype(dict.fromkeys(numbers, float))


def _normal_interval(centre: float, std_error: float | None) -> tuple[float, float] | None:
    if std_error is None:
        return None
    return centre - NORMAL_95 * std_error, centre + NORMAL_95 * std_error


_BLANK = Term((), (), "", None, 0.0)
_ALWAYS = ("units", "order", "coefficient", "std_error", "low", "high", "basis")
_FLOATS = ("coefficient", "std_error", "low", "high", "p_value", "average", "measured")
