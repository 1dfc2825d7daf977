"""Everything one run found, as a value: to save, load and compare, as a table and as a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitspex._shared import Spec, make_folder, read_document, write_document
from circuitspex.algebra import Interactions, Term, number, to_dataframe
from circuitspex.circuits import Circuit, CircuitReport
from circuitspex.errors import ResultError
from circuitspex.verification import Verification

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = "summary.json"
"""The result in numbers, and what it took; written last, so its being there says: done."""

_PARTS: Mapping[str, tuple[str, Any]] = {
    "spec": ("spec.json", Spec),
    "interactions": ("interactions.json", Interactions),
    "verification": ("verified_interactions.json", Verification),
    "circuit": ("circuit.json", Circuit),
    "criteria": ("verification.json", CircuitReport),
}
_SUMMARY_FIELDS = {
    "run_id": str,
    "evaluation_hash": str,
    "run_hash": str,
    "scalars": dict,
    "seconds": float,
    "n_evaluated": int,
    "n_replayed": int,
}
_FIRST = ("verified", "undecided", "refuted", "not checked", None)
_CANCELLED = 1e-12  # of the largest: what rounding leaves of terms that a conversion cancels


@dataclass(frozen=True, eq=False, repr=False)
class Findings:
    """What one run found.

    Example:
        >>> import circuitspex as cs
        >>> model = cs.models.load("toy-induction")
        >>> task = cs.tasks.induction(model, n_prompts=4, seed=0)
        >>> with cs.CircuitSpex(model, task, units=cs.heads(model)) as spex:
        ...     interactions = spex.discover(decoder="exact", budget=1024, keep_rate=0.5)
        ...     circuit = spex.circuit(interactions, n_units=4)
        >>> findings = spex.findings()
        >>> findings.to_dataframe().units[0]
        'L0H3'
        >>> findings.scalars["circuit/n_units"]
        4.0
    """

    spec: Spec
    """What it is a result of."""
    interactions: Interactions
    """What was decoded."""
    verification: Verification | None = None
    """What was measured of the largest interactions around the intact model."""
    circuit: Circuit | None = None
    """The units chosen from the interactions."""
    criteria: CircuitReport | None = None
    """What the circuit does in the real model."""
    n_evaluated: int = 0
    """Evaluations run through the model; 0 where that is not known."""
    n_replayed: int = 0
    """Evaluations answered by the store."""
    seconds: float = 0.0
    """What it took; less where much was replayed, 0 where that is not known."""

    def __post_init__(self) -> None:
        """Check that what was measured is of these interactions.

        Raises:
            ResultError: If it is of other units, or not around the intact model.
        """
        of, there = self.verification, self.interactions
        if of is not None and (of.around != "intact" or of.units != there.units):
            raise ResultError(
                "interactions are shown beside what was measured around the intact model, of the "
                f"same {there.n_units} units; got a verification of {len(of.units)} units, "
                f'around="{of.around}".'
            )

    @cached_property
    def intact(self) -> Interactions:
        """The interactions as Möbius coefficients around the intact model."""
        return self.interactions.to("moebius", origin="intact")

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """What ablating each set of units does beyond its parts, decoded and measured.

        Verified ones first, then undecided and refuted ones, then those that were not checked; the
        largest effect of each first.
        """
        fourier = self.interactions.to("fourier")
        averages = dict(zip(fourier.support, fourier.coefficients.tolist(), strict=True))
        checked = (
            {} if self.verification is None else {t.indices: t for t in self.verification.checked}
        )
        significant = _significant(self.intact)
        smallest = _CANCELLED * max(
            (abs(term.coefficient) for term in self.intact.terms), default=0
        )
        terms = []
        for term in self.intact.terms:
            if term.order and abs(term.coefficient) > smallest:
                check = checked.get(term.indices)
                terms.append(
                    term._replace(
                        average=averages.get(term.indices, 0.0),
                        significant=None if significant is None else term.indices in significant,
                        measured=check and check.measured,
                        verdict=check.verdict if check else "not checked" if checked else None,
                    )
                )
        return tuple(sorted(terms, key=lambda t: (_FIRST.index(t.verdict), -abs(t.effect))))

    @property
    def members(self) -> frozenset[int]:
        """Indices of the circuit's units; empty where none was chosen."""
        return frozenset(self.circuit.indices if self.circuit else ())

    @property
    def scalars(self) -> dict[str, float]:
        """The result in numbers that can be compared across runs, without what was not measured."""
        found, circuit, criteria = self.interactions, self.circuit, self.criteria
        scalars: dict[str, float | None] = {
            "fit/r2_heldout": found.held_out_r2,
            "fit/r2_heldout_std_error": found.diagnostics.get("held_out_r2_std_error"),
            "fit/n_terms": len(found.support),
            "fit/n_evaluations": found.n_evaluations,
        }
        for order, energy in found.energy_by_order().items():
            scalars[f"energy/order_{order}"] = energy
        if circuit is not None:
            scalars["circuit/n_units"] = len(circuit.indices)
            scalars["circuit/predicted_faithfulness"] = circuit.predicted_faithfulness
        if criteria is not None:
            scalars["eval/faithfulness"] = criteria.faithfulness
            scalars["eval/faithfulness_std_error"] = criteria.std_error
            scalars["eval/intact"] = criteria.intact
            scalars["eval/ablated"] = criteria.ablated
            scalars["eval/circuit"] = criteria.circuit
        if self.verification is not None:
            for verdict, n in self.verification.counts.items():
                scalars[f"interactions/n_{verdict.replace(' ', '_')}"] = n
            scalars["interactions/n_evaluations"] = self.verification.n_evaluations
        return {name: float(value) for name, value in scalars.items() if value is not None}

    def extrapolation(self, circuit: Circuit) -> str:
        """Say where the prediction for a circuit goes beyond the masks it was learnt from.

        Args:
            circuit: The circuit.

        Returns:
            A sentence; nothing where it does not.
        """
        found = self.interactions
        n, kept, p = found.n_units, len(circuit.indices), found.keep_rate
        near = abs(kept - p * n) <= 3 * (n * p * (1 - p)) ** 0.5
        if near or circuit.predicted_value is None or found.decoder == "exact":
            return ""
        return (
            f"The prediction extrapolates: the circuit keeps {kept / n:.0%} of the units, the "
            f"masks it was learnt from about {p:.0%}."
        )

    def differences(self, other: "Findings") -> dict[str, tuple[Any, Any]]:
        """Find what differs from other findings: settings, versions, and numbers.

        Args:
            other: The findings to compare with.

        Returns:
            Key of the spec, such as ``discovery.seed``, or name of a scalar, to this value and the
            other; None where a scalar was not measured.
        """
        mine, theirs = self.scalars, other.scalars
        pairs = {name: (mine.get(name), theirs.get(name)) for name in mine | theirs}
        differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        return self.spec.differences(other.spec) | differing

    def __repr__(self) -> str:
        """Return one line: how much was found, and how far it was checked."""
        facts = [f"{len(self.terms)} interactions"]
        if self.verification is not None:
            facts.append(f"{self.verification.counts['verified']} verified")
        if self.circuit is not None:
            facts.append(f"circuit of {len(self.members)} of {self.interactions.n_units} units")
        if self.criteria is not None:
            facts.append(f"faithfulness {number(self.criteria.faithfulness)}")
        return f"Findings({', '.join(facts)})"

    def __str__(self) -> str:
        """Return what was measured of interactions, or was decoded, and of the circuit."""
        parts = (self.verification or self.interactions, self.criteria)
        return "\n".join(str(part) for part in parts if part is not None)

    def to_dataframe(self) -> "pd.DataFrame":
        """Lay all interactions out as a table, verified ones first.

        Returns:
            A row per term of :attr:`terms`, with the columns of :meth:`Term.numbers
            <circuitspex.algebra.term.Term.numbers>` that say anything.
        """
        return to_dataframe(self.terms)

    def page(self, path: str | Path) -> Path:
        """Write the findings as one HTML file that opens anywhere, also without a network.

        Args:
            path: The file to write or replace.

        Returns:
            The path.
        """
        from circuitspex.report import write_page

        return write_page(path, self)

    def save(self, folder: str | Path) -> None:
        """Write every part as JSON into a folder, and :data:`SUMMARY` last.

        Args:
            folder: Where to; made if it is not there. Earlier findings in it are replaced.
        """
        self.save_parts(folder)
        self.save_summary(folder, self.spec.run_hash)

    def save_parts(self, folder: str | Path) -> None:
        """Write every part, without saying that the run is done.

        Args:
            folder: Where to.
        """
        folder = make_folder(folder)
        (folder / SUMMARY).unlink(missing_ok=True)
        for name, (file, _) in _PARTS.items():
            part = getattr(self, name)
            if part is None:
                (folder / file).unlink(missing_ok=True)
            else:
                part.save(folder / file)

    def save_summary(self, folder: str | Path, run_id: str) -> None:
        """Write :data:`SUMMARY`, which says that the run is done.

        Args:
            folder: Where the parts are.
            run_id: What a sweep knows the run by.
        """
        counts = {"n_evaluated": self.n_evaluated, "n_replayed": self.n_replayed}
        hashes = {"evaluation_hash": self.spec.evaluation_hash, "run_hash": self.spec.run_hash}
        numbers = {"scalars": self.scalars, "seconds": self.seconds, **counts}
        summary = {"run_id": run_id, **hashes, **numbers}
        write_document(Path(folder) / SUMMARY, "summary", summary)

    @classmethod
    def load(cls, folder: str | Path) -> "Findings":
        """Read the findings in a folder.

        Args:
            folder: Where :meth:`save` or ``circuitspex discover`` put them.

        Returns:
            The findings.

        Raises:
            ResultError: If the folder holds no finished run, or a file is damaged.
        """
        folder = Path(folder)
        there = {name for name, (file, _) in _PARTS.items() if (folder / file).is_file()}
        needed = {"spec", "interactions"} | ({"circuit"} if "criteria" in there else set())
        missing = [_PARTS[name][0] for name in _PARTS if name in needed - there]
        if missing:
            raise ResultError(
                f"{folder} holds no finished run: {', '.join(missing)} missing. Give the folder "
                "that circuitspex discover named, or finish the run by starting it again."
            )
        parts = {
            name: kind.load(folder / file) for name, (file, kind) in _PARTS.items() if name in there
        }
        counts = {}
        if (folder / SUMMARY).is_file():
            summary = read_summary(folder)
            counts = {name: summary[name] for name in ("n_evaluated", "n_replayed", "seconds")}
        return cls(**parts, **counts)


def _significant(intact: Interactions) -> set[tuple[int, ...]] | None:
    """Return terms of which at most 5 % are expected to be chance, single units and sets apart."""
    if intact.p_values is None:
        return None
    found = (*intact.significant(max_order=1), *intact.significant(min_order=2))
    return {term.indices for term in found}


def load(folder: str | Path) -> Findings:
    """Return the findings in a folder, as :meth:`Findings.load` does."""
    return Findings.load(folder)


def read_summary(folder: str | Path) -> dict[str, Any]:
    """Read the :data:`SUMMARY` of findings, without the findings.

    Args:
        folder: Where they are.

    Returns:
        ``run_id``, ``evaluation_hash``, ``run_hash``, ``scalars`` (name to number), ``seconds``,
        ``n_evaluated`` and ``n_replayed``.

    Raises:
        ResultError: If it is missing or damaged.
    """
    summary = read_document(Path(folder) / SUMMARY, "summary", _SUMMARY_FIELDS)
    if not all(isinstance(value, int | float) for value in summary["scalars"].values()):
        raise ResultError(f"{folder}/{SUMMARY} holds scalars that are no numbers; run it again.")
    return summary
