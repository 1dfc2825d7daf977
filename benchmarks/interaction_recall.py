"""How many of the strongest pairs and triples does each method find, for how many evaluations?

Truth is exhaustive: every pair of heads ablated around the intact model, one prompt at a time
(``exhaustive_pairs.py``); with ``--triples``, every triple of heads of layers 0 to 3. The share of
the true top 20, 50 and 100, by |θ|, is counted

- among what ``gradient`` verified inside its budget, and as its final coefficients rank them;
- as the black-box decoders' coefficients rank them, around the intact model or in the Fourier
  basis, and anywhere in what they list, as if verifying the list were free;
- among what a budget verifies of pairs ranked by the effects of single heads, or by gradients at
  the intact model (AtP), and by chance.

A gradient counts three evaluations. Values that are in the tables are not evaluated again but
count all the same; ``--live`` evaluates everything. The toys, with 8 heads, are exhausted here.

    python benchmarks/interaction_recall.py --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exhaustive_pairs import DATA, read

import circuitspex as cs
from circuitspex import Interaction

Values = dict[Interaction, float]  # what is ablated → value

BUDGETS = [400, 726, 1000, 1815]  # of 36,315 pairs, 726 are 2 %, 1,815 are 5 %
TRIPLE_BUDGETS = [714]  # a tenth of 7,140 triples
TOPS = [20, 50, 100]
TOY_BUDGETS = [64, 96, 128]  # of 256 masks
TOY_TOPS = [5, 10, 20]  # of 28 pairs and 56 triples
BLACK_BOXES = ["hybrid", "lasso", "proxyspex", "moebius"]
N_CHOSEN = 36  # heads of layers 0 to 3, whose triples are exhausted
TRIPLE_OPTIONS = [
    {"search_share": 0.94, "order_shares": (0.5, 0.5)},
    {"search_share": 0.94, "order_shares": (0.3, 0.7)},
    {"search_share": 0.94, "order_shares": (0.2, 0.8)},
]


def parts(term: Interaction) -> list[Interaction]:
    """Return every subset of a term, itself included."""
    return [part for k in range(len(term) + 1) for part in combinations(term, k)]


def effect(values: Values, term: Interaction) -> float:
    """Return what ablating all of a term does beyond its parts: θ, by inclusion and exclusion."""
    return sum((-1) ** (len(term) - len(part)) * values[part] for part in parts(term))


def read_values(folder: Path, prompt: int, triples: bool) -> Values:
    """Return the value of every set of heads that the tables hold."""
    values: Values = {}
    for name in ["pairs", "triples"] if triples else ["pairs"]:
        table = read(folder / f"{name}_{prompt}.npz")
        values[()] = float(table["intact"])
        values |= {(unit,): float(value) for unit, value in enumerate(table["singles"])}
        values |= dict(
            zip(map(tuple, table["sets"].tolist()), table["values"].tolist(), strict=True)
        )
    return values


def exhaust(spex: cs.CircuitSpex) -> Values:
    """Evaluate all masks of a toy."""
    sets = parts(tuple(range(spex.n_units)))
    return dict(zip(sets, spex(cs.masks.ablate_only(sets, spex.n_units)).tolist(), strict=True))


def recall(
    found: Sequence[Interaction],
    truth: dict[Interaction, float],
    tops: Sequence[int] = TOPS,
    cut: bool = False,
) -> list[float]:
    """Return the shares of the true top 20, 50 and 100 that were found.

    ``cut`` looks at no more than the first 20, 50 and 100 of what was found, as for estimates;
    what was measured exactly needs no such cut, since its true top comes first.
    """
    ranked = sorted(truth, key=lambda term: -abs(truth[term]))
    return [len(set(ranked[:k]).intersection(found[: k if cut else None])) / k for k in tops]


def by_size(size: dict[Interaction, float]) -> list[Interaction]:
    """Return terms, the largest first."""
    return sorted(size, key=lambda term: -abs(size[term]))


def verify(
    ranking: Iterable[Interaction], known: Iterable[Interaction], budget: int
) -> list[Interaction]:
    """Return the terms that a budget measures, in their order, parts shared and never twice."""
    done, verified = set(known), []
    for term in ranking:
        new = [part for part in parts(term) if part not in done]
        if len(new) > budget:
            break
        budget -= len(new)
        done.update(new)
        verified.append(term)
    return verified


def rank(score: np.ndarray) -> list[Interaction]:
    """Return all pairs, those with the highest entry in a symmetric matrix first."""
    first, second = np.triu_indices(len(score), 1)
    order = np.argsort(-score[first, second], kind="stable")
    return list(zip(first[order].tolist(), second[order].tolist(), strict=True))


def heuristics(
    values: Values, gradient: np.ndarray, truth: dict[Interaction, float], budget: int
) -> dict[str, list[float]]:
    """Rank pairs by what single heads do, verify with the rest of the budget, and judge."""
    n_units = len(gradient)
    singles: list[Interaction] = [(), *((unit,) for unit in range(n_units))]
    alone = np.abs([values[(unit,)] - values[()] for unit in range(n_units)])
    slope = np.abs(gradient)
    rest = budget - len(singles)
    scores = {
        "singles, product": np.multiply.outer(alone, alone),
        "singles, smaller": np.minimum.outer(alone, alone),
        "singles, sum": np.add.outer(alone, alone),
    }
    found = {name: verify(rank(score), singles, rest) for name, score in scores.items()}
    steep = rank(np.multiply.outer(slope, slope))
    found["AtP, product"] = verify(steep, [()], budget - cs.GRADIENT_COST)
    result = {name: recall(terms, truth) for name, terms in found.items()}
    return result | {"chance": [max(0, rest) / len(truth)] * len(TOPS)}


def triple_heuristics(
    values: Values, truth: dict[Interaction, float], budget: int
) -> dict[str, list[float]]:
    """Rank triples by the effects of their pairs, verify with the rest of the budget, and judge.

    All pairs cost most of the budget, so they are also ranked as if pairs were known for free, and
    by half of the pairs, those of the strongest heads.
    """
    pairs: dict[Interaction, float] = {
        pair: abs(effect(values, pair)) for pair in combinations(range(N_CHOSEN), 2)
    }
    singles: list[Interaction] = [(), *((unit,) for unit in range(N_CHOSEN))]
    alone = np.abs([values[(unit,)] - values[()] for unit in range(N_CHOSEN)])
    few = verify(rank(np.multiply.outer(alone, alone)), singles, budget // 2 - len(singles))
    spends = {
        "pairs free": (pairs, budget),
        "all pairs": (pairs, budget - len(singles) - len(pairs)),
        "pairs of strong heads": ({pair: pairs[pair] for pair in few}, budget - budget // 2),
    }
    result = {}
    for name, (sizes, rest) in spends.items():
        for way, combine in (("sum", np.sum), ("product", np.prod)):
            score = {
                term: combine([sizes.get(pair, 0.0) for pair in combinations(term, 2)])
                for term in truth
            }
            ranking = sorted(score, key=lambda term: (-score[term], term))
            found = verify(ranking, [*singles, *sizes], rest)
            result[f"{name}, {way}"] = recall(found, truth)
    return result | {"chance": [(budget - len(singles) - len(pairs)) / len(truth)] * len(TOPS)}


def coefficients(found: cs.Interactions, order: int) -> dict[Interaction, float]:
    """Return a result's coefficients of one order."""
    terms = zip(found.support, found.coefficients.tolist(), strict=True)
    return {term: value for term, value in terms if len(term) == order}


