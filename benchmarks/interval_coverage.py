"""Do 95 % intervals cover the truth, and does ``significant`` keep its false discovery rate?

Games of 20 to 40 units with ten to twenty planted Fourier terms of order 1 to 3 and coefficients of
size 0.1 to 1, at keep rates ½ and 0.9, decoded from 300 to 800 evaluations:

* ``even``: normal noise of sd 1;
* ``uneven``: its sd is 0.5 to 2, depending on three units that matter;
* ``tail``: sd 0.7, and 400 small terms of variance 0.5 in all;
* ``prompts``: ``PromptsGame`` of circuitspex.games, 16 prompts, one for each mask.

Every decoder is counted in the Fourier basis and after ``to("moebius", "intact")``, where the truth
is the alternating sum of the game's own values. The constant is counted by itself.

* **found**: coverage of planted terms that were reported; **all**: of all planted terms, a missing
  one being not covered; **reported**: of all terms reported, the truth being what it is, mostly 0;
  **complete**: the same, of games in which no planted term was missed; **listed**: of the terms in
  ``significant(0.05)``.
* **stable**: of reported terms that every fold chose as well; **held out**: of the same, with
  intervals of the same width around ``held_out_coefficients``.
* **fdp**: mean over games of the share of ``significant(0.05)`` whose true coefficient is exactly
  0; **power**: share of planted terms listed. **naive**: the same of the terms whose interval
  leaves out zero. **joint**: the same of terms of several units, with ``min_order=2``.

Every figure has a Monte-Carlo error, clustered by game. Ends with 1 if a check fails.

    OMP_NUM_THREADS=1 python benchmarks/interval_coverage.py [--smoke] [--games 25] [--first 0]
"""

import argparse
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitspex import Interaction, decoders
from circuitspex.algebra.interactions import Interactions
from circuitspex.algebra.term import NORMAL_95
from circuitspex.decoders.regression import sparse_regression
from circuitspex.games import PromptsGame, SparseGame, random_terms

KINDS = ("even", "uneven", "tail", "prompts")
KEEP_RATES = (0.5, 0.9)
DECODERS: dict[str, dict[str, Any]] = {
    "lasso": {"max_order": 3},
    "proxyspex": {"n_trees": 100},
    "hybrid": {},
    "spex": {},
}
RATE = 0.05
SHOWN = {
    "fourier": "found all reported listed stable held_out fdp fdp_joint naive_fdp power".split(),
    "moebius": "found all reported complete listed constant fdp fdp_joint naive_fdp power".split(),
}

Counts = dict[str, tuple[float, float]]
"""What each figure is the quotient of, for one game."""


class Noisy:
    """A game seen through normal noise, whose sd may depend on which units are ablated."""

    def __init__(
        self, game: SparseGame, sd: float, restless: Sequence[int], rng: np.random.Generator
    ) -> None:
        self.n_units, self.game, self.rng = game.n_units, game, rng
        self.sd, self.restless = sd, list(restless)

    def __call__(self, masks: Tensor) -> Tensor:
        """Return noisy values."""
        sd = np.full(len(masks), self.sd)
        if self.restless:
            sd *= 0.5 + 1.5 * (~masks[:, self.restless]).double().mean(dim=1).numpy()
        return self.game(masks) + torch.from_numpy(self.rng.normal(0.0, sd))


@dataclass
class Planted:
    """A game, what is seen of it, and the terms that a decoder should find."""

    game: SparseGame | PromptsGame
    seen: Noisy | PromptsGame
    spectrum: dict[Interaction, float]
    """Every true coefficient but the constant's, those of a dense tail included."""
    main: list[Interaction]
    """The terms of the spectrum that were planted one by one."""
    budget: int


