"""How long does decoding take, against shapiq's at equal input?

``spex`` against shapiq's SPEX, each on coded masks of its own from the same budget, and
``proxyspex`` against shapiq's ProxySPEX on the same masks and the same values. Games of 96, 270 and
1,024 units: ``sch``, whose 320 terms crowd SPEX's bins, and ``heads``, with noise.
Orders up to 5, one thread each.

* Seconds are processor seconds of decoding; evaluating the game is left out. Ours include the
  regression, five-fold cross-fitting, standard errors and the held-out report. shapiq's SPEX is
  timed from the measured values to the terms it returns, which is before any regression; its
  ProxySPEX up to the refined spectrum.
* shapiq's SPEX compiles on first use, so its process decodes a game of one unit before it is timed;
  "first" adds what that took, as whoever decodes once has to wait for it.
* Ours and theirs take turns, and medians over ``--rounds`` are compared; a peer that took over 20
  seconds is not asked again.
* R² beside the seconds is of the noiseless truth on 2,000 fresh uniform masks.

    OMP_NUM_THREADS=1 python benchmarks/decode_time.py --peer-python PYTHON [--smoke] [--rounds 3]
"""

import argparse
import json
import statistics
import sys
from typing import Any

import torch
from peers.calls import Peer, PeerError
from recovery import Cell as Game
from recovery import check_answers, run_ours, run_theirs

from circuitspex import decoders

SIZES = ((96, 4.0), (270, 2.0), (1024, 0.25))
"""Numbers of units, and α of the budget α n log2 n."""


def rounds(game: Game, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Let ours and theirs take turns on one game."""
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, dict[str, Any]]] = []
    peer, note = Peer(arguments.peer_python), ""
    for _ in range(arguments.rounds):
        ours.append(run_ours(game, name))
        if not note and not any(row[f"shapiq {name}"]["seconds"] > 20 for row in theirs):
            try:
                theirs.append(run_theirs(game, name, peer, arguments.limit))
            except PeerError as error:
                note = str(error)
    peer.close()
    seconds = statistics.median(row["seconds"] for row in ours)
    row = {
        "game": game.game,
        "n_units": game.n_units,
        "budget": game.budget,
        "decoder": name,
        "samples": ours[0]["samples"],
        "seconds": seconds,
        "r2": ours[0]["r2"],
    }
    if not theirs:
        return {**row, "note": note}
    those = [found[f"shapiq {name}"] for found in theirs]
    peer_seconds = statistics.median(one["seconds"] for one in those)
    first = those[0]["seconds"] + those[0]["compile_seconds"]
    return {
        **row,
        "samples_shapiq": those[0]["samples"],
        "seconds_shapiq": peer_seconds,
        "times_faster": peer_seconds / seconds,
        "seconds_shapiq_first": first,
        "times_faster_first": first / seconds,
        "r2_shapiq": {key: one["r2"] for key, one in theirs[0].items()},
        "rounds_shapiq": len(theirs),
        "version": those[0]["version"],
    }


def say(row: dict[str, Any]) -> None:
    """Print one comparison."""
    start = f"{row['game']:5s} {row['n_units']:5d} {row['decoder']:10s} {row['seconds']:7.2f} s"
    if "note" in row:
        print(f"{start}  R² {row['r2']:+.3f}  shapiq: {row['note']}", flush=True)
        return
    others = ", ".join(f"{name} {value:+.3f}" for name, value in row["r2_shapiq"].items())
    print(
        f"{start}  shapiq {row['seconds_shapiq']:7.2f} s, {row['times_faster']:.1f} times faster; "
        f"first {row['seconds_shapiq_first']:.1f} s, {row['times_faster_first']:.1f} times; "
        f"R² {row['r2']:+.3f} ({others})",
        flush=True,
    )


def main() -> None:
    """Run the comparison; the last line of output is one JSON object."""
    parser = argparse.ArgumentParser(description="How long does decoding take?")
    parser.add_argument("--smoke", action="store_true", help="20 units, under 20 seconds")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=500.0, help="seconds for a peer")
    parser.add_argument("--games", nargs="+", default=["sch", "heads"])
    parser.add_argument("--units", type=int, nargs="+", default=[n for n, _ in SIZES])
    arguments = parser.parse_args()
    check_answers()
    sizes = [size for size in SIZES if size[0] in arguments.units]
    names = [name for name in ("spex", "proxyspex") if name in decoders.DECODERS]
    if arguments.smoke:
        sizes, names, arguments.games, arguments.rounds = [(20, 2.0)], ["proxyspex"], ["sch"], 1
    rows = []
    for n_units, alpha in sizes:
        for game in arguments.games:
            for name in names:
                rows.append(rounds(Game(game, n_units, alpha, 0), name, arguments))
                say(rows[-1])
    print(
        json.dumps(
            {
                "benchmark": "decode_time",
                "smoke": arguments.smoke,
                "torch_threads": torch.get_num_threads(),
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
