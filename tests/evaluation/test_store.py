"""One contract for every store, and what only the one on disk can get wrong."""

import contextlib
import errno
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from circuitspex._shared import Spec
from circuitspex.algebra import pack, unpack
from circuitspex.errors import (
    MaskError,
    ResultError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreMismatchError,
    StoreWarning,
)
from circuitspex.evaluation.store import MemoryStore, ParquetStore, Store

N_UNITS, N_PROMPTS = 11, 4
SPEC = Spec({"model": "toy", "processing": "none", "n_units": N_UNITS, "n_prompts": N_PROMPTS})


def make_memory_store(folder: Path) -> Store:
    return MemoryStore(N_UNITS, N_PROMPTS)


def make_parquet_store(folder: Path) -> ParquetStore:
    return ParquetStore(folder / "evaluations", SPEC)


@pytest.fixture(params=[make_memory_store, make_parquet_store], ids=["memory", "parquet"])
def store(request, tmp_path):
    with request.param(tmp_path) as store:
        yield store


def make_rows(n_rows: int, seed: int = 0, n_units: int = N_UNITS):
    rng = torch.Generator().manual_seed(seed)
    masks = torch.rand(n_rows, n_units, generator=rng) < 0.7
    prompts = torch.randint(N_PROMPTS, (n_rows,), generator=rng)
    # A function of mask and prompt, so that rows drawn twice agree.
    weights = torch.arange(1, n_units + 1, dtype=torch.float64)
    return masks, prompts, (masks * weights).sum(1).sqrt() + prompts


def make_gradient_rows(n_rows: int, seed: int = 0, n_units: int = N_UNITS):
    masks, prompts, values = make_rows(n_rows, seed, n_units)
    gradients = torch.sin(values[:, None] * torch.arange(1, n_units + 1)) - masks.double()
    return masks, prompts, values, gradients.float()


each_kind = pytest.mark.parametrize(
    "make", [make_rows, make_gradient_rows], ids=["values", "gradients"]
)


def append(store: Store, masks, prompts, values, gradients=None) -> None:
    if gradients is None:
        store.append(masks, prompts, values)
    else:
        store.append_gradients(masks, prompts, values, gradients)


def assert_known(store: Store, masks, prompts, values, gradients=None) -> None:
    looked_up, found = store.look_up(masks, prompts)
    assert found.all()
    assert_equal(looked_up, values)
    if gradients is not None:
        looked_up, slopes, found = store.look_up_gradients(masks, prompts)
        assert found.all()
        assert_equal(looked_up, values)
        assert_equal(slopes, gradients)


def assert_equal(one, other) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def numbers_by_row(table) -> dict[tuple[bytes, int], float]:
    columns = (table[name].to_pylist() for name in ("mask", "prompt", "value"))
    return {(mask, prompt): value for mask, prompt, value in zip(*columns, strict=True)}


# The contract


def test_it_is_a_store(store):
    assert isinstance(store, Store)
    assert (store.n_units, store.n_prompts) == (N_UNITS, N_PROMPTS)


def test_an_empty_store_knows_nothing(store):
    masks, prompts, _ = make_rows(5)
    values, found = store.look_up(masks, prompts)
    assert not found.any()
    assert values.isnan().all()
    assert values.dtype == torch.float64
    assert len(store) == 0
    assert len(store.table()) == 0


def test_what_was_appended_is_found_bit_for_bit(store):
    rows = make_rows(50)
    store.append(*rows)
    assert_known(store, *rows)


def test_prompts_are_told_apart(store):
    mask = torch.ones(1, N_UNITS, dtype=torch.bool)
    store.append(mask, torch.tensor([2]), torch.tensor([1.5], dtype=torch.float64))
    values, found = store.look_up(mask.expand(4, -1), torch.arange(4))
    assert found.tolist() == [False, False, True, False]
    assert values[2].item() == 1.5
    assert values.isnan().tolist() == [True, True, False, True]


def test_the_last_unit_and_the_padding_bits_count(store):
    masks = torch.ones(2, N_UNITS, dtype=torch.bool)
    masks[1, -1] = False
    store.append(masks, torch.zeros(2, dtype=torch.int64), torch.tensor([1.0, 2.0]))
    assert_known(store, masks, torch.zeros(2, dtype=torch.int32), torch.tensor([1.0, 2.0]).double())


def test_a_row_appended_twice_counts_once_and_takes_the_later_value(store):
    masks, prompts, values = make_rows(3)
    store.append(masks[:1], prompts[:1], values[:1])
    store.append(masks[:1], prompts[:1], values[:1] + 1)
    assert len(store) == 1
    assert_known(store, masks[:1], prompts[:1], values[:1] + 1)
    assert store.table()["value"].to_pylist() == (values[:1] + 1).tolist()


def test_the_table_holds_every_row_in_order(store):
    masks = torch.eye(N_UNITS, dtype=torch.bool)
    prompts = torch.arange(N_UNITS) % N_PROMPTS
    values = torch.arange(N_UNITS, dtype=torch.float64)
    store.append(masks[:6], prompts[:6], values[:6])
    store.append(masks[6:], prompts[6:], values[6:])
    table = store.table()
    assert table.column_names == ["mask", "prompt", "value"]
    assert table["prompt"].to_pylist() == prompts.tolist()
    assert table["value"].to_pylist() == values.tolist()
    packed = torch.frombuffer(bytearray(b"".join(table["mask"].to_pylist())), dtype=torch.uint8)
    torch.testing.assert_close(unpack(packed.reshape(N_UNITS, -1).numpy(), N_UNITS), masks)
    assert table.schema.metadata[b"n_units"] == b"11"


