"""Do interactions of order 3 and 4 exceed chance, and do they say what pairs cannot?

Around the intact model, on the average of all prompts. Gradients at single ablations propose pairs;
gradients at the strongest pairs propose triples, and at the strongest triples quadruples: keeping
unit k adds g_k, so what losing it does beyond its parts is, to first order,

    θ(C ∪ k) ≈ − Σ over S ⊆ C of (−1)^(|C| − |S|) g_k(N∖S)

The best of each order are then measured exactly, ``2**order`` ablations each. Chance is the largest
absolute value among sets of units drawn at random, at least as many as were proposed. A control
extends the same pairs and triples by units drawn at random: what do gradients add to that?

    python benchmarks/higher_orders.py --model SmolLM2-135M-Instruct.Q4_1.gguf --store evaluations
"""

import argparse
import json
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from backup_heads import load

import circuitspex as cs
from circuitspex import Interaction
from circuitspex.verification.measurement import measure_coefficients


class Game:
    """The average game of the prompts; knows what each thing asked of it cost."""

    def __init__(self, spex: cs.CircuitSpex) -> None:
        """Start with nothing asked."""
        self.spex = spex
        self.labels = spex.units.labels
        self.n_units = spex.n_units
        self._gradients: dict[Interaction, np.ndarray] = {}
        self._measured: set[Interaction] = set()

    @property
    def cost(self) -> int:
        """Evaluations of everything asked so far, each mask once, whoever remembered it."""
        asked = len(self._measured) + cs.GRADIENT_COST * len(self._gradients)
        return asked * self.spex.n_prompts

    def gradient(self, ablated: Interaction) -> np.ndarray:
        """Take the gradient with some units ablated."""
        if ablated not in self._gradients:
            mask = cs.masks.ablate_only([ablated], self.n_units)
            _, gradients = self.spex.value_and_gradient(mask)
            self._gradients[ablated] = gradients[0].double().numpy()
        return self._gradients[ablated]

    def extend(self, context: Interaction) -> np.ndarray:
        """Estimate the interaction of a set with every other unit, NaN for its own."""
        estimate = np.zeros(self.n_units)
        for subset in parts_of(context):
            estimate -= (-1) ** (len(context) - len(subset)) * self.gradient(subset)
        estimate[list(context)] = np.nan
        return estimate

    def measure(self, terms: Sequence[Interaction]) -> np.ndarray:
        """Measure interactions exactly, one row per term and one column per prompt."""
        self._measured.update(part for term in terms for part in parts_of(term))
        return measure_coefficients(self.spex.per_prompt, terms, self.n_units).numpy()


def parts_of(term: Interaction) -> list[Interaction]:
    """List all subsets, from the empty one to the whole."""
    return [part for order in range(len(term) + 1) for part in combinations(term, order)]


def single_contexts(game: Game, n_contexts: int) -> list[Interaction]:
    """Choose single ablations, best first.

    The first quarter by their own gradients, then whichever unit's gradient those so far changed
    most: a unit that others change is a unit that changes others.
    """
    intact = np.abs(game.gradient(()))
    changed = np.zeros_like(intact)
    chosen: list[Interaction] = []
    for step in range(n_contexts):
        wanted = (intact if 4 * step < n_contexts else changed).copy()
        wanted[[unit for (unit,) in chosen]] = -1
        chosen.append((int(wanted.argmax()),))
        changed = np.fmax(changed, np.abs(game.extend(chosen[-1])))
    return chosen


def propose(game: Game, contexts: Sequence[Interaction], n_terms: int) -> dict[Interaction, float]:
    """Return the largest estimates among all extensions of the contexts by one unit.

    A set that several contexts propose has its largest estimate: where units back each other up,
    the gradient of one often sees nothing (it is saturated) and that of another all.
    """
    estimates: dict[Interaction, float] = {}
    for context in contexts:
        for unit, value in enumerate(game.extend(context)):
            if np.isfinite(value):
                term = tuple(sorted((*context, unit)))
                estimates[term] = max(estimates.get(term, value), value, key=abs)
    best = sorted(estimates, key=lambda term: -abs(estimates[term]))[:n_terms]
    return {term: estimates[term] for term in best}


