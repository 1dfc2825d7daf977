"""Which heads back up those that write the answer, found without naming any head?

Truth is ablation. Writers W are the heads of largest direct effect on the logit difference (their
output taken out of the last residual stream, nothing else changed). A head's growth is what its
ablation costs without the writers beyond what it costs with them,

    growth_i = [v(N∖W) − v(N∖W∖i)] − [v(N) − v(N∖i)],

averaged over prompts. Three truths are built on it; each takes the ``--positives`` heads outside W
that have most of it, at least two standard errors above 0:

    growth        growth itself
    useful        growth, among heads whose ablation costs something once the writers are gone
    beyond scale  the later effect less the earlier one times a common factor (least squares over
                  all heads): without its writers a model does less of everything

Scores are compared by the area under the ROC curve over the heads outside W. Among ours, the one
that is best on the first half of the prompts is reported on the other half.

    python benchmarks/backup_heads.py --model SmolLM2-135M-Instruct.Q4_1.gguf --store evaluations
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

import circuitspex as cs
from circuitspex.ablation import Rows

GRADIENT_COST = 3
SUPPORT = 192  # tokens that CoAx compares, the likeliest of the intact model
Arrays = dict[str, np.ndarray]


class Lab:
    """A model on a task inside a block of ablations, with everything measured kept in a folder."""

    def __init__(self, model, task: cs.Task, ablated, folder: Path | None) -> None:
        """Sort prompts by length, as they run together."""
        self.model, self.task, self.ablated, self.folder = model, task, ablated, folder
        self.units = ablated.units
        self.n_units, self.n_prompts = len(ablated.units), len(task)
        lengths = [len(tokens) for tokens in task.tokens]
        self.groups = [
            [p for p, own in enumerate(lengths) if own == length] for length in sorted({*lengths})
        ]

    def remember(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """Make arrays, or load them from the folder where they were made before."""
        path = None if self.folder is None else self.folder / f"{name}.npz"
        if path is not None and path.exists():
            with np.load(path) as file:
                return dict(file)
        arrays = make()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
        return arrays

    def tokens(self, prompts: Sequence[int]) -> torch.Tensor:
        """Stack prompts of one length."""
        return torch.stack([self.task.tokens[p] for p in prompts])

    def metric(self, logits: torch.Tensor, prompt: int) -> torch.Tensor:
        """Logit difference of one prompt, over the last axis."""
        wrong = logits[..., list(self.task.wrong_answers[prompt])].mean(-1)
        return logits[..., self.task.answers[prompt]] - wrong

    def ablate_each(self, base: Iterable[int], prompts: Sequence[int]) -> Arrays:
        """Ablate a base, then the base and each unit in turn.

        ``values``, of shape (1 + units, prompts), has the base alone in its first row; ``logits``
        are those of the intact model's likeliest tokens; columns of other prompts are NaN.
        """
        sets = [[*base], *([*base, unit] for unit in range(self.n_units))]
        masks = cs.masks.ablate_only(sets, self.n_units)
        n_tokens = min(SUPPORT, self.model.cfg.d_vocab)
        values = np.full((len(masks), self.n_prompts), np.nan)
        logits = np.full((*values.shape, n_tokens), np.nan, dtype=np.float32)
        for group in self.groups:
            chosen = [p for p in group if p in prompts]
            if not chosen:
                continue
            intact = self.ablated(self.tokens(chosen), cs.masks.all_kept(self.n_units))[0]
            top = intact.topk(n_tokens).indices
            each = self.ablated(self.tokens(chosen), masks)
            for place, prompt in enumerate(chosen):
                values[:, prompt] = self.metric(each[:, place], prompt)
                logits[:, prompt] = each[:, place, top[place]]
        return {"values": values, "logits": logits}

    def gradient(self, mask: torch.Tensor) -> np.ndarray:
        """Take the gradient by every gate, of shape (prompts, units)."""
        found = np.full((self.n_prompts, self.n_units), np.nan)
        for group in self.groups:
            prompts = torch.arange(len(group))

            def measure(logits: torch.Tensor, rows: torch.Tensor, group: list[int] = group):
                own = np.array(group)[rows]
                return torch.stack([self.metric(logits[k], p) for k, p in enumerate(own)])

            stream = self.ablated.stream_gradients(
                self.tokens(group), Rows(mask, torch.zeros_like(prompts), prompts), measure
            )
            for rows, _, gradients in stream:
                found[np.array(group)[rows]] = gradients.numpy()
        return found

    def gradient_without(self, ablated: Iterable[int] = ()) -> np.ndarray:
        """Take the gradient with some units ablated."""
        return self.gradient(cs.masks.ablate_only([list(ablated)], self.n_units))

    def gradient_cut(self, points: Iterable[str]) -> np.ndarray:
        """Take the gradient of the intact model with no gradient passing some hook points."""
        known = self.model.hook_dict
        hooks = [(known[p].name or p, _detach) for p in points if p in known]
        with self.model.hooks(fwd_hooks=hooks):
            return self.gradient_without()


def _detach(activation: torch.Tensor, hook) -> torch.Tensor:
    return activation.detach()


def direct_effects(lab: Lab) -> Arrays:
    """Take each head's output out of the last residual stream, one prompt at a time."""
    effects = np.zeros((lab.n_prompts, lab.n_units))
    weights = [block.attn.W_O for block in lab.model.blocks]
    for prompt, tokens in enumerate(lab.task.tokens):
        with torch.no_grad():
            _, cache = lab.model.run_with_cache(tokens[None])
            written = torch.stack([
                cache[f"blocks.{u.layer}.attn.hook_z"][0, -1, u.head] @ weights[u.layer][u.head]
                for u in lab.units
            ])  # fmt: skip
            last = cache["ln_final.hook_in"][0, -1]
            streams = torch.cat([last[None], last - written])[:, None]
            logits = lab.model.unembed(lab.model.ln_final(streams))[:, 0]
        values = lab.metric(logits, prompt).double().numpy()
        effects[prompt] = values[0] - values[1:]
    return {"direct": effects}


