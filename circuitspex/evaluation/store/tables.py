"""Rows of (mask, prompt, value) and perhaps gradient: as Arrow tables and Parquet bytes."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Float64, Int
from torch import Tensor

from circuitspex.algebra import masks as keep_masks
from circuitspex.evaluation.store.index import bytes_of, digest_table, last_of_each

SHORT = ["mask", "prompt", "value"]
"""The columns that every row has."""
_ROW_GROUP_BYTES = 4 * 2**20  # what must be read for a single gradient, before compression


def encode(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    # Dictionaries and statistics of gradients would only repeat them.
    options: dict[str, Any] = {"use_dictionary": SHORT, "write_statistics": SHORT}
    rows = max(1, _ROW_GROUP_BYTES // row_bytes(table.schema))
    pq.write_table(table, sink, rows, compression="zstd", write_page_checksum=True, **options)
    return sink.getvalue().to_pybytes()


def decode(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Return the table that bytes of a Parquet file hold, or some of its columns."""
    return pq.read_table(
        pa.BufferReader(data), columns=columns, page_checksum_verification=True, use_threads=False
    )


def n_bytes(n_units: int) -> int:
    """Return how many bytes a packed mask takes."""
    return -(-n_units // 8)


def row_bytes(schema: pa.Schema) -> int:
    """Return how many bytes a row takes before compression."""
    return sum(field.type.bit_width for field in schema) // 8


def schema(n_units: int, *, gradients: bool = False) -> pa.Schema:
    """Return the columns of a table of evaluations."""
    columns = [("mask", pa.binary(n_bytes(n_units))), ("prompt", pa.int32())]
    columns.append(("value", pa.float64()))
    if gradients:
        columns.append(("gradient", pa.binary(4 * n_units)))  # little-endian float32
    return pa.schema(columns, metadata={"n_units": str(n_units)})


def to_table(
    masks: Bool[Tensor, "rows units"],
    prompts: Int[Tensor, " rows"],
    values: Float64[np.ndarray, " rows"],
    gradients: Float32[np.ndarray, "rows units"] | None = None,
) -> pa.Table:
    """Return rows of masks, prompts and values as a table."""
    numbers = pa.array(prompts.cpu().numpy().astype(np.int32))
    columns = [_fixed_binary(keep_masks.pack(masks)), numbers, pa.array(values)]
    if gradients is not None:
        columns.append(_fixed_binary(gradients.astype("<f4", copy=False)))
    return pa.table(columns, schema=schema(masks.shape[1], gradients=gradients is not None))


def _fixed_binary(rows: np.ndarray) -> pa.Array:
    width = rows.shape[1] * rows.itemsize
    buffers = [None, pa.py_buffer(rows.tobytes())]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), buffers)


def gradients_of(table: pa.Table) -> Float32[np.ndarray, "rows units"]:
    """Return a table's gradients, one row each."""
    return bytes_of(table["gradient"]).view("<f4")


def read_gradients(
    file: pq.ParquetFile, rows: Int[np.ndarray, " rows"]
) -> Float32[np.ndarray, "rows units"]:
    """Return the gradients of some rows of a file without reading the others."""
    # Only the row groups that these rows are in, one at a time.
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    starts = np.cumsum([0, *sizes])
    group_of_row = np.searchsorted(starts, rows, side="right") - 1
    n_units = file.schema_arrow.field("gradient").type.byte_width // 4
    gradients = np.empty((len(rows), n_units), dtype=np.float32)
    for group in np.unique(group_of_row).tolist():
        members = group_of_row == group
        group_rows = gradients_of(file.read_row_group(group, columns=["gradient"]))
        gradients[members] = group_rows[rows[members] - starts[group]]
    return gradients


def without_duplicates(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """Return all rows in one table, each mask and prompt once."""
    # Of rows with the same mask and prompt the last one stays, as in an index.
    table = pa.concat_tables([schema.empty_table(), *tables])
    last = last_of_each(digest_table(table))
    return table if len(last) == len(table) else table.take(last)
