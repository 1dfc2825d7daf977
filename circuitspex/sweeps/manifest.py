"""The folder of a sweep: what it will run, decided before anything runs.

It holds the sweep file as it was given, ``manifest.json``, and ``runs/<id>/`` for every run. A
run's id is the hash of its settings, so nothing a file says can name a folder elsewhere.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from circuitspex._shared import read_document, write_atomically, write_document
from circuitspex.errors import ResultError, SettingsError, SweepError
from circuitspex.runs import Settings
from circuitspex.sweeps.expansion import expand
from circuitspex.sweeps.file import read_sweep

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """Every run of a sweep, and what they share."""

    folder: Path
    """The sweep's folder."""
    group: str
    """What the runs of the sweep share on W&B: its name, or one made of its contents."""
    project: str
    """W&B project."""
    entity: str | None
    """W&B user or team."""
    method: str
    """``grid`` or ``random``."""
    metric: str
    """The number by which runs are compared."""
    maximize: bool
    """Whether more of it is better."""
    varied: list[str]
    """Settings in which runs differ."""
    n_duplicates: int
    """Runs left out because an earlier one has the same settings."""
    options: dict[str, Any]
    """Options of the command that are no settings: ``device``, ``batch-size``."""
    entries: list[dict[str, Any]] = field(repr=False)
    """``id`` and ``settings`` of every run."""

    def __len__(self) -> int:
        return len(self.entries)

    def settings(self, index: int) -> Settings:
        """Return the settings of a run, checked.

        Args:
            index: Its place in the manifest.

        Returns:
            The settings.

        Raises:
            SweepError: If there is no such run, or its settings are not those its id is made of.
        """
        if not 0 <= index < len(self):
            raise SweepError(f"there is no run {index}; the sweep has runs 0 to {len(self) - 1}.")
        entry = self.entries[index]
        given = entry.get("settings")
        try:
            settings = Settings.from_mapping(given if isinstance(given, dict) else {})
        except SettingsError as error:
            raise SweepError(f"run {index} of {self.folder / MANIFEST}: {error}") from error
        if entry != {"id": settings.run_id, "settings": settings.as_dict()}:
            raise SweepError(
                f"run {index} of {self.folder / MANIFEST} was changed, or planned by another "
                "version: its id is not the hash of its settings. Plan the sweep again."
            )
        return settings

    def run_folder(self, index: int) -> Path:
        """Return the folder of a run, whether it is there or not.

        Args:
            index: The run's place in the manifest.

        Returns:
            A folder inside the sweep's.

        Raises:
            SweepError: If there is no such run, its id is no hash, or a link leads elsewhere.
        """
        if not 0 <= index < len(self):
            raise SweepError(f"there is no run {index}; the sweep has runs 0 to {len(self) - 1}.")
        name = self.entries[index].get("id")
        if not isinstance(name, str) or not re.fullmatch("[0-9a-f]{16}", name):
            raise SweepError(f"run {index} of {self.folder / MANIFEST} has no hash as id.")
        folder = self.folder / "runs" / name
        if not folder.resolve().is_relative_to(self.folder.resolve()):
            raise SweepError(f"{folder} leads out of the sweep's folder; remove the link.")
        return folder


def plan_sweep(
    path: str | Path, folder: str | Path | None = None, *, n_runs: int | None = None, seed: int = 0
) -> Manifest:
    """Decide every run of a sweep, check it, and write the plan into a folder.

    Args:
        path: The sweep file.
        folder: Where to; ``sweeps/<name of the file>-<hash>`` when None.
        n_runs: How many runs to draw; for random sweeps.
        seed: Seed of the draws.

    Returns:
        The plan. The same file planned again is the same plan, and runs that are done stay done.
    """
    path = Path(path)
    sweep = read_sweep(path)
    planned = expand(sweep, n_runs=n_runs, seed=seed)
    runs = list({settings.run_id: settings for settings in planned}.values())
    digest = hashlib.blake2b(
        "".join(run.run_id for run in runs).encode(), digest_size=4
    ).hexdigest()
    title = re.sub(r"[^A-Za-z0-9_-]+", "_", path.stem)[:40] or "sweep"
    target = Path("sweeps") / f"{title}-{digest}" if folder is None else Path(folder)
    manifest = Manifest(
        folder=target,
        group=(sweep.name or f"{title}-{digest}")[:128],  # W&B takes no longer ones
        project=sweep.project or "circuitspex",
        entity=sweep.entity,
        method=sweep.method,
        metric=sweep.metric,
        maximize=sweep.maximize,
        varied=_varied(runs),
        n_duplicates=len(planned) - len(runs),
        options=dict(sweep.options),
        entries=[{"id": run.run_id, "settings": run.as_dict()} for run in runs],
    )
    _write(manifest, path)
    return manifest


def read_manifest(folder: str | Path) -> Manifest:
    """Read the plan of a sweep.

    Args:
        folder: The sweep's folder.

    Returns:
        The plan; each run's settings are checked when they are asked for.

    Raises:
        SweepError: If the folder holds no plan, or a damaged one.
    """
    folder = Path(folder)
    try:
        found = read_document(folder / MANIFEST, "sweep", _FIELDS)
    except ResultError as error:
        raise SweepError(
            f"{error} {folder} must be a folder that circuitspex sweep plan wrote."
        ) from error
    return Manifest(folder, **found)


_FIELDS: dict[str, Any] = {
    "group": str,
    "project": str,
    "entity": str | None,
    "method": str,
    "metric": str,
    "maximize": bool,
    "varied": list[str],
    "n_duplicates": int,
    "options": dict,
    "entries": list[dict],
}


def _varied(runs: Sequence[Settings]) -> list[str]:
    rows = [run.as_dict() for run in runs]
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if any(row.get(name) != rows[0].get(name) for row in rows)]


def _write(manifest: Manifest, source: Path) -> None:
    target = manifest.folder
    if (target / MANIFEST).exists():
        ids = [entry.get("id") for entry in read_manifest(target).entries]
        if ids != [entry["id"] for entry in manifest.entries]:
            raise SweepError(f"{target} holds another sweep; give another --out.")
    try:
        (target / "runs").mkdir(parents=True, exist_ok=True)
        suffix = ".json" if source.suffix.lower() == ".json" else ".yaml"
        write_atomically(target / f"sweep{suffix}", source.read_bytes())
        fields = {k: v for k, v in asdict(manifest).items() if k != "folder"}
        write_document(target / MANIFEST, "sweep", fields)
    except OSError as error:
        raise SweepError(f"{target} cannot be written ({error}); give another --out.") from error
