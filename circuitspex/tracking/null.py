"""The tracker that records nothing: the default, so that no code asks whether there is one."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from circuitspex._shared import Spec
from circuitspex.findings import Findings


class NullTracker:
    """Records nothing."""

    def start(self, spec: Spec) -> None:
        """Do nothing."""

    def log(self, scalars: Mapping[str, float]) -> None:
        """Do nothing."""

    def finish(
        self, findings: Findings, *, page: Path | None = None, evaluations: pa.Table | None = None
    ) -> None:
        """Do nothing."""

    def __enter__(self) -> "NullTracker":
        """Return the tracker itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Do nothing."""
