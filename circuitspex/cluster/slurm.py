"""Calls of one function as an array of SLURM jobs, through submitit.

A job that reaches its time limit or is preempted puts itself back into the queue and is called
again with the same arguments: what it calls must go on where it was. Runs do, by replay from their
store. Each submission leaves a record of which job does which items, in plain JSON, beside
submitit's own files. Those are pickles that the jobs of this submission read; nothing else is.
"""

import contextlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from circuitspex._shared import write_atomically
from circuitspex.cluster.resources import Resources
from circuitspex.cluster.states import job_states
from circuitspex.errors import ClusterError, JobInterruptedError, MissingExtraError

Engine = Literal["slurm", "local", "debug"]
"""A SLURM cluster; processes of this machine, all at once; or this very process, for debugging."""


class Requeued:
    """Calls a function on each of some items; resubmits itself when the job has to end."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *items: tuple[Any, ...]) -> None:
        """Call the function on every item, also after one that fails.

        Args:
            items: The arguments of one call each.

        Raises:
            ExceptionGroup: If calls failed; what each of them raised.
        """
        failures = []
        for item in items:
            try:
                self.function(*item)
            except JobInterruptedError as error:
                _requeue_this_job(error)
            except Exception as error:  # noqa: BLE001 - raised below, once the others had their turn
                failures.append(error)
        if failures:
            raise ExceptionGroup(f"{len(failures)} of {len(items)} runs failed", failures)

    def checkpoint(self, *items: tuple[Any, ...]) -> Any:
        """Return the same calls again: what they did so far is in their stores.

        Args:
            items: The arguments of the calls.

        Returns:
            What submitit puts back into the queue.
        """
        return _submitit().helpers.DelayedSubmission(self, *items)


@dataclass(frozen=True)
class Submission:
    """Which job does which items."""

    engine: str
    """Where the jobs run."""
    items_of: Mapping[str, Sequence[int]]
    """The numbers of each job's items, by job id."""
    jobs: Sequence[Any] = ()
    """submitit's own handles; none in a submission that was read from disk."""


def submit_array(
    function: Callable[..., Any],
    items: Mapping[int, tuple[Any, ...]],
    *,
    folder: str | Path,
    resources: Resources,
    engine: Engine = "slurm",
    name: str = "circuitspex",
) -> Submission:
    """Submit one call per item, as one array of jobs.

    Args:
        function: What to call, importable by its name where the jobs run.
        items: The arguments of each call, by the number under which it is recorded. The job of a
            call that raises :class:`~circuitspex.errors.JobInterruptedError` is requeued.
        folder: Where logs and submitit's files go; on a cluster, one that all nodes share.
        resources: What each job gets.
        engine: Where to run: ``slurm``, ``local`` or ``debug``.
        name: What the queue shows.

    Returns:
        Which job does which items, as it was also written into the folder.

    Raises:
        ClusterError: If there is nothing to submit, the function cannot be imported by its name,
            or SLURM refuses the array.
    """
    submitit = _submitit()
    _check_importable(function)
    if not items:
        raise ClusterError("There is nothing to submit: no run is left to do.")
    shares = _share(list(items), resources.runs_per_job)
    executor = _make_executor(Path(folder), resources, engine, name, len(shares))
    work = Requeued(function)
    try:
        with executor.batch():
            jobs = [executor.submit(work, *(items[i] for i in share)) for share in shares]
    except submitit.core.utils.FailedJobError as error:
        raise ClusterError(
            f"SLURM refused the array: {str(error).strip()}. Correct the resources; "
            "--print-sbatch shows what is asked for."
        ) from error
    ids = [job.job_id for job in jobs]
    submission = Submission(engine, dict(zip(ids, shares, strict=True)), jobs)
    _write_record(Path(folder), submission)
    return submission


