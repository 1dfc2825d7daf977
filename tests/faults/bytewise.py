"""A shard damaged in every way that one byte allows: named, set aside, and nothing else lost."""

import warnings
from pathlib import Path

from writers import SPEC, rows_of

from circuitspex.errors import StoreWarning
from circuitspex.evaluation.store import ParquetStore

HURT, UNHURT = rows_of([*range(20)]), rows_of([*range(100, 120)])


def damage_every_byte(folder: Path, *, cut: bool, step: int = 1) -> list[str]:
    """Cut a shard of each kind after every byte, or flip a bit of every byte.

    Args:
        folder: Where the store is made.
        cut: Which of the two.
        step: Bytes from one to the next.

    Returns:
        What went wrong.
    """
    found = []
    for with_gradients in (False, True):
        place = folder / f"gradients {with_gradients}"
        store = ParquetStore(place, SPEC)
        append = store.append_gradients if with_gradients else store.append
        for rows in (HURT, UNHURT):
            append(*rows, *([rows[0].float()] if with_gradients else []))
        shard = sorted(place.glob("*.parquet"))[0]
        whole = shard.read_bytes()
        for at in range(0, len(whole), step):
            changed = bytes([whole[at] ^ 1 << at % 8])
            shard.write_bytes(whole[:at] + (b"" if cut else changed + whole[at + 1 :]))
            found += [f"byte {at} of {len(whole)}: {what}" for what in _complaints(shard)]
        shard.write_bytes(whole)
        assert len(ParquetStore(place, SPEC)) == 40
    return found


def _complaints(shard: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        store = ParquetStore(shard.parent, SPEC)
    aside = shard.with_name(f"{shard.name}.aside")
    found = []
    if [w.category for w in said] != [StoreWarning] or shard.name not in str(said[0].message):
        found.append("it was not named")
    if not aside.exists() or shard.exists():
        found.append("it was not set aside")
    aside.unlink(missing_ok=True)
    if store.look_up(*HURT[:2])[1].any():
        found.append("its rows are believed")
    if not store.look_up(*UNHURT[:2])[1].all():
        found.append("other rows are lost")
    return found
