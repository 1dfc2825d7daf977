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
from circuitspex.algebra import Interactions
from circuitspex.circuits import Circuit, CircuitReport
from circuitspex.errors import TrackingWarning
from circuitspex.report import InteractionRow, head_map_image, interaction_rows
from circuitspex.tracking.base import result_scalars
from circuitspex.verification import CheckedInteraction, Verification

_MAX_ROWS = 10_000  # W&B shows no more of a table; interactions.json holds all of them
_MOST_SECONDS = 600.0  # to upload what is left at the end; `wandb sync` uploads what was not
_COLUMNS = ["rank", "units", "order", "kind", "moebius", "ci_low", "ci_high", "fourier"]
_CHECKED_COLUMNS = [
    *("rank", "units", "order", "estimate", "measured", "std_error", "ci_low", "ci_high"),
    *("p_value", "verdict"),
]


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
        self,
        *,
        spec: Spec,
        interactions: Interactions,
        circuit: Circuit | None = None,
        verification: CircuitReport | None = None,
        verified_interactions: Verification | None = None,
        page: Path | None = None,
        evaluations: pa.Table | None = None,
    ) -> None:
        """Record numbers, table, page, artifacts and head map, and end the run.

        Args:
            spec: What the result is a result of.
            interactions: What was decoded.
            circuit: The units chosen from it.
            verification: What the circuit does in the real model.
            verified_interactions: What was measured of the largest interactions.
            page: The HTML page of the result.
            evaluations: All evaluations, as a store's ``table()`` gives them.
        """
        if self._run is None:
            return
        scalars = result_scalars(interactions, circuit, verification, verified_interactions)
        results = {
            "spec.json": spec,
            "interactions.json": interactions,
            "verified_interactions.json": verified_interactions,
            "circuit.json": circuit,
            "verification.json": verification,
        }
        self._guard(
            "logging the result",
            lambda: self._log_result(scalars, interactions, verified_interactions, page),
        )
        self._guard(
            "logging the artifacts", lambda: self._log_artifacts(spec, results, evaluations)
        )
        self._guard("logging the head map", lambda: self._log_map(interactions, circuit))
        self._end(exit_code=0)

    def __enter__(self) -> "WandbTracker":
        """Return the tracker itself; the end of the block ends its run."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End a run that is still on, as failed."""
        self._end(exit_code=1)

    def _log_result(
        self,
        scalars: dict[str, float],
        interactions: Interactions,
        verified: Verification | None,
        page: Path | None,
    ) -> None:
        rows = [_table_row(row) for row in interaction_rows(interactions, _MAX_ROWS)]
        result: dict[str, Any] = {
            **scalars,
            "interactions": wandb.Table(columns=[*_COLUMNS], data=[*rows]),
        }
        if verified is not None:
            found = [_checked_row(i, row) for i, row in enumerate(verified.checked, start=1)]
            result["verified_interactions"] = wandb.Table(
                columns=[*_CHECKED_COLUMNS], data=[*found]
            )
        if page is not None:
            # Left as it is: what W&B would inject loads a style sheet from the network.
            result["report"] = wandb.Html(str(page), inject=False)
        self._run.log(result)

    def _log_artifacts(
        self, spec: Spec, results: Mapping[str, Any], evaluations: pa.Table | None
    ) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            files = {file: result for file, result in results.items() if result is not None}
            for file, result in files.items():
                result.save(folder / file)
            self._log_artifact("circuit", spec.run_hash, [folder / file for file in files])
            if evaluations is not None:
                path = folder / "evaluations.parquet"
                pq.write_table(evaluations, path, compression="zstd")
                self._log_artifact("mask-evals", spec.evaluation_hash, [path])

    def _log_artifact(self, kind: str, of: str, paths: list[Path]) -> None:
        artifact = wandb.Artifact(f"{kind}-{of}", type=kind)
        for path in paths:
            artifact.add_file(str(path), name=path.name)
        self._run.log_artifact(artifact)

    def _log_map(self, interactions: Interactions, circuit: Circuit | None) -> None:
        pixels = head_map_image(interactions, circuit.indices if circuit else ())
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


def _table_row(row: InteractionRow) -> list[Any]:
    interval = [row.low, row.high]
    name = " + ".join(row.units)
    return [row.rank, name, row.order, row.kind, row.coefficient, *interval, row.fourier]


def _checked_row(rank: int, row: CheckedInteraction) -> list[Any]:
    found = [row.estimate, row.measured, row.std_error, *(row.interval or (None, None))]
    return [rank, " + ".join(row.units), row.order, *found, row.p_value, row.verdict]