def plant(kind: str, keep_rate: float, seed: int, noise: float = 1.0) -> Planted:
    """Draw a game."""
    rng = np.random.default_rng([seed, KINDS.index(kind), round(10 * keep_rate)])
    n_units, budget = int(rng.integers(20, 41)), int(rng.integers(300, 801))
    if kind == "prompts":
        game = PromptsGame(n_units, 16, int(rng.integers(2**31)), 0.4 * noise, keep_rate)
        spectrum = dict(zip(game.support, game.coefficients.mean(axis=0).tolist(), strict=True))
        main = [term for term in spectrum if term]
        return Planted(game, game, spectrum, main, budget)
    main = draw_terms(n_units, int(rng.integers(10, 21)), rng)
    sizes = rng.uniform(0.1, 1.0, len(main)) * rng.choice([-1, 1], len(main))
    spectrum = dict(zip(main, sizes.tolist(), strict=True))
    if kind == "tail":
        drawn = [*random_terms(n_units, 10, 1, rng), *random_terms(n_units, 90, 2, rng)]
        drawn += random_terms(n_units, 300, 3, rng)
        faint = rng.normal(0.0, np.sqrt(0.5 / 400), len(drawn)).tolist()
        spectrum = {**dict(zip(drawn, faint, strict=True)), **spectrum}
    support = [(), *spectrum]
    game = SparseGame(n_units, support, np.array([rng.normal(), *spectrum.values()]), keep_rate)
    restless = [term[0] for term in main[:3]] if kind == "uneven" else []
    seen = Noisy(game, noise * (0.7 if kind == "tail" else 1.0), restless, rng)
    return Planted(game, seen, spectrum, main, budget)


