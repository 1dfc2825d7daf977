"""Runs on Weights & Biases; the only file that imports wandb.

One run per spec, or per settings: its id is their hash, so a run that was cut off is continued, not
doubled.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import wandb

from circuitspex._shared import Spec
from circuitspex.algebra import as_columns
from circuitspex.errors import TrackingWarning
from circuitspex.findings import Findings
from circuitspex.report import head_map_image

_MAX_ROWS = 10_000  # W&B shows no more of a table; interactions.json holds all of them
_MOST_SECONDS = 600.0  # to upload what is left at the end; `wandb sync` uploads what was not


class WandbTracker:
    """Records runs on Weights & Biases; after the first failure it warns and stays silent."""

    def __init__(
        self,
        mode: Literal["online", "offline"],
        *,
        run_id: str | None = None,
        config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Make a tracker.

        Args:
            mode: Whether runs are sent as they go, or kept for ``wandb sync``.
            run_id: Id of the run; the hash of its spec when None.
            config: Added to the run's config beside the spec.
            **options: Passed on to ``wandb.init``: project, entity, group, tags, name, dir.
        """
        self._options = {"mode": mode, **options}
        self._run_id = run_id
        self._config = dict(config or {})
        self._run: Any = None
        self._failed = False

    def start(self, spec: Spec) -> None:
        """Begin or continue the run of a spec, with the spec as its config.

        Args:
            spec: What the run will be of.
        """
        # An agent of a W&B sweep has named the run and its project already.
        named = {"id": self._run_id or spec.run_hash, "resume": "allow"}
        if "WANDB_SWEEP_ID" in os.environ:
            named = {"project": None, "entity": None, "group": None}

        def begin() -> None:
            self._run = wandb.init(
                config={**spec.as_dict(), **self._config},
                job_type="discover",
                settings=wandb.Settings(**_settings()),
                **{**self._options, **named},
            )

        self._guard("starting the run", begin)

    def log(self, scalars: Mapping[str, float]) -> None:
        """Record numbers of the run in progress.

        Args:
            scalars: Name to number.
        """
        if self._run is not None:
            self._guard("logging", lambda: self._run.log(dict(scalars)))

    def finish(
        self, findings: Findings, *, page: Path | None = None, evaluations: pa.Table | None = None
    ) -> None:
        """Record numbers, table, page, artifacts and head map, and end the run.

        Args:
            findings: What the run found.
            page: Their HTML page.
            evaluations: All evaluations, as a store's ``table()`` gives them.
        """
        if self._run is None:
            return
        self._guard("logging the result", lambda: self._log_result(findings, page))
        self._guard("logging the artifacts", lambda: self._log_artifacts(findings, evaluations))
        self._guard("logging the head map", lambda: self._log_map(findings))
        self._end(exit_code=0)

    def __enter__(self) -> "WandbTracker":
        """Return the tracker itself; the end of the block ends its run."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End a run that is still on, as failed."""
        self._end(exit_code=1)

    def _log_result(self, findings: Findings, page: Path | None) -> None:
        columns = as_columns(findings.terms[:_MAX_ROWS])
        rows: list[Any] = [[*row] for row in zip(*columns.values(), strict=True)]
        table = wandb.Table(columns=[*columns], data=rows)
        result: dict[str, Any] = {**findings.scalars, "interactions": table}
        if page is not None:
            # Left as it is: what W&B would inject loads a style sheet from the network.
            result["report"] = wandb.Html(str(page), inject=False)
        self._run.log(result)

    def _log_artifacts(self, findings: Findings, evaluations: pa.Table | None) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder, spec = Path(name), findings.spec
            findings.save(folder / "circuit")
            self._log_artifact("circuit", spec.run_hash, sorted((folder / "circuit").iterdir()))
            if evaluations is not None:
                path = folder / "evaluations.parquet"
                pq.write_table(evaluations, path, compression="zstd")
                self._log_artifact("mask-evals", spec.evaluation_hash, [path])

    def _log_artifact(self, kind: str, of: str, paths: list[Path]) -> None:
        artifact = wandb.Artifact(f"{kind}-{of}", type=kind)
        for path in paths:
            artifact.add_file(str(path), name=path.name)
        self._run.log_artifact(artifact)

    def _log_map(self, findings: Findings) -> None:
        pixels = head_map_image(findings)
        if pixels is not None:
            caption = (
                "Effect of ablating each unit alone; layers from left to right, first unit lowest. "
                "Purple: the model does worse without it; green: better; outlined: in the circuit."
            )
            self._run.log({"head_map": wandb.Image(pixels, caption=caption)})

    def _end(self, exit_code: int) -> None:
        if self._run is not None:
            self._guard("ending the run", lambda: self._run.finish(exit_code=exit_code))
            self._run = None

    def _guard(self, doing: str, action: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever W&B does, the result must survive it
            self._failed = True
            run, self._run = self._run, None
            with suppress(Exception):
                run.finish(exit_code=1)
            warnings.warn(_failure(doing, error), TrackingWarning, stacklevel=3)


def _settings() -> dict[str, Any]:
    # Progress bars draw on the console; copying it would log every frame.
    settings: dict[str, Any] = {"console": "off"}
    known = getattr(wandb.Settings, "model_fields", {})
    # Without a limit, a server that died meanwhile keeps a finished run waiting for ever.
    if "finish_timeout_raises" in known and "WANDB_FINISH_TIMEOUT" not in os.environ:
        settings |= {"finish_timeout": _MOST_SECONDS, "finish_timeout_raises": True}
    return settings


def _failure(doing: str, error: Exception) -> str:
    return (
        f"Weights & Biases failed while {doing} ({type(error).__name__}: {error}); nothing more is "
        "logged there. The result itself is not affected."
    )