def test_no_rows_are_fine(store):
    rows = make_rows(0)
    store.append(*rows)
    values, found = store.look_up(*rows[:2])
    assert values.shape == found.shape == (0,)
    assert len(store) == 0


def test_masks_of_another_width_are_refused(store):
    masks, prompts, values = make_rows(3, n_units=N_UNITS + 1)
    with pytest.raises(MaskError, match=r"must have shape \(masks, 11\)"):
        store.look_up(masks, prompts)
    with pytest.raises(MaskError, match=r"must have shape \(masks, 11\)"):
        store.append(masks, prompts, values)


@pytest.mark.parametrize("prompt", [-1, N_PROMPTS])
def test_prompts_that_do_not_exist_are_refused(store, prompt):
    masks, _, _ = make_rows(1)
    with pytest.raises(StoreError, match=rf"prompts must lie in 0\.\.3; got {prompt}"):
        store.look_up(masks, torch.tensor([prompt]))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_whole(store, wrong):
    masks, prompts, values = make_rows(3)
    values[1] = wrong
    with pytest.raises(StoreError, match=f"values must be finite; row 1 is {wrong}"):
        store.append(masks, prompts, values)
    assert len(store) == 0


def test_a_closed_store_answers_but_takes_nothing(store):
    rows = make_rows(4)
    store.append(*rows)
    store.close()
    store.close()
    assert_known(store, *rows)
    with pytest.raises(StoreError, match="the store is closed"):
        store.append(*rows)


def test_few_arrays_are_searched_however_often_rows_came(store):
    rows = make_rows(2000)
    for batch in zip(*(column.split(100) for column in rows), strict=True):
        store.append(*batch)
    with patch.object(np, "searchsorted", wraps=np.searchsorted) as search:
        assert_known(store, *rows)
    assert 1 <= search.call_count <= math.log2(20) + 1


# The contract, with gradients


def test_an_empty_store_knows_no_gradients(store):
    masks, prompts, _ = make_rows(5)
    values, gradients, found = store.look_up_gradients(masks, prompts)
    assert not found.any()
    assert values.isnan().all()
    assert gradients.isnan().all()
    assert (values.shape, gradients.shape) == ((5,), (5, N_UNITS))
    assert (values.dtype, gradients.dtype) == (torch.float64, torch.float32)


def test_gradients_that_were_appended_are_found_bit_for_bit(store):
    rows = make_gradient_rows(50)
    store.append_gradients(*rows)
    assert_known(store, *rows)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0)).repeat(2)
    assert_known(store, *(part[order] for part in rows))


def test_gradients_are_kept_in_single_precision(store):
    masks, prompts, values, gradients = make_gradient_rows(4)
    precise = gradients.double() * (1 + 1e-9)
    store.append_gradients(masks, prompts, values, precise)
    assert_equal(store.look_up_gradients(masks, prompts)[1], precise.float())


def test_a_gradients_value_is_a_value_too(store):
    rows = make_gradient_rows(20)
    store.append_gradients(*rows)
    table = store.table()
    assert table.column_names == ["mask", "prompt", "value"]
    assert table.schema.metadata[b"n_units"] == b"11"
    assert len(table) == len(store) == len(numbers_by_row(table))
    assert sorted({*table["value"].to_pylist()}) == sorted({*rows[2].tolist()})


def test_a_value_alone_is_no_gradient(store):
    masks, prompts, values, gradients = make_gradient_rows(9)
    store.append(masks[:6], prompts[:6], values[:6])
    store.append_gradients(masks[6:], prompts[6:], values[6:], gradients[6:])
    found_values, found_gradients, found = store.look_up_gradients(masks, prompts)
    assert found.tolist() == [False] * 6 + [True] * 3
    assert found_values.isnan().tolist() == (~found).tolist()
    assert found_gradients.isnan().all(dim=1).tolist() == (~found).tolist()
    assert_equal(found_gradients[6:], gradients[6:])
    assert_known(store, masks, prompts, values)


def test_gradients_of_prompts_are_told_apart(store):
    mask = torch.ones(1, N_UNITS, dtype=torch.bool)
    store.append_gradients(mask, torch.tensor([2]), torch.ones(1), torch.ones(1, N_UNITS))
    _, gradients, found = store.look_up_gradients(mask.expand(4, -1), torch.arange(4))
    assert found.tolist() == [False, False, True, False]
    assert (gradients[2] == 1).all()


@pytest.mark.parametrize("gradient_first", [False, True])
def test_both_calls_give_again_what_they_were_told(store, gradient_first):
    # A backward pass rounds its value differently; replay must not depend on which came first.
    masks, prompts, values, gradients = make_gradient_rows(3)
    calls = [
        lambda: store.append(masks, prompts, values),
        lambda: store.append_gradients(masks, prompts, values + 1e-7, gradients),
    ]
    for call in calls[::-1] if gradient_first else calls:
        call()
    assert_equal(store.look_up(masks, prompts)[0], values)
    assert_equal(store.look_up_gradients(masks, prompts)[0], values + 1e-7)
    assert len(store) == len(store.table()) == 3
    assert sorted(store.table()["value"].to_pylist()) == sorted(values.tolist())


