"""One contract for every store, and what only the one on disk can get wrong."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from circuitspex.errors import (
    MaskError,
    ResultError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreMismatchError,
)
from circuitspex.masks import unpack
from circuitspex.spec import Spec
from circuitspex.store import MemoryStore, ParquetStore, Store

N_UNITS, N_PROMPTS = 11, 4
SPEC = Spec({"model": "toy", "processing": "none", "n_units": N_UNITS, "n_prompts": N_PROMPTS})


def make_memory_store(folder: Path) -> Store:
    return MemoryStore(N_UNITS, N_PROMPTS)


def make_parquet_store(folder: Path) -> Store:
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


def assert_known(store: Store, masks, prompts, values) -> None:
    looked_up, found = store.look_up(masks, prompts)
    assert found.all()
    torch.testing.assert_close(looked_up, values, rtol=0, atol=0)


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


def test_look_up_is_fast_among_many_rows(store):
    masks, prompts, values = make_rows(100_000)
    store.append(masks, prompts, values)
    start = time.perf_counter()
    assert_known(store, masks[:500], prompts[:500], values[:500])
    assert time.perf_counter() - start < 0.5


# On disk


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "evaluations").glob("*.parquet"))


def test_a_store_opened_again_knows_everything(tmp_path):
    first, second = make_rows(20, seed=1), make_rows(30, seed=2)
    abandoned = make_parquet_store(tmp_path)  # never closed, as after kill -9
    abandoned.append(*first)
    abandoned.append(*second)
    assert len(shards(tmp_path)) == 2
    reopened = make_parquet_store(tmp_path)
    assert_known(reopened, *first)
    assert_known(reopened, *second)
    assert len(reopened) == len(abandoned)


def test_closing_merges_the_shards_and_loses_nothing(tmp_path):
    batches = [make_rows(7, seed=seed) for seed in range(6)]
    with make_parquet_store(tmp_path) as store:
        for batch in batches:
            store.append(*batch)
        before = store.table().sort_by([("value", "ascending")])
    assert len(shards(tmp_path)) == 1
    with make_parquet_store(tmp_path) as store:
        for batch in batches:
            assert_known(store, *batch)
        assert store.table().sort_by([("value", "ascending")]).equals(before)
    assert len(shards(tmp_path)) == 1


def test_large_shards_are_not_merged_into_one(tmp_path, monkeypatch):
    monkeypatch.setattr("circuitspex.store.parquet._MERGED_BYTES", 25 * (2 + 12))
    batches = [make_rows(10, seed=seed) for seed in range(5)]
    with make_parquet_store(tmp_path) as store:
        for batch in batches:
            store.append(*batch)
    assert len(shards(tmp_path)) == 3
    for batch in batches:
        assert_known(make_parquet_store(tmp_path), *batch)


@pytest.mark.parametrize("n_unlinked", [0, 1, 2])
def test_a_merge_that_is_cut_off_loses_nothing(tmp_path, monkeypatch, n_unlinked):
    batches = [make_rows(7, seed=seed) for seed in range(4)]
    store = make_parquet_store(tmp_path)
    for batch in batches:
        store.append(*batch)
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


def test_two_writers_in_one_folder_keep_both_their_rows(tmp_path):
    one, two = make_parquet_store(tmp_path), make_parquet_store(tmp_path)
    batches = [make_rows(9, seed=seed) for seed in range(4)]
    for batch, store in zip(batches, [one, two, one, two], strict=True):
        store.append(*batch)
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
    from circuitspex.spec import Spec
    from circuitspex.store import ParquetStore
    spec = Spec({"n_units": 12, "n_prompts": 1})
    store = ParquetStore(sys.argv[1], spec)
    for number in range(4000):
        mask = torch.tensor([[number >> bit & 1 == 1 for bit in range(12)]])
        store.append(mask, torch.tensor([0]), torch.tensor([float(number)]))
        print(number, flush=True)
""")


@pytest.mark.parametrize("n_appends", [1, 5, 23])
def test_kill_9_loses_nothing_that_append_returned_from(tmp_path, n_appends):
    command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path)]
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
    assert_known(store, masks, torch.zeros_like(numbers), numbers.double())
    assert len(store) in (last + 1, last + 2)  # the append in progress may have made it


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_a_shard_cut_short_is_named_with_what_to_do(tmp_path, share):
    make_parquet_store(tmp_path).append(*make_rows(20, seed=1))
    kept = make_rows(20, seed=2)
    make_parquet_store(tmp_path).append(*kept)
    damaged = shards(tmp_path)[0]
    damaged.write_bytes(damaged.read_bytes()[: int(damaged.stat().st_size * share)])
    with pytest.raises(StoreCorruptError, match=rf"{damaged.name} is cut short .* Delete that"):
        make_parquet_store(tmp_path)
    damaged.unlink()
    assert_known(make_parquet_store(tmp_path), *kept)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.999])