def sbatch_script(
    n_items: int, *, folder: str | Path, resources: Resources, name: str = "circuitspex"
) -> str:
    """Return the very script that would be submitted, without submitting it.

    Works on machines without SLURM too.

    Args:
        n_items: How many calls there would be.
        folder: Where logs would go.
        resources: What each job would get.
        name: What the queue would show.

    Returns:
        The text of the sbatch file.
    """
    n_jobs = len(_share(list(range(n_items)), resources.runs_per_job))

    class Printed(_submitit().SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1  # nothing is submitted, so srun need not be here

    executor = Printed(Path(folder), **_requeueing(resources))
    executor.update_parameters(**_slurm_parameters(resources, name))
    if n_jobs > 1:  # a single job is no array
        executor.parameters["map_count"] = n_jobs
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def read_submissions(folder: str | Path) -> list[Submission]:
    """Read which jobs were submitted from a folder, the oldest first.

    Args:
        folder: What :func:`submit_array` was given.

    Returns:
        The submissions; none where nothing was submitted.

    Raises:
        ClusterError: If a record is damaged.
    """
    found = []
    for file in sorted((Path(folder) / _RECORDS).glob("*.json")):
        try:
            read = json.loads(file.read_bytes())
            items_of = {str(job): [int(i) for i in items] for job, items in read["jobs"].items()}
            found.append(Submission(str(read["engine"]), items_of))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ClusterError(
                f"{file} is not a record of submitted jobs ({error}). Remove it; squeue and the "
                "runs' own folders still tell what became of them."
            ) from error
    return found


def log_of(folder: str | Path, job: str) -> Path:
    """Return where a job's errors are logged.

    Args:
        folder: What :func:`submit_array` was given.
        job: The job's id.

    Returns:
        The file, which is there once the job has started.
    """
    return Path(folder) / f"{job}_0_log.err"


_RECORDS = "submissions"


def _write_record(folder: Path, submission: Submission) -> None:
    """Write a submission under the next free number."""
    records = folder / _RECORDS
    records.mkdir(parents=True, exist_ok=True)
    number = len(list(records.glob("*.json")))
    jobs = {job: list(items) for job, items in submission.items_of.items()}
    text = json.dumps({"engine": submission.engine, "jobs": jobs}, indent=1)
    write_atomically(records / f"{number:04d}.json", text.encode())


def _share(numbers: list[int], per_job: int) -> list[list[int]]:
    """Return the items of each job, neighbours together."""
    return [numbers[start : start + per_job] for start in range(0, len(numbers), per_job)]


def _requeue_this_job(error: JobInterruptedError) -> NoReturn:
    """Put the job this runs in back into the queue, unless somebody wants it to end."""  # noqa: DOC501
    environment = _submitit().JobEnvironment()
    # SLURM announces a preemption by SIGTERM, as it does a cancellation; only its state tells.
    if environment.cluster != "slurm" or not _goes_on(environment.job_id):
        raise error
    environment._requeue(0)
    raise SystemExit(1)  # SLURM ends the job now; its state is that of the queue


def _goes_on(job: str) -> bool:
    return job_states([job])[job].state == "RUNNING"


def _make_executor(
    folder: Path, resources: Resources, engine: Engine, name: str, n_jobs: int
) -> Any:
    submitit = _submitit()
    if engine == "slurm":
        _check_slurm(n_jobs, resources.runs_per_job)
        executor = submitit.SlurmExecutor(folder, **_requeueing(resources))
        executor.update_parameters(**_slurm_parameters(resources, name))
        return executor
    if engine == "local":
        executor = submitit.LocalExecutor(folder, **_requeueing(resources))
        executor.update_parameters(
            timeout_min=resources.minutes,
            gpus_per_node=resources.gpus,
            signal_delay_s=resources.grace_seconds,
            setup=list(resources.setup),
        )
        return executor
    return submitit.DebugExecutor(folder)


def _requeueing(resources: Resources) -> dict[str, Any]:
    """Return how jobs are started, so that they can be told to end at any time, and how often."""
    signal = _submitit().JobEnvironment.USR_SIG
    # A signal that comes while Python still starts must not kill a job that cannot requeue yet.
    deaf = f'trap \'\' {signal}; exec "$0" "$@"'
    python = f"bash -c {shlex.quote(deaf)} {shlex.quote(sys.executable)}"
    return {"python": python, "max_num_timeout": resources.max_requeues}


def _slurm_parameters(resources: Resources, name: str) -> dict[str, Any]:
    """Return the resources under submitit's names."""
    parameters = {
        "job_name": name,
        "time": resources.minutes,
        "gpus_per_node": resources.gpus or None,
        "cpus_per_task": resources.cpus,
        "mem": None if resources.memory_gb is None else f"{round(resources.memory_gb * 1024)}M",
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "array_parallelism": resources.max_parallel,
        "signal_delay_s": resources.grace_seconds,
        "setup": list(resources.setup) or None,
        # Sites may have turned requeueing off by default; without it no run would go on.
        "additional_parameters": {"requeue": True, **resources.sbatch},
    }
    return {key: value for key, value in parameters.items() if value is not None}


def _check_importable(function: Callable[..., Any]) -> None:
    """Refuse functions that a job could only get by value, code and all."""  # noqa: DOC501
    module, name = function.__module__, function.__qualname__
    if module == "__main__" or "<" in name:
        raise ClusterError(
            f"{module}.{name} cannot be imported by a job on another node. Give a function "
            "defined at the top of a module that is installed there."
        )


def _check_slurm(n_jobs: int, runs_per_job: int) -> None:
    """Refuse what this cluster would not take, before anything is written."""  # noqa: DOC501
    if shutil.which("srun") is None:
        raise ClusterError(
            "There is no SLURM here: srun was not found. Submit from a login node of the "
            "cluster; --print-sbatch works anywhere."
        )
    limit = _max_array_size()
    if n_jobs > limit:
        needed = -(-n_jobs * runs_per_job // limit)
        raise ClusterError(
            f"{n_jobs:,} jobs are too many for this SLURM, which takes arrays of {limit:,}. "
            f"Set runs_per_job to {needed} or more in the resources."
        )


def _max_array_size() -> int:
    """Return how long an array may be here; SLURM's own default where it does not say."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, StopIteration):
        shown = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        line = next(line for line in shown.splitlines() if line.startswith("MaxArraySize"))
        return int(line.partition("=")[2])  # the first index that is too large, counted from 0
    return 1001


def _submitit() -> Any:
    """Return submitit, or say how to install it."""  # noqa: DOC501
    try:
        import submitit
    except ImportError as error:
        raise MissingExtraError(
            "running on a SLURM cluster needs submitit; install it with: "
            "pip install 'circuitspex[slurm]'"
        ) from error
    return submitit
