"""Evaluations on disk, safe against being killed, damage, a full disk and mix-ups.

The folder holds

- ``store.json``: the format, and the evaluation part of the spec that the values belong to;
- one Parquet file per append, a *shard*: ``<sequence number>-<digest of its bytes>.parquet``, with
  the columns ``mask`` (packed, True = kept), ``prompt`` and ``value``.

A shard gets its name only when its bytes are durable, so whoever is killed at any moment loses at
most the append in progress. Several processes may write to one folder: each adds shards of its
own. In memory there are digests of masks, not masks.
"""

import errno
import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from circuitspex.errors import (
    ResultError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreMismatchError,
)
from circuitspex.spec import Spec, describe_differences, fsync_folder, write_atomically
from circuitspex.store import _tables
from circuitspex.store.memory import MemoryStore


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
        self._unwritten: list[pa.Table] = []
        self._n_rows: dict[Path, int] = {}
        with _write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(self.folder)
        _claim(self.folder, spec)
        for path in _shards(self.folder):
            self._remember(path)

    def close(self) -> None:
        """Write what a full disk refused before, and merge the many small files into few."""
        if not self._closed:
            self._flush()
            super().close()
            self._merge()

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

    def _remember(self, path: Path) -> None:
        table = _read_shard(path, self.n_units)
        self._values.update(zip(_tables.keys_of(table), table["value"].to_pylist(), strict=True))
        self._n_rows[path] = len(table)

    def _keep(self, table: pa.Table) -> None:
        self._unwritten.append(table)
        self._flush()

    def _flush(self) -> None:
        if self._unwritten:
            table = pa.concat_tables(self._unwritten)
            path = _write_shard(self.folder, table)
            self._n_rows[path] = len(table)
            self._unwritten = []

    def _all_tables(self) -> Iterable[pa.Table]:
        yield from (_read_shard(path, self.n_units) for path in sorted(self._n_rows))
        yield from self._unwritten

    def _merge(self) -> None:
        """Replace small shards by few large ones; shards of other processes are left alone."""
        for group in self._groups():
            try:
                tables = [_read_shard(path, self.n_units) for path in group]
                merged = _write_shard(self.folder, _tables.without_duplicates(tables, self.n_units))
            except StoreError:  # full, or another process merged first: everything is on disk
                return
            # Only now: the merged shard is durable, so no moment exists without these rows.
            for path in set(group) - {merged}:
                path.unlink(missing_ok=True)
                del self._n_rows[path]
            self._n_rows[merged] = sum(map(len, tables))
            fsync_folder(self.folder)

    def _groups(self) -> list[list[Path]]:
        groups, group, size = [], [], 0
        for path in sorted(self._n_rows):
            n_bytes = self._n_rows[path] * (_tables.n_bytes(self.n_units) + 12)
            if group and size + n_bytes > _MERGED_BYTES:
                groups.append(group)
                group, size = [], 0
            group, size = [*group, path], size + n_bytes
        return [group for group in [*groups, group] if len(group) > 1]


_FORMAT = 1
_MERGED_BYTES = 64 * 2**20  # before compression; merging needs about three times this in memory
_SHARD_NAME = re.compile(r"(\d{8})-([0-9a-f]{16})\.parquet")
_LEFTOVER_SECONDS = 3600  # a temporary file younger than this may be another process at work
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFullError(
                f"no room left to write to {folder} ({error.strerror}). Everything evaluated "
                "before is on disk. Free some space and run the same command again to go on."
            ) from error
        raise StoreError(
            f"cannot write to {folder}: {error}. Choose a folder that can be written to."
        ) from error


def _claim(folder: Path, spec: Spec) -> None:
    path = folder / "store.json"
    document = {
        "format": _FORMAT,
        "evaluation_hash": spec.evaluation_hash,
        "n_units": spec.evaluation["n_units"],
        "n_prompts": spec.evaluation["n_prompts"],
        "evaluation": dict(spec.evaluation),
    }
    if not path.exists() and not _shards(folder):
        with _write_errors(folder):
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


def _shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _SHARD_NAME.fullmatch(path.name))


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".*.tmp"):
        if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
            path.unlink(missing_ok=True)


def _write_shard(folder: Path, table: pa.Table) -> Path:
    data = _tables.encode(table)
    shards = _shards(folder)
    number = 1 + (int(shards[-1].name[:8]) if shards else 0)
    path = folder / f"{number:08d}-{_digest_of_file(data)}.parquet"
    with _write_errors(folder):
        write_atomically(path, data)
    return path


def _read_shard(path: Path, n_units: int) -> pa.Table:
    try:
        data = path.read_bytes()
        if _digest_of_file(data) != path.name[9:25]:
            raise ValueError("its bytes do not match the digest in its name")
        table = _tables.decode(data)
        if not table.schema.equals(_tables.schema(n_units)):
            raise ValueError(f"its columns are not those of a store of {n_units} units")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreCorruptError(
            f"{path} is cut short or damaged ({error}). Delete that file: its evaluations are "
            "simply made again, and all others are kept."
        ) from error
    return table


def _digest_of_file(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
