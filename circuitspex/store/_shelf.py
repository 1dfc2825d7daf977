"""The files of a store that hold one kind of rows: each whole or not there, and few in the end.

Every append makes a file, a *shard*, ``<sequence number>-<digest of its bytes><suffix>``. It gets
its name only when its bytes are durable, so whoever is killed at any moment loses at most the
append in progress. Shards that another process has merged away raise ``FileNotFoundError``.
"""

import errno
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int

from circuitspex.errors import StoreCorruptError, StoreError, StoreFullError
from circuitspex.spec import fsync_folder, write_atomically
from circuitspex.store import _tables

_MERGED_BYTES = 64 * 2**20  # before compression; merging needs about three times this in memory
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Shelf:
    """The shards of one kind in a folder, and the rows that a full disk has refused so far."""

    def __init__(self, folder: Path, schema: pa.Schema, suffix: str) -> None:
        self.folder = folder
        self.unwritten: list[pa.Table] = []
        self._schema = schema
        self._suffix = suffix
        self._name = re.compile(r"(\d{8})-([0-9a-f]{16})" + re.escape(suffix))
        self._n_rows: dict[Path, int] = {}

    def paths(self) -> list[Path]:
        """Return the shards that are there, of whichever process, in order."""
        return sorted(path for path in self.folder.iterdir() if self._name.fullmatch(path.name))

    def load(self) -> Iterator[tuple[Path, pa.Table]]:
        """Yield every shard that is not known yet, without its gradients, and know it."""
        while fresh := [path for path in self.paths() if path not in self._n_rows]:
            for path in fresh:
                try:
                    table = self._read(path, _tables.SHORT)
                except FileNotFoundError:  # merged by another process meanwhile: look again
                    break
                self._n_rows[path] = len(table)
                yield path, table

    def forget_missing(self) -> None:
        """Know no longer the shards that are not there any more."""
        for path in set(self._n_rows) - set(self.paths()):
            del self._n_rows[path]

    def tables(self) -> Iterator[pa.Table]:
        """Yield all known rows, oldest first, without their gradients."""
        yield from (self._read(path, _tables.SHORT) for path in sorted(self._n_rows))
        yield from (table.select(_tables.SHORT) for table in self.unwritten)

    def read_gradients(
        self, path: Path, rows: Int[np.ndarray, " rows"]
    ) -> Float32[np.ndarray, "rows units"]:
        """Return some rows' gradients from a shard."""
        with _naming_damage(path), path.open("rb") as file:
            with pq.ParquetFile(file, page_checksum_verification=True) as shard:
                return _tables.read_gradients(shard, rows)

    def write(self) -> tuple[Path, pa.Table] | None:
        """Return the shard that what was unwritten has become, if there was anything."""
        if not self.unwritten:
            return None
        table = pa.concat_tables(self.unwritten)
        path = self._write(table)
        self._n_rows[path] = len(table)
        self.unwritten = []
        return path, table

    def merge(self, on_move: Callable[[list[Path], Path, pa.Table], None] | None = None) -> None:
        """Replace small shards by few large ones, telling of each group where its rows are now."""
        for group in self._groups():
            try:
                tables = [self._read(path) for path in group]
                table = _tables.without_duplicates(tables, self._schema)
                merged = self._write(table)
            except (StoreError, FileNotFoundError):
                return  # full, or another process merged first: everything is on disk
            if on_move is not None:
                on_move(group, merged, table)
            # Only now: the merged shard is durable, so no moment exists without these rows.
            for path in set(group) - {merged}:
                path.unlink(missing_ok=True)
                del self._n_rows[path]
            self._n_rows[merged] = len(table)
            fsync_folder(self.folder)

    def _groups(self) -> list[list[Path]]:
        groups, group, size = [], [], 0
        for path in sorted(self._n_rows):
            n_bytes = self._n_rows[path] * _tables.row_bytes(self._schema)
            if group and size + n_bytes > _MERGED_BYTES:
                groups.append(group)
                group, size = [], 0
            group, size = [*group, path], size + n_bytes
        return [group for group in [*groups, group] if len(group) > 1]

    def _write(self, table: pa.Table) -> Path:
        data = _tables.encode(table)
        last = self.paths()[-1:]
        number = 1 + (int(last[0].name[:8]) if last else 0)
        path = self.folder / f"{number:08d}-{_digest(data)}{self._suffix}"
        with write_errors(self.folder):
            write_atomically(path, data)
        return path

    def _read(self, path: Path, columns: list[str] | None = None) -> pa.Table:
        with _naming_damage(path):
            data = path.read_bytes()
            if _digest(data) != path.name[9:25]:
                raise ValueError("its bytes do not match the digest in its name")
            if not pq.read_schema(pa.BufferReader(data)).equals(self._schema):
                n_units = self._schema.metadata[b"n_units"].decode()
                raise ValueError(f"its columns are not those of a store of {n_units} units")
            return _tables.decode(data, columns)


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Turn errors of writing into those that say what to do.

    Args:
        folder: What is written to.

    Yields:
        Once, for the block that writes.

    Raises:
        StoreFullError: If the disk is full.
        StoreError: If the folder cannot be written to.
    """
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


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreCorruptError(
            f"{path} is cut short or damaged ({error}). Delete that file: its evaluations are "
            "simply made again, and all others are kept."
        ) from error


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