def first_contexts(lab: Lab, intact: np.ndarray, n_contexts: int) -> Arrays:
    """Take gradients at single ablations, best first.

    The first quarter by their own gradients, then whichever unit's gradient those so far changed
    most.
    """
    own = np.abs(intact.mean(0))
    changed, chosen, gradients = np.zeros_like(own), [], []
    for step in range(n_contexts):
        wanted = (own if 4 * step < n_contexts else changed).copy()
        wanted[chosen] = -1
        chosen.append(int(wanted.argmax()))
        gradients.append(lab.gradient_without(chosen[-1:]))
        change = np.abs((gradients[-1] - intact).mean(0))
        change[chosen[-1]] = 0
        changed = np.maximum(changed, change)
    return {"contexts": np.array(chosen), "gradients": np.stack(gradients)}


def largest(scores: np.ndarray, n: int) -> np.ndarray:
    """Return the indices of the largest scores, the largest first."""
    return np.argsort(-scores)[:n]


@dataclass(frozen=True)
class Evidence:
    """Everything that truth and scores are made of; axis 0 of gradients is prompts."""

    writers: np.ndarray
    alone: Arrays
    """What ablating each unit does to the intact model."""
    after: Arrays
    """The same once the writers are gone."""
    intact: np.ndarray
    straight: np.ndarray
    """Gradient along the residual stream alone, past no attention and no MLP."""
    guessed: np.ndarray
    """Writers by that gradient."""
    without_guessed: np.ndarray
    halved: np.ndarray
    """Gradient with the gates of the guessed writers half open."""
    loud: np.ndarray
    """Units of largest gradient."""
    without_loud: np.ndarray
    without_writers: np.ndarray
    contexts: Arrays
    dropped: np.ndarray
    """Gradients with one layer's contribution cut, layer by layer."""