def test_a_flipped_bit_is_found(tmp_path, share):
    make_parquet_store(tmp_path).append(*make_rows(20))
    path = shards(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreCorruptError, match=f"{path.name} is cut short or damaged"):
        make_parquet_store(tmp_path)


def test_a_shard_of_other_masks_is_refused(tmp_path):
    other = Spec({"n_units": 30, "n_prompts": N_PROMPTS})
    ParquetStore(tmp_path / "other", other).append(*make_rows(2, n_units=30))
    make_parquet_store(tmp_path)
    (stranger,) = (tmp_path / "other").glob("*.parquet")
    stranger.rename(tmp_path / "evaluations" / stranger.name)
    with pytest.raises(StoreCorruptError, match="not those of a store of 11 units"):
        make_parquet_store(tmp_path)


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


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', None])
def test_a_damaged_or_missing_store_json_is_refused(tmp_path, text):
    make_parquet_store(tmp_path).append(*make_rows(2))
    path = tmp_path / "evaluations" / "store.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(StoreCorruptError, match=r"store.json cannot be read .* Delete the folder"):
        make_parquet_store(tmp_path)


def test_a_changed_store_json_is_refused(tmp_path):
    make_parquet_store(tmp_path)
    path = tmp_path / "evaluations" / "store.json"
    path.write_text(path.read_text().replace("toy", "boy"))
    with pytest.raises(StoreCorruptError, match="do not match the hash"):
        make_parquet_store(tmp_path)


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
def test_a_full_disk_loses_nothing_and_says_what_to_do(tmp_path, monkeypatch, code):
    before, refused = make_rows(20, seed=1), make_rows(20, seed=2)
    store = make_parquet_store(tmp_path)
    store.append(*before)
    with full_disk(monkeypatch, code):
        with pytest.raises(StoreFullError, match=r"no room left to write .* Free some space"):
            store.append(*refused)
    assert_known(store, *refused)  # in memory
    assert not list((tmp_path / "evaluations").glob(".*"))
    assert_known(make_parquet_store(tmp_path), *before)
    assert not make_parquet_store(tmp_path).look_up(*refused[:2])[1].all()
    store.close()  # there is room again
    assert_known(make_parquet_store(tmp_path), *refused)


def test_closing_on_a_full_disk_raises_unless_another_error_is_on_its_way(tmp_path, monkeypatch):
    with full_disk(monkeypatch):
        with pytest.raises(StoreFullError, match="no room left"):
            make_parquet_store(tmp_path)
    store = make_parquet_store(tmp_path)
    with full_disk(monkeypatch):
        with pytest.raises(StoreFullError, match="no room left"):
            store.append(*make_rows(20))
        with pytest.raises(KeyboardInterrupt, match="by hand"), store:
            raise KeyboardInterrupt("by hand")
        with pytest.raises(StoreFullError, match="no room left"), store:
            pass


def test_a_merge_without_room_leaves_the_shards_alone(tmp_path, monkeypatch):
    store = make_parquet_store(tmp_path)
    batches = [make_rows(9, seed=seed) for seed in range(3)]
    for batch in batches:
        store.append(*batch)
    with full_disk(monkeypatch):
        store.close()
    assert len(shards(tmp_path)) == 3
    for batch in batches:
        assert_known(make_parquet_store(tmp_path), *batch)


LIMITED_WRITER = textwrap.dedent("""
    import resource, sys, torch
    from circuitspex.errors import StoreFullError
    from circuitspex.spec import Spec
    from circuitspex.store import ParquetStore
    store = ParquetStore(sys.argv[1], Spec({"n_units": 400, "n_prompts": 1}))
    masks = torch.rand(300, 400, generator=torch.Generator().manual_seed(0)) < 0.5
    zeros = torch.zeros(300, dtype=torch.int64)
    store.append(masks[:3], zeros[:3], torch.arange(3.0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        store.append(masks, zeros, torch.arange(300.0))
    except StoreFullError as error:
        print(error)
""")


def test_a_file_that_the_system_refuses_to_grow(tmp_path):
    command = [sys.executable, "-c", LIMITED_WRITER, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "no room left to write to" in said
    assert not list(tmp_path.glob(".*"))
    assert len(ParquetStore(tmp_path, Spec({"n_units": 400, "n_prompts": 1}))) == 3
