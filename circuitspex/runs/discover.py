"""The whole path in one readable function: from settings to a folder of results.

The folder holds ``settings.yaml`` (what was asked for), ``spec.json`` (everything needed to repeat
the run), ``evaluations/`` (every value, as it came), ``interactions.json``,
``verified_interactions.json``, ``circuit.json``, ``verification.json`` (of the circuit),
``report.html`` and, written last, ``summary.json`` (the result in numbers, and what it took).
Running the same settings into the same folder again evaluates nothing that is already there.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from circuitspex import models, tasks
from circuitspex._shared import Spec, read_document, write_document
from circuitspex.algebra import Interactions
from circuitspex.circuits import Circuit, CircuitReport
from circuitspex.errors import ResultError
from circuitspex.evaluation import Progress, Workers
from circuitspex.report import write_page
from circuitspex.runs.settings import Plan, Settings
from circuitspex.spex import CircuitSpex
from circuitspex.tracking import Tracker, result_scalars
from circuitspex.units import parse_units
from circuitspex.verification import Verification

__all__ = ["Plan", "Result", "Settings", "discover"]


@dataclass(frozen=True)
class Result:
    """What a run found; the contents of its folder."""

    folder: Path
    """Where it is."""
    spec: Spec
    """What it is a result of."""
    interactions: Interactions
    """What was decoded."""
    circuit: Circuit
    """The units chosen from it."""
    verification: CircuitReport
    """What the circuit does on held-out prompts."""
    verified_interactions: Verification | None = None
    """The largest interactions measured one by one; None in folders of older versions."""
    n_evaluated: int = 0
    """Evaluations run through the model; 0 when read from disk or replayed."""
    n_replayed: int = 0
    """Evaluations answered by the store."""

    @classmethod
    def load(cls, folder: str | Path) -> "Result":
        """Read the results in a folder.

        Args:
            folder: Where :func:`discover` put them.

        Returns:
            The result.

        Raises:
            ResultError: If the folder holds no finished run, or a file is damaged.
        """
        folder = Path(folder)
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:
            raise ResultError(
                f"{folder} holds no finished run: {', '.join(missing)} missing. Give the folder "
                "that circuitspex discover named, or finish the run by starting it again."
            )
        spec, interactions, circuit, verification = (folder / name for name in _FILES)
        verified = folder / _VERIFIED
        return cls(
            folder,
            Spec.load(spec),
            Interactions.load(interactions),
            Circuit.load(circuit),
            CircuitReport.load(verification),
            Verification.load(verified) if verified.is_file() else None,
        )


_FILES = ("spec.json", "interactions.json", "circuit.json", "verification.json")
_VERIFIED = "verified_interactions.json"
SETTINGS = "settings.yaml"
SUMMARY = "summary.json"


def discover(
    settings: Settings,
    folder: str | Path,
    *,
    model: Any = None,
    tracker: Tracker | None = None,
    progress: Progress | None = None,
    announce: Callable[[Plan], None] | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    workers: Workers | None = None,
) -> Result:
    """Find, choose and verify a circuit, and put everything into a folder.

    Args:
        settings: What to run.
        folder: Where results go; a run that was interrupted there goes on.
        model: The model, if it is loaded already; ``settings.model`` names it all the same.
        tracker: Where the run is logged.
        progress: Called after every batch with rows evaluated and rows replayed.
        announce: Called once, before the first evaluation, with what was decided.
        device: Where to run.
        batch_size: Rows per forward pass; chosen from free memory when None.
        workers: Processes that run the rows, such as ``cs.cluster.ray_workers(...)``; this one
            when None.

    Returns:
        The result, as it is now on disk.
    """
    started, folder = perf_counter(), Path(folder)
    _make(folder)
    settings.save(folder / SETTINGS)
    if model is None:
        model = models.load(settings.model, device=device, dtype=getattr(torch, settings.dtype))
    task = tasks.make(settings.task, model, settings.n_prompts, settings.seed)
    units = parse_units(settings.units, model)
    plan = settings.resolve(len(units), len(task))
    if announce is not None:
        announce(plan)

    with CircuitSpex(
        model,
        task,
        units,
        ablation=settings.ablation,
        metric=settings.metric,
        store=folder / "evaluations",
        tracker=tracker,
        batch_size=batch_size,
        progress=progress,
        settings={**asdict(settings), **asdict(plan)},
        workers=workers,
    ) as spex:
        interactions = spex.discover(
            plan.decoder,
            budget=settings.budget,
            keep_rate=plan.keep_rate,
            max_order=settings.max_order,
            seed=settings.seed,
            prompts_per_mask=plan.prompts_per_mask,
            **({} if settings.tolerance is None else {"tolerance": settings.tolerance}),
        )
        spex.spec.save(folder / "spec.json")
        interactions.save(folder / "interactions.json")
        verified = spex.verify_interactions(
            interactions, top=settings.verify, budget=plan.verify_budget
        )
        verified.save(folder / _VERIFIED)
        circuit = spex.circuit(interactions, plan.circuit_size)
        circuit.save(folder / "circuit.json")
        verification = spex.verify(circuit)
        verification.save(folder / "verification.json")
        page = write_page(
            folder / "report.html",
            spec=spex.spec,
            interactions=interactions,
            circuit=circuit,
            verification=verification,
            verified_interactions=verified,
        )
        spex.track(page)
        counts = spex.evaluation.n_evaluated, spex.evaluation.n_replayed
    result = Result(folder, spex.spec, interactions, circuit, verification, verified, *counts)
    summarize(result, settings, perf_counter() - started)
    return result


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"{folder} cannot be made: {error}. Choose another folder.") from error


def summarize(result: Result, settings: Settings, seconds: float) -> None:
    """Write ``summary.json``, whose being there says that a run is done.

    Args:
        result: What the run found.
        settings: What was asked for.
        seconds: What it took this time; less where much was replayed.
    """
    scalars = result_scalars(
        result.interactions, result.circuit, result.verification, result.verified_interactions
    )
    counts = {"n_evaluated": result.n_evaluated, "n_replayed": result.n_replayed}
    write_document(
        result.folder / SUMMARY,
        "summary",
        {"hash": settings.hash, "scalars": scalars, "seconds": seconds, **counts},
    )


def read_summary(folder: str | Path) -> dict[str, Any]:
    """Read the ``summary.json`` of a finished run.

    Args:
        folder: The run's folder.

    Returns:
        ``hash``, ``scalars`` (name to number), ``seconds``, ``n_evaluated`` and ``n_replayed``.

    Raises:
        ResultError: If it is missing or damaged.
    """
    fields = {"hash": str, "scalars": dict, "seconds": float, "n_evaluated": int, "n_replayed": int}
    summary = read_document(Path(folder) / SUMMARY, "summary", fields)
    if not all(isinstance(value, int | float) for value in summary["scalars"].values()):
        raise ResultError(f"{folder}/{SUMMARY} holds scalars that are no numbers; run it again.")
    return summary
