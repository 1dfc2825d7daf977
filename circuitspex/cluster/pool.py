"""Chunks to Ray actors and results back, whoever dies on the way."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from circuitspex.cluster.session import import_ray, interrupts_kept
from circuitspex.cluster.worker import Chunk, Done, Started, as_mask_table, name_rows
from circuitspex.errors import CircuitSpexError, WorkerError, WorkerWarning
from circuitspex.units import UnitSet

_DEPTH = 2
"""Chunks at a worker: one that runs, and one so that it never waits."""
_LONGEST_REASON = 300
"""Characters of what Ray says of a death; the rest are tables of its own state."""
_MOST_DEATHS = 3
"""A chunk that was lost so often, with nothing else at its worker, is what kills workers."""


@dataclass(eq=False)
class Parcel:
    """A chunk on its way, and what its sender wants back with it."""

    chunk: Chunk
    tag: Any
    n_lost: int = 0


class _Feed:
    """Chunks that wait for a worker: lost ones first, then fresh ones, made one ahead."""

    def __init__(self, parcels: Iterable[Parcel]) -> None:
        self._fresh = iter(parcels)
        self._next = next(self._fresh, None)
        self.lost = deque[Parcel]()

    def __bool__(self) -> bool:
        return bool(self.lost) or self._next is not None

    def take(self) -> Parcel:
        if self.lost:
            return self.lost.popleft()
        parcel, self._next = self._next, next(self._fresh, None)
        assert parcel is not None
        return parcel


@dataclass(eq=False)
class _Member:
    actor: Any
    started: Started | None = None
    parcels: list[Parcel] = field(default_factory=list)


class WorkerPool:
    """Workers that all hold one model; a dead one is replaced and its chunks are run again."""

    def __init__(
        self, make_worker: Callable[[], Any], n_workers: int, patience: int | float
    ) -> None:
        """Prepare to start workers.

        Args:
            make_worker: Makes an actor that does what a
                :class:`~circuitspex.cluster.worker.Worker` does.
            n_workers: How many.
            patience: Seconds to wait for a worker when none is at work.
        """
        self._ray = import_ray()
        names = ("RayActorError", "ObjectLostError", "OutOfMemoryError")
        self._lost = tuple(getattr(self._ray.exceptions, name) for name in names)
        self._make_worker = make_worker
        self._n_workers = n_workers
        self._patience = patience
        self._members: list[_Member] = []
        self._calls: dict[Any, tuple[_Member, Parcel | None]] = {}
        """By what Ray promised: who is at it, and the chunk; None while the model is loaded."""
        self._deaths_in_a_row = 0

    def start(self) -> list[Started]:
        """Wait until every worker holds the model.

        Returns:
            What they say of themselves.
        """
        for _ in range(self._n_workers):
            self._add()
        while self._calls:
            self._finish()
        return [member.started for member in self._members if member.started is not None]

    def stop(self) -> None:
        """Stop every worker at once, whatever it is doing."""
        self._calls.clear()
        while self._members:
            self._ray.kill(self._members.pop().actor)

    def run(
        self, job: tuple[str, list[Any]], units: UnitSet, parcels: Iterable[Parcel]
    ) -> Iterator[tuple[Parcel, Done]]:
        """Run chunks and yield each as it is done.

        After a chunk failed no more are begun, those on their way are yielded, and then its error
        is raised.

        Args:
            job: Its key, and where Ray keeps it.
            units: Name the units in errors.
            parcels: Chunks, asked for only when a worker is about to need one.

        Yields:
            Chunks with what they gave, in whatever order.
        """
        feed, failures = _Feed(parcels), list[Exception]()
        try:
            while self._is_busy() or (feed and not failures):
                with interrupts_kept():
                    if not failures:
                        self._hand_out(job, feed)
                    finished = self._finish()
                for parcel, outcome in finished:
                    if isinstance(outcome, Done):
                        yield parcel, outcome
                    elif isinstance(outcome, Exception):
                        failures.append(_explain(outcome, parcel, units))
                    else:
                        parcel.n_lost += 1
                        feed.lost.append(parcel)
                        if parcel.n_lost == _MOST_DEATHS:
                            failures.append(_lost_too_often(parcel, units))
        finally:
            self._forget_chunks()
        if failures:
            raise failures[0]

    def _is_busy(self) -> bool:
        return any(parcel is not None for _, parcel in self._calls.values())

    def _hand_out(self, job: tuple[str, list[Any]], feed: _Feed) -> None:
        for depth in range(_DEPTH):
            for member in self._members:
                if member.started is None or len(member.parcels) != depth:
                    continue
                # What was lost before runs alone, so that none is lost for what another did.
                if any(parcel.n_lost for parcel in member.parcels) or (feed.lost and depth):
                    continue
                if not feed:
                    return
                parcel = feed.take()
                member.parcels.append(parcel)
                self._calls[member.actor.run.remote(*job, parcel.chunk)] = member, parcel

    def _finish(self) -> list[tuple[Parcel, Done | Exception | None]]:
        """Return chunks that are back, once something is; None for what was lost."""
        ready, _ = self._ray.wait(list(self._calls), timeout=self._patience)
        if not ready and not self._is_busy():
            self._give_up_waiting()
        found = [self._collect(ref) for ref in ready]
        return [(parcel, outcome) for parcel, outcome in found if parcel is not None]

    def _collect(self, ref: Any) -> tuple[Parcel | None, Done | Exception | None]:
        member, parcel = self._calls.pop(ref)
        if parcel is not None:
            member.parcels.remove(parcel)
        try:
            outcome = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if parcel is None:
                raise _cause(error) from error
            return parcel, error
        except self._lost as error:
            self._replace(member, error)
            return parcel, None
        self._deaths_in_a_row = 0
        if parcel is None:
            member.started, outcome = outcome, None
        return parcel, outcome

    def _add(self) -> None:
        member = _Member(self._make_worker())
        self._members.append(member)
        self._calls[member.actor.start.remote()] = member, None

    def _replace(self, member: _Member, error: Exception) -> None:
        if member not in self._members:
            return
        self._members.remove(member)
        self._ray.kill(member.actor)
        self._deaths_in_a_row += 1
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        if self._deaths_in_a_row > _MOST_DEATHS * self._n_workers:
            raise WorkerError(
                f"{self._deaths_in_a_row} workers died and none finished anything in between; the "
                f"last one: {reason} Often the model does not fit into memory: ask for fewer "
                "workers per node, or more memory for each."
            )
        warnings.warn(
            f"a worker died; another one takes its place and runs what it had again ({reason})",
            WorkerWarning,
            stacklevel=2,
        )
        self._add()

    def _forget_chunks(self) -> None:
        self._calls = {ref: call for ref, call in self._calls.items() if call[1] is None}
        for member in self._members:
            member.parcels.clear()

    def _give_up_waiting(self) -> None:
        there, free = self._ray.cluster_resources(), self._ray.available_resources()
        counts = ", ".join(
            f"{there[name]:g} {name} ({free.get(name, 0):g} free)"
            for name in ("CPU", "GPU")
            if name in there
        )
        raise WorkerError(
            f"waited {self._patience:g} seconds for workers. The Ray cluster has {counts}. Ask for "
            "fewer workers or less for each, or wait longer with start_timeout=..."
        )


def _cause(error: Exception) -> Exception:
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _explain(remote: Exception, parcel: Parcel, units: UnitSet) -> Exception:
    error = _cause(remote)
    where = f"on a worker, in a batch of {name_rows(parcel.chunk, units)}"
    if isinstance(error, CircuitSpexError):
        found = type(error)(f"{error} This was {where}.")
    else:
        found = WorkerError(f"{type(error).__name__} {where}: {error}")
    found.__cause__ = remote  # its text is the traceback on the worker
    return _with_masks(found, parcel)


def _lost_too_often(parcel: Parcel, units: UnitSet) -> Exception:
    return _with_masks(
        WorkerError(
            f"a batch was lost {parcel.n_lost} times, at last with workers that ran nothing else: "
            f"{name_rows(parcel.chunk, units)}. Often it does not fit into memory: choose a "
            "smaller batch_size, or fewer workers per node."
        ),
        parcel,
    )


def _with_masks(error: Exception, parcel: Parcel) -> Exception:
    error.masks, error.prompts = as_mask_table(parcel.chunk)  # type: ignore[attr-defined]
    return error
