"""The whole path in one readable function: from settings to a folder of results.

The folder holds ``settings.yaml`` (what was asked for), ``spec.json`` (everything needed to repeat
the run), ``evaluations/`` (every value, as it came), ``interactions.json``,
``verified_interactions.json``, ``circuit.json``, ``verification.json`` (of the circuit),
``report.html`` and, written last, ``summary.json`` (the result in numbers, and what it took).
Running the same settings into the same folder again evaluates nothing that is already there.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from circuitspex import models, tasks
from circuitspex._shared import make_folder
from circuitspex.evaluation import Progress, Workers
from circuitspex.findings import Findings
from circuitspex.runs.settings import Plan, Settings
from circuitspex.spex import CircuitSpex
from circuitspex.tracking import Tracker
from circuitspex.units import parse_units

__all__ = ["Plan", "Settings", "discover"]


SETTINGS = "settings.yaml"


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
) -> Findings:
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
        What was found, as it is now on disk.
    """
    started, folder = perf_counter(), make_folder(folder)
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
        settings={**settings.as_dict(), **asdict(plan)},
        workers=workers,
    ) as spex:
        interactions = spex.discover(
            settings.decoder,
            budget=settings.budget,
            keep_rate=settings.keep_rate,
            max_order=settings.max_order,
            prompts_per_mask=settings.prompts_per_mask,
            seed=settings.seed,
            **settings.options,
        )
        spex.verify_interactions(interactions, top=settings.verify, budget=plan.verify_budget)
        spex.verify(spex.circuit(interactions, plan.circuit_size))
        spex.findings().save_parts(folder)
        spex.track(spex.findings().page(folder / "report.html"))
    findings = replace(spex.findings(), seconds=perf_counter() - started)
    findings.save_summary(folder, settings.run_id)
    return findings
