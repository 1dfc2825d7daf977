"""Files from strangers, changed at random, and what becomes of who opens them."""

import hashlib
import io
import json
import random
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from writers import SPEC, rows_of

from circuitspex.cli import show
from circuitspex.errors import CircuitSpexError
from circuitspex.evaluation.store import ParquetStore
from circuitspex.findings import load, read_summary
from circuitspex.report import render_page
from circuitspex.runs import Settings

LONGEST = 60
"""Seconds after which something hangs."""
JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 40, 10**6, 10**12, 2**63, -(2**70), 10**400),
    *(0.0, -0.5, 1.5, 1e300, -1e-300, float("nan"), float("inf")),
    *("", "L0H0", "<script>alert(1)</script>", "\u0000", "\ud800", "fourier", "moebius", "exact"),
    *("../../../etc/passwd", "%s%n{0.__class__}", "[link=file:///]x[/link]", "[/]", "a" * 9999),
    *([], {}, [[]], [[0]], [None], [[0, 1], [0, 1]], [*range(45)], [[*range(45)]], {"": 0}),
    *({"name": {"name": []}}, [1e300, 1e300], [["L0H0", "<b>"]], "!!python/object:os.system"),
]


def fuzz_results(whole: Path, place: Path, rng: random.Random) -> list[str]:
    """Change one file of a result folder, then load, show and draw the folder.

    Args:
        whole: A folder of results.
        place: Where the changed copy goes.
        rng: What to change.

    Returns:
        What else than our own errors came of it.
    """
    shutil.copytree(whole, place, ignore=shutil.ignore_patterns("evaluations", "report.html"))
    path = rng.choice(sorted(place.glob("*.json")) + sorted(place.glob("*.yaml")))
    _change(path, rng)
    uses: dict[str, Callable[[], object]] = {
        "load": lambda: load(place),
        "show": lambda: _show(place),
        "draw": lambda: _draw(place),
        "read_summary": lambda: read_summary(place),
        "read settings": lambda: Settings.load(place / "settings.yaml"),
    }
    return [
        f"{name} of {path.name}: {said} ({path.read_bytes()[:300]!r})"
        for name, use in uses.items()
        if (said := _surprise(use)) is not None
    ]


def fuzz_shards(place: Path, rng: random.Random) -> list[str]:
    """Put a shard into a store that calls itself intact and is not, then use the store.

    Args:
        place: Where the store goes.
        rng: What to change.

    Returns:
        What went wrong.
    """
    store = ParquetStore(place, SPEC)
    store.append(*rows_of([1, 2, 3]))
    store.append_gradients(*rows_of([4, 5, 6]), rows_of([4, 5, 6])[0].float())
    shard = rng.choice(sorted(place.glob("*.parquet")))
    data = _change_table(shard, rng) if rng.random() < 0.5 else _change_bytes(shard, rng)
    digest = hashlib.blake2b(data, digest_size=8).hexdigest()
    (place / f"00000009-{digest}{shard.name[25:]}").write_bytes(data)

    def use() -> None:
        with ParquetStore(place, SPEC) as again:
            assert again.look_up(*rows_of([1, 2, 3, 4, 5, 6])[:2])[1].all(), "rows are lost"
            again.look_up_gradients(*rows_of([*range(9)])[:2])
            assert len(again.table()) == len(again), "the table has other rows"

    said = _surprise(use)
    return [] if said is None else [f"{shard.name[25:]}: {said}"]


def _surprise(use: Callable[[], object]) -> str | None:
    with warnings.catch_warnings(), _alarm():
        warnings.simplefilter("ignore")
        try:
            use()
        except CircuitSpexError as error:
            return None if len(str(error)) > 20 else f"no words: {error!r}"
        except BaseException as error:  # noqa: BLE001 - whatever else it is, it is a surprise
            return f"{type(error).__name__}: {error}"[:300]
    return None


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _show(folder: Path) -> None:
    with patch.object(show, "out", Console(file=io.StringIO(), width=100)):
        show.show_findings(load(folder), top=10)


def _draw(folder: Path) -> None:
    page = render_page(load(folder))
    assert "<script>alert" not in page, "a script got into the page"


def _change(path: Path, rng: random.Random) -> None:
    if path.suffix != ".json" or rng.random() < 0.25:
        path.write_bytes(_change_bytes(path, rng))
        return
    document = json.loads(path.read_text())
    for _ in range(rng.choice([1, 1, 2])):
        _change_node(document, rng)
    text = json.dumps(document)
    if path.name == "spec.json":  # whose hashes a stranger can compute
        text = _with_hashes(document) or text
    path.write_text(text)


def _with_hashes(document: Any) -> str | None:
    from circuitspex._shared import Spec

    try:
        spec = Spec(*(document[part] for part in ("evaluation", "discovery", "versions")))
        return json.dumps(spec._document())
    except (CircuitSpexError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _change_node(document: Any, rng: random.Random) -> None:
    """Replace, add or remove something anywhere in a document."""
    places = [*_places(document)]
    if not places:
        return
    # Shallow places are few, and as likely as all the numbers of a long list.
    depth = rng.choice(sorted({depth for _, _, depth in places}))
    holder, key, _ = rng.choice([place for place in places if place[2] == depth])
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.append(rng.choice([rng.choice(JUNK), holder[key]]))
        case 1:
            holder[rng.choice(["extra", "", "__class__"])] = rng.choice(JUNK)
        case _:
            holder[key] = rng.choice(JUNK)


def _places(node: Any, depth: int = 0) -> Iterator[tuple[Any, Any, int]]:
    keys = node if isinstance(node, dict) else range(len(node) if isinstance(node, list) else 0)
    for key in keys:
        yield node, key, depth
        yield from _places(node[key], depth + 1)


def _change_bytes(path: Path, rng: random.Random) -> bytes:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data = data[:at] or bytearray(b"{")
            case 1:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 2:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case _:
                data[at:at] = rng.choice(
                    [b"[" * 99999, b'"', b"{}", b"\xff\xfe", b"!!python/name:x"]
                )
    return bytes(data)


def _change_table(path: Path, rng: random.Random) -> bytes:
    table = pq.read_table(path)
    column = rng.randrange(table.num_columns)
    name, n = table.column_names[column], len(table)
    changed = rng.choice(
        [
            pa.nulls(n, table.schema.field(column).type),
            pa.array([None] * n),
            pa.array([float("nan")] * n),
            pa.array([-(2**31)] * n, pa.int32()),
            pa.array([2**31 - 1] * n, pa.int32()),
            pa.array([b"x" * 3] * n, pa.binary(3)),
            pa.array([b"\xff" * 80] * n, pa.binary(80)),
            pa.array(["x"] * n),
            pa.array([[1]] * n),
            pa.array([{"a": 1}] * n),
        ]
    )
    match rng.randrange(4):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.append_column("more", changed)
        case 2:
            table = table.set_column(column, rng.choice(["mask", "value", name]), changed)
        case _:
            table = table.slice(0, 0)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=rng.choice(["none", "snappy", "gzip"]))
    return sink.getvalue().to_pybytes()
