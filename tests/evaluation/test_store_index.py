"""The index of a store against a dictionary, and its digests against collisions that are easy."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitspex.evaluation.store import index as _index
from circuitspex.evaluation.store.index import Index, bytes_of, digest_rows, last_of_each

BATCHES = st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 99)), max_size=12))


def digests_of(numbers: list[int]) -> np.ndarray:
    packed = np.array(numbers, dtype=np.uint8).reshape(-1, 1)
    return digest_rows(packed, np.zeros(len(numbers), dtype=np.int64))


def everything_in(index: Index) -> dict[int, float]:
    records, found = index.get(digests_of([*range(31)]))
    return {n: records[n] for n in range(31) if found[n]}


@given(BATCHES)
def test_an_index_is_a_dictionary(batches):
    index, truth = Index("<f8"), {}
    for batch in batches:
        index.put(digests_of([key for key, _ in batch]), np.array([float(v) for _, v in batch]))
        truth |= {key: float(value) for key, value in batch}
        assert everything_in(index) == truth
    assert len(index) == len(truth)
    assert {*map(tuple, index.digests())} == {*map(tuple, digests_of([*truth]))}
    index.keep(lambda values: values < 50)
    assert everything_in(index) == {key: value for key, value in truth.items() if value < 50}


@pytest.mark.slow
@given(st.integers(1, 300))
def test_there_are_few_runs_to_search(n_batches):
    index = Index("<f8")
    for batch in range(n_batches):
        index.put(digests_of([batch % 256]), np.zeros(1))
    assert len(index._runs) <= n_batches.bit_length()


@given(st.lists(st.integers(0, 9)))
def test_the_last_of_each_is_found(numbers):
    last = {number: place for place, number in enumerate(numbers)}
    assert last_of_each(digests_of(numbers)).tolist() == sorted(last.values())


def test_rows_with_half_a_digest_in_common_are_never_taken_for_each_other():
    index = Index("<f8")
    digests = np.array([[7, 1], [7, 2]], dtype=np.uint64)
    index.put(digests, np.array([1.0, 2.0]))
    records, found = index.get(digests)
    assert found.tolist() == [False, True]
    assert records.tolist() == [0.0, 2.0]
    assert last_of_each(digests).tolist() == [0, 1], "on disk both stay"


@pytest.mark.parametrize("n_bytes", [1, 2, 34, 5760])
def test_rows_that_differ_in_one_or_two_bits_have_different_digests(n_bytes):
    rng = np.random.default_rng(0)
    packed = np.repeat(rng.integers(0, 256, (1, n_bytes), dtype=np.uint8), 500, axis=0)
    for row in range(1, 500):
        for bit in rng.integers(0, 8 * n_bytes, 2):
            packed[row, bit // 8] ^= 1 << bit % 8
    prompts = rng.integers(0, 2**31, 500)
    digests = digest_rows(packed, prompts)
    rows = {(bytes(mask), prompt) for mask, prompt in zip(packed, prompts.tolist(), strict=True)}
    assert len({*digests[:, 0].tolist()}) == len({*digests[:, 1].tolist()}) == len(rows)


def test_digests_do_not_depend_on_what_else_is_asked(monkeypatch):
    packed = np.arange(60, dtype=np.uint8).reshape(20, 3)
    whole = digest_rows(packed, np.arange(20))
    monkeypatch.setattr(_index, "_BLOCK_ROWS", 7)
    np.testing.assert_array_equal(digest_rows(packed, np.arange(20)), whole)
    np.testing.assert_array_equal(digest_rows(packed[5:6], np.array([5])), whole[5:6])


def test_binary_columns_are_read_from_any_chunk_and_offset():
    rows = [bytes([i, i + 1]) for i in range(9)]
    column = pa.chunked_array([pa.array(rows[:4], pa.binary(2)), pa.array(rows[4:], pa.binary(2))])
    for part in (column, column.slice(2, 5), column.slice(9), column.slice(5)):
        assert [bytes(row) for row in bytes_of(part)] == part.to_pylist()
