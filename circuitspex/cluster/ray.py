"""One run on many GPUs or nodes: a Ray actor per worker holds the model and runs passes of rows.

Decoders, store, sampling and budget stay where the run was started. What travels is one pass of
rows at a time, packed masks and prompt numbers one way, values the other, never weights. The
passes are those of a run on one machine, so the values are the same bits.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitspex import models
from circuitspex.ablation import Room, Rows, shortcuts
from circuitspex.cluster.pool import Parcel, WorkerPool
from circuitspex.cluster.session import connected, import_ray
from circuitspex.cluster.worker import Chunk, Done, Job, Worker
from circuitspex.errors import HookError, WorkerError
from circuitspex.evaluation import LocalRunner

_IDENTITY = ("weights", "dtype", "processing", "architecture")


def ray_workers(
    model: str | Callable[[], Any],
    n_workers: int = 2,
    *,
    gpus_per_worker: int | float = 0,
    cpus_per_worker: int = 1,
    address: str | None = None,
    dtype: torch.dtype = torch.float32,
    start_timeout: int | float = 600,
) -> "RayWorkers":
    """Describe workers for ``cs.CircuitSpex(..., workers=...)``; nothing starts before its block.

    Args:
        model: What every worker loads: a name or path for :func:`circuitspex.models.load`, or a
            function of no arguments that returns a TransformerBridge. The function travels to the
            workers once, with everything it closes over.
        n_workers: How many processes, each with a model of its own.
        gpus_per_worker: GPUs, or a share of one, that Ray sets aside for each; 0 runs on CPUs.
        cpus_per_worker: Processors that Ray sets aside for each, and threads it computes with.
        address: Of a running Ray cluster, such as ``auto``. When None, that of the environment
            variable ``RAY_ADDRESS``, else a cluster on this machine for the length of the block.
        dtype: Type of the weights, if the model is given by name or path.
        start_timeout: Seconds to wait for the first worker.

    Returns:
        The workers. They can be entered around several ``CircuitSpex`` blocks, which then share
        them.

    Raises:
        WorkerError: If a number makes no sense, or a model is given instead of what loads it.

    Example:
        >>> import circuitspex as cs
        >>> model = cs.models.load("toy-induction")
        >>> task = cs.tasks.induction(model, n_prompts=4, seed=0)
        >>> workers = cs.cluster.ray_workers("toy-induction", n_workers=2)
        >>> with cs.CircuitSpex(
        ...     model, task, units=cs.heads(model), workers=workers
        ... ) as spex:  # doctest: +SKIP
        ...     interactions = spex.discover(decoder="exact", budget=1024, keep_rate=0.5)
    """
    if isinstance(model, torch.nn.Module) or not (isinstance(model, str) or callable(model)):
        raise WorkerError(
            "workers load the model themselves, so give its name or path, or a function of no "
            f"arguments that returns it; got {type(model).__name__}."
        )
    if n_workers < 1 or cpus_per_worker < 1 or gpus_per_worker < 0:
        raise WorkerError(
            "workers need n_workers and cpus_per_worker of at least 1 and gpus_per_worker of at "
            f"least 0; got {n_workers}, {cpus_per_worker} and {gpus_per_worker}."
        )
    import_ray()
    device = "cuda" if gpus_per_worker else "cpu"
    load = (
        partial(models.load, model, device=device, dtype=dtype) if isinstance(model, str) else model
    )
    return RayWorkers(load, n_workers, gpus_per_worker, cpus_per_worker, address, start_timeout)


class RayWorkers:
    """Processes on a Ray cluster that hold one model; made by :func:`ray_workers`."""

    def __init__(
        self,
        load: Callable[[], Any],
        n_workers: int,
        gpus_per_worker: int | float,
        cpus_per_worker: int,
        address: str | None,
        start_timeout: int | float,
    ) -> None:
        self.n_workers = n_workers
        self._load = load
        self._resources = {"num_gpus": gpus_per_worker, "num_cpus": cpus_per_worker}
        self._address = address
        self._start_timeout = start_timeout
        self._exits = ExitStack()
        self._n_blocks = 0
        self._pool: WorkerPool | None = None
        self._room: Room | None = None
        self._identity: dict[str, Any] = {}
        self._checked: Any = None

    def __enter__(self) -> "RayWorkers":
        """Connect to the cluster, or start one, and wait until every worker holds the model.

        Returns:
            These workers.

        Raises:
            WorkerError: If the cluster cannot be reached, has less than is asked for, or workers
                die. Errors of loading pass as they are.
        """  # noqa: DOC502 - raised by the parts
        self._n_blocks += 1
        if self._n_blocks > 1:
            return self
        try:
            n_cpus = int(self.n_workers * self._resources["num_cpus"])
            self._exits.enter_context(connected(self._address, n_cpus))
            self._start()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the workers, and the cluster if it was started for them."""
        if self._n_blocks == 1:
            self._leave()
        else:
            self._n_blocks -= 1

    def _leave(self) -> None:
        self._n_blocks = 0
        self._pool, self._room, self._checked = None, None, None
        self._exits.close()

    def room(self) -> Room:
        """Say how much memory rows may fill on each worker: that of the one with the least.

        Returns:
            The room there was when the model had been loaded.

        Raises:
            WorkerError: Outside the block.
        """
        if self._room is None:
            raise WorkerError("workers run inside a block only: with workers: ...")
        return self._room

    def _start(self) -> None:
        ray = import_ray()
        self._refuse_the_impossible()
        load = ray.put(self._load)
        make = ray.remote(_Actor).options(
            max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", **self._resources
        )
        make_worker = partial(make.remote, [load], self._resources["num_cpus"], str(Path.cwd()))
        pool = WorkerPool(make_worker, self.n_workers, self._start_timeout)
        self._exits.callback(pool.stop)
        started = pool.start()
        self._identity = started[0].model
        self._room = min((each.room for each in started), key=lambda room: room.n_bytes)
        self._pool = pool

    def _refuse_the_impossible(self) -> None:
        if self._address or os.environ.get("RAY_ADDRESS"):
            return  # it may be that of a cluster that grows when it is asked to
        there = import_ray().cluster_resources()
        for name, each in (("GPU", "num_gpus"), ("CPU", "num_cpus")):
            wanted, has = self.n_workers * self._resources[each], there.get(name, 0)
            if wanted > has:
                raise WorkerError(
                    f"{self.n_workers} workers with {self._resources[each]:g} {name}s each need "
                    f"{wanted:g}; the Ray cluster has {has:g}. Ask for fewer, or, if it grows on "
                    "demand, name it with address='auto'."
                )

    @contextmanager
    def runner(self, local: LocalRunner, batch_size: int | None = None) -> Iterator["RayRunner"]:
        """Make a runner that gives what a local one gives, bit for bit.

        Args:
            local: Decides which rows run together; its model must be the workers' model.
            batch_size: Rows per pass that the local one was given, if any.

        Yields:
            The runner.

        Raises:
            WorkerError: Outside the block, or if the workers hold another model.
            HookError: If there are hooks on the model that workers would not have.
        """  # noqa: DOC502 - raised by the check
        if self._pool is None:
            raise WorkerError("workers run inside a block only: with workers: ...")
        self._check(local.ablated.model)
        ablated = local.ablated
        job = Job(
            key=uuid.uuid4().hex,
            units=ablated.units,
            task=replace(local.task, held_out=None),
            metric=local.metric,
            replacement=ablated.replacement,
            forks=ablated.forks,
            batch_size=batch_size,
            room=self.room(),
            matmul_precision=torch.get_float32_matmul_precision(),
        )
        kept = import_ray().put(job)
        yield RayRunner(local, partial(self._pool.run, (job.key, [kept]), job.units))

    def _check(self, model: Any) -> None:
        if shortcuts.somebody_looks(model.hook_dict.values()):
            raise HookError(
                "there are hooks of your own on the model. Workers hold models of their own, which "
                "have none. Add the hooks in the function that loads the workers' model and leave "
                "this one without, or run without workers."
            )
        if model is self._checked:
            return
        own = models.describe_model(model)
        other = [name for name in _IDENTITY if own[name] != self._identity[name]]
        if other:
            raise WorkerError(
                "the workers hold another model than the one given here: "
                + "; ".join(
                    f"{name} {self._identity[name]} there, {own[name]} here" for name in other
                )
                + ". Load both from the same place, in the same dtype."
            )
        self._checked = model


