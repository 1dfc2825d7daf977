"""Our ProxySPEX against shapiq's, on the same masks and the same values, in the same run.

shapiq draws the masks (its sampler always includes the empty and the full one and pairs masks with
their complements) and a recording game keeps them with their values; our decoder is then fitted to
these. So the comparison is of what is made of the data, not of luck in drawing it. Both are
limited to order 5, which is the depth of the larger of shapiq's trees.

* R² is of the noiseless truth on 2,000 fresh uniform masks. shapiq's prediction is its own Fourier
  spectrum after refinement, before conversion to an index and truncation to ``max_order``.
* Seconds are of fitting: shapiq's ``approximate`` from after the game was called to the refined
  spectrum; our ``fit``, five-fold cross-fitting, standard errors and report included. One thread
  each (``OMP_NUM_THREADS=1``), which is also what shapiq asks of LightGBM.
* shapiq is used as it comes. Version 1.4.1 has no ``hpo`` switch: it always runs a grid search
  over 8 configurations (depth 3 or 5; 500 or 1,000 trees; rate 0.01 or 0.1) in 5 unshuffled
  folds, 41 fits.

Games: ``heads`` (logistic of sparse linear, OR and AND parts, with binomial noise), ``sch`` (ten
interactions of order 5 and all their parts) and ``peak`` (the ten alone), in circuitspex.games.

Before anything is timed, our decoder must find a small noiseless game exactly, and the way R² is
computed for shapiq must give 1 for the true spectrum.

    OMP_NUM_THREADS=1 python benchmarks/proxyspex_vs_shapiq.py [--smoke | --full] [--seeds 0 1 2]
"""

import argparse
import importlib.metadata
import json
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch
from recovery import GAMES

from circuitspex import Interaction, games
from circuitspex.decoders.proxyspex import ProxySpexDecoder
from circuitspex.games import SparseGame, characters

MAX_ORDER = 5


class _Recording:
    """A game for shapiq that keeps what it was asked and answered, and when."""

    def __init__(self, game: Any) -> None:
        self.game = game
        self.masks = np.zeros((0, 0), dtype=bool)
        self.values = np.zeros(0)
        self.answered = 0.0

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        self.masks = np.asarray(masks, dtype=bool).copy()
        self.values = self.game(torch.from_numpy(self.masks)).numpy().astype(float)
        self.answered = time.perf_counter()
        return self.values


class _Refined(Exception):
    """Leaves shapiq once its spectrum is ready, before it is converted to an index."""


def run_shapiq(
    game: Any, budget: int, seed: int
) -> tuple[_Recording, dict[Interaction, float], float]:
    """Let shapiq sample and fit; return what it saw, its spectrum and the seconds of fitting.

    The spectrum is in the parity convention, (-1) to the number of kept units of a term.
    """
    from shapiq.approximator import ProxySPEX

    proxy = ProxySPEX(n=game.n_units, max_order=MAX_ORDER, index="k-SII", random_state=seed)
    recording, spectrum, refine = _Recording(game), {}, proxy._refine

    def refine_and_keep(*arguments: Any) -> dict[Interaction, float]:
        spectrum.update(refine(*arguments))
        raise _Refined

    setattr(proxy, "_refine", refine_and_keep)  # noqa: B010 - there is no public way to it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            proxy.approximate(budget, recording)
        except _Refined:
            pass
        except (ValueError, IndexError) as error:  # its cut at 95 % fails on some spectra
            sys.stderr.write(f"shapiq failed: {error}\n")
    return recording, spectrum, time.perf_counter() - recording.answered


def parity_predict(spectrum: dict[Interaction, float], masks: np.ndarray) -> np.ndarray:
    """Evaluate a spectrum of shapiq's convention; zeros if it is empty."""
    if not spectrum:
        return np.zeros(len(masks))
    columns = characters(~masks, list(spectrum), 0.5)
    return columns @ np.array(list(spectrum.values()))


