"""Evaluations on disk, safe against being killed, damage, a full disk and mix-ups.

The folder holds

- ``store.json``: the format, and the evaluation part of the spec that the values belong to;
- one Parquet file per append, a *shard* (see :mod:`circuitspex.store._shelf`), with the columns
  ``mask`` (packed, True = kept), ``prompt`` and ``value``;
- shards ``….gradients.parquet`` with one more column, ``gradient``: the derivatives by all units'
  gates, as the bytes of little-endian float32.

Several processes may write to one folder: each adds shards of its own. In memory there are digests
of masks and where their gradients are, neither masks nor gradients.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from circuitspex.errors import ResultError, StoreCorruptError, StoreFullError, StoreMismatchError
from circuitspex.spec import Spec, describe_differences, write_atomically
from circuitspex.store import _tables
from circuitspex.store._shelf import Shelf, write_errors
from circuitspex.store.memory import MemoryStore, Place

_FORMAT = 1
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
        self._values_on_disk = Shelf(self.folder, _tables.schema(self.n_units), ".parquet")
        self._gradients_on_disk = Shelf(self.folder, with_gradients, ".gradients.parquet")
        with write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(self.folder)
        is_new = not self._values_on_disk.paths() and not self._gradients_on_disk.paths()
        _claim(self.folder, spec, is_new)
        self._load()

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
            self._values_on_disk.write()
            self._write_gradients()
            super().close()
            self._values_on_disk.merge()
            self._gradients_on_disk.merge(self._move)

    def __exit__(self, *exception: object) -> None:
        """Close the store.

        Raises:
            StoreFullError: If the disk is full, unless another error is already on its way.
        """
        try:
            self.close()
        except StoreFullError:
            if exception[0] is None:
                raise

    def _load(self) -> None:
        for _, table in self._values_on_disk.load():
            keys = _tables.keys_of(table)
            self._values.update(zip(keys, table["value"].to_pylist(), strict=True))
        for path, table in self._gradients_on_disk.load():
            self._place(_tables.keys_of(table), table, path)

    def _follow_other_processes(self) -> None:
        """Forget shards that are gone, and learn those that took their rows."""
        self._values_on_disk.forget_missing()
        self._gradients_on_disk.forget_missing()
        there = {*self._gradients_on_disk.paths()}
        self._places = {
            key: place
            for key, place in self._places.items()
            if isinstance(place.source, pa.Table) or place.source in there
        }
        self._load()

    def _keep(self, table: pa.Table) -> None:
        self._values_on_disk.unwritten.append(table)
        self._values_on_disk.write()

    def _keep_gradients(self, table: pa.Table) -> None:
        self._gradients_on_disk.unwritten.append(table)
        self._write_gradients()

    def _write_gradients(self) -> None:
        written = self._gradients_on_disk.write()
        if written is not None:
            path, table = written
            self._place(_tables.keys_of(table), table, path)

    def _move(self, group: list[Path], merged: Path, table: pa.Table) -> None:
        values = table["value"].to_pylist()
        for row, (key, value) in enumerate(zip(_tables.keys_of(table), values, strict=True)):
            place = self._places.get(key)
            if place is None or (isinstance(place.source, Path) and place.source in group):
                self._places[key] = Place(value, merged, row)

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


def _claim(folder: Path, spec: Spec, is_new: bool) -> None:
    path = folder / "store.json"
    document = {
        "format": _FORMAT,
        "evaluation_hash": spec.evaluation_hash,
        "n_units": spec.evaluation["n_units"],
        "n_prompts": spec.evaluation["n_prompts"],
        "evaluation": dict(spec.evaluation),
    }
    if is_new and not path.exists():
        with write_errors(folder):
            write_atomically(path, json.dumps(document, indent=2, sort_keys=True).encode())
        return
    found = _read_claim(path)
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


def _read_claim(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
        intact = Spec(document["evaluation"]).evaluation_hash == document["evaluation_hash"]
        if not intact or not isinstance(document["format"], int):
            raise ValueError("its contents do not match the hash in it")
    except (OSError, ValueError, KeyError, TypeError, ResultError) as error:
        raise StoreCorruptError(
            f"{path} cannot be read ({type(error).__name__}: {error}), so nothing says what the "
            f"evaluations beside it are of. Delete the folder {path.parent} and evaluate again."
        ) from error
    return document


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".*.tmp"):
        if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
            path.unlink(missing_ok=True)
