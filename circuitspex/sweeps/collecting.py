"""What a sweep found, in one place: a table, a page that compares runs, and W&B once online."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitspex.errors import SweepError
from circuitspex.findings import read_summary
from circuitspex.report import Comparison, write_comparison
from circuitspex.sweeps.manifest import Manifest, read_manifest
from circuitspex.sweeps.state import sweep_states

if TYPE_CHECKING:
    import pandas as pd

_AT_ONCE = 100  # paths for one wandb sync, far below what a command line holds


@dataclass(frozen=True)
class Collected:
    """What :func:`collect` wrote."""

    table: "pd.DataFrame"
    """One row per run: ``run``, ``id``, ``state``, ``note``, its settings, and its numbers under
    the names W&B knows them by; also in ``results.parquet`` and ``results.csv``."""
    page: Path
    """The comparison page, ``comparison.html``."""


def collect(folder: str | Path) -> Collected:
    """Put the results of a sweep into one table and one page, whether all runs are done or not.

    Args:
        folder: The sweep's folder; the files are written there.

    Returns:
        The table and where the page is.
    """
    import pandas as pd

    manifest = read_manifest(folder)
    rows = _rows(manifest)
    table = pd.DataFrame(rows)
    for name in table.columns:
        if len({type(value) for value in table[name].dropna()}) > 1:  # such as 1 and "all"
            table[name] = table[name].map(str, na_action="ignore")
    table.to_parquet(manifest.folder / "results.parquet", index=False)
    table.to_csv(manifest.folder / "results.csv", index=False)
    page = write_comparison(
        manifest.folder / "comparison.html",
        Comparison(
            title=manifest.group,
            rows=rows,
            varied=manifest.varied,
            metric=manifest.metric,
            maximize=manifest.maximize,
        ),
    )
    return Collected(table, page)


def sync(folder: str | Path, *options: str) -> int:
    """Send what the runs of a sweep logged offline to W&B.

    Args:
        folder: The sweep's folder.
        *options: Further options of ``wandb sync``, such as ``--dry-run``.

    Returns:
        How many logs there were; W&B skips those it has.

    Raises:
        SweepError: If W&B could not take one of them.
    """
    manifest = read_manifest(folder)
    places = [manifest.run_folder(i) / "wandb" for i in range(len(manifest))]
    logs = [str(log) for place in places for log in sorted(place.glob("offline-run-*"))]
    for i in range(0, len(logs), _AT_ONCE):
        command = [sys.executable, "-m", "wandb", "sync", *options, *logs[i : i + _AT_ONCE]]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise SweepError(
                f"wandb sync failed: {' '.join(said[-3:])[:500]}. Is this machine online, and "
                "logged in (wandb login)? What is on disk stays there."
            )
    return len(logs)


def _rows(manifest: Manifest) -> list[dict[str, Any]]:
    rows = []
    for state, entry in zip(sweep_states(manifest), manifest.entries, strict=True):
        row = {"run": state.index, "id": state.id, "state": state.state, "note": state.note}
        row |= entry["settings"]
        if state.state == "done":
            summary = read_summary(manifest.run_folder(state.index))
            row |= summary["scalars"]
            row |= {key: summary[key] for key in ("seconds", "n_evaluated", "n_replayed")}
        rows.append(row)
    return rows