def test_a_gradient_appended_twice_counts_once_and_is_the_later_one(store):
    masks, prompts, values, gradients = make_gradient_rows(6)
    store.append_gradients(masks, prompts, values, gradients)
    # Out of order and together with a new row, so that no append is replaced as a whole.
    again = [4, 1]
    changed = (masks[again], prompts[again], values[again] + 1, -gradients[again])
    other_mask = ~masks[:1]
    other = (other_mask, prompts[:1], values[:1] - 9, gradients[:1])
    store.append_gradients(*(torch.cat(parts) for parts in zip(changed, other, strict=True)))
    assert_known(store, *changed)
    assert_known(store, *other)
    rest = [0, 2, 3, 5]
    assert_known(store, masks[rest], prompts[rest], values[rest], gradients[rest])
    assert len(store) == len(store.table()) == 7
    expected = [*(values[again] + 1).tolist(), (values[0] - 9).item(), *values[rest].tolist()]
    assert sorted(store.table()["value"].to_pylist()) == sorted(expected)


def test_what_is_kept_is_a_copy(store):
    masks, prompts, values, gradients = make_gradient_rows(5)
    kept = gradients.clone()
    store.append_gradients(masks, prompts, values, gradients)
    gradients.zero_()
    store.look_up_gradients(masks, prompts)[1].zero_()
    assert_known(store, masks, prompts, values, kept)


def test_no_gradients_are_fine(store):
    rows = make_gradient_rows(0)
    store.append_gradients(*rows)
    values, gradients, found = store.look_up_gradients(*rows[:2])
    assert (values.shape, gradients.shape, found.shape) == ((0,), (0, N_UNITS), (0,))
    assert len(store) == 0


@pytest.mark.parametrize("is_merged", [True, False])
def test_newer_gradients_of_a_row_win_also_when_files_are_merged(tmp_path, is_merged):
    masks, prompts, values, gradients = make_gradient_rows(30)
    newer, again = slice(10, 30), -gradients[10:]
    expected = torch.cat([gradients[:10], again])
    expected_values = torch.cat([values[:10], values[10:] + 1])
    store = make_parquet_store(tmp_path)
    store.append_gradients(masks, prompts, values, gradients)
    store.append_gradients(masks[newer], prompts[newer], values[newer] + 1, again)
    if is_merged:
        store.close()
        assert len(list(store.folder.glob("*.gradients.parquet"))) == 1
    for known in (store, make_parquet_store(tmp_path)):
        assert_known(known, masks, prompts, expected_values, expected)


@pytest.mark.usefixtures("unchecked")
def test_gates_between_0_and_1_are_refused(store):
    masks, prompts, values, gradients = make_gradient_rows(3)
    for gates in (masks.float(), masks * 0.5):
        with pytest.raises(MaskError, match="masks must be bool"):
            store.append_gradients(gates, prompts, values, gradients)
        with pytest.raises(MaskError, match="masks must be bool"):
            store.look_up_gradients(gates, prompts)


@pytest.mark.usefixtures("unchecked")
def test_gradients_that_do_not_fit_are_refused(store):
    masks, prompts, values, gradients = make_gradient_rows(3)
    words = r"one derivative per unit of every mask, shape \(3, 11\); got "
    for wrong, got in ((gradients[:2], r"\(2, 11\)"), (gradients[:, 1:], r"\(3, 10\)")):
        with pytest.raises(StoreError, match=words + got):
            store.append_gradients(masks, prompts, values, wrong)
    with pytest.raises(StoreError, match=r"one value per mask; got \(2,\) for 3"):
        store.append_gradients(masks, prompts, values[:2], gradients)
    with pytest.raises(StoreError, match=r"prompts must lie in 0\.\.3; got 0\.\.4"):
        store.append_gradients(masks, torch.tensor([0, 4, 1]), values, gradients)
    assert len(store) == 0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e39])
def test_gradients_that_are_not_finite_are_refused_whole(store, wrong):
    masks, prompts, values, gradients = make_gradient_rows(3)
    slopes = gradients.double()
    slopes[1, 4] = wrong
    with pytest.raises(StoreError, match=r"gradients must be finite; row 1 is (nan|inf)"):
        store.append_gradients(masks, prompts, values, slopes)
    values[2] = torch.nan
    with pytest.raises(StoreError, match="values must be finite; row 2 is nan"):
        store.append_gradients(masks, prompts, values, gradients)
    assert len(store) == 0
    assert not store.look_up_gradients(masks, prompts)[2].any()


def test_a_closed_store_answers_for_gradients_but_takes_none(store):
    batches = [make_gradient_rows(4, seed=seed) for seed in range(3)]
    for rows in batches:
        store.append_gradients(*rows)
    store.close()
    for rows in batches:
        assert_known(store, *rows)
        with pytest.raises(StoreError, match="the store is closed"):
            store.append_gradients(*rows)


# On disk


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "evaluations").glob("*.parquet"))


@each_kind
def test_a_store_opened_again_knows_everything(tmp_path, make):
    first, second = make(20, seed=1), make(30, seed=2)
    abandoned = make_parquet_store(tmp_path)  # never closed, as after kill -9
    append(abandoned, *first)
    append(abandoned, *second)
    assert len(shards(tmp_path)) == 2
    reopened = make_parquet_store(tmp_path)
    assert_known(reopened, *first)
    assert_known(reopened, *second)
    assert len(reopened) == len(abandoned)


