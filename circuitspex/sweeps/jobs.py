"""A sweep on a SLURM cluster: what is due is submitted, and every run's job says how it is."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from circuitspex.cluster import (
    Engine,
    JobState,
    Resources,
    Submission,
    job_states,
    read_submissions,
    sbatch_script,
    submit_array,
)
from circuitspex.errors import ClusterError, JobInterruptedError, SweepError
from circuitspex.sweeps.manifest import Manifest, read_manifest
from circuitspex.sweeps.running import WandbMode, due, run_entry
from circuitspex.sweeps.state import SILENCE, RunState, run_state

JOBS = "slurm"
"""Folder in the sweep's own for the jobs' logs and records."""


def submit_sweep(
    folder: str | Path,
    resources: Resources,
    *,
    only: Iterable[int] | None = None,
    retry_failed: bool = False,
    wandb: WandbMode = "offline",
    engine: Engine = "slurm",
) -> Submission | None:
    """Submit what is not done of a sweep, and not in the queue already, as one array of jobs.

    Args:
        folder: The sweep's folder; on a cluster, one that all nodes share.
        resources: What each job gets.
        only: Which runs, by their place in the manifest; all when None.
        retry_failed: Whether to run again what failed before.
        wandb: Where runs are logged; compute nodes often reach no internet.
        engine: Where to run: ``slurm``, ``local`` or ``debug``.

    Returns:
        Which job does which runs; None where no run is left to submit.
    """
    manifest = read_manifest(folder)
    chosen = _to_submit(manifest, only, retry_failed=retry_failed)
    if not chosen:
        return None
    home = Path(folder).absolute()
    return submit_array(
        run_as_job,
        {i: (home, i, wandb) for i in chosen},
        folder=home / JOBS,
        resources=resources,
        engine=engine,
        name=_queue_name(manifest),
    )


def sweep_script(
    folder: str | Path,
    resources: Resources,
    *,
    only: Iterable[int] | None = None,
    retry_failed: bool = False,
) -> str:
    """Return the script that :func:`submit_sweep` would submit, without asking SLURM anything.

    Args:
        folder: The sweep's folder.
        resources: What each job would get.
        only: Which runs; all when None.
        retry_failed: Whether what failed is to be run again.

    Returns:
        The text of the sbatch file.

    Raises:
        SweepError: If no run is left to do.
    """
    manifest = read_manifest(folder)
    chosen = due(manifest, only, retry_failed=retry_failed)
    if not chosen:
        raise SweepError("no run is left to do, so there is no script to print.")
    jobs = Path(folder).absolute() / JOBS
    return sbatch_script(len(chosen), folder=jobs, resources=resources, name=_queue_name(manifest))


def run_as_job(folder: Path, index: int, wandb: WandbMode) -> None:
    """Do one run of a sweep inside a job.

    Args:
        folder: The sweep's folder.
        index: The run's place in its manifest.
        wandb: Where it is logged.

    Raises:
        SweepError: If the run failed; the reason is in its folder too.
        JobInterruptedError: If it was told to stop.
    """
    state = run_entry(folder, index, wandb=wandb)
    end = time.monotonic() + SILENCE
    # A node that died seems to be at it for a while after its job was given to this one.
    while state.state == "running" and time.monotonic() < end:
        time.sleep(_POLL)
        state = run_entry(folder, index, wandb=wandb)
    if state.state == "failed":
        raise SweepError(f"run {index} failed: {state.note}")
    if state.state == "waiting":
        raise JobInterruptedError(f"run {index} was told to stop before its end")


def states_with_jobs(manifest: Manifest) -> tuple[list[RunState], str]:
    """Say how far every run is, and how its job is where it waits for one.

    Args:
        manifest: The sweep.

    Returns:
        The states, in the manifest's order; and why SLURM could not be asked, or no text.
    """
    states = [run_state(manifest, index) for index in range(len(manifest))]
    job_of = _latest_jobs(manifest)
    waiting = {state.index for state in states if state.state in ("waiting", "running")}
    try:
        found = job_states(job for index, job in job_of.items() if index in waiting)
    except ClusterError as error:
        return states, str(error)
    return [_with_job(state, job_of.get(state.index), found) for state in states], ""


_POLL = 5.0


def _queue_name(manifest: Manifest) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in manifest.group)[:60]


def _to_submit(manifest: Manifest, only: Iterable[int] | None, *, retry_failed: bool) -> list[int]:
    """Return what is due and in no job that waits or runs."""
    chosen = due(manifest, only, retry_failed=retry_failed)
    job_of = {i: job for i, job in _latest_jobs(manifest).items() if i in set(chosen)}
    states = job_states(job_of.values())
    return [i for i in chosen if i not in job_of or states[job_of[i]].is_over]


def _latest_jobs(manifest: Manifest) -> dict[int, str]:
    """Return the last SLURM job that each run was given to."""
    return {
        index: job
        for submission in read_submissions(manifest.folder / JOBS)
        if submission.engine == "slurm"
        for job, indices in submission.items_of.items()
        for index in indices
    }


def _with_job(state: RunState, job: str | None, found: dict[str, JobState]) -> RunState:
    """Return the state with what SLURM says of the run's job, where its own files leave it open."""
    if job is None or job not in found:
        return state
    said = found[job]
    if said.is_over and state.state == "waiting":
        note = f"job {job} is over: {said.describe()}; sweep run starts the run again"
        return replace(state, note=note)
    if state.state == "running":
        return replace(state, note=f"{state.note}; job {job} {said.describe()}")
    return replace(state, note=f"job {job} {said.describe()}")
