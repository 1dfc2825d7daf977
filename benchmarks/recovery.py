"""Which planted games does each decoder recover, and does any decoder of shapiq do better?

Games: ``sch``, ten interactions of order 5 and all their parts; ``peak``, the ten alone; ``gates``,
ORs, ANDs and XORs of two to four units; ``heads``, logistic of sparse linear, OR and AND parts,
with binomial noise. Budgets are α n log2 n evaluations.

* **Same masks, same values.** ``proxyspex``, ``lasso`` and, of shapiq, ProxySPEX, ProxySHAP, the
  FBII regression and the LASSO on single units are given the same rows: the empty mask, the full
  one, and masks drawn at keep rate ½. ``hybrid`` and ``spex`` and, of shapiq, SPEX draw coded masks
  of their own, at most the budget; KernelSHAP-IQ draws from its own kernel.
* **shapiq as it comes**, but for three things in its favour. SPEX is also run with the regression
  that its engine has and shapiq does not call (``spex-refit``). ProxySPEX is judged before its
  conversion to an index. ProxySHAP's FBII of order 5 and of order 2 are both listed. The constants
  of ProxySHAP, FBII and KernelSHAP-IQ are fitted to the rows, as shapiq puts the empty mask's value
  there.
* **R²** is of the noiseless truth on 2,000 fresh uniform masks.
* **F1** is of the support without the constant, in the Fourier basis at ½, where the truth is
  sparse there: a term counts as there if its coefficient is above 0.001 of the largest, in the
  truth as in what was found.
* **Seconds** are processor seconds of decoding, one thread each; evaluating the game is left out. A
  peer that takes longer than ``--limit`` on the clock is stopped, which is recorded as such.

Every cell is a line of ``--results``; cells that are there already are skipped, so a run can be
stopped and continued. ``--summary`` prints the tables. ``--peer-python`` names the interpreter of
an environment with ``shapiq[sparse,proxy]``; without it the present one is asked, and what its
shapiq lacks is recorded as lacking.

    OMP_NUM_THREADS=1 python benchmarks/recovery.py --results cells.jsonl --peer-python PYTHON
    python benchmarks/recovery.py --results cells.jsonl --summary
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from peers.calls import Peer, PeerError
from peers.tables import Table
from torch import Tensor

from circuitspex import Interaction, decoders, games
from circuitspex.decoders.regression.sparse_regression import SparseRegression
from circuitspex.errors import CircuitSpexError
from circuitspex.games import Game, SparseGame

GAMES = {"heads": "heads", "sch": "hierarchy", "peak": "peak", "gates": "gates"}
"""What each game is called in the tables and in the library."""
MAX_ORDER = 5
FLOOR = 1e-3
OURS = ("hybrid", "spex", "proxyspex", "lasso")
ON_GIVEN_ROWS = ("proxyspex", "lasso")
PEERS = {
    "lasso1": ("lasso1",),
    "proxyshap": ("proxyshap", "proxyshap-2"),
    "fbii": ("fbii",),
    "kernelshapiq": ("kernelshapiq",),
    "proxyspex": ("proxyspex",),
    "spex": ("spex", "spex-refit"),
}
"""Methods of the worker, the fast ones first, and the names of what each returns."""
SLOW = ("proxyspex", "spex")
SIZES = (
    *((96, alpha) for alpha in (1, 2)),
    *((270, alpha) for alpha in (1, 2)),
    *((n_units, alpha) for alpha in (0.5, 4) for n_units in (96, 270)),
    *((20, alpha) for alpha in (1, 2, 4, 8, 0.5, 0.25)),
    *((1024, alpha) for alpha in (0.5, 1, 0.25, 2)),
    *((n_units, alpha) for alpha in (0.25, 8) for n_units in (96, 270)),
    *((1024, alpha) for alpha in (4, 8)),
    *((10_000, alpha) for alpha in (0.25, 0.5, 1, 2, 4, 8)),
)
"""Numbers of units and α, the most telling first."""


@dataclass(frozen=True)
class Cell:
    """One game of one size, its budget and its seed."""

    game: str
    n_units: int
    alpha: float
    seed: int

    @property
    def budget(self) -> int:
        """α n log2 n."""
        return round(self.alpha * self.n_units * np.log2(self.n_units))

    def make(self) -> Game:
        """Return the game, as new."""
        return games.make(GAMES[self.game], self.n_units, self.seed)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Draw the rows that all methods without masks of their own are given."""
        masks = self._uniform(self.budget, 0)
        masks[0], masks[1] = False, True
        return torch.from_numpy(masks), self.make()(torch.from_numpy(masks)).double()

    def fresh(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw 2,000 fresh masks, with the truth."""
        masks = self._uniform(2000, 1)
        return masks, self.make().truth(torch.from_numpy(masks))

    def _uniform(self, n_masks: int, stream: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, self.n_units, self.budget, stream])
        return rng.integers(0, 2, (n_masks, self.n_units), dtype=np.uint8).astype(bool)


class _Timed:
    """A game that counts what it answered and how long that took."""

    def __init__(self, game: Game) -> None:
        self.game, self.n_units = game, game.n_units
        self.seconds, self.n_masks = 0.0, 0

    def __call__(self, masks: Tensor) -> Tensor:
        start = time.process_time()
        values = self.game(masks)
        self.seconds += time.process_time() - start
        self.n_masks += len(masks)
        return values


def parity_predict(spectrum: dict[Interaction, float], masks: np.ndarray) -> np.ndarray:
    """Evaluate a spectrum in the parity convention, (-1) to the number of kept units of a term."""
    values = np.zeros(len(masks))
    for term, value in spectrum.items():
        values += value * (1.0 - 2.0 * (masks[:, list(term)].sum(axis=1) % 2))
    return values


def r2(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Share of the truth's variance that is predicted."""
    return float(1 - np.square(truth - predicted).mean() / truth.var())


def support(spectrum: dict[Interaction, float]) -> set[Interaction]:
    """Return the terms that count as there."""
    sizes = {term: abs(value) for term, value in spectrum.items() if term}
    largest = max(sizes.values(), default=0.0)
    return {term for term, size in sizes.items() if size > FLOOR * largest}


def f1_by_order(truth: set[Interaction], found: set[Interaction]) -> dict[str, float]:
    """Return F1 over all terms, and over those of each order in either."""
    scores = {}
    for name in ("all", *sorted({str(len(term)) for term in truth | found})):
        both = [{t for t in s if name in ("all", str(len(t)))} for s in (truth, found)]
        n_terms = len(both[0]) + len(both[1])
        scores[name] = 2 * len(both[0] & both[1]) / n_terms if n_terms else 1.0
    return scores


def scores(cell: Cell, spectrum: dict[Interaction, float]) -> dict[str, Any]:
    """Judge a spectrum in the parity convention."""
    masks, truth = cell.fresh()
    row: dict[str, Any] = {
        "r2": r2(truth, parity_predict(spectrum, masks)),
        "terms": len(support(spectrum)),
    }
    game = cell.make()
    if isinstance(game, SparseGame):
        planted = dict(zip(game.support, game.coefficients.tolist(), strict=True))
        row["f1"] = f1_by_order(support(planted), support(spectrum))
    return row


def run_ours(cell: Cell, name: str) -> dict[str, Any]:
    """Run one of our decoders."""
    order = 2 if name == "lasso" else MAX_ORDER
    decoder = decoders.get(name, keep_rate=0.5, max_order=order)
    game = _Timed(cell.make())
    if name in ON_GIVEN_ROWS and isinstance(decoder, SparseRegression):
        masks, values = cell.rows()
        start = time.process_time()
        found = decoder.fit(masks, values, np.random.default_rng(cell.seed))
    else:
        start = time.process_time()
        found = decoder.decode(game, budget=cell.budget, seed=cell.seed)
    seconds = time.process_time() - start - game.seconds
    found = found.to("fourier", keep_rate=0.5)
    signed = zip(found.support, found.coefficients.tolist(), strict=True)
    return {
        **scores(cell, {term: value * (-1) ** len(term) for term, value in signed}),
        "samples": found.n_evaluations,
        "seconds": seconds,
        "held_out_r2": found.held_out_r2,
    }


def run_theirs(cell: Cell, method: str, peer: Peer, limit: float) -> dict[str, dict[str, Any]]:
    """Run one method of shapiq, which may give several results."""
    masks, values = (tensor.numpy() for tensor in cell.rows())
    job = {"method": method, "n_units": cell.n_units, "budget": cell.budget}
    game = cell.make()
    found = peer.run(
        {**job, "seed": cell.seed, "max_order": MAX_ORDER},
        (masks, values),
        lambda asked: game(torch.from_numpy(asked)).double().numpy(),
        limit,
    )
    return {
        f"shapiq {name}": {
            **scores(cell, one.spectrum),
            "samples": one.n_samples,
            "seconds": one.seconds,
            "compile_seconds": one.compile_seconds,
            "version": one.version,
        }
        for name, one in found.items()
    }


def left_out(cell: Cell, method: str) -> str | None:
    """Return why a cell is not run, if it is not."""
    size = cell.budget * cell.n_units
    if size > 4e8:
        return f"left out: {cell.budget:,} masks of {cell.n_units:,} units are {size / 1e9:.1f} GB"
    n_columns = 1 + cell.n_units + cell.n_units * (cell.n_units - 1) // 2
    if method in ("fbii", "kernelshapiq"):
        if n_columns > 5000:
            return f"left out: {n_columns:,} columns of order up to 2 are too many"
        if n_columns > cell.budget:
            return f"left out: {cell.budget:,} rows do not determine {n_columns:,} columns"
    return None


class OutOfTimeError(Exception):
    """One of our decoders took longer than the limit."""


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise OutOfTimeError


def one_of_ours(cell: Cell, name: str, limit: float) -> dict[str, Any]:
    """Run one of our decoders within a limit, or say why there is no result."""
    signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        return run_ours(cell, name)
    except OutOfTimeError:
        return {"note": f"over {limit:.0f} s"}
    except CircuitSpexError as error:
        return {"note": f"{type(error).__name__}: {error}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def one_of_theirs(cell: Cell, method: str, peer: Peer, limit: float) -> dict[str, dict[str, Any]]:
    """Run one method of shapiq within a limit, or say why there is no result."""
    try:
        return run_theirs(cell, method, peer, limit)
    except PeerError as error:
        return {f"shapiq {name}": {"note": str(error)} for name in PEERS[method]}


class Results:
    """The cells done so far, one JSON object a line; the last line of a cell counts."""

    def __init__(self, path: Path, redo: Sequence[str] = ()) -> None:
        self.path = path
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        self.redo = set(redo)
        for line in path.read_text().splitlines() if path.exists() else []:
            row = json.loads(line)
            self.rows[self._key(row)] = row

    @staticmethod
    def _key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[k] for k in ("game", "n_units", "alpha", "seed", "method"))

    def has(self, cell: Cell, method: str) -> bool:
        """Whether a cell is done."""
        key = (cell.game, cell.n_units, cell.alpha, cell.seed, method)
        return key in self.rows and method not in self.redo

    def add(self, cell: Cell, method: str, row: dict[str, Any]) -> None:
        """Keep a cell and print it."""
        keys = {"game": cell.game, "n_units": cell.n_units, "alpha": cell.alpha, "seed": cell.seed}
        row = {**keys, "budget": cell.budget, "method": method, **row}
        self.rows[self._key(row)] = row
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        said = row.get("note") or (
            f"R² {row['r2']:+.3f}  F1 {row['f1']['all'] if 'f1' in row else float('nan'):.2f}  "
            f"{row['terms']:5d} terms  {row['samples']:6d} masks  {row['seconds']:7.2f} s"
        )
        where = f"{cell.game:5s} {cell.n_units:5d} {cell.alpha:5} {cell.seed}"
        print(f"{where} {method:18s} {said}", flush=True)


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """All cells wanted, the most telling first."""
    for n_units, alpha in SIZES:
        if n_units in arguments.units and alpha in arguments.alphas:
            for seed in arguments.seeds:
                for game in arguments.games:
                    yield Cell(game, n_units, alpha, seed)


def run(arguments: argparse.Namespace, results: Results) -> None:
    """Run every cell that is wanted and not there."""
    peer = Peer(arguments.peer_python)
    for cell in cells(arguments):
        for name in (n for n in OURS if n in arguments.ours and n in decoders.DECODERS):
            if not results.has(cell, name):
                note = left_out(cell, name)
                row = {"note": note} if note else one_of_ours(cell, name, arguments.our_limit)
                results.add(cell, name, row)
        for method in (m for m in PEERS if m in arguments.peers):
            if method in SLOW and cell.seed != arguments.seeds[0]:
                continue
            if all(results.has(cell, f"shapiq {name}") for name in PEERS[method]):
                continue
            note = left_out(cell, method)
            found = (
                {f"shapiq {name}": {"note": note} for name in PEERS[method]}
                if note
                else one_of_theirs(cell, method, peer, arguments.limit)
            )
            for name, row in found.items():
                results.add(cell, name, row)
    peer.close()


def check_answers() -> None:
    """Make sure that what is about to be measured is measured right."""
    for name in GAMES:
        cell = Cell(name, 20, 4, 0)
        game = cell.make()
        if not isinstance(game, SparseGame):
            continue
        signed = zip(game.support, game.coefficients.tolist(), strict=True)
        row = scores(cell, {term: value * (-1) ** len(term) for term, value in signed})
        if row["f1"]["all"] != 1 or row["r2"] < 1 - 1e-12:
            raise SystemExit(f"the truth of {name} does not score 1: {row}")
    terms: list[Interaction] = [(), (1,), (4,), (1, 4), (4, 7), (1, 4, 7)]
    game = SparseGame(12, terms, np.array([1.0, 2.0, -2.0, 1.5, 1.0, -1.0]))
    masks = torch.from_numpy(np.random.default_rng(1).random((500, 12)) < 0.5)
    for name in (n for n in ("hybrid", "spex", "proxyspex") if n in decoders.DECODERS):
        decoder = decoders.get(name, keep_rate=0.5, max_order=3)
        predicted = decoder.decode(game, budget=800, seed=0).predict(masks).numpy()
        if np.abs(predicted - game.truth(masks)).max() > 1e-6:
            raise SystemExit(f"{name} did not decode a small noiseless game exactly")


def summarise(results: Results, arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the tables and what they say about the targets."""
    wanted = [
        row
        for row in results.rows.values()
        if row["game"] in arguments.games
        and row["n_units"] in arguments.units
        and row["alpha"] in arguments.alphas
    ]
    table = Table(wanted, list(GAMES), arguments.verdict)
    theirs = [f"shapiq {name}" for names in PEERS.values() for name in names]
    for line in table.full([*OURS, *theirs]) if arguments.full else table.short(OURS):
        print(line)
    said = {"losses": table.losses(0.01), "missed_peaks": table.missed_peaks(0.9)}
    for name, cells in said.items():
        print(f"\n{name.replace('_', ' ')} of {arguments.verdict}: {len(cells)}")
        for cell in cells:
            print(json.dumps(cell))
    return said


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Which planted games does each decoder recover?")
    parser.add_argument("--smoke", action="store_true", help="20 units, no slow peers, under 20 s")
    parser.add_argument("--summary", action="store_true", help="print the tables and run nothing")
    parser.add_argument("--results", type=Path, default=Path("recovery.jsonl"))
    parser.add_argument("--redo", nargs="+", default=[], help="methods to run again")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for a peer")
    parser.add_argument("--our-limit", type=float, default=600.0, help="seconds for ours")
    parser.add_argument("--games", nargs="+", default=list(GAMES), choices=list(GAMES))
    parser.add_argument("--units", type=int, nargs="+", default=sorted({n for n, _ in SIZES}))
    parser.add_argument("--alphas", type=float, nargs="+", default=sorted({a for _, a in SIZES}))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ours", nargs="*", default=list(OURS), choices=list(OURS))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--verdict", default="hybrid", choices=list(OURS), help="whom to judge")
    parser.add_argument("--full", action="store_true", help="every method in the table")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.units, arguments.alphas, arguments.games = [20], [4.0], ["sch", "gates"]
        arguments.peers, arguments.seeds = ["lasso1", "fbii"], [0]
    return arguments


def main() -> None:
    """Run, or sum up; the last line of output is one JSON object."""
    arguments = parse()
    if arguments.smoke:
        arguments.results = Path(tempfile.mkdtemp()) / "cells.jsonl"
    results = Results(arguments.results, arguments.redo)
    if not arguments.summary:
        check_answers()
        run(arguments, results)
    said = summarise(results, arguments)
    print(
        json.dumps(
            {
                "benchmark": "recovery",
                "smoke": arguments.smoke,
                "torch_threads": torch.get_num_threads(),
                "cells": len(results.rows),
                **said,
            }
        )
    )


if __name__ == "__main__":
    main()
