"""The files of a store that hold one kind of rows: each whole or not there, and few in the end.

Every append makes a file, a *shard*, ``<sequence number>-<digest of its bytes><suffix>``. It gets
its name only when it is whole, so whoever is killed at any moment loses at most the append in
progress. Once a second what was written is made durable: a power cut may leave shards of the last
second empty, which their digests tell. There is no lock: a shard never changes, two processes that
choose the same number differ in the digest unless they hold the same rows, and a merge removes its
sources only when what they became is durable. Whoever finds a shard gone looks where its rows are.

A shard whose bytes do not match its name is set aside, with a warning that names it: renamed, so
that it can be inspected, and its rows are evaluated again.
"""

import errno
import hashlib
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int

from circuitspex._shared import fsync_file, fsync_folder, write_atomically
from circuitspex.errors import StoreError, StoreFullError, StoreWarning
from circuitspex.evaluation.store import tables as _tables

ASIDE = ".aside"
"""Appended to the name of a shard that cannot be used."""
_MERGED_BYTES = 64 * 2**20  # before compression; merging needs about three times this in memory
_MAX_LOOSE = 64
"""Small shards that a process leaves behind before it merges them, so that files stay few."""
_LOOSE_BYTES = 2**20
"""Before compression; larger shards are left as they are until the end."""
_SYNC_SECONDS = 1.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

OnMove = Callable[[list[Path], Path, pa.Table], None]


class _Damage(ValueError):
    """A shard's bytes are not what was written."""