def verified(found: cs.Interactions, values: Values) -> dict[Interaction, float]:
    """Return what ``gradient`` verified; it must be what the table says."""
    index = {label: unit for unit, label in enumerate(found.units)}
    result = {
        tuple(sorted(index[label] for label in entry["units"])): entry["coefficient"]
        for entry in found.diagnostics.get("verified", [])
    }
    for term, value in result.items():
        if set(parts(term)) <= values.keys() and abs(value - effect(values, term)) > 1e-3:
            raise SystemExit(f"{term} verified as {value}, the table says {effect(values, term)}")
    return result


def decode(
    spex: cs.CircuitSpex, name: str, budget: int, order: int, values: Values, **options: Any
) -> dict[str, Any]:
    """Run a decoder live and judge what it found."""
    started = time.perf_counter()
    found = spex.discover(name, budget=budget, seed=0, **options)
    if found.n_evaluations > budget:
        raise SystemExit(f"{name} spent {found.n_evaluations} of {budget} evaluations")
    chosen = [found.units.index(unit) for unit in found.diagnostics.get("among", found.units)]
    truth = {term: effect(values, term) for term in combinations(chosen, order)}
    around_intact = coefficients(found.to("moebius", origin="intact"), order)
    row: dict[str, Any] = {
        "method": name,
        "options": {k: v for k, v in options.items() if k != "among"},
        "budget": budget,
        "spent": found.n_evaluations,
        "ranked": recall(by_size(around_intact), truth, cut=True),
        "ranked_fourier": recall(by_size(coefficients(found, order)), truth, cut=True),
        "listed": recall(by_size(around_intact), truth),
        "n_listed": len(around_intact),
    }
    if name == "gradient":
        measured = [term for term in verified(found, values) if len(term) == order]
        row |= {"verified": recall(measured, truth), "n_verified": len(measured)}
    return row | {"seconds": time.perf_counter() - started}


