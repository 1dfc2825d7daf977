"""The whole path in one readable function: from settings to a folder of results.

The folder holds ``spec.json`` (everything needed to repeat the run), ``evaluations/`` (every value,
as it came), ``interactions.json``, ``verified_interactions.json``, ``circuit.json``,
``verification.json`` (of the circuit) and ``report.html``.
Running the same settings into the same folder again evaluates nothing that is already there.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from circuitspex import models, tasks
from circuitspex.circuit import Circuit
from circuitspex.criteria import CircuitReport
from circuitspex.errors import ModelError, ResultError
from circuitspex.evaluation import Progress
from circuitspex.interactions import Interactions
from circuitspex.report import write_page
from circuitspex.spec import Spec
from circuitspex.spex import CircuitSpex
from circuitspex.tracking import Tracker
from circuitspex.units import parse_units
from circuitspex.verification import Verification

MAX_EXACT_UNITS = 20

VERIFIED_SHARE = 0.25
"""Evaluations for measuring interactions one by one, as a share of the budget and on top of it."""


@dataclass(frozen=True)
class Settings:
    """What to run; the command line's options, one by one."""

    model: str = "toy-induction"
    """Name, folder or ``.gguf`` file, as :func:`circuitspex.models.load` takes it."""
    task: str = "induction"
    """Name of a built-in task."""
    units: str = "heads"
    """Choice of units, as :func:`circuitspex.units.parse_units` takes it."""
    decoder: str = "auto"
    """Name of a decoder; ``auto`` is exact where the budget affords all masks, else hybrid."""
    budget: int = 4096
    """Evaluations to spend at most: masks × prompts each."""
    keep_rate: float | None = None
    """Share of units that a mask keeps; None is 0.5 for exact decoding and 0.95 otherwise."""
    max_order: int | None = None
    """Largest set of units that is looked for; None is the decoder's own default."""
    prompts_per_mask: int | Literal["all", "auto"] = "auto"
    """Prompts each mask is evaluated on; ``auto`` is all for exact decoding and 1 otherwise."""
    tolerance: float | None = None
    """Rise of the held-out R² that is too small to spend more budget for; None spends all."""
    n_prompts: int = 16
    """Prompts to discover on; as many others are held out to verify on."""
    ablation: str = "zero"
    """What replaces an ablated activation: ``zero``, ``mean`` or ``resample``."""
    metric: str = "logit_difference"
    """What is measured, by name."""
    verify: int = 20
    """How many interactions to measure one by one, the largest of two to four units; at most a
    quarter of the budget is spent on it, on top."""
    circuit_size: int | None = None
    """Units in the circuit; None is half of all."""
    seed: int = 0
    """Seed of prompts and masks."""
    dtype: str = "float32"
    """Type of the weights."""

    def resolve(self, n_units: int, n_prompts: int) -> "Plan":
        """Decide what was left open, now that the numbers of units and prompts are known.

        Args:
            n_units: How many units there are.
            n_prompts: How many prompts the task has.

        Returns:
            The decisions.
        """
        affordable = n_units <= MAX_EXACT_UNITS and 2**n_units * n_prompts <= self.budget
        automatic = "exact" if affordable else "hybrid"
        decoder = automatic if self.decoder == "auto" else self.decoder
        exact = decoder == "exact"
        drawn = self.prompts_per_mask
        return Plan(
            decoder=decoder,
            keep_rate=(0.5 if exact else 0.95) if self.keep_rate is None else self.keep_rate,
            prompts_per_mask=("all" if exact else 1) if drawn == "auto" else drawn,
            # After exact decoding every mask is known already.
            verify_budget=None if exact else int(VERIFIED_SHARE * self.budget),
            circuit_size=self.circuit_size or max(1, n_units // 2),
            n_units=n_units,
            n_prompts=n_prompts,
        )


@dataclass(frozen=True)
class Plan:
    """What was decided where the settings left it open."""

    decoder: str
    """Name of the decoder."""
    keep_rate: float
    """Share of units that a mask keeps."""
    prompts_per_mask: int | Literal["all"]
    """Prompts that each mask is evaluated on."""
    verify_budget: int | None
    """Evaluations to spend at most on measuring interactions one by one; None for no limit."""
    circuit_size: int
    """Units in the circuit."""
    n_units: int
    """How many units there are."""
    n_prompts: int
    """How many prompts the task has."""


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

    Returns:
        The result, as it is now on disk.
    """
    folder = Path(folder)
    if model is None:
        model = models.load(settings.model, device=device, dtype=_read_dtype(settings.dtype))
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
    return Result(folder, spex.spec, interactions, circuit, verification, verified, *counts)


def _read_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelError(f"dtype must be float32, bfloat16 or float16; got {name!r}.")
    return dtype