class ShardFolder:
    """The shards of one kind in a folder, and the rows that a full disk has refused so far."""

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        suffix: str,
        *,
        n_prompts: int,
        owner: str,
        on_move: OnMove | None = None,
    ) -> None:
        self.folder = folder
        self.unwritten: list[pa.Table] = []
        self._schema = schema.with_metadata({**schema.metadata, b"evaluation_hash": owner})
        self._suffix = suffix
        self._n_prompts = n_prompts
        self._on_move = on_move or (lambda sources, merged, table: None)
        self._name = re.compile(r"(\d{8})-([0-9a-f]{16})" + re.escape(suffix))
        self._n_rows: dict[Path, int] = {}
        self._number = 0
        self._loose: dict[Path, pa.Table] = {}
        self._unsynced: list[Path] = []
        self._synced = time.monotonic()

    def paths(self) -> list[Path]:
        """Return the shards that are there, of whichever process, in order."""
        return sorted(path for path in self.folder.iterdir() if self._name.fullmatch(path.name))

    def has_own(self) -> bool:
        """Return whether some shard says that it is of this store's spec."""
        return any(self._owner_of(path) == self._owner for path in self.paths())

    def load(self) -> Iterator[tuple[Path, pa.Table]]:
        """Yield every shard that is not known yet, without its gradients, and know it."""
        passed: set[Path] = set()
        while fresh := [path for path in self.paths() if path not in {*self._n_rows, *passed}]:
            for path in fresh:
                try:
                    table = self._read(path, _tables.SHORT)
                except FileNotFoundError:  # merged by another process meanwhile: look again
                    break
                if table is None:
                    passed.add(path)
                    continue
                self._know(path, table)
                yield path, table

    def forget_missing(self) -> None:
        """Know no longer the shards that are not there any more."""
        there = {*self.paths()}
        self._n_rows = {path: n for path, n in self._n_rows.items() if path in there}

    def tables(self) -> Iterator[pa.Table]:
        """Yield all known rows, oldest first, without their gradients."""
        for path in sorted(self._n_rows):
            table = self._read(path, _tables.SHORT)
            if table is not None:
                yield table
        yield from (table.select(_tables.SHORT) for table in self.unwritten)

    def read_gradients(
        self, path: Path, rows: Int[np.ndarray, " rows"]
    ) -> Float32[np.ndarray, "rows units"]:
        """Read some rows' gradients from a shard.

        Args:
            path: The shard.
            rows: Which of its rows.

        Returns:
            Their gradients.

        Raises:
            FileNotFoundError: If the shard is gone: merged by another process, or damaged and
                now set aside.
        """
        try:
            with _naming_damage(path), path.open("rb") as file:
                with pq.ParquetFile(file, page_checksum_verification=True) as shard:
                    return _tables.read_gradients(shard, rows)
        except _Damage as damage:
            self._set_aside(path, damage)
            self._n_rows.clear()  # rows that it had replaced are to be found again
            raise FileNotFoundError(path) from damage

    def write(self) -> tuple[Path, pa.Table] | None:
        """Return the shard that what was unwritten has become, if there was anything."""
        if not self.unwritten:
            return None
        table = pa.concat_tables(self.unwritten)
        path = self._write(table, durable=False)
        self.unwritten = []
        self._unsynced.append(path)
        if table.nbytes <= _LOOSE_BYTES:
            self._loose[path] = table
        return path, table

    def tidy(self) -> None:
        """Merge what this process has written lately, if that is many shards; sync now and then."""
        if len(self._loose) >= _MAX_LOOSE:
            self._replace(list(self._loose), list(self._loose.values()))
            self._loose = {}
        if time.monotonic() > self._synced + _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Make durable what was written."""
        if not self._unsynced:
            return
        with write_errors(self.folder):
            for path in self._unsynced:
                with suppress(FileNotFoundError):  # merged, and so durable
                    fsync_file(path)
            fsync_folder(self.folder)
        self._unsynced, self._synced = [], time.monotonic()

    def merge(self) -> None:
        """Replace small shards by few large ones, those of other processes included."""
        for group in self._groups():
            try:
                tables = [table for path in group if (table := self._read(path)) is not None]
            except FileNotFoundError:  # another process merged first
                self.forget_missing()
                continue
            self._replace(group, tables)
        self._loose = {}

    def _groups(self) -> list[list[Path]]:
        groups, group, size = [], [], 0
        for path in sorted(self._n_rows):
            n_bytes = self._n_rows[path] * _tables.row_bytes(self._schema)
            if group and size + n_bytes > _MERGED_BYTES:
                groups.append(group)
                group, size = [], 0
            group, size = [*group, path], size + n_bytes
        return [group for group in [*groups, group] if len(group) > 1]

    def _replace(self, group: list[Path], tables: list[pa.Table]) -> None:
        table = _tables.without_duplicates(tables, self._schema)
        try:
            merged = self._write(table)
        except StoreError:
            return  # full: everything is on disk as it is
        self._on_move(group, merged, table)
        # Only now: the merged shard is durable, so no moment exists without these rows.
        for path in set(group) - {merged}:
            path.unlink(missing_ok=True)
            self._n_rows.pop(path, None)
        fsync_folder(self.folder)

    def _write(self, table: pa.Table, *, durable: bool = True) -> Path:
        data = _tables.encode(table.replace_schema_metadata(self._schema.metadata))
        path = self.folder / f"{self._number + 1:08d}-{_digest(data)}{self._suffix}"
        with write_errors(self.folder):
            write_atomically(path, data, durable=durable)
        self._know(path, table)
        return path

    def _know(self, path: Path, table: pa.Table) -> None:
        self._n_rows[path] = len(table)
        self._number = max(self._number, int(path.name[:8]))

    def _read(self, path: Path, columns: list[str] | None = None) -> pa.Table | None:
        try:
            with _naming_damage(path):
                data = path.read_bytes()
                if _digest(data) != path.name[9:25]:
                    raise _Damage("its bytes do not match the digest in its name")
                self._check_schema(pq.read_schema(pa.BufferReader(data)))
                table = _tables.decode(data, columns)
                self._check_rows(table)
                return table
        except _Damage as damage:
            self._set_aside(path, damage)
            return None

    def _set_aside(self, path: Path, why: Exception) -> None:
        with suppress(OSError):  # read-only, or another process was first
            path.rename(path.with_name(path.name + ASIDE))
        self._n_rows.pop(path, None)
        warnings.warn(
            f"{path} cannot be used: {why}. It is set aside as {path.name}{ASIDE} and may be "
            "deleted; its evaluations are made again where they are needed, all others are kept.",
            StoreWarning,
            stacklevel=2,
        )

    @property
    def _owner(self) -> bytes:
        return self._schema.metadata[b"evaluation_hash"]

    def _owner_of(self, path: Path) -> bytes | None:
        try:
            return (pq.read_schema(path).metadata or {}).get(b"evaluation_hash")
        except (OSError, ValueError, pa.ArrowException):
            return None

    def _check_schema(self, schema: pa.Schema) -> None:
        if not schema.equals(self._schema):
            n_units = self._schema.metadata[b"n_units"].decode()
            raise _Damage(f"its columns are not those of a store of {n_units} units")
        # Stores of the first version did not say whose they are.
        if (schema.metadata or {}).get(b"evaluation_hash", self._owner) != self._owner:
            raise _Damage("its evaluations are of another spec")

    def _check_rows(self, table: pa.Table) -> None:
        if any(column.null_count for column in table.columns):
            raise _Damage("it has empty cells")
        prompts = table["prompt"].to_numpy()
        if len(prompts) and not 0 <= prompts.min() <= prompts.max() < self._n_prompts:
            raise _Damage(f"its prompts are not all in 0..{self._n_prompts - 1}")
        if not np.isfinite(table["value"].to_numpy()).all():
            raise _Damage("its values are not all finite")


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
    except (FileNotFoundError, _Damage):
        raise
    except (ValueError, pa.ArrowException) as error:
        raise _Damage(f"it is cut short or damaged ({error})") from error
    except OSError as error:
        if error.errno == errno.ESTALE:  # how NFS says that another host removed it
            raise FileNotFoundError(path) from error
        if error.errno is None:  # pyarrow's word for bytes that are no Parquet
            raise _Damage(f"it is cut short or damaged ({error})") from error
        raise StoreError(
            f"{path} cannot be read: {error}. Nothing is wrong with the file as far as is known; "
            "run the same command again when it can be read."
        ) from error


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