def check_answers() -> None:
    """The counting must be right, and a toy's verified interactions what brute force says."""
    truth = {(i, i + 1): float(-i) for i in range(200)}
    if recall([(i, i + 1) for i in range(150, 200)], truth) != [1.0, 1.0, 0.5]:
        raise SystemExit("recall is counted wrongly")
    if verify([(0, 1), (0, 2), (1, 2)], [()], 5) != [(0, 1), (0, 2)]:
        raise SystemExit("evaluations are counted wrongly")
    model = cs.models.load("toy-redundant")
    task = cs.tasks.make("induction", model, 16, seed=0).subset([0])
    with cs.CircuitSpex(model, task, cs.heads(model)) as spex:
        values = exhaust(spex)
    with cs.CircuitSpex(model, task, cs.heads(model)) as fresh:
        found = fresh.discover("gradient", budget=120, keep_rate=0.8)
        _, (slopes,) = fresh.value_and_gradient(cs.masks.all_kept(fresh.n_units))
    if not verified(found, values):
        raise SystemExit("nothing was verified on the toy")
    if slopes.abs().max() == 0:
        raise SystemExit("the gradient at the intact model is zero")


def check_table(spex: cs.CircuitSpex, values: Values, n_sets: int = 12) -> None:
    """A sample of the table must be what the model says."""
    terms = list(values)
    sample = [terms[i] for i in np.random.default_rng(0).choice(len(terms), n_sets)]
    measured = spex(cs.masks.ablate_only(sample, spex.n_units)).tolist()
    for term, value in zip(sample, measured, strict=True):
        if abs(value - values[term]) > 1e-3:
            raise SystemExit(f"without {term} the table says {values[term]}, the model {value}")


def replay(spex: cs.CircuitSpex, values: Values) -> None:
    """Let the store answer what the table holds."""
    masks = cs.masks.ablate_only(list(values), spex.n_units)
    prompts = torch.zeros(len(masks), dtype=torch.int64)
    spex.evaluation.store.append(masks, prompts, torch.tensor(list(values.values())).double())


