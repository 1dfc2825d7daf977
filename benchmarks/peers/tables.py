"""Tables and verdicts from the cells that ``recovery.py`` has run."""

from collections.abc import Iterable
from typing import Any

import numpy as np

Row = dict[str, Any]
SPEX_MASKS = {20: 672, 96: 984, 270: 1104, 1024: 1344, 10_000: 1704}
"""Fewest masks with which SPEX's code names every term of up to five units, by number of units."""


class Table:
    """Rows by game, number of units and α; then by method; then by seed."""

    def __init__(self, rows: Iterable[Row], games: list[str], ours: str) -> None:
        """Sort rows; ``ours`` is the decoder of ours that peers are compared with."""
        self.ours = ours
        found: dict[tuple[str, int, float], dict[str, dict[int, Row]]] = {}
        for row in rows:
            key = (row["game"], row["n_units"], row["alpha"])
            found.setdefault(key, {}).setdefault(row["method"], {})[row["seed"]] = row
        order = {name: i for i, name in enumerate(games)}
        self.rows = dict(sorted(found.items(), key=lambda item: (order[item[0][0]], *item[0][1:])))

    def best_peer(self, key: tuple[str, int, float]) -> tuple[str, float] | None:
        """Return the peer that does best against ours, and our R² less its.

        Means over the seeds that both have.
        """
        methods, found = self.rows[key], []
        own = {s: row for s, row in methods.get(self.ours, {}).items() if "r2" in row}
        for name, theirs in methods.items():
            seeds = [s for s in theirs if s in own and "r2" in theirs[s]]
            if name.startswith("shapiq") and seeds:
                difference = np.mean([own[s]["r2"] - theirs[s]["r2"] for s in seeds])
                found.append((float(difference), name))
        return (min(found)[1], min(found)[0]) if found else None

    def losses(self, margin: float) -> list[Row]:
        """Return where a peer is ahead of ours by more than a margin."""
        found = []
        for key in self.rows:
            best = self.best_peer(key)
            if best is not None and best[1] < -margin:
                names = dict(zip(("game", "n_units", "alpha"), key, strict=True))
                found.append({**names, "peer": best[0], "difference": best[1]})
        return found

    def missed_peaks(self, least: float) -> list[Row]:
        """Return where F1 on ``peak`` is too low although SPEX's code has the masks it needs."""
        found = []
        for (game, n_units, alpha), methods in self.rows.items():
            for seed, row in methods.get(self.ours, {}).items():
                enough = game == "peak" and row["budget"] >= SPEX_MASKS[n_units]
                if enough and ("f1" not in row or row["f1"]["all"] < least):
                    f1 = row["f1"]["all"] if "f1" in row else None
                    found.append({"n_units": n_units, "alpha": alpha, "seed": seed, "f1": f1})
        return found

    def short(self, ours: tuple[str, ...]) -> Iterable[str]:
        """Write R² of ours and of the best peer, F1 and seconds, as Markdown.

        Rows that ours has not been run on are left out.
        """
        yield (
            f"| game, n, α | masks | {' | '.join(ours)} | best of shapiq | {self.ours} − best "
            f"| F1 {self.ours}, peer | seconds {self.ours}, peer |"
        )
        yield "|---" * (len(ours) + 6) + "|"
        for (game, n_units, alpha), methods in self.rows.items():
            best = self.best_peer((game, n_units, alpha))
            peer = methods[best[0]] if best else {}
            own = methods.get(self.ours, {})
            if not any("r2" in row for row in own.values()):
                continue
            budget = next(iter(next(iter(methods.values())).values()))["budget"]
            cells = [
                f"{game} {n_units:,} {alpha:g}",
                f"{budget:,}",
                *(_mean(methods.get(name, {}), "r2", 3) for name in ours),
                f"{_mean(peer, 'r2', 3)} {best[0].removeprefix('shapiq ')}" if best else "–",
                f"{best[1]:+.3f}".replace("-", "−") if best else "–",
                f"{_mean(own, 'f1', 2)}, {_mean(peer, 'f1', 2)}",
                f"{_mean(own, 'seconds', 1)}, {_mean(peer, 'seconds', 1)}",
            ]
            yield f"| {' | '.join(cells)} |"

    def full(self, names: list[str]) -> Iterable[str]:
        """Write every method's R², F1 and seconds, or why there is none."""
        yield f"| game, n, α | {' | '.join(names)} |"
        yield "|---" * (len(names) + 1) + "|"
        for (game, n_units, alpha), methods in self.rows.items():
            cells = [_entry(methods.get(name, {})) for name in names]
            yield f"| {game} {n_units:,} {alpha:g} | {' | '.join(cells)} |"


def _value(row: Row, name: str) -> float | None:
    if name not in row:
        return None
    return row["f1"]["all"] if name == "f1" else row[name]


def _mean(by_seed: dict[int, Row], name: str, digits: int) -> str:
    values = [v for row in by_seed.values() if (v := _value(row, name)) is not None]
    if values:
        return f"{float(np.mean(values)):.{digits}f}".replace("-", "−")
    notes = [row["note"] for row in by_seed.values() if "note" in row]
    return notes[0] if notes and notes[0].startswith("over") else "–"


def _entry(by_seed: dict[int, Row]) -> str:
    if not any("r2" in row for row in by_seed.values()):
        return next((row["note"] for row in by_seed.values()), "")
    parts = [_mean(by_seed, name, digits) for name, digits in (("r2", 3), ("f1", 2))]
    return f"{' / '.join(parts)} ({_mean(by_seed, 'seconds', 1)} s)"
