"""How much noise can decoders stand before they miss interactions, or invent some?

Planted games of K interactions with coefficients of 1 to 2 and random signs are evaluated with
Gaussian noise, anew at every evaluation. The score is F1 of the support, the constant aside:
2 × found and true / (found + true).

The signal-to-noise ratio is that of the sparse Möbius paper (arXiv:2402.02631): the sum of all
squared coefficients over the variance of one evaluation's noise, in decibels. In the Fourier basis
that is the variance of the values over that of the noise. At 20 dB and K = 100, noise has a
standard deviation of about 1.5: as large as a coefficient.

=================  ==========================================================================
ablated            ``moebius``, origin ablated; K terms of exactly t units in that basis
intact             ``moebius``, origin intact; the same terms, of what ablating them does
spex               ``spex`` at keep rate ½; as many Fourier terms of up to t units
=================  ==========================================================================

Both origins get the same number of evaluations, ``spex`` a fifth of it. A method whose decoder is
not registered is left out.
Before anything is measured, each must find a small game without noise exactly.

    OMP_NUM_THREADS=1 python benchmarks/noise.py [--smoke] [--seeds 0 1] [--methods ablated]
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from circuitspex import Interaction, decoders
from circuitspex.algebra.transforms import Coordinates, evaluate
from circuitspex.games import random_terms

DECIBELS = list(range(-5, 41, 5))


class Size(NamedTuple):
    """A game's size and the evaluations a decoder gets for it."""

    n_units: int
    n_terms: int
    order: int
    budget: int


SIZES = [Size(100, 100, 4, 50_000), Size(500, 100, 5, 150_000)]
SMALL = Size(40, 10, 3, 6_000)


class Method(NamedTuple):
    """A decoder, and the coordinates in which its games are sparse."""

    decoder: str
    place: Coordinates
    options: dict[str, Any]
    exact_order: bool
    share: float = 1.0
    """Of the evaluations; a regression takes long on all of them, and needs fewer."""


METHODS = {
    "ablated": Method("moebius", Coordinates("moebius", "ablated"), {"origin": "ablated"}, True),
    "intact": Method("moebius", Coordinates("moebius", "intact"), {"origin": "intact"}, True),
    "spex": Method("spex", Coordinates("fourier"), {}, False, 0.2),
}
"""What is measured; to add a decoder, add a line."""


def draw_game(
    method: Method, size: Size, seed: int, decibels: float | None
) -> tuple[Callable[[Tensor], Tensor], list[Interaction], list[float]]:
    """Draw a game: a set function with noise, its terms and their coefficients."""
    rng = np.random.default_rng([seed, size.n_units])
    orders = [size.order] if method.exact_order else list(range(1, size.order + 1))
    shares = np.array_split(np.arange(size.n_terms), len(orders))
    terms = [
        term
        for order, share in zip(orders, shares, strict=True)
        for term in random_terms(size.n_units, len(share), order, rng)
    ]
    coefficients = rng.uniform(1.0, 2.0, len(terms)) * rng.choice([-1, 1], len(terms))
    power = float(np.square(coefficients).sum())
    sigma = 0.0 if decibels is None else (power / 10 ** (decibels / 10)) ** 0.5
    noise = np.random.default_rng([seed, size.n_units, 1])

    def values(masks: Tensor) -> Tensor:
        clean = evaluate(masks, terms, torch.from_numpy(coefficients), method.place)
        return clean + torch.from_numpy(noise.normal(0.0, sigma, len(masks)))

    values.n_units = size.n_units  # pyright: ignore[reportFunctionMemberAccess]
    return values, terms, coefficients.tolist()


def measure(name: str, size: Size, seed: int, decibels: float | None) -> dict[str, Any]:
    """Decode one game and score the support."""
    method = METHODS[name]
    game, terms, coefficients = draw_game(method, size, seed, decibels)
    decoder: Any = decoders.get(method.decoder, max_order=size.order, **method.options)
    start = time.perf_counter()
    found = decoder.decode(game, budget=round(method.share * size.budget), seed=seed)
    support = {term for term in found.support if term}
    both = support & set(terms)
    truth = dict(zip(terms, coefficients, strict=True))
    kept = dict(zip(found.support, found.coefficients.tolist(), strict=True))
    return {
        "method": name,
        "n_units": size.n_units,
        "n_terms": size.n_terms,
        "order": size.order,
        "decibels": decibels,
        "seed": seed,
        "f1": 2 * len(both) / (len(support) + len(terms)),
        "precision": len(both) / max(1, len(support)),
        "recall": len(both) / len(terms),
        "error": max((abs(kept[term] - truth[term]) for term in both), default=None),
        "evaluations": found.n_evaluations,
        "held_out_r2": found.held_out_r2,
        "seconds": time.perf_counter() - start,
    }


def check_answers(names: list[str]) -> None:
    """Make sure that without noise a small game is found exactly."""
    for name in names:
        row = measure(name, SMALL, 0, None)
        if row["f1"] < 1 or row["error"] > 1e-8:
            raise SystemExit(f"{name} did not decode a game without noise exactly: {row}")


def main() -> None:
    """Measure and print; the last line of output is one JSON object."""
    parser = argparse.ArgumentParser(description="How much noise can decoders stand?")
    parser.add_argument("--smoke", action="store_true", help="a small game at two ratios")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    names = [name for name in arguments.methods if METHODS[name].decoder in decoders.DECODERS]
    check_answers(names)
    sizes, levels, seeds = SIZES, DECIBELS, arguments.seeds
    if arguments.smoke:
        sizes, levels, seeds = [SMALL], [10, 30], [0]
    rows = []
    for size in sizes:
        for name in names:
            for decibels in levels:
                cell = [measure(name, size, seed, decibels) for seed in seeds]
                rows += cell
                mean = {key: np.mean([row[key] for row in cell]) for key in ("f1", "seconds")}
                print(
                    f"{name:8s} n {size.n_units:4d} {decibels:4d} dB  F1 {mean['f1']:.3f}  "
                    f"{mean['seconds']:6.1f} s",
                    flush=True,
                )
    print(json.dumps({"benchmark": "noise", "smoke": arguments.smoke, "rows": rows}))


if __name__ == "__main__":
    main()