def measure_toy(name: str, n_prompts: int, methods: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Exhaust a toy, prompt by prompt, and judge by its strongest pairs and triples.

    Recall at 5, 10 and 20: of what ``gradient`` verified, of what others rank first, and of sets
    measured in random order.
    """
    model = cs.models.load(name)
    tasks = cs.tasks.make("induction", model, 16, seed=0)
    for prompt in range(n_prompts):
        with cs.CircuitSpex(model, tasks.subset([prompt]), cs.heads(model)) as spex:
            values = exhaust(spex)
            truth = {term: effect(values, term) for term in values if len(term) in (2, 3)}
            for budget in TOY_BUDGETS:
                shares = {"chance": chance(truth, budget)}
                for method in methods:
                    found = spex.discover(method, budget=budget, keep_rate=0.8, max_order=3)
                    if method == "gradient":
                        shares[method] = recall([*verified(found, values)], truth, TOY_TOPS)
                    else:
                        moebius = found.to("moebius", origin="intact")
                        size = coefficients(moebius, 2) | coefficients(moebius, 3)
                        shares[method] = recall(by_size(size), truth, TOY_TOPS, cut=True)
                cell = {"toy": name, "prompt": prompt, "budget": budget}
                yield from ({**cell, "method": method, "recall": s} for method, s in shares.items())


def chance(truth: dict[Interaction, float], budget: int, n_draws: int = 50) -> list[float]:
    """Return the mean recall of terms verified in random order."""
    terms, rng = list(truth), np.random.default_rng(0)
    orders = [[terms[i] for i in rng.permutation(len(terms))] for _ in range(n_draws)]
    shares = [recall(verify(order, [()], budget - 1), truth, TOY_TOPS) for order in orders]
    return np.mean(shares, axis=0).tolist()


def measure(
    model: Any, task: cs.Task, prompt: int, folder: Path, options: argparse.Namespace
) -> Iterable[dict[str, Any]]:
    """Judge every method on one prompt's game."""
    values = read_values(folder, prompt, options.triples)
    order = 3 if options.triples else 2
    chosen = tuple(range(N_CHOSEN)) if options.triples else None
    units = cs.heads(model)
    truth = {t: effect(values, t) for t in combinations(chosen or range(len(units)), order)}
    with cs.CircuitSpex(model, task, units) as spex:
        check_table(spex, values)
        if not options.live:
            replay(spex, values)
        _, (gradient,) = spex.value_and_gradient(cs.masks.all_kept(len(units)))
        for budget in options.budgets:
            simple = (
                triple_heuristics(values, truth, budget)
                if options.triples
                else heuristics(values, gradient.numpy(), truth, budget)
            )
            yield from (
                {"method": name, "budget": budget, "verified": shares}
                for name, shares in simple.items()
            )
        for name in options.decoders:
            budgets = options.budgets if name == "gradient" else [max(options.budgets)]
            variants = TRIPLE_OPTIONS if options.triples and name == "gradient" else [{}]
            for budget in budgets:
                for variant in variants:
                    given = {"keep_rate": options.keep_rate, "among": chosen, **variant}
                    yield decode(spex, name, budget, order, values, **given)


def main() -> None:
    """Run everything; the last line of output is one JSON object."""
    parser = argparse.ArgumentParser(description="Recall of the true strongest interactions.")
    parser.add_argument("--model", help="a .gguf file, a folder or a name; the toys alone if none")
    parser.add_argument("--tables", type=Path, default=DATA, help="from exhaustive_pairs.py")
    parser.add_argument("--prompts", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--triples", action="store_true", help="of layers 0 to 3, not pairs")
    parser.add_argument("--budgets", type=int, nargs="+", help="default: 400 726 1000 1815; 714")
    parser.add_argument("--decoders", nargs="*", default=["gradient", *BLACK_BOXES])
    parser.add_argument("--keep-rate", type=float, default=0.95)
    parser.add_argument("--live", action="store_true", help="ask the model, not the tables")
    parser.add_argument("--out", type=Path, help="file that every result is appended to")
    parser.add_argument("--smoke", action="store_true", help="one toy, in seconds")
    options = parser.parse_args()
    options.budgets = options.budgets or (TRIPLE_BUDGETS if options.triples else BUDGETS)
    check_answers()
    rows: list[dict[str, Any]] = []
    if options.smoke or options.model is None:
        if options.smoke:
            rows += measure_toy("toy-redundant", 1, ["gradient", "moebius"])
        else:
            for name in ("toy-induction", "toy-redundant"):
                rows += measure_toy(name, 4, ["gradient", *BLACK_BOXES])
    else:
        model = cs.models.load(options.model)
        tasks = cs.tasks.ioi(model, n_prompts=16, seed=0)
        for prompt in options.prompts:
            task = tasks.subset([prompt])
            for row in measure(model, task, prompt, options.tables, options):
                rows.append({"prompt": prompt, **row})
                print(json.dumps(rows[-1]), flush=True)
                if options.out:
                    with options.out.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    about = {"benchmark": "interaction_recall", "model": options.model, "tops": TOPS}
    print(json.dumps({**about, "rows": rows}))


if __name__ == "__main__":
    main()