def gather(lab: Lab, n_writers: int, n_contexts: int) -> Evidence:
    """Measure everything."""
    everyone = range(lab.n_prompts)
    n_layers = lab.model.cfg.n_layers
    direct = lab.remember("direct", lambda: direct_effects(lab))["direct"]
    writers = np.sort(largest(direct.mean(0), n_writers))
    entrances = [f"blocks.{n}.{ln}.hook_in" for n in range(n_layers) for ln in ("ln1", "ln2")]
    gradients = lab.remember(
        "gradients",
        lambda: {"intact": lab.gradient_without(), "straight": lab.gradient_cut(entrances)},
    )
    guessed = np.sort(largest(gradients["straight"].mean(0), n_writers))
    loud = np.sort(largest(gradients["intact"].mean(0), n_writers))
    sets = {"guessed": guessed, "loud": loud, "writers": writers}
    half = torch.ones(1, lab.n_units)
    half[0, guessed] = 0.5
    without = lab.remember(
        f"without_{n_writers}",
        lambda: (
            {f"without_{name}": lab.gradient_without(own) for name, own in sets.items()}
            | {"halved": lab.gradient(half)}
        ),
    )

    def drop_each() -> Arrays:
        outputs = [[f"blocks.{n}.hook_{part}_out" for part in ("attn", "mlp")]
                   for n in range(n_layers)]  # fmt: skip
        return {"dropped": np.stack([lab.gradient_cut(points) for points in outputs])}

    return Evidence(
        writers=writers,
        alone=lab.remember("alone", lambda: lab.ablate_each((), everyone)),
        after=lab.remember(f"after_{n_writers}", lambda: lab.ablate_each(writers, everyone)),
        guessed=guessed,
        loud=loud,
        **gradients,
        **without,
        contexts=lab.remember(
            f"contexts_{n_contexts}",
            lambda: first_contexts(lab, gradients["intact"], n_contexts),
        ),
        **lab.remember("dropped", drop_each),
    )


def effects(table: Arrays) -> np.ndarray:
    """Say what ablating each unit costs on top of the base, (prompts, units)."""
    return (table["values"][:1] - table["values"][1:]).T