def r2(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Share of the truth's variance that is predicted."""
    return float(1 - np.square(truth - predicted).mean() / truth.var())


def compare(name: str, n_units: int, budget: int, seed: int, n_test: int) -> dict[str, Any]:
    """Fit both to one sample of one game."""
    game = games.make(GAMES[name], n_units, seed)
    recording, spectrum, shapiq_seconds = run_shapiq(game, budget, seed)
    masks, values = torch.from_numpy(recording.masks), torch.from_numpy(recording.values)
    decoder = ProxySpexDecoder(max_order=MAX_ORDER)
    start = time.perf_counter()
    ours = decoder.fit(masks, values, np.random.default_rng(seed))
    our_seconds = time.perf_counter() - start
    test = np.random.default_rng([seed, 10_000]).random((n_test, n_units)) < 0.5
    truth = game.truth(torch.from_numpy(test))
    return {
        "game": name,
        "n_units": n_units,
        "samples": len(masks),
        "seed": seed,
        "r2": r2(truth, ours.predict(torch.from_numpy(test)).numpy()),
        "r2_shapiq": r2(truth, parity_predict(spectrum, test)),
        "held_out_r2": ours.held_out_r2,
        "terms": len(ours.support),
        "terms_shapiq": len(spectrum),
        "seconds": our_seconds,
        "seconds_shapiq": shapiq_seconds,
    }


def check_answers() -> None:
    """Make sure that what is about to be timed is right."""
    support: list[Interaction] = [(), (1,), (4,), (1, 4), (4, 7), (1, 4, 7)]
    game = SparseGame(12, support, np.array([1.0, 2.0, -2.0, 1.5, 1.0, -1.0]))
    found = ProxySpexDecoder(max_order=3).decode(game, budget=400, seed=0)
    kept = {t: c for t, c in zip(found.support, found.coefficients.tolist(), strict=True)}
    truth = dict(zip(support, game.coefficients.tolist(), strict=True))
    if kept.keys() != truth.keys() or any(abs(kept[t] - truth[t]) > 1e-9 for t in truth):
        raise SystemExit(f"a noiseless game was not decoded exactly: {kept}")
    masks = np.random.default_rng(0).random((100, 12)) < 0.5
    parity = {term: value * (-1) ** len(term) for term, value in truth.items()}
    if r2(game.truth(torch.from_numpy(masks)), parity_predict(parity, masks)) < 1 - 1e-12:
        raise SystemExit("the sign convention of shapiq's spectrum is not what it was")


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average over seeds, and print one line for each game and number of samples."""
    cells = []
    for game, samples in sorted({(row["game"], row["samples"]) for row in rows}):
        own = [row for row in rows if (row["game"], row["samples"]) == (game, samples)]
        mean = {
            key: float(np.mean([row[key] for row in own]))
            for key in ("r2", "r2_shapiq", "terms", "terms_shapiq", "seconds", "seconds_shapiq")
        }
        mean["speedup"] = mean["seconds_shapiq"] / mean["seconds"]
        worse = sum(row["r2"] < row["r2_shapiq"] for row in own)
        cells.append({"game": game, "samples": samples, **mean, "seeds_worse": worse})
        print(
            f"{game:6s} {samples:5d}  R² {mean['r2']:+.3f} (shapiq {mean['r2_shapiq']:+.3f})  "
            f"terms {mean['terms']:4.0f} ({mean['terms_shapiq']:5.0f})  "
            f"seconds {mean['seconds']:6.2f} ({mean['seconds_shapiq']:6.1f}), "
            f"{mean['speedup']:.1f} times faster; worse on {worse} of {len(own)} seeds",
            flush=True,
        )
    return cells


def main() -> None:
    """Run the comparison; the last line of output is one JSON object."""
    parser = argparse.ArgumentParser(description="Our ProxySPEX against shapiq's.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="12 units, under 20 seconds")
    size.add_argument("--full", action="store_true", help="also 5,057 samples")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    check_answers()
    budgets = [200] if arguments.smoke else [632, 1264, 2528] + [5057] * arguments.full
    seeds = [0] if arguments.smoke else arguments.seeds
    n_units, n_test = (12, 500) if arguments.smoke else (96, 2000)
    rows = []
    for budget in budgets:
        cell_rows = [compare(g, n_units, budget, s, n_test) for g in GAMES for s in seeds]
        summarise(cell_rows)
        rows += cell_rows
    print(
        json.dumps(
            {
                "benchmark": "proxyspex_vs_shapiq",
                "shapiq": importlib.metadata.version("shapiq"),
                "lightgbm": importlib.metadata.version("lightgbm"),
                "torch_threads": torch.get_num_threads(),
                "smoke": arguments.smoke,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
