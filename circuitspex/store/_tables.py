"""Rows of (mask, prompt, value) as Arrow tables, as Parquet bytes and as look-up keys."""

import hashlib
import struct
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from circuitspex import masks as keep_masks

_PROMPT = struct.Struct(">i")


def encode(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def decode(data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)


def n_bytes(n_units: int) -> int:
    return -(-n_units // 8)


def schema(n_units: int) -> pa.Schema:
    return pa.schema(
        [("mask", pa.binary(n_bytes(n_units))), ("prompt", pa.int32()), ("value", pa.float64())],
        metadata={"n_units": str(n_units)},
    )


def to_table(
    masks: Bool[Tensor, "rows units"],
    prompts: Int[Tensor, " rows"],
    values: Float64[np.ndarray, " rows"],
) -> pa.Table:
    packed = keep_masks.pack(masks)
    buffers = [None, pa.py_buffer(packed.tobytes())]
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(packed.shape[1]), len(packed), buffers)
    numbers = pa.array(prompts.cpu().numpy().astype(np.int32))
    return pa.table([column, numbers, pa.array(values)], schema=schema(masks.shape[1]))


def keys_of(table: pa.Table) -> list[bytes]:
    digests = (hashlib.blake2b(m, digest_size=16).digest() for m in table["mask"].to_pylist())
    return join_keys(digests, table["prompt"].to_numpy())


def join_keys(digests: Iterable[bytes], prompts: Int[np.ndarray, " rows"]) -> list[bytes]:
    return [m + p for m, p in zip(digests, map(_PROMPT.pack, prompts.tolist()), strict=True)]


def without_duplicates(tables: Iterable[pa.Table], n_units: int) -> pa.Table:
    # Of rows with the same mask and prompt the last one stays, as in a dictionary.
    table = pa.concat_tables([schema(n_units).empty_table(), *tables])
    last = {key: row for row, key in enumerate(keys_of(table))}
    return table if len(last) == len(table) else table.take(sorted(last.values()))
