"""Evaluations on disk, safe against being killed, damage, a full disk and mix-ups.

The folder holds

- ``store.json``: the format, and the evaluation part of the spec that the values belong to;
- one Parquet file per append, a *shard* (see ``shards``), with the columns
  ``mask`` (packed, True = kept), ``prompt`` and ``value``;
- shards ``….gradients.parquet`` with one more column, ``gradient``: the derivatives by all units'
  gates, as the bytes of little-endian float32.

Several processes, on several machines, may write to one folder, and no lock is involved: each adds
shards of its own, and knows what was there when it opened the folder and at its latest
:meth:`ParquetStore.refresh`. In memory there are digests of masks, values, and where gradients are;
neither masks nor gradients.
"""

import json
import os
import secrets
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from circuitspex._shared import Spec, describe_differences, write_atomically
from circuitspex.errors import (
    ResultError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreMismatchError,
    StoreWarning,
)
from circuitspex.evaluation.store import tables as _tables
from circuitspex.evaluation.store.index import digest_table
from circuitspex.evaluation.store.memory import MemoryStore
from circuitspex.evaluation.store.shards import ASIDE, ShardFolder, write_errors

_FORMAT = 1
_CLAIM = "store.json"
_LEFTOVER_SECONDS = 3600  # a temporary file younger than this may be another process at work