def strongest(terms: Sequence[Interaction], effects: np.ndarray, n: int) -> list[Interaction]:
    """Choose the terms of largest mean effect."""
    order = np.argsort(-np.abs(effects.mean(1)))[:n]
    return [terms[i] for i in order]


def draw(n_sets: int, order: int, n_units: int, rng: np.random.Generator) -> list[Interaction]:
    """Draw distinct sets of units."""
    drawn: set[Interaction] = set()
    while len(drawn) < n_sets:
        drawn.add(tuple(sorted(rng.choice(n_units, order, replace=False).tolist())))
    return sorted(drawn)


def draw_extensions(
    contexts: Sequence[Interaction], n_terms: int, n_units: int, rng
) -> list[Interaction]:
    """Extend contexts by units, all equally likely."""
    extended = {tuple(sorted({*c, unit})) for c in contexts for unit in range(n_units)}
    every = sorted(extended - {*contexts})
    return [every[i] for i in rng.permutation(len(every))[:n_terms]]


def subsets(terms: Sequence[Interaction], order: int) -> list[Interaction]:
    """List the distinct subsets of one order."""
    return sorted({part for term in terms for part in combinations(term, order)})


def largest_error(game: Game, term: Interaction, effect: np.ndarray) -> float:
    """Compare a measured effect with the sum that defines it, written out mask by mask."""
    slow = np.zeros(game.spex.n_prompts)
    for part in parts_of(term):
        value = game.spex.per_prompt(cs.masks.ablate_only([part], game.n_units))[0].numpy()
        slow += (-1) ** (len(term) - len(part)) * value
    return float(np.abs(slow - effect).max())


def summarize(game: Game, estimates: dict[Interaction, float], effects, control, chance) -> dict:
    """Count measured sets beyond the largest chance value, and list all, the largest first."""
    mean, error = effects.mean(1), effects.std(1, ddof=1) / effects.shape[1] ** 0.5
    largest = float(np.abs(chance.mean(1)).max())
    guessed = list(estimates.values())
    names = [" + ".join(game.labels[unit] for unit in term) for term in estimates]
    rows = zip(names, mean, error, guessed, strict=True)
    return {
        "proposed": len(mean),
        "median_size": round(float(np.median(np.abs(mean))), 3),
        "control_beyond_chance": int((np.abs(control.mean(1)) > largest).sum()),
        "control_median_size": round(float(np.median(np.abs(control.mean(1)))), 3),
        "control_largest": round(float(np.abs(control.mean(1)).max()), 3),
        "chance_sets": len(chance),
        "largest_chance": round(largest, 3),
        "beyond_chance": int((np.abs(mean) > largest).sum()),
        "beyond_by_two_errors": int((np.abs(mean) - 2 * error > largest).sum()),
        "estimate_has_the_sign": int((np.sign(mean) == np.sign(guessed)).sum()),
        "rows": [
            [name, *(round(float(number), 3) for number in numbers)]
            for name, *numbers in sorted(rows, key=lambda row: -abs(row[1]))
        ],
    }


def adding_up(game: Game, term: Interaction) -> dict[str, float]:
    """Say what ablating a set does, and what its parts of order 1, of order up to 2 … add up to."""
    parts = parts_of(term)[1:]
    effects = game.measure(parts).mean(1)
    orders = np.array([len(part) for part in parts])
    sums = {f"up_to_order_{k}": float(effects[orders <= k].sum()) for k in range(1, len(term))}
    return {**sums, "joint": float(effects.sum())}


