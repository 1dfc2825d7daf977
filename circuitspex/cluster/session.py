"""Being connected to a Ray cluster: to the one that is there, else to one of our own."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from circuitspex.errors import MissingExtraError, WorkerError

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    "RAY_worker_niceness": "0",  # Ray would let every other program go first
}
"""What a cluster of our own takes from the environment, unless its owner chose otherwise."""


def import_ray() -> Any:
    """Import Ray.

    Returns:
        The module.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "running on many GPUs or nodes needs the ray package: pip install 'circuitspex[ray]'"
        ) from error
    return ray


@contextmanager
def connected(address: str | None, n_cpus: int) -> Iterator[None]:
    """Connect to a Ray cluster for a block.

    A connection that is there already is used and kept. A cluster that is running, at the address
    or at that of ``RAY_ADDRESS``, is left running. Else one is started on this machine, and shut
    down at the end.

    Args:
        address: Of a running cluster, such as ``auto``; ``local`` starts one in any case.
        n_cpus: Processors that a cluster of our own should count.

    Yields:
        Nothing.

    Raises:
        WorkerError: If no cluster answers at the address.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield
        return
    where: dict[str, Any] = {"address": address or os.environ.get("RAY_ADDRESS", "local")}
    if where["address"] == "local":
        where |= {"num_cpus": n_cpus, "include_dashboard": False}
    with _signals_kept(), _own_defaults():
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, TimeoutError) as error:
            raise WorkerError(
                f"no Ray cluster answers at {where['address']!r}: {error} Start one with ray start "
                "--head, or give no address to have one started on this machine."
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Raise at the end of the block what a signal raised and Ray's compiled code has lost.

    That is what the handler of SIGINT or SIGTERM raised, if nothing else was raised.

    Yields:
        Once, for the block that calls Ray.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    raised: list[BaseException] = []

    def remembering(handle: Callable[[int, Any], Any]) -> Callable[[int, Any], None]:
        def remember(number: int, frame: Any) -> None:
            try:
                handle(number, frame)
            except BaseException as stop:
                raised.append(stop)
                raise

        return remember

    changed = {number: handle for number, handle in handlers.items() if callable(handle)}
    for number, handle in changed.items():
        signal.signal(number, remembering(handle))
    try:
        yield
    finally:
        for number, handle in changed.items():
            signal.signal(number, handle)
    if raised:
        raise raised[0]


@contextmanager
def _signals_kept() -> Iterator[None]:
    # Ray takes SIGTERM over; who asks a run to end is the caller's business.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _own_defaults() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _DEFAULTS}
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