def draw_terms(n_units: int, n_terms: int, rng: np.random.Generator) -> list[Interaction]:
    """Draw half single units, a third pairs, the rest triples; half of the joint ones grow."""
    singles = random_terms(n_units, n_terms // 2, 1, rng)
    terms = dict.fromkeys(singles)
    while len(terms) < n_terms:
        order = 2 if len(terms) < n_terms * 5 // 6 else 3
        below = [term for term in terms if len(term) == order - 1]
        start = below[rng.integers(len(below))] if rng.random() < 0.5 else ()
        others = rng.permutation([unit for unit in range(n_units) if unit not in start])
        terms[tuple(sorted([*start, *map(int, others[: order - len(start)])]))] = None
    return list(terms)


def moebius(planted: Planted, terms: Sequence[Interaction]) -> list[float]:
    """Return the true Möbius coefficients around the intact model, by their definition."""
    subsets = {part for term in terms for part in parts(term)}
    ordered = sorted(subsets)
    masks = torch.ones(len(ordered), planted.game.n_units, dtype=torch.bool)
    for row, ablated in enumerate(ordered):
        masks[row, list(ablated)] = False
    values = dict(zip(ordered, planted.game.truth(masks).tolist(), strict=True))
    return [
        sum((-1) ** (len(term) - len(part)) * values[part] for part in parts(term))
        for term in terms
    ]


def parts(term: Interaction) -> Iterator[Interaction]:
    """Return all subsets of a term."""
    return (p for size in range(len(term) + 1) for p in itertools.combinations(term, size))


@contextmanager
def recorded_crossfits() -> Iterator[list[Any]]:
    """Collect what cross-fitting reports, which a result does not hold: the fits of the folds."""
    reports, original = [], sparse_regression.crossfit

    def record(*arguments: Any) -> Any:
        reports.append(original(*arguments))
        return reports[-1]

    sparse_regression.crossfit = record
    try:
        yield reports
    finally:
        sparse_regression.crossfit = original


def examine(planted: Planted, name: str, keep_rate: float, seed: int) -> dict[str, Counts]:
    """Decode a game and count, in both bases."""
    options = DECODERS[name]
    if isinstance(planted.game, PromptsGame):
        options = {**options, "prompts_per_mask": 1}
    decoder = decoders.get(name, keep_rate=keep_rate, **options)
    with recorded_crossfits() as reports:
        found = decoder.decode(planted.seen, budget=planted.budget, seed=seed)
    stable = {term for term in found.support if all(term in fit for fit in reports[-1].fits)}
    truth = {**planted.spectrum, (): float(planted.game.coefficients[..., 0].mean())}
    if isinstance(planted.game, SparseGame):
        truth[()] = float(planted.game.coefficients[0])
    counts = {"fourier": count(found, truth, planted.main, stable - {()})}
    around = found.to("moebius", "intact")
    main = list(dict.fromkeys(part for term in planted.main for part in parts(term) if part))
    terms = list(dict.fromkeys([*around.support, *main]))
    values = moebius(planted, terms)
    truth = {t: v if abs(v) > 1e-9 else 0.0 for t, v in zip(terms, values, strict=True)}
    counts["moebius"] = count(around, truth, [term for term in main if truth[term]], set())
    complete = set(planted.main) <= set(found.support)
    counts["moebius"]["complete"] = counts["moebius"]["reported"] if complete else (0, 0)
    return counts


def count(
    found: Interactions,
    truth: dict[Interaction, float],
    main: list[Interaction],
    stable: set[Interaction],
) -> Counts:
    """Count covered, listed and false terms of one result."""
    assert found.std_errors is not None
    half = (NORMAL_95 * found.std_errors + 1e-8).tolist()  # rounding, where nothing is noisy
    centre = found.coefficients.tolist()
    honest = centre if found.held_out_coefficients is None else found.held_out_coefficients.tolist()
    true = [truth.get(term, 0.0) for term in found.support]
    around = lambda middle: {  # noqa: E731
        t: abs(c - v) <= h for t, c, v, h in zip(found.support, middle, true, half, strict=True)
    }
    covered, covered_honestly = around(centre), around(honest)
    reported = [term for term in found.support if term]
    planted = [term for term in main if term in covered]
    label = {tuple(found.units[unit] for unit in term): term for term in found.support}
    names = lambda order: [label[t.units] for t in found.significant(RATE, min_order=order)]  # noqa: E731
    listed, joint = names(1), names(2)
    excludes = dict(zip(found.support, [abs(c) > h for c, h in zip(centre, half)], strict=True))  # noqa: B905
    naive = [term for term in reported if excludes[term]]
    return {
        "found": share(planted, covered),
        "all": (share(planted, covered)[0], len(main)),
        "reported": share(reported, covered),
        "listed": share(listed, covered),
        "stable": share(stable, covered),
        "held_out": share(stable, covered_honestly),
        "constant": share([()], covered),
        "fdp": proportion_false(listed, truth),
        "fdp_joint": proportion_false(joint, truth),
        "naive_fdp": proportion_false(naive, truth),
        "naive_fdp_joint": proportion_false([term for term in naive if len(term) > 1], truth),
        "power": (sum(term in listed for term in main), len(main)),
        "power_joint": (sum(term in joint for term in main), sum(len(t) > 1 for t in main)),
        "naive_power": (sum(term in naive for term in main), len(main)),
    }


def share(
    terms: Sequence[Interaction] | set[Interaction], covered: dict[Interaction, bool]
) -> tuple[float, float]:
    """Return how many terms are covered, of how many."""
    return sum(covered[term] for term in terms), len(terms)


def proportion_false(
    listed: list[Interaction], truth: dict[Interaction, float]
) -> tuple[float, float]:
    """Return the share of a list that is false, which is 0 for an empty one."""
    false = sum(truth.get(term, 0.0) == 0 for term in listed)
    return false / max(1, len(listed)), 1.0


def pool(games: Sequence[Counts]) -> dict[str, tuple[float, float]]:
    """Return each figure over games, and its standard error: that of a ratio of sums."""
    pooled = {}
    for key in games[0]:
        above, below = np.array([counts[key] for counts in games], dtype=float).T
        if below.sum() == 0:
            continue
        ratio = above.sum() / below.sum()
        spread = np.square(above - ratio * below).sum() * len(games) / max(1, len(games) - 1)
        pooled[key] = (float(ratio), float(np.sqrt(spread) / below.sum()))
    return pooled


def check_counting() -> None:
    """Make sure that estimates which are right by construction are counted as right."""
    planted, rng = plant("tail", 0.5, 0), np.random.default_rng(0)
    support = [(), *planted.spectrum]
    root = rng.normal(0.0, 0.02, (len(support), len(support)))
    games: dict[str, list[Counts]] = {"fourier": [], "moebius": []}
    terms = list(dict.fromkeys(part for term in support for part in parts(term)))
    around = dict(zip(terms, moebius(planted, terms), strict=True))
    truths = {
        "fourier": dict(zip(support, planted.game.coefficients.tolist(), strict=True)),
        "moebius": {term: value if abs(value) > 1e-9 else 0.0 for term, value in around.items()},
    }
    for _ in range(20):
        estimate = torch.from_numpy(planted.game.coefficients + root @ rng.normal(size=len(root)))
        made = Interactions(
            n_units=planted.game.n_units,
            units=tuple(map(str, range(planted.game.n_units))),
            basis="fourier",
            origin=None,
            keep_rate=0.5,
            support=tuple(support),
            coefficients=estimate,
            covariance=torch.from_numpy(root @ root.T),
            held_out_coefficients=estimate,
        )
        for basis, shown in (("fourier", made), ("moebius", made.to("moebius", "intact"))):
            games[basis].append(count(shown, truths[basis], planted.main, set(planted.main)))
    for basis, counts in games.items():
        ratio, error = pool(counts)["reported"]
        if abs(ratio - 0.95) > 4 * error + 0.005:
            raise SystemExit(f"right intervals are counted as covering {ratio:.3f} in {basis}")


def check_without_noise() -> None:
    """Make sure that games without noise are found and covered, and nothing false is listed."""
    # Not triples at 0.9, of which masks that ablate all three are too few to name even these.
    for kind, keep_rate in (("even", 0.5), ("prompts", 0.5), ("prompts", 0.9)):
        planted = plant(kind, keep_rate, 0, noise=0.0)
        for basis, counts in examine(planted, "lasso", keep_rate, 0).items():
            figures = pool([counts])
            wrong = {key: figures[key][0] for key in ("all", "reported", "held_out", "power")
                     if key in figures and figures[key][0] < 1}  # fmt: skip
            if wrong or figures["fdp"][0] > 0:
                raise SystemExit(f"without noise, {kind} at {keep_rate} in {basis}: {wrong}")


def show(arm: str, name: str, games: dict[str, list[Counts]]) -> dict[str, Any]:
    """Print the figures of an arm, and return them."""
    pooled = {basis: pool(counts) for basis, counts in games.items()}
    for basis, figures in pooled.items():
        cells = [
            f"{key} {figures[key][0]:.3f}±{figures[key][1]:.3f}"
            for key in SHOWN[basis]
            if key in figures
        ]
        print(f"{arm:12s} {name:9s} {basis:7s} {'  '.join(cells)}", flush=True)
    return {"arm": arm, "decoder": name, "figures": pooled}


def main() -> None:
    """Check, decode every game with every decoder, and print; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description="Coverage and false discovery rate.")
    parser.add_argument("--smoke", action="store_true", help="one game an arm, under 20 seconds")
    parser.add_argument("--games", type=int, default=25, help="games of each of the eight arms")
    parser.add_argument("--first", type=int, default=0, help="seed of the first game of each arm")
    parser.add_argument("--decoders", nargs="+", choices=list(DECODERS), default=list(DECODERS))
    arguments = parser.parse_args()
    check_counting()
    check_without_noise()
    names = ["lasso", "spex"] if arguments.smoke else arguments.decoders
    kinds = ("uneven", "prompts") if arguments.smoke else KINDS
    n_games, started = 1 if arguments.smoke else arguments.games, time.process_time()
    rows, overall = [], defaultdict(lambda: {"fourier": [], "moebius": []})
    for kind, keep_rate in itertools.product(kinds, KEEP_RATES):
        for name in names:
            if name == "spex" and keep_rate != 0.5:
                continue
            games: dict[str, list[Counts]] = {"fourier": [], "moebius": []}
            for seed in range(arguments.first, arguments.first + n_games):
                planted = plant(kind, keep_rate, seed)
                for basis, counts in examine(planted, name, keep_rate, seed).items():
                    games[basis].append(counts)
                    overall[f"all at {keep_rate}", name][basis].append(counts)
            rows.append(show(f"{kind} {keep_rate}", name, games))
    rows += [show(arm, name, games) for (arm, name), games in overall.items()]
    print(
        json.dumps(
            {
                "benchmark": "interval_coverage",
                "games": n_games * len(kinds) * len(KEEP_RATES),
                "first_seed": arguments.first,
                "false_discovery_rate": RATE,
                "smoke": arguments.smoke,
                "seconds": time.process_time() - started,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