class ParquetStore(MemoryStore):
    """Evaluations on disk, safe against being killed, damage, a full disk and mix-ups."""

    def __init__(self, folder: str | Path, spec: Spec) -> None:
        """Open a store, or make one where there is none.

        Args:
            folder: Where the store lives; made if missing.
            spec: What the evaluations are of; its evaluation part needs ``n_units`` and
                ``n_prompts``.

        Raises:
            ResultError: If the spec does not say how many units and prompts there are.
        """
        for key in ("n_units", "n_prompts"):
            if not isinstance(spec.evaluation.get(key), int):
                raise ResultError(f"a store needs evaluation[{key!r}] in the spec, a whole number.")
        super().__init__(spec.evaluation["n_units"], spec.evaluation["n_prompts"])
        self.folder = Path(folder)
        with_gradients = _tables.schema(self.n_units, gradients=True)
        belongs: Any = {"n_prompts": self.n_prompts, "owner": spec.evaluation_hash}
        self._values_on_disk = ShardFolder(
            self.folder, _tables.schema(self.n_units), ".parquet", **belongs
        )
        self._gradients_on_disk = ShardFolder(
            self.folder, with_gradients, ".gradients.parquet", on_move=self._move, **belongs
        )
        with write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(self.folder)
        _claim(self.folder, spec, [self._values_on_disk, self._gradients_on_disk])
        self.refresh()

    def refresh(self) -> None:
        """Learn what other processes have written since.

        Nobody calls it during a run: what a run replays, and so the last bits of its result, would
        depend on who was faster.
        """
        for _, table in self._values_on_disk.load():
            self._values.put(digest_table(table), table["value"].to_numpy())
        for path, table in self._gradients_on_disk.load():
            self._place(table, path)

    def look_up_gradients(
        self, masks: Bool[Tensor, "rows units"], prompts: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows units"], Bool[Tensor, " rows"]]:
        """Look up rows with their gradients, which are read from disk.

        Args:
            masks: Keep-masks, one a row.
            prompts: Index of each row's prompt.

        Returns:
            Values in float64 and gradients in float32, as they were appended together, NaN where
            the gradient is unknown, and whether it is known.
        """
        while True:
            try:
                return super().look_up_gradients(masks, prompts)
            except FileNotFoundError:
                self._follow_other_processes()

    def table(self) -> pa.Table:
        """Return everything but gradients as a table, read from disk.

        Returns:
            One row per mask and prompt: ``mask`` packed as :func:`circuitspex.masks.pack` does,
            ``prompt``, ``value``; the schema's metadata holds ``n_units``.
        """
        while True:
            try:
                return super().table()
            except FileNotFoundError:
                self._follow_other_processes()

    def close(self) -> None:
        """Write what a full disk refused before, and merge the many small files into few."""
        if not self._closed:
            self._finish()
            self._values_on_disk.merge()
            self._gradients_on_disk.merge()

    def _finish(self) -> None:
        self._values_on_disk.write()
        self._write_gradients()
        super().close()
        self._values_on_disk.sync()
        self._gradients_on_disk.sync()

    def __exit__(self, *exception: object) -> None:
        """Close the store; after an error without merging, since there may be little time.

        A full disk is an error only where no other is on its way.
        """
        if exception[0] is None:
            self.close()
            return
        with suppress(StoreFullError):
            self._finish()

    def _follow_other_processes(self) -> None:
        """Forget shards that are gone, and learn those that took their rows."""
        self._values_on_disk.forget_missing()
        self._gradients_on_disk.forget_missing()
        there = {*self._gradients_on_disk.paths()}
        alive = np.array([_is_table(s) or s in there for s in self._sources], dtype=bool)
        self._places.keep(lambda places: alive[places["source"]])
        self.refresh()

    def _keep(self, table: pa.Table) -> None:
        self._values_on_disk.unwritten.append(table)
        self._values_on_disk.write()
        self._values_on_disk.tidy()

    def _keep_gradients(self, table: pa.Table) -> None:
        self._gradients_on_disk.unwritten.append(table)
        self._write_gradients()

    def _write_gradients(self) -> None:
        written = self._gradients_on_disk.write()
        if written is not None:
            path, table = written
            self._place(table, path)
            # Tables that were kept while the disk was full are in that file now.
            self._sources = [None if _is_table(source) else source for source in self._sources]
            self._gradients_on_disk.tidy()

    def _move(self, group: list[Path], merged: Path, table: pa.Table) -> None:
        moved = [i for i, source in enumerate(self._sources) if source in group]
        digests = digest_table(table)
        places, found = self._places.get(digests)
        here = ~found | np.isin(places["source"], moved)
        self._places.put(digests[here], self._places_in(table, merged)[here])

    def _all_tables(self) -> Iterable[pa.Table]:
        # What append() was told comes last, so that it stays.
        yield from self._gradients_on_disk.tables()
        yield from self._values_on_disk.tables()

    def _read(
        self, source: Path | pa.Table, rows: Int[np.ndarray, " rows"]
    ) -> Float32[np.ndarray, "rows units"]:
        if isinstance(source, Path):
            return self._gradients_on_disk.read_gradients(source, rows)
        return super()._read(source, rows)  # a full disk refused it


def _is_table(source: object) -> bool:
    return isinstance(source, pa.Table)


def _claim(folder: Path, spec: Spec, shard_folders: list[ShardFolder]) -> None:
    """Say whose the folder is, unless that is said already.

    Args:
        folder: The store's.
        spec: What the evaluations will be of.
        shard_folders: What is in the folder.

    Raises:
        StoreMismatchError: If the folder is another spec's, or another version's.
        StoreCorruptError: If there are evaluations and nothing says what they are of.
    """  # noqa: DOC502 - the last one is raised by _reclaim
    path = folder / _CLAIM
    try:
        found = _read_claim(path)
    except _NotClaimed as why:
        if any(shards.paths() for shards in shard_folders):
            _reclaim(path, shard_folders, why)
        with write_errors(folder):
            _write_once(path, spec)
        found = _read_claim(path)  # of several that come at once, one is first
    if found["format"] != _FORMAT:
        raise StoreMismatchError(
            f"{folder} is a store of format {found['format']}; this version reads format "
            f"{_FORMAT}. Use the version that wrote it, or another folder."
        )
    if found["evaluation_hash"] != spec.evaluation_hash:
        differences = spec.differences(Spec(evaluation=found["evaluation"]), ("evaluation",))
        raise StoreMismatchError(
            f"{folder} holds evaluations of another spec: {describe_differences(differences)}. "
            "Use another folder, or repeat the run with the options of the first."
        )


class _NotClaimed(StoreCorruptError):
    """There is no store.json, or none that can be read."""


def _reclaim(path: Path, shard_folders: list[ShardFolder], why: _NotClaimed) -> None:
    if not any(shards.has_own() for shards in shard_folders):
        raise StoreCorruptError(
            f"{path} {why}, and no file beside it says that it is of this spec, so nothing says "
            f"what the evaluations are of. Use another folder, or delete {path.parent} and "
            "evaluate again."
        ) from why
    warnings.warn(
        f"{path} {why}. It is written again, for evaluations beside it say that they are of this "
        f"spec; what was there is kept as {path.name}{ASIDE}.",
        StoreWarning,
        stacklevel=2,
    )


def _write_once(path: Path, spec: Spec) -> None:
    document = {
        "format": _FORMAT,
        "evaluation_hash": spec.evaluation_hash,
        "n_units": spec.evaluation["n_units"],
        "n_prompts": spec.evaluation["n_prompts"],
        "evaluation": dict(spec.evaluation),
    }
    if path.exists():  # damaged
        path.replace(path.with_name(path.name + ASIDE))
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    write_atomically(draft, json.dumps(document, indent=2, sort_keys=True).encode())
    try:
        os.link(draft, path)  # unlike a rename, it fails where another process was first
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _read_claim(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
        intact = Spec(document["evaluation"]).evaluation_hash == document["evaluation_hash"]
        if not intact or not isinstance(document["format"], int):
            raise ValueError("its contents do not match the hash in it")
    except FileNotFoundError as error:
        raise _NotClaimed("is missing") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}. Check the folder.") from error
    except (ValueError, KeyError, TypeError, RecursionError, ResultError) as error:
        raise _NotClaimed(f"cannot be read ({type(error).__name__}: {error})") from error
    return document


def _remove_leftovers(folder: Path) -> None:
    # Told by the folder's own clock: other machines' may be wrong, and any may go backwards.
    now = folder.stat().st_mtime
    for path in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # removed by another process
            if now - path.stat().st_mtime > _LEFTOVER_SECONDS:
                path.unlink()
