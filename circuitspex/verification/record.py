"""The record of a verification: what was claimed, what was measured, and the verdicts."""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

from circuitspex._shared import read_document, write_document
from circuitspex.errors import ResultError
from circuitspex.verification.verdicts import Verdict

if TYPE_CHECKING:
    import pandas as pd

Around: TypeAlias = Literal["intact", "circuit", "contexts"]

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