@each_kind
def test_closing_merges_the_shards_and_loses_nothing(tmp_path, make):
    batches = [make(7, seed=seed) for seed in range(6)]
    with make_parquet_store(tmp_path) as store:
        for batch in batches:
            append(store, *batch)
        before = store.table().sort_by([("value", "ascending")])
    assert len(shards(tmp_path)) == 1
    with make_parquet_store(tmp_path) as store:
        for batch in batches:
            assert_known(store, *batch)
        assert store.table().sort_by([("value", "ascending")]).equals(before)
    assert len(shards(tmp_path)) == 1


@each_kind
def test_large_shards_are_not_merged_into_one(tmp_path, monkeypatch, make):
    row_bytes = 2 + 12 + (0 if make is make_rows else 4 * N_UNITS)
    monkeypatch.setattr("circuitspex.evaluation.store.shards._MERGED_BYTES", 25 * row_bytes)
    batches = [make(10, seed=seed) for seed in range(5)]
    with make_parquet_store(tmp_path) as store:
        for batch in batches:
            append(store, *batch)
    assert len(shards(tmp_path)) == 3
    for batch in batches:
        assert_known(make_parquet_store(tmp_path), *batch)


@pytest.mark.parametrize("n_unlinked", [0, 1, 2])
@each_kind
def test_a_merge_that_is_cut_off_loses_nothing(tmp_path, monkeypatch, n_unlinked, make):
    batches = [make(7, seed=seed) for seed in range(4)]
    store = make_parquet_store(tmp_path)
    for batch in batches:
        append(store, *batch)
    unlink, done = Path.unlink, []

    def unlink_a_few(path, missing_ok=False):
        if len(done) == n_unlinked:
            raise KeyboardInterrupt("cut off")
        done.append(path)
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink_a_few)
        with pytest.raises(KeyboardInterrupt, match="cut off"):
            store.close()
    assert len(shards(tmp_path)) == 5 - n_unlinked
    with make_parquet_store(tmp_path) as reopened:
        for batch in batches:
            assert_known(reopened, *batch)
        assert len(reopened.table()) == len(reopened)


@each_kind
def test_two_writers_in_one_folder_keep_both_their_rows(tmp_path, make):
    one, two = make_parquet_store(tmp_path), make_parquet_store(tmp_path)
    batches = [make(9, seed=seed) for seed in range(4)]
    for batch, store in zip(batches, [one, two, one, two], strict=True):
        append(store, *batch)
    one.close()
    two.close()
    for batch in batches:
        assert_known(make_parquet_store(tmp_path), *batch)


def test_an_old_leftover_is_removed_and_a_fresh_one_ignored(tmp_path):
    make_parquet_store(tmp_path)
    old, fresh = (tmp_path / "evaluations" / f".x.parquet.{i}.tmp" for i in range(2))
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert len(make_parquet_store(tmp_path)) == 0
    assert not old.exists()
    assert fresh.exists()


KILLED_WRITER = textwrap.dedent("""
    import sys, torch
    from circuitspex import Spec
    from circuitspex.evaluation.store import ParquetStore
    spec = Spec({"n_units": 12, "n_prompts": 1})
    store = ParquetStore(sys.argv[1], spec)
    for number in range(4000):
        mask = torch.tensor([[number >> bit & 1 == 1 for bit in range(12)]])
        row = mask, torch.tensor([0]), torch.tensor([float(number)])
        if sys.argv[2] == "gradients":
            store.append_gradients(*row, mask * float(number))
        else:
            store.append(*row)
        print(number, flush=True)
""")


@pytest.mark.slow
@pytest.mark.parametrize("n_appends", [1, 5, 23])
@pytest.mark.parametrize("kind", ["values", "gradients"])
def test_kill_9_loses_nothing_that_append_returned_from(tmp_path, n_appends, kind):
    command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(n_appends):
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        last = max([last, *map(int, writer.stdout.read().split())])
    assert writer.returncode == -signal.SIGKILL
    numbers = torch.arange(last + 1)
    masks = (numbers[:, None] >> torch.arange(12)) & 1 == 1
    store = ParquetStore(tmp_path, Spec({"n_units": 12, "n_prompts": 1}))
    gradients = masks * numbers[:, None].float() if kind == "gradients" else None
    assert_known(store, masks, torch.zeros_like(numbers), numbers.double(), gradients)
    assert len(store) in (last + 1, last + 2)  # the append in progress may have made it


def open_warned(folder: Path, words: str) -> ParquetStore:
    with pytest.warns(StoreWarning, match=words) as said:
        store = make_parquet_store(folder)
    assert len(said) == 1
    return store


def asides(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "evaluations").glob("*.aside"))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
@each_kind
def test_a_shard_cut_short_is_named_set_aside_and_nothing_else_lost(tmp_path, share, make):
    lost, kept = make(20, seed=1), make(20, seed=2)
    append(make_parquet_store(tmp_path), *lost)
    append(make_parquet_store(tmp_path), *kept)
    damaged = shards(tmp_path)[0]
    damaged.write_bytes(damaged.read_bytes()[: int(damaged.stat().st_size * share)])
    before = damaged.read_bytes()
    store = open_warned(tmp_path, rf"{damaged.name} cannot be used: .*made again")
    assert_known(store, *kept)
    assert len(store) == len(numbers_by_row(store.table()))
    assert asides(tmp_path) == [f"{damaged.name}.aside"]
    assert damaged.with_name(f"{damaged.name}.aside").read_bytes() == before
    append(store, *lost)
    store.close()
    for rows in (lost, kept):
        assert_known(make_parquet_store(tmp_path), *rows)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.999])
