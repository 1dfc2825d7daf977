"""What a tracker offers to a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa

from circuitspex._shared import Spec
from circuitspex.findings import Findings


@runtime_checkable
class Tracker(Protocol):
    """Records runs somewhere else. It never raises: a run does not fail because of its log.

    A run is ``start``, any number of ``log``, ``finish``. Leaving the ``with`` block ends a run
    that was started and not finished, and marks it as failed.
    """

    def start(self, spec: Spec) -> None:
        """Begin a run of this spec; the same spec continues the same run."""
        ...

    def log(self, scalars: Mapping[str, float]) -> None:
        """Record numbers of a run in progress, such as ``perf/masks_per_s``."""
        ...

    def finish(
        self, findings: Findings, *, page: Path | None = None, evaluations: pa.Table | None = None
    ) -> None:
        """Record what was found and end the run.

        Args:
            findings: What the run found.
            page: Their HTML page.
            evaluations: All evaluations, as a store's ``table()`` gives them.
        """
        ...

    def __enter__(self) -> "Tracker":
        """Return the tracker itself; the end of the block ends its run."""
        ...

    def __exit__(self, *exception: object) -> None:
        """End a run that is still on, as failed."""
        ...