def beyond_scale(earlier: np.ndarray, later: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Take from later effects what one common factor makes of the earlier ones."""
    first, second = earlier.mean(0)[units], later.mean(0)[units]
    return later - (first @ second) / (first @ first) * earlier


def most(grown: np.ndarray, candidates: np.ndarray, n: int) -> np.ndarray:
    """Label the n candidates of largest mean that is two standard errors above 0."""
    mean, error = grown.mean(0), grown.std(0, ddof=1) / len(grown) ** 0.5
    chosen = np.zeros(grown.shape[1], dtype=bool)
    best = candidates[largest(mean[candidates], n)]
    chosen[best] = mean[best] > 2 * error[best]
    return chosen


@dataclass(frozen=True)
class Truth:
    """Which heads are positive, on any prompts."""

    earlier: np.ndarray
    """Effects in the intact model, (prompts, units)."""
    later: np.ndarray
    """Effects without the writers."""
    candidates: np.ndarray
    """Heads that are not writers."""
    n_positives: int

    def labels(self, prompts: np.ndarray) -> dict[str, np.ndarray]:
        """Label heads by each of the three truths."""
        earlier, later, among = self.earlier[prompts], self.later[prompts], self.candidates
        beyond = beyond_scale(earlier, later, among)
        useful = among[later.mean(0)[among] > 0]
        return {
            "growth": most(later - earlier, among, self.n_positives),
            "useful": most(later - earlier, useful, self.n_positives),
            "beyond scale": most(beyond, among, self.n_positives),
        }

    def areas(self, prompts: np.ndarray, scores: dict[str, np.ndarray]) -> dict:
        """Areas under the curve, by truth and score."""
        return {
            truth: {name: area(labels, own, self.candidates) for name, own in scores.items()}
            for truth, labels in self.labels(prompts).items()
        }


def area(labels: np.ndarray, scores: np.ndarray, candidates: np.ndarray) -> float:
    """Return the area under the ROC curve, NaN where all candidates are of one kind."""
    own = labels[candidates]
    return float("nan") if own.all() or not own.any() else roc_auc_score(own, scores[candidates])


def energies(table: Arrays, intact: np.ndarray) -> np.ndarray:
    """Energy of each unit's effect on the logits in the Fisher metric of the intact model.

    What CoAx calls the energy of an ablation: logit changes centred by, and weighted with, the
    intact model's probabilities, squared and summed; here at the answer position.
    """
    weights = np.exp(intact - intact.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    change = table["logits"][:1] - table["logits"][1:]
    change = change - (weights * change).sum(-1, keepdims=True)
    return (weights * change**2).sum(-1).T


def rivals(e: Evidence, prompts: np.ndarray) -> dict[str, np.ndarray]:
    """Score units by what others compute, on some prompts."""
    single, gradient = effects(e.alone)[prompts].mean(0), e.intact[prompts].mean(0)
    intact = e.alone["logits"][0]
    first, second = (energies(table, intact)[prompts].mean(0) for table in (e.alone, e.after))
    drops = np.abs(e.dropped[:, prompts]).sum(0) / max(1, len(e.dropped) - 1)
    return {
        "single ablation": single,
        "single ablation, size": np.abs(single),
        "single ablation, negated": -single,
        "gradient": gradient,
        "gradient, negated": -gradient,
        "AtP": np.abs(e.intact[prompts]).mean(0),
        "AtP*": drops.mean(0),
        "CoAx energy alone": first,
        "CoAx": second - first,
        "CoAx, ratio": second / np.maximum(first, 1e-12),
        "gradient without the writers, size": np.abs(e.without_writers[prompts]).mean(0),
    }


def ours(e: Evidence, prompts: np.ndarray) -> dict[str, np.ndarray]:
    """Score units by gradients alone, no unit given.

    Each is a sum or maximum of −θ̂_ij = g_i(N∖j) − g_i(N) over contexts j, or the same of one
    context in which the guessed writers are gone together.
    """
    intact = e.intact[prompts].mean(0)
    backing = e.contexts["gradients"][:, prompts].mean(1) - intact
    backing[np.arange(len(backing)), e.contexts["contexts"]] = 0
    useful = np.maximum(intact[e.contexts["contexts"]], 0)
    writing = np.maximum(e.straight[prompts].mean(0)[e.contexts["contexts"]], 0)
    later = e.without_guessed[prompts].mean(0)
    others = np.setdiff1d(np.arange(len(intact)), e.guessed)
    return {
        "guessed writers gone": later - intact,
        "guessed writers gone, useful then": (later - intact) * (later > 0),
        "guessed writers gone, beyond scale": beyond_scale(
            e.intact[prompts], e.without_guessed[prompts], others
        ).mean(0),
        "guessed writers halved": e.halved[prompts].mean(0) - intact,
        "loudest gone": e.without_loud[prompts].mean(0) - intact,
        "contexts, sum over useful": backing[useful > 0].sum(0),
        "contexts, largest over useful": backing[useful > 0].max(0),
        "contexts, weighted by use": useful @ backing,
        "contexts, weighted by writing": writing @ backing,
        "contexts, largest redundancy": np.maximum(backing, 0).max(0),
    }


def costs(e: Evidence) -> dict[str, int]:
    """Count evaluations, a gradient three times, with all prompts; seeds are given, not counted."""
    n_prompts, n_units = e.intact.shape
    scan, gradient = (1 + n_units) * n_prompts, GRADIENT_COST * n_prompts
    by_start = {
        "single ablation": scan,
        "gradient without": gradient,
        "gradient": gradient,
        "AtP*": len(e.dropped) * gradient,
        "AtP": gradient,
        "CoAx energy alone": scan,
        "CoAx": 2 * scan,
        "guessed": 3 * gradient,
        "loudest": 2 * gradient,
        "contexts, weighted by writing": (2 + len(e.contexts["contexts"])) * gradient,
        "contexts": (1 + len(e.contexts["contexts"])) * gradient,
    }
    names = score(e, np.arange(n_prompts))
    return {n: next(cost for start, cost in by_start.items() if n.startswith(start)) for n in names}


def score(e: Evidence, prompts: np.ndarray) -> dict[str, np.ndarray]:
    """Score units every way."""
    return {**rivals(e, prompts), **ours(e, prompts)}


def intervals(e: Evidence, truth: Truth, prompts: np.ndarray, n_draws: int, rng) -> dict:
    """Bootstrap prompts, truth and scores together; 95 % intervals of the areas."""
    drawn: dict[str, dict[str, list[float]]] = {}
    for _ in range(n_draws):
        own = rng.choice(prompts, len(prompts))
        for kind, areas in truth.areas(own, score(e, own)).items():
            for name, value in areas.items():
                drawn.setdefault(kind, {}).setdefault(name, []).append(value)
    return {
        kind: {name: np.nanpercentile(values, [2.5, 97.5]) for name, values in areas.items()}
        for kind, areas in drawn.items()
    }


def compare(e: Evidence, truth: Truth, n_draws: int, rng: np.random.Generator) -> dict:
    """Tabulate areas on both halves and on all prompts, ours chosen on the first half."""
    everyone = np.arange(len(e.intact))
    first, other = np.array_split(everyone, 2)
    on_first, on_other, on_all = (
        truth.areas(prompts, score(e, prompts)) for prompts in (first, other, everyone)
    )
    spread, spent = intervals(e, truth, other, n_draws, rng), costs(e)
    tables = {}
    for kind in on_all:
        own = {name: np.nan_to_num(on_first[kind][name]) for name in ours(e, first)}
        tables[kind] = {
            "chosen": max(own, key=lambda name: own[name]),
            "positives": int(truth.labels(everyone)[kind].sum()),
            "columns": ["evaluations", "first half", "other half", "low", "high", "all"],
            "rows": {
                name: [spent[name], *(short(value) for value in (
                    on_first[kind][name], on_other[kind][name], *spread[kind][name], whole
                ))]
                for name, whole in on_all[kind].items()
            },
        }  # fmt: skip
    return tables


def describe(e: Evidence, truth: Truth, labels: Sequence[str]) -> list[dict]:
    """List positive heads: growth, its error, effects before and after, and by which truth."""
    everyone = np.arange(len(e.intact))
    kinds = truth.labels(everyone)
    grown = truth.later - truth.earlier
    error = grown.std(0, ddof=1) / len(grown) ** 0.5
    listed = np.flatnonzero(np.any(list(kinds.values()), axis=0))
    return [
        {
            "head": labels[int(unit)],
            "growth": round(float(grown[:, unit].mean()), 3),
            "error": round(float(error[unit]), 3),
            "alone": round(float(truth.earlier[:, unit].mean()), 3),
            "after": round(float(truth.later[:, unit].mean()), 3),
            "truths": [kind for kind, positive in kinds.items() if positive[unit]],
        }
        for unit in sorted(listed, key=lambda unit: -grown[:, unit].mean())
    ]


def vary_writers(lab: Lab, e: Evidence, options: argparse.Namespace) -> dict:
    """Change how many writers the truth has, on fewer prompts; what we guess stays as it is."""
    prompts = np.arange(lab.n_prompts)[-options.fewer_prompts :]
    direct = lab.remember("direct", lambda: direct_effects(lab))["direct"].mean(0)
    # What is not told the writers.
    names = [*ours(e, prompts), "AtP", "AtP*", "single ablation, negated", "gradient, negated"]
    found = {}
    for n_writers in [options.writers, *options.more_writers]:
        writers = np.sort(largest(direct, n_writers))
        after = e.after
        if n_writers != options.writers:
            after = lab.remember(
                f"after_{n_writers}_on_{options.fewer_prompts}",
                lambda writers=writers: lab.ablate_each(writers, prompts.tolist()),
            )
        truth = truth_of(e.alone, after, writers, options.positives)
        scores = {name: own for name, own in score(e, prompts).items() if name in names}
        found[n_writers] = rounded(truth.areas(prompts, scores))
    return found


def truth_of(alone: Arrays, after: Arrays, writers: np.ndarray, n_positives: int) -> Truth:
    """Build the truth about the heads that are not writers."""
    earlier, later = effects(alone), effects(after)
    others = np.setdiff1d(np.arange(earlier.shape[1]), writers)
    return Truth(earlier, later, others, n_positives)


def short(value: float) -> float | None:
    """Round a number; JSON knows no NaN."""
    return None if np.isnan(value) else round(float(value), 3)


def rounded(areas: dict) -> dict:
    """Round areas by truth and score."""
    return {k: {n: short(v) for n, v in own.items()} for k, own in areas.items()}


def check(lab: Lab, e: Evidence, rng: np.random.Generator) -> float:
    """Compare some values with those of a set function; return the largest difference."""
    rows = rng.choice(lab.n_units, min(4, lab.n_units), replace=False)
    sets = [[], *([unit] for unit in rows), *([*e.writers, unit] for unit in rows)]
    with cs.CircuitSpex(lab.model, lab.task, lab.units) as spex:
        slow = spex.per_prompt(cs.masks.ablate_only(sets, lab.n_units)).numpy()
    fast = [e.alone["values"][:1], e.alone["values"][1 + rows], e.after["values"][1 + rows]]
    return float(np.abs(slow - np.concatenate(fast)).max())


def load(name: str | None, n_prompts: int):
    """Load the model and its task, or a toy for the smoke run."""
    if name is None:
        model = cs.models.load("toy-redundant")
        return model, cs.tasks.induction(model, n_prompts=n_prompts, seed=0)
    model = cs.models.load(name)
    return model, cs.tasks.ioi(model, n_prompts=n_prompts, seed=0)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a .gguf file, a folder or a name")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--more-writers", type=int, nargs="*", default=[2, 8])
    parser.add_argument("--fewer-prompts", type=int, default=4, help="for other numbers of writers")
    parser.add_argument("--positives", type=int, default=8)
    parser.add_argument("--more-positives", type=int, nargs="*", default=[5, 12, 20])
    parser.add_argument("--contexts", type=int, default=16)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, help="folder of this model's and task's tables")
    parser.add_argument("--smoke", action="store_true", help="a toy")
    options = parser.parse_args()
    if options.smoke:
        options.model, options.store, options.prompts, options.draws = None, None, 8, 20
        options.writers, options.more_writers, options.contexts = 2, [3], 4
        options.positives, options.more_positives = 2, [3]
    elif options.model is None:
        parser.error("--model is needed, or --smoke")
    return options


def main() -> None:
    """Gather, compare, and print one JSON object."""
    options = parse()
    model, task = load(options.model, options.prompts)
    rng = np.random.default_rng(options.seed)
    with cs.ablate(model, cs.heads(model)) as ablated:
        lab = Lab(model, task, ablated, options.store)
        e = gather(lab, options.writers, options.contexts)
        by_writers = vary_writers(lab, e, options)
    difference = check(lab, e, rng)
    if difference > 1e-3:
        raise SystemExit(f"values differ from the set function's by {difference:.3g}")
    truth = truth_of(e.alone, e.after, e.writers, options.positives)
    tables = compare(e, truth, options.draws, rng)
    everyone = np.arange(lab.n_prompts)
    by_positives = {
        n: rounded(replace(truth, n_positives=n).areas(everyone, score(e, everyone)))
        for n in options.more_positives
    }
    for kind, table in tables.items():
        print(f"{kind}: {table['positives']} positives; chosen: {table['chosen']}")
        for name, row in table["rows"].items():
            print(f"  {name:36s}", *row)
    labels = lab.units.labels
    print(
        json.dumps(
            {
                "benchmark": "backup_heads",
                "model": model.cfg.model_name,
                "prompts": len(task),
                "largest_difference": difference,
                **{k: [labels[i] for i in getattr(e, k)] for k in ("writers", "guessed", "loud")},
                "intact": round(float(e.alone["values"][0].mean()), 3),
                "without_writers": round(float(e.after["values"][0].mean()), 3),
                "heads": describe(e, truth, labels),
                "tables": tables,
                "by_positives": by_positives,
                "by_writers": by_writers,
            }
        )
    )


if __name__ == "__main__":
    main()