class RayRunner:
    """Sends the passes of a local runner to workers, and gives what comes back."""

    def __init__(
        self, local: LocalRunner, run: Callable[[Iterator[Parcel]], Iterator[tuple[Parcel, Done]]]
    ) -> None:
        self._local = local
        self._run = run

    def values(self, rows: Rows) -> Iterator[tuple[Int[Tensor, " _"], Float[Tensor, " _"]]]:
        """Run rows and measure them.

        Args:
            rows: Masks on prompts.

        Yields:
            Rows that ran together and their values, in double precision.
        """
        for parcel, done in self._run(self._pack(rows, gradients=False)):
            yield parcel.tag, torch.tensor(done.values)

    def gradients(
        self, rows: Rows
    ) -> Iterator[tuple[Int[Tensor, " _"], Float[Tensor, " _"], Float[Tensor, "_ units"]]]:
        """Run rows forward and backward and measure them.

        Args:
            rows: Masks, or gates between 0 and 1, on prompts.

        Yields:
            Rows that ran together, their values in double precision and the derivatives by all
            gates in single precision.
        """
        for parcel, done in self._run(self._pack(rows, gradients=True)):
            yield parcel.tag, torch.tensor(done.values), torch.tensor(done.gradients)

    def _pack(self, rows: Rows, *, gradients: bool) -> Iterator[Parcel]:
        for planned in self._local.passes(rows, gradients=gradients):
            yield Parcel(Chunk.of(rows, planned, gradients=gradients), planned.rows)


class _Actor:
    """A worker as Ray knows it: what is large comes from Ray's object store, once."""

    def __init__(self, load: list[Any], n_threads: int, folder: str) -> None:
        if Path(folder).is_dir():
            os.chdir(folder)  # a path to a model may be relative
        self._worker = Worker(lambda: import_ray().get(load[0])(), n_threads)

    def start(self) -> Any:
        return self._worker.start()

    def run(self, key: str, job: list[Any], chunk: Chunk) -> Done:
        return self._worker.run(key, lambda: import_ray().get(job[0]), chunk)