def least_explained(game: Game, terms: Sequence[Interaction], effects, n_beyond: int) -> list[dict]:
    """Of the sets beyond chance, list those whose singles and pairs explain the joint effect least.

    Least: the largest difference between the two, relative to the larger.
    """
    shown = []
    for term in strongest(terms, effects, n_beyond):
        sums = adding_up(game, term)
        pairs, joint = sums["up_to_order_2"], sums["joint"]
        missing = abs(pairs - joint) / max(abs(pairs), abs(joint))
        names = " + ".join(game.labels[unit] for unit in term)
        shown.append({"units": names, "missing": missing, **sums})
    shown = sorted(shown, key=lambda row: -row["missing"])[:3]
    return [{k: v if k == "units" else round(v, 3) for k, v in row.items()} for row in shown]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a .gguf file, a folder or a name")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--contexts", type=int, default=12, help="single ablations with gradients")
    parser.add_argument("--pairs", type=int, default=24, help="pairs that are measured")
    parser.add_argument("--extended-pairs", type=int, default=12)
    parser.add_argument("--triples", type=int, default=24, help="triples that are measured")
    parser.add_argument("--extended-triples", type=int, default=6)
    parser.add_argument("--quadruples", type=int, default=12, help="quadruples that are measured")
    parser.add_argument("--random", type=int, default=12, help="quadruples drawn for chance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", help="folder for the evaluations, to go on after a stop")
    parser.add_argument("--smoke", action="store_true", help="a toy")
    options = parser.parse_args()
    if options.smoke:
        options.model, options.prompts, options.contexts, options.pairs = None, 4, 4, 6
        options.extended_pairs, options.triples = 3, 6
        options.extended_triples, options.quadruples, options.random = 2, 4, 4
    elif options.model is None:
        parser.error("--model is needed, or --smoke")
    return options


def study(game: Game, options: argparse.Namespace) -> dict:
    """Propose and measure order by order, then compare with chance."""
    rng = np.random.default_rng(options.seed)
    # Random quadruples hold four random triples each, so chance of lower orders costs no more.
    fours = draw(options.random, 4, game.n_units, rng)
    costs, measured = {}, {}

    def note(stage: str) -> None:
        costs[stage] = game.cost - sum(costs.values())
        print(f"{stage}: {costs[stage]} evaluations", flush=True)

    contexts = single_contexts(game, options.contexts)
    for order, n_sets, n_extended in (
        (2, options.pairs, options.extended_pairs),
        (3, options.triples, options.extended_triples),
        (4, options.quadruples, 0),
    ):
        estimates = propose(game, contexts, n_sets)
        note(f"propose order {order}")
        effects = game.measure(list(estimates))
        note(f"measure order {order}")
        control = game.measure(draw_extensions(contexts, n_sets, game.n_units, rng))
        note(f"measure the control of order {order}")
        measured[order] = estimates, effects, control
        contexts = strongest(list(estimates), effects, n_extended)
    chance = {order: game.measure(subsets(fours, order)) for order in measured}
    note("measure chance")
    found: dict = {
        order: summarize(game, estimates, effects, control, chance[order])
        for order, (estimates, effects, control) in measured.items()
    }
    for order in (3, 4):
        estimates, effects, _ = measured[order]
        n_beyond = found[order]["beyond_chance"]
        found[order]["least_explained"] = least_explained(game, list(estimates), effects, n_beyond)
    wrong = max(
        largest_error(game, next(iter(estimates)), effects[0])
        for estimates, effects, _ in measured.values()
    )
    if wrong > 1e-9:
        raise SystemExit(f"measured effects differ from their definition by {wrong:.3g}")
    return {"evaluations": game.cost, "by_stage": costs, "orders": found}


def main() -> None:
    """Study the model, and print one JSON object."""
    options = parse()
    model, task = load(options.model, options.prompts)
    with cs.CircuitSpex(model, task, cs.heads(model), store=options.store) as spex:
        found = study(Game(spex), options)
    named = {"model": model.cfg.model_name, "prompts": len(task), "seed": options.seed}
    print(json.dumps({"benchmark": "higher_orders", **named, **found}))


if __name__ == "__main__":
    main()