@each_kind
def test_a_flipped_bit_is_found(tmp_path, share, make):
    rows = make(20)
    append(make_parquet_store(tmp_path), *rows)
    path = shards(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 1
    path.write_bytes(data)
    store = open_warned(tmp_path, f"{path.name} cannot be used: its bytes do not match the digest")
    assert len(store) == 0
    assert not store.look_up(*rows[:2])[1].any()
    assert not shards(tmp_path)
    assert len(make_parquet_store(tmp_path)) == 0, "and only said once"


def forge(folder: Path, table: pa.Table) -> Path:
    """Put a table into a store under the name that its bytes call for."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    digest = hashlib.blake2b(data, digest_size=8).hexdigest()
    path = folder / "evaluations" / f"00000001-{digest}.parquet"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("column", "forged", "words"),
    [
        ("prompt", pa.array([0, N_PROMPTS], pa.int32()), r"prompts are not all in 0\.\.3"),
        ("prompt", pa.array([-1, 0], pa.int32()), r"prompts are not all in 0\.\.3"),
        ("prompt", pa.array([None, 0], pa.int32()), "empty cells"),
        ("mask", pa.array([None, b"12"], pa.binary(2)), "empty cells"),
        ("mask", pa.array([b"1", b"12"], pa.binary()), "not those of a store of 11 units"),
        ("mask", pa.array([b"123", b"123"], pa.binary(3)), "not those of a store of 11 units"),
        ("value", pa.array([1.0, float("nan")]), "values are not all finite"),
        ("value", pa.array(["1", "2"]), "not those of a store of 11 units"),
    ],
)
def test_a_forged_shard_is_set_aside(tmp_path, column, forged, words):
    rows = make_rows(2)
    with make_parquet_store(tmp_path) as store:
        store.append(*rows)
        table = store.table()
    path = forge(tmp_path, table.set_column(table.column_names.index(column), column, forged))
    assert_known(open_warned(tmp_path, f"{path.name} cannot be used: it.*{words}"), *rows)


@each_kind
def test_a_shard_of_other_masks_is_set_aside(tmp_path, make):
    other = Spec({"n_units": 30, "n_prompts": N_PROMPTS})
    append(ParquetStore(tmp_path / "other", other), *make(2, n_units=30))
    make_parquet_store(tmp_path)
    (stranger,) = (tmp_path / "other").glob("*.parquet")
    stranger.rename(tmp_path / "evaluations" / stranger.name)
    assert len(open_warned(tmp_path, "not those of a store of 11 units")) == 0


def test_a_shard_of_another_spec_is_set_aside(tmp_path):
    other = Spec(dict(SPEC.evaluation) | {"model": "boy"})
    ParquetStore(tmp_path / "other", other).append(*make_rows(2))
    make_parquet_store(tmp_path)
    (stranger,) = (tmp_path / "other").glob("*.parquet")
    stranger.rename(tmp_path / "evaluations" / stranger.name)
    assert len(open_warned(tmp_path, "its evaluations are of another spec")) == 0


def test_a_store_of_another_spec_is_refused_with_what_differs(tmp_path):
    make_parquet_store(tmp_path).append(*make_rows(2))
    other = Spec(dict(SPEC.evaluation) | {"processing": "folded"})
    with pytest.raises(
        StoreMismatchError,
        match=r"another spec: evaluation.processing: 'folded' here, 'none' there\. Use another",
    ):
        ParquetStore(tmp_path / "evaluations", other)


def test_another_discovery_on_the_same_evaluation_is_welcome(tmp_path):
    rows = make_rows(2)
    make_parquet_store(tmp_path).append(*rows)
    again = Spec(SPEC.evaluation, {"decoder": "exact"}, {"torch": "9"})
    assert_known(ParquetStore(tmp_path / "evaluations", again), *rows)


def test_a_format_of_the_future_is_refused(tmp_path):
    make_parquet_store(tmp_path)
    path = tmp_path / "evaluations" / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(StoreMismatchError, match="store of format 2; this version reads format 1"):
        make_parquet_store(tmp_path)


DAMAGED_CLAIMS = [
    "",
    "{",
    "[]",
    '{"format": 1}',
    "[" * 9999,
    "\0",
    '{"evaluation": {"a": NaN}}',
    None,
]


@pytest.mark.parametrize("text", DAMAGED_CLAIMS)
@each_kind
def test_a_damaged_or_missing_store_json_is_written_again(tmp_path, text, make):
    rows = make(2)
    append(make_parquet_store(tmp_path), *rows)
    path = tmp_path / "evaluations" / "store.json"
    before = path.read_text()
    path.unlink() if text is None else path.write_text(text)
    store = open_warned(tmp_path, r"store.json (cannot be read|is missing).* is written again")
    assert_known(store, *rows)
    assert path.read_text() == before
    assert asides(tmp_path) == ([] if text is None else ["store.json.aside"])


def test_a_changed_store_json_is_written_again(tmp_path):
    make_parquet_store(tmp_path).append(*make_rows(2))
    path = tmp_path / "evaluations" / "store.json"
    path.write_text(path.read_text().replace("toy", "boy"))
    assert_known(open_warned(tmp_path, "do not match the hash"), *make_rows(2))


@pytest.mark.parametrize("text", [*DAMAGED_CLAIMS[:3], None])
@each_kind
def test_evaluations_that_nothing_tells_of_are_refused(tmp_path, text, make):
    other = Spec(dict(SPEC.evaluation) | {"model": "boy"})
    append(ParquetStore(tmp_path / "evaluations", other), *make(2))
    path = tmp_path / "evaluations" / "store.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(StoreCorruptError, match=r"store.json .*no file beside it says"):
        make_parquet_store(tmp_path)


def test_a_damaged_store_json_of_an_empty_store_matters_to_nobody(tmp_path):
    make_parquet_store(tmp_path)
    (tmp_path / "evaluations" / "store.json").write_text("{")
    assert len(make_parquet_store(tmp_path)) == 0
    assert len(make_parquet_store(tmp_path)) == 0


def test_of_two_specs_that_claim_a_folder_at_once_one_is_refused(tmp_path, monkeypatch):
    other = Spec(dict(SPEC.evaluation) | {"model": "boy"})
    link = os.link

    def be_late(draft, path):
        monkeypatch.setattr(os, "link", link)
        ParquetStore(tmp_path / "evaluations", other).append(*make_rows(2))
        link(draft, path)

    monkeypatch.setattr(os, "link", be_late)
    with pytest.raises(StoreMismatchError, match=r"model: 'toy' here, 'boy' there"):
        make_parquet_store(tmp_path)
    assert not list((tmp_path / "evaluations").glob(".*"))


def test_a_file_system_without_links_is_fine(tmp_path, monkeypatch):
    def refuse(draft, path):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    make_parquet_store(tmp_path).append(*make_rows(2))
    assert_known(make_parquet_store(tmp_path), *make_rows(2))
    assert not list((tmp_path / "evaluations").glob(".*"))


def test_what_cannot_be_read_at_the_moment_is_left_where_it_is(tmp_path, monkeypatch):
    make_parquet_store(tmp_path).append(*make_rows(2))

    def fail(path):
        raise OSError(errno.EIO, "no answer")

    claim = (tmp_path / "evaluations" / "store.json").read_bytes()
    for words, read in (
        ("store.json cannot be read", fail),
        (
            r"\.parquet cannot be read.*Nothing is wrong with the file",
            lambda path: claim if path.suffix == ".json" else fail(path),
        ),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", read)
            with pytest.raises(StoreError, match=words):
                make_parquet_store(tmp_path)
    assert_known(make_parquet_store(tmp_path), *make_rows(2))


def test_a_spec_without_sizes_is_refused(tmp_path):
    with pytest.raises(ResultError, match=r"needs evaluation\['n_prompts'\] in the spec"):
        ParquetStore(tmp_path, Spec({"n_units": 3}))


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path):
    (tmp_path / "evaluations").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot write to .*evaluations"):
        make_parquet_store(tmp_path)


# A full disk


@contextlib.contextmanager
def full_disk(monkeypatch, code: int = errno.ENOSPC):
    def write_a_little_then_fail(descriptor, data):
        if len(data) > 10:
            return write(descriptor, data[:10])
        raise OSError(code, os.strerror(code))

    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr("os.write", write_a_little_then_fail)
        yield


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@each_kind
def test_a_full_disk_loses_nothing_and_says_what_to_do(tmp_path, monkeypatch, code, make):
    before, refused = make(20, seed=1), make(20, seed=2)
    store = make_parquet_store(tmp_path)
    append(store, *before)
    with full_disk(monkeypatch, code):
        with pytest.raises(StoreFullError, match=r"no room left to write .* Free some space"):
            append(store, *refused)
    assert_known(store, *refused)  # in memory
    assert not list((tmp_path / "evaluations").glob(".*"))
    assert_known(make_parquet_store(tmp_path), *before)
    assert not make_parquet_store(tmp_path).look_up(*refused[:2])[1].all()
    store.close()  # there is room again
    assert_known(make_parquet_store(tmp_path), *refused)


@each_kind
def test_closing_on_a_full_disk_raises_unless_another_error_is_on_its_way(
    tmp_path, monkeypatch, make
):
    with full_disk(monkeypatch):
        with pytest.raises(StoreFullError, match="no room left"):
            make_parquet_store(tmp_path)
    store = make_parquet_store(tmp_path)
    with full_disk(monkeypatch):
        with pytest.raises(StoreFullError, match="no room left"):
            append(store, *make(20))
        with pytest.raises(KeyboardInterrupt, match="by hand"), store:
            raise KeyboardInterrupt("by hand")
        with pytest.raises(StoreFullError, match="no room left"), store:
            pass


@each_kind
def test_a_merge_without_room_leaves_the_shards_alone(tmp_path, monkeypatch, make):
    store = make_parquet_store(tmp_path)
    batches = [make(9, seed=seed) for seed in range(3)]
    for batch in batches:
        append(store, *batch)
    with full_disk(monkeypatch):
        store.close()
    assert len(shards(tmp_path)) == 3
    for batch in batches:
        assert_known(make_parquet_store(tmp_path), *batch)


LIMITED_WRITER = textwrap.dedent("""
    import resource, sys, torch
    from circuitspex.errors import StoreFullError
    from circuitspex import Spec
    from circuitspex.evaluation.store import ParquetStore
    store = ParquetStore(sys.argv[1], Spec({"n_units": 400, "n_prompts": 1}))
    masks = torch.rand(300, 400, generator=torch.Generator().manual_seed(0)) < 0.5
    zeros = torch.zeros(300, dtype=torch.int64)
    store.append(masks[:3], zeros[:3], torch.arange(3.0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        if sys.argv[2] == "gradients":
            store.append_gradients(masks, zeros, torch.arange(300.0), masks.float())
        else:
            store.append(masks, zeros, torch.arange(300.0))
    except StoreFullError as error:
        print(error)
""")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["values", "gradients"])
def test_a_file_that_the_system_refuses_to_grow(tmp_path, kind):
    command = [sys.executable, "-c", LIMITED_WRITER, str(tmp_path), kind]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "no room left to write to" in said
    assert not list(tmp_path.glob(".*"))
    assert len(ParquetStore(tmp_path, Spec({"n_units": 400, "n_prompts": 1}))) == 3


# Gradients on disk


def small_row_groups(monkeypatch, n_rows: int) -> None:
    row_bytes = 2 + 12 + 4 * N_UNITS
    monkeypatch.setattr("circuitspex.evaluation.store.tables._ROW_GROUP_BYTES", n_rows * row_bytes)


def test_gradients_stay_on_disk_and_are_read_group_by_group(tmp_path, monkeypatch):
    small_row_groups(monkeypatch, 4)
    rows = make_gradient_rows(30)
    written = make_parquet_store(tmp_path)
    written.append_gradients(*rows)
    reads = []
    read_row_group = pq.ParquetFile.read_row_group

    def count(self, i, **options):
        table = read_row_group(self, i, **options)
        reads.append(len(table))
        return table

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", count)
    for store in (written, make_parquet_store(tmp_path)):
        assert not reads, "read before anybody asked"
        assert not holds_gradients(store)
        assert_known(store, *(part[[17, 5, 18]] for part in rows))
        assert reads == [4, 4], "two of eight groups"
        reads.clear()
        assert_known(store, *rows)
        assert sum(reads) == 30
        reads.clear()


def holds_gradients(store) -> bool:
    return any(isinstance(source, pa.Table) for source in store._sources)


def test_the_check_of_what_is_in_memory_can_fail(tmp_path, monkeypatch):
    store = make_parquet_store(tmp_path)
    with full_disk(monkeypatch), pytest.raises(StoreFullError, match="no room left"):
        store.append_gradients(*make_gradient_rows(3))
    assert holds_gradients(store)
    store.append_gradients(*make_gradient_rows(3, seed=1))
    assert not holds_gradients(store)
    assert_known(store, *make_gradient_rows(3))


def test_damage_after_opening_is_found_where_it_is_and_made_good(tmp_path, monkeypatch):
    small_row_groups(monkeypatch, 4)
    rows = make_gradient_rows(12)
    store = make_parquet_store(tmp_path)
    store.append_gradients(*rows)
    (path,) = shards(tmp_path)
    place = pq.ParquetFile(path).metadata.row_group(1).column(3)
    data = bytearray(path.read_bytes())
    data[place.data_page_offset + place.total_compressed_size - 3] ^= 1
    path.write_bytes(data)
    assert_known(store, *(part[:4] for part in rows))
    assert_known(store, *(part[8:] for part in rows))
    with pytest.warns(
        StoreWarning, match=f"{path.name} cannot be used: it is cut short or damaged"
    ):
        assert not store.look_up_gradients(rows[0][4:8], rows[1][4:8])[2].any()
    store.append_gradients(*rows)
    assert_known(store, *rows)
    assert_known(make_parquet_store(tmp_path), *rows)


def test_what_a_damaged_shard_had_replaced_is_found_again(tmp_path):
    masks, prompts, values, gradients = make_gradient_rows(5)
    store = make_parquet_store(tmp_path)
    store.append_gradients(masks, prompts, values, gradients)
    store.append_gradients(masks[:2], prompts[:2], values[:2], -gradients[:2])
    data = bytearray(shards(tmp_path)[1].read_bytes())
    place = pq.ParquetFile(shards(tmp_path)[1]).metadata.row_group(0).column(3)
    data[place.data_page_offset + place.total_compressed_size - 3] ^= 1
    shards(tmp_path)[1].write_bytes(data)
    with pytest.warns(StoreWarning, match="cannot be used"):
        assert_known(store, masks, prompts, values, gradients)


def test_values_and_gradients_are_merged_apart_and_keep_their_precedence(tmp_path):
    masks, prompts, values, gradients = make_gradient_rows(8)
    store = make_parquet_store(tmp_path)
    for half in (slice(4), slice(4, None)):
        row = (masks[half], prompts[half], values[half])
        store.append_gradients(*row[:2], row[2] + 1e-7, gradients[half])
        store.append(*row)
    before = numbers_by_row(store.table())
    store.close()
    assert sorted(path.name[25:] for path in shards(tmp_path)) == [".gradients.parquet", ".parquet"]
    for known in (store, make_parquet_store(tmp_path)):
        assert_equal(known.look_up(masks, prompts)[0], values)
        assert_equal(known.look_up_gradients(masks, prompts)[0], values + 1e-7)
        assert_equal(known.look_up_gradients(masks, prompts)[1], gradients)
        assert numbers_by_row(known.table()) == before


def test_a_merge_keeps_the_later_of_two_gradients(tmp_path):
    masks, prompts, values, gradients = make_gradient_rows(5)
    with make_parquet_store(tmp_path) as store:
        store.append_gradients(masks, prompts, values, gradients)
        store.append_gradients(masks[:2], prompts[:2], values[:2], -gradients[:2])
    expected = torch.cat([-gradients[:2], gradients[2:]])
    for known in (store, make_parquet_store(tmp_path)):
        assert_known(known, masks, prompts, values, expected)
        assert len(known.table()) == 5


def test_a_store_follows_its_rows_when_another_process_merges_them(tmp_path):
    first, second, third = (make_gradient_rows(6, seed=seed) for seed in range(3))
    value = make_rows(1, seed=9)
    one = make_parquet_store(tmp_path)
    one.append_gradients(*first)
    one.append(*value)
    two = make_parquet_store(tmp_path)
    two.append_gradients(*second)
    two.append(*value)
    two.close()
    assert len(shards(tmp_path)) == 2, "the files that one has written are gone"
    assert_known(one, *first)
    assert_known(one, *second)
    assert len(one.table()) == len(two.table())
    one.append_gradients(*third)
    one.close()
    assert len(shards(tmp_path)) == 2
    for store in (one, make_parquet_store(tmp_path)):
        for rows in (first, second, third, value):
            assert_known(store, *rows)


@each_kind
def test_refreshing_learns_what_other_processes_wrote(tmp_path, make):
    one, two = make_parquet_store(tmp_path), make_parquet_store(tmp_path)
    rows = make(6)
    append(two, *rows)
    assert not one.look_up(*rows[:2])[1].any()
    one.refresh()
    assert_known(one, *rows)


@each_kind
def test_a_long_run_keeps_its_files_few(tmp_path, monkeypatch, make):
    monkeypatch.setattr("circuitspex.evaluation.store.shards._MAX_LOOSE", 4)
    store, other = make_parquet_store(tmp_path), make_parquet_store(tmp_path)
    batches = [make(3, seed=seed) for seed in range(11)]
    append(other, *batches[10])
    for batch in batches[:10]:
        append(store, *batch)
    assert len(shards(tmp_path)) == 1 + 2 + 2, "another's, two merged, and two still loose"
    for known in (store, make_parquet_store(tmp_path)):
        for batch in batches[:10]:
            assert_known(known, *batch)
    assert_known(make_parquet_store(tmp_path), *batches[10])


@each_kind
def test_a_long_run_goes_on_when_its_files_were_merged_by_another(tmp_path, monkeypatch, make):
    monkeypatch.setattr("circuitspex.evaluation.store.shards._MAX_LOOSE", 4)
    store = make_parquet_store(tmp_path)
    batches = [make(3, seed=seed) for seed in range(10)]
    for batch in batches[:3]:
        append(store, *batch)
    make_parquet_store(tmp_path).close()
    for batch in batches[3:]:
        append(store, *batch)
    for known in (store, make_parquet_store(tmp_path)):
        for batch in batches:
            assert_known(known, *batch)


def test_a_table_is_read_after_another_process_has_merged_its_files(tmp_path):
    one = make_parquet_store(tmp_path)
    one.append(*make_rows(6, seed=1))
    two = make_parquet_store(tmp_path)
    two.append(*make_rows(6, seed=2))
    before = numbers_by_row(two.table())
    two.close()
    assert numbers_by_row(one.table()) == before


def test_opening_while_another_process_merges_finds_everything(tmp_path, monkeypatch):
    batches = [make_gradient_rows(6, seed=seed) for seed in range(3)]
    other = make_parquet_store(tmp_path)
    for batch in batches:
        append(other, *batch)
    read_bytes = Path.read_bytes

    def merge_first(path):
        if path.suffix == ".parquet":
            other.close()
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", merge_first)
        store = make_parquet_store(tmp_path)
    assert len(shards(tmp_path)) == 1
    for batch in batches:
        assert_known(store, *batch)


def test_a_gradient_whose_file_was_deleted_is_simply_unknown(tmp_path):
    kept, lost = make_gradient_rows(4, seed=1), make_gradient_rows(4, seed=2)
    store = make_parquet_store(tmp_path)
    store.append_gradients(*kept)
    store.append_gradients(*lost)
    shards(tmp_path)[1].unlink()
    assert not store.look_up_gradients(*lost[:2])[2].any()
    assert_known(store, *kept)
    store.append_gradients(*lost)
    assert_known(make_parquet_store(tmp_path), *lost)


def test_stores_written_before_there_were_gradients_open(tmp_path):
    masks, prompts, values, gradients = make_gradient_rows(7)
    make_parquet_store(tmp_path)
    packed = [bytes(row) for row in pack(masks)]
    table = pa.table(
        [pa.array(packed, pa.binary(2)), pa.array(prompts.int().numpy()), pa.array(values.numpy())],
        schema=pa.schema([("mask", pa.binary(2)), ("prompt", pa.int32()), ("value", pa.float64())]),
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data = sink.getvalue().to_pybytes()
    digest = hashlib.blake2b(data, digest_size=8).hexdigest()
    (tmp_path / "evaluations" / f"00000001-{digest}.parquet").write_bytes(data)
    with make_parquet_store(tmp_path) as store:
        assert_known(store, masks, prompts, values)
        assert not store.look_up_gradients(masks, prompts)[2].any()
        store.append_gradients(masks, prompts, values, gradients)
        assert_known(store, masks, prompts, values, gradients)
