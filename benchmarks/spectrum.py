"""Where is the spectrum sparse? Variance by order of interaction, against what a user can choose.

A decoder can only find what is there: this measures how a task's variance divides over orders 1,
2, 3 and more, for keep rates, numbers of prompts averaged, kinds of ablation and restricted sets
of heads, whether or not any decoder could find the terms.

**Orders without finding terms.** Let y be a copy of the mask x in which every unit is kept as it is
with probability ρ and redrawn otherwise. Then E[f(x) f(y)] = Σ_T ρ^|T| F(T)² (noise stability).
Masks come in chains of five, each a copy of the one before, so that the pairs of one chain have ten
different ρ from 0.2 to 0.98. Pairs of *independent* masks tell more about low orders:
E[f(x) f(y) Σ_{|T|=k} χ_T(x) χ_T(y)] = Σ_{|T|=k} F(T)², for k = 0 to 3.

**Less noise.** A decoder's fit g from other rows is taken off: what is left, r = f − g, is measured
as above, and F² = G² + 2 G R + R² puts the parts together, with Σ G R = E[r(x) g_k(x)] from every
row. Nothing is assumed of g; a bad one only leaves more noise. Non-negative least squares on all
moments of r, weighted by their covariance, gives its weight at each order.

**Prompts.** Each chain is evaluated on two prompts. With Q drawn prompts averaged, the weight of an
order is (1/Q) of the same-prompt weight and (1 − 1/Q) of the cross-prompt weight, so single
evaluations serve every Q.

Intervals (95 %) are from a multiplier bootstrap over chains, of moments, then least squares again.
Before measuring, the estimate is compared with the dense transform of a toy model of 8 heads.

    OMP_NUM_THREADS=1 python benchmarks/spectrum.py --model SmolLM2-135M-Instruct.Q4_1.gguf \
        [--pool FOLDER]    # also uses the evaluations that real_decoders.py left there
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import nnls
from torch import Tensor

import circuitspex as cs
from circuitspex import decoders
from circuitspex.algebra.masks import enumerate_masks
from circuitspex.decoders.measuring.samples import Samples, gather
from circuitspex.decoders.regression.least_squares import characters
from circuitspex.decoders.regression.sparse_regression import SparseRegression
from circuitspex.evaluation.evaluation import draw_balanced

STEPS = (0.98, 0.9, 0.7, 0.4)
"""ρ between one mask of a chain and the next; ρ of farther ones is the product."""
PROMPTS = 2
ORDERS = (1, 2, 3, 4, 5, 7, 10, 14, 20, 28, 40, 60, 90)
AVERAGED = (1, 4, 16)
REPLICATES = 400
FITTED = 4000


@dataclass(frozen=True)
class Rows:
    """Masks, values prompt by prompt (NaN where not evaluated), and which chain each belongs to."""

    masks: Bool[np.ndarray, "rows units"]
    values: Float[np.ndarray, "rows prompts"]
    chains: Int[np.ndarray, " rows"]
    """Rows of different chains are independent; rows of one chain follow each other."""
    in_chain: Bool[np.ndarray, " rows"]
    """Whether the chain is one of five masks; single masks and pairs tell no stability."""
    keep_rate: float

    def take(self, chosen: np.ndarray) -> "Rows":
        """Return some of the rows, chains renumbered."""
        chains = np.unique(self.chains[chosen], return_inverse=True)[1]
        return replace(
            self,
            masks=self.masks[chosen],
            values=self.values[chosen],
            chains=chains,
            in_chain=self.in_chain[chosen],
        )

    def samples(self) -> Samples:
        """Return one row per evaluation for a decoder; chains are never separated."""
        row, prompt = np.nonzero(np.isfinite(self.values))
        draws, n_prompts = self.values[row, prompt], self.values.shape[1]
        made = gather(self.masks[row], draws[:, None], prompt[:, None], n_prompts, self.keep_rate)
        return replace(made, groups=self.chains[row])


def draw_chains(
    game: cs.SampledSetFunction, n_chains: int, keep_rate: float, seed: list[int]
) -> Rows:
    """Evaluate chains of masks, each chain on two prompts."""
    rng = np.random.default_rng(seed)
    masks = [rng.random((n_chains, game.n_units)) < keep_rate]
    for rho in STEPS:
        fresh = rng.random(masks[0].shape) < keep_rate
        masks.append(np.where(rng.random(masks[0].shape) < rho, masks[-1], fresh))
    values = np.full((len(masks), n_chains, game.n_prompts), np.nan)
    for position, own in enumerate(masks):  # the same generator, so the same prompts
        drawn, prompts = game.sample(torch.from_numpy(own), PROMPTS, np.random.default_rng(seed))
        np.put_along_axis(values[position], prompts.numpy(), drawn.numpy(), axis=1)
    in_order = np.stack(masks, axis=1).reshape(-1, game.n_units)
    flat = values.transpose(1, 0, 2).reshape(len(in_order), -1)
    chains = np.arange(n_chains).repeat(len(masks))
    return Rows(in_order, flat, chains, np.ones(len(chains), dtype=bool), keep_rate)


def with_stored(rows: Rows, table: pa.Table) -> Rows:
    """Add a store's evaluations but the intact model's; at rate ½ complements are one chain."""
    n_units = rows.masks.shape[1]
    packed = np.frombuffer(b"".join(table["mask"].to_pylist()), np.uint8).reshape(len(table), -1)
    distinct, row = np.unique(packed, axis=0, return_inverse=True)
    masks = cs.masks.unpack(distinct, n_units).numpy()
    values = np.full((len(masks), rows.values.shape[1]), np.nan)
    values[row.reshape(-1), table["prompt"].to_numpy()] = table["value"].to_numpy()
    masks, values = masks[~masks.all(axis=1)], values[~masks.all(axis=1)]
    kinds = masks ^ ~masks[:, :1] if rows.keep_rate == 0.5 else masks
    chains = np.unique(np.packbits(kinds, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(chains, kind="stable")
    return Rows(
        np.concatenate([rows.masks, masks[order]]),
        np.concatenate([rows.values, values[order]]),
        np.concatenate([rows.chains, rows.chains.max() + 1 + chains[order]]),
        np.concatenate([rows.in_chain, np.zeros(len(masks), dtype=bool)]),
        rows.keep_rate,
    )


@dataclass
class Moments:
    """Estimates, one column per moment, with what every chain does to them."""

    names: list[tuple]
    estimates: list[float]
    replicates: list[np.ndarray]
    noise: Float[np.ndarray, "replicates chains"]

    def add_mean(self, name: tuple, sums: np.ndarray, weights: np.ndarray) -> None:
        """Add a ratio of sums over chains."""
        estimate = sums.sum() / weights.sum()
        influence = (sums - estimate * weights) / weights.sum()
        self._add(name, estimate, self.noise @ influence)

    def add_pairs(self, name: tuple, sums: np.ndarray, weights: np.ndarray) -> None:
        """Add a ratio of sums over pairs of different chains (a U-statistic).

        Its noise has a part that adds up over chains and a part that only pairs have; the first
        is measured with some of the second in it, which is taken out.
        """
        np.fill_diagonal(sums, 0)
        np.fill_diagonal(weights, 0)
        total = weights.sum(dtype=np.float64)
        estimate = sums.sum(dtype=np.float64) / total
        kernel = (sums - np.float32(estimate) * weights) / np.float32(total)
        linear = kernel.sum(axis=1, dtype=np.float64)
        energy = float(np.square(kernel).sum(dtype=np.float64))
        share = max(0.0, 1 - energy / max(1e-300, float(np.square(linear).sum())))
        noise = self.noise.astype(np.float32)
        both = ((noise @ kernel) * noise).sum(axis=1, dtype=np.float64)
        both -= np.square(noise) @ np.diag(kernel)
        self._add(name, estimate, 2 * np.sqrt(share) * (self.noise @ linear) + both)

    def _add(self, name: tuple, estimate: float, deviations: np.ndarray) -> None:
        self.names.append(name)
        self.estimates.append(float(estimate))
        self.replicates.append(estimate + deviations)

    def all(self) -> dict[tuple, np.ndarray]:
        """Return each moment: the estimate, then its replicates."""
        pairs = zip(self.names, self.estimates, self.replicates, strict=True)
        return {name: np.r_[estimate, replicates] for name, estimate, replicates in pairs}


def by_order(found: cs.Interactions, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a fit's values and its weight, separately for orders 1 to 3."""
    coefficients = found.coefficients.numpy()
    values, weights = np.zeros((3, len(masks))), np.zeros(3)
    for order in (1, 2, 3):
        own = [i for i, term in enumerate(found.support) if len(term) == order]
        terms = [found.support[i] for i in own]
        if own:
            values[order - 1] = characters(masks, terms, found.keep_rate) @ coefficients[own]
            weights[order - 1] = np.square(coefficients[own]).sum()
    return values, weights


def fit(rows: Rows, name: str, max_order: int) -> cs.Interactions:
    """Fit a decoder to single evaluations."""
    decoder = decoders.get(
        name, keep_rate=rows.keep_rate, max_order=max_order, prompts_per_mask=PROMPTS
    )
    assert isinstance(decoder, SparseRegression)
    labels = tuple(map(str, range(rows.masks.shape[1])))
    samples = rows.samples()
    return decoder._fit(samples, labels, len(samples.draws), np.random.default_rng(0))


def measure_moments(rows: Rows, others: Rows, rng: np.random.Generator) -> dict:
    """Measure these rows' moments, after taking off a fit of the others."""
    found = fit(others, "lasso", 2 if rows.masks.shape[1] <= 64 else 1)
    level = others.values - by_order(found, others.masks)[0].sum(axis=0)[:, None]
    parts, weights = by_order(found, rows.masks)
    known = np.isfinite(level)
    offsets = np.where(known, level, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    residuals = rows.values - parts.sum(axis=0)[:, None] - offsets
    seen = np.isfinite(residuals).astype(float)
    residuals = np.where(seen > 0, residuals, 0.0)
    n_chains = rows.chains.max() + 1
    moments = Moments([], [], [], rng.standard_normal((REPLICATES, n_chains)))
    n_seen = seen.sum(axis=1)
    scale = 1 / (1 + n_seen)  # a second prompt on a mask tells less than the first
    weight = np.bincount(rows.chains, n_seen * scale, n_chains)
    for order in (1, 2, 3):
        products = residuals.sum(axis=1) * scale * parts[order - 1]
        moments.add_mean(("cov", order), np.bincount(rows.chains, products, n_chains), weight)
    _add_stabilities(moments, rows, residuals, seen)
    _add_kernels(moments, rows, residuals, seen)
    return {**moments.all(), **{("fit", k + 1): w for k, w in enumerate(weights)}}


def _add_stabilities(moments: Moments, rows: Rows, residuals: np.ndarray, seen: np.ndarray) -> None:
    """Add E[r(x) r(y)] for every ρ, x and y of one chain, on the same and on different prompts."""
    n_chains = rows.chains.max() + 1
    size = len(STEPS) + 1
    for i in range(size):
        for j in range(i, size):
            rho = float(np.prod(STEPS[i:j]))
            first, second = rows.in_chain.nonzero()[0].reshape(-1, size)[:, [i, j]].T
            if i == j:
                if i > 0:
                    continue
                first = second = np.arange(len(rows.masks))  # every mask is its own copy
            chain = rows.chains[first]
            for kind, weight, total in _pair_sums(residuals, seen, first, second):
                sums = np.bincount(chain, total, n_chains)
                moments.add_mean((kind, rho), sums, np.bincount(chain, weight, n_chains))


def _pair_sums(residuals: np.ndarray, seen: np.ndarray, first: np.ndarray, second: np.ndarray):
    """Yield kind of pair of prompts, how many such pairs, and the sum of products over them."""
    same = (residuals[first] * residuals[second]).sum(axis=1)
    n_same = (seen[first] * seen[second]).sum(axis=1)
    every = residuals[first].sum(axis=1) * residuals[second].sum(axis=1)
    n_every = seen[first].sum(axis=1) * seen[second].sum(axis=1)
    for kind, total, count in (("same", same, n_same), ("cross", every - same, n_every - n_same)):
        scale = 1 / np.maximum(count, 1)  # a mask with many prompts is still one mask
        yield kind, np.minimum(count, 1.0), total * scale


def _add_kernels(moments: Moments, rows: Rows, residuals: np.ndarray, seen: np.ndarray) -> None:
    """Add E[r(x) r(y) Σ_{|T|=k} χ_T(x) χ_T(y)] over masks of different chains, k = 0 to 3."""
    p = rows.keep_rate
    z = ((rows.masks - p) / np.sqrt(p * (1 - p))).astype(np.float32)
    n_seen = seen.sum(axis=1, keepdims=True)
    scale = 1 / (1 + n_seen)
    r, o = (residuals * scale).astype(np.float32), (seen * scale).astype(np.float32)
    starts = np.flatnonzero(np.r_[True, np.diff(rows.chains) != 0])
    powers = [z @ z.T, np.square(z) @ np.square(z).T, z**3 @ (z**3).T]
    same, n_same = r @ r.T, o @ o.T
    cross = np.outer(r.sum(axis=1), r.sum(axis=1)) - same
    n_cross = np.outer(o.sum(axis=1), o.sum(axis=1)) - n_same
    kernels: list[Callable[[], Any]] = [  # Newton's identities
        lambda: 1.0,
        lambda: powers[0],
        lambda: (powers[0] ** 2 - powers[1]) / 2,
        lambda: (powers[0] ** 3 - 3 * powers[0] * powers[1] + 2 * powers[2]) / 6,
    ]
    for kind, products, counts in (("same", same, n_same), ("cross", cross, n_cross)):
        weights = _over_chains(counts, starts)
        for order, kernel in enumerate(kernels):
            sums = _over_chains(products * kernel(), starts)
            moments.add_pairs((kind, "order", order), sums, weights.copy())


def _over_chains(matrix: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)


def weights_by_order(moments: dict, n_averaged: int, n_units: int) -> np.ndarray:
    """Return weights of orders 1, 2, 3 and more: the estimate, then its replicates."""

    def mixed(*key: object) -> np.ndarray:
        same, cross = moments["same", *key], moments["cross", *key]
        return same / n_averaged + (1 - 1 / n_averaged) * cross

    orders = np.array([order for order in ORDERS if order <= n_units])
    rhos = [key[1] for key in moments if key[0] == "cross" and len(key) == 2]
    empty = mixed("order", 0)
    known = range(1, min(3, n_units) + 1)
    left = np.stack([mixed(rho) - empty for rho in rhos] + [mixed("order", k) for k in known])
    design = np.stack(
        [float(rho) ** orders for rho in rhos] + [(orders == k).astype(float) for k in known]
    )
    covariance = np.cov(left[:, 1:])
    covariance += 1e-3 * np.diag(covariance.diagonal()) + 1e-12 * np.eye(len(covariance))
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    rest = np.stack([nnls(whiten @ design, whiten @ column)[0] for column in left.T], axis=1)
    total = np.stack([rest[orders == k].sum(0) for k in (1, 2, 3)] + [rest[orders > 3].sum(0)])
    for k in (1, 2, 3):
        total[k - 1] += moments["fit", k] + 2 * moments["cov", k]
    return np.maximum(total, 0)


def shares(rows: Rows, seed: int = 0) -> dict[int, dict[str, Any]]:
    """Return total variance and shares of orders 1, 2, 3, ≥4 with intervals, by prompts averaged.

    Each half of the chains is measured after a fit of the other half.
    """
    rng = np.random.default_rng(seed)
    half = rng.permutation(rows.chains.max() + 1) % 2
    halves = [rows.take(np.flatnonzero(half[rows.chains] == side)) for side in (0, 1)]
    measured = [measure_moments(a, b, rng) for a, b in (halves, halves[::-1])]
    moments = {key: (value + measured[1][key]) / 2 for key, value in measured[0].items()}
    result = {}
    for n_averaged in AVERAGED:
        weights = weights_by_order(moments, n_averaged, rows.masks.shape[1])
        parts = weights / np.maximum(weights.sum(axis=0), 1e-300)
        result[n_averaged] = {
            "variance": float(weights[:, 0].sum()),
            "shares": parts[:, 0].round(3).tolist(),
            "low": np.quantile(parts[:, 1:], 0.025, axis=1).round(3).tolist(),
            "high": np.quantile(parts[:, 1:], 0.975, axis=1).round(3).tolist(),
        }
    return result


def explained(rows: Rows) -> list[dict[str, Any]]:
    """Return what fits of order up to 1, 2 and 3 explain, and how many terms 95 % of that take.

    They are made of at most 4,000 evaluations, chosen by chains.
    """
    order = np.random.default_rng(0).permutation(rows.chains.max() + 1)[rows.chains]
    by_chain = np.argsort(order, kind="stable")
    spent = np.isfinite(rows.values).sum(axis=1)[by_chain].cumsum()
    rows = rows.take(by_chain[spent <= FITTED])
    found = []
    for name, max_order in (("lasso", 1), ("lasso", 2), ("proxyspex", 3)):
        fitted = fit(rows, name, max_order)
        energy = np.sort(np.square(fitted.coefficients.numpy()[1:]))[::-1].cumsum()
        found.append(
            {
                "decoder": name,
                "max_order": max_order,
                "held_out_r2": fitted.held_out_r2 and round(fitted.held_out_r2, 3),
                "terms": len(energy),
                "terms_95": int((energy < 0.95 * energy[-1]).sum()) + 1 if len(energy) else 0,
            }
        )
    return found


@dataclass
class Table:
    """A game whose every value is known: prompts in columns, masks in the order of their bits."""

    values: Float[np.ndarray, "masks prompts"]

    def __post_init__(self) -> None:
        """Say what a set function says."""
        self.n_units = int(np.log2(len(self.values)))
        self.n_prompts = self.values.shape[1]

    def per_prompt(self, masks: Tensor) -> Tensor:
        """Look the masks up."""
        return torch.from_numpy(self.values[masks.numpy() @ (1 << np.arange(self.n_units))])

    def __call__(self, masks: Tensor) -> Tensor:
        """Return the average game."""
        return self.per_prompt(masks).mean(dim=1)

    def sample(
        self, masks: Tensor, prompts_per_mask: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Look a few prompts up."""
        which = draw_balanced(len(masks), prompts_per_mask, self.n_prompts, rng)
        return self.per_prompt(masks).gather(1, which), which


def dense_shares(table: Table, keep_rate: float, n_averaged: int) -> np.ndarray:
    """Return the true shares of orders 1, 2, 3, ≥4, from the dense transform of every prompt."""
    spectra = np.stack(
        [cs.transforms.fourier(torch.from_numpy(v), keep_rate) for v in table.values.T]
    )
    same = np.square(spectra).mean(axis=0)
    cross = (np.square(spectra.sum(axis=0)) - len(spectra) * same) / (
        len(spectra) * (len(spectra) - 1)
    )
    energy = same / n_averaged + (1 - 1 / n_averaged) * cross
    orders = np.minimum([bin(i).count("1") for i in range(len(energy))], 4)
    weights = np.bincount(orders, energy)[1:]
    return weights / weights.sum()


def check_answers() -> None:
    """The estimate must agree with the dense transform of a toy model of 8 heads."""
    model = cs.models.load("toy-induction")
    task = cs.tasks.make("induction", model, 16, seed=0)
    with cs.CircuitSpex(model, task, cs.heads(model)) as spex:
        table = Table(spex.per_prompt(enumerate_masks(8)).numpy())
    for keep_rate in (0.5, 0.8):
        found = shares(draw_chains(table, 300, keep_rate, [0]))
        for n_averaged in AVERAGED:
            truth = dense_shares(table, keep_rate, n_averaged)
            cell = found[n_averaged]
            slack = 0.02 + 0.5 * (np.array(cell["high"]) - cell["low"])
            if (np.abs(truth - cell["shares"]) > slack).any():
                raise SystemExit(
                    f"keep rate {keep_rate}, {n_averaged} prompts: {cell}, truth {truth}"
                )


class Restricted:
    """The game of a few units, all others kept."""

    def __init__(self, game: cs.SampledSetFunction, chosen: np.ndarray) -> None:
        self.game, self.chosen = game, chosen
        self.n_units, self.n_prompts = len(chosen), game.n_prompts

    def _whole(self, masks: Tensor) -> Tensor:
        whole = torch.ones((len(masks), self.game.n_units), dtype=torch.bool)
        whole[:, self.chosen] = masks
        return whole

    def __call__(self, masks: Tensor) -> Tensor:
        """Return the average game."""
        return self.game(self._whole(masks))

    def per_prompt(self, masks: Tensor) -> Tensor:
        """Return every prompt's game."""
        return self.game.per_prompt(self._whole(masks))

    def sample(
        self, masks: Tensor, prompts_per_mask: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return values of a few prompts, and which."""
        return self.game.sample(self._whole(masks), prompts_per_mask, rng)


def describe(rows: Rows, **choices: Any) -> dict[str, Any]:
    """Measure one choice of game, and print it."""
    found = {**choices, "keep_rate": rows.keep_rate, "n_units": rows.masks.shape[1]}
    found |= {"n_masks": len(rows.masks), "n_evaluations": int(np.isfinite(rows.values).sum())}
    found |= {"by_prompts": shares(rows), "fits": explained(rows)}
    name = " ".join(str(value) for value in choices.values())
    print(f"{name}, {found['n_units']} heads, keep rate {rows.keep_rate}", flush=True)
    for n_averaged, cell in found["by_prompts"].items():
        parts = [
            f"{share:.2f} [{low:.2f}, {high:.2f}]"
            for share, low, high in zip(cell["shares"], cell["low"], cell["high"], strict=True)
        ]
        print(f"  {n_averaged:2d} prompts, variance {cell['variance']:7.3f}: " + "  ".join(parts))
    for cell in found["fits"]:
        print(
            f"  order ≤ {cell['max_order']}: held-out R² {cell['held_out_r2']}, "
            f"{cell['terms']} terms, {cell['terms_95']} carry 95 % of what was decoded"
        )
    return found


def all_heads(model: Any, task: cs.Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure keep rates and ablations with all heads, then restricted sets at keep rate ½."""
    results, units = [], cs.heads(model)
    for ablation, keep_rates in (
        ("zero", options.keep_rates),
        ("mean", options.keep_rates_others),
        ("resample", options.keep_rates_others),
    ):
        store = options.store and options.store / ablation
        with cs.CircuitSpex(model, task, units, ablation, store=store) as spex:
            for keep_rate in keep_rates:
                rows = draw_chains(spex, options.chains, keep_rate, [1, round(1000 * keep_rate)])
                if ablation == "zero" and options.pool:
                    rows = with_stored(rows, read_pool(model, task, options.pool, keep_rate))
                if ablation == "zero" and keep_rate == max(keep_rates):
                    strongest = rank_heads(rows, options.store)
                results.append(describe(rows, ablation=ablation, heads="all"))
            if ablation == "zero":
                results += restricted(spex, strongest, options)
    return results


def restricted(
    spex: cs.CircuitSpex, strongest: np.ndarray, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure few heads at keep rate ½, all others kept."""
    results = []
    shuffled = np.random.default_rng(0).permutation(len(strongest))
    for size in options.sizes:
        for how, order in (("random", shuffled), ("strongest", strongest)):
            game = Restricted(spex, np.sort(order[:size]))
            rows = draw_chains(game, options.chains * 3 // 2, 0.5, [2, size])
            results.append(describe(rows, ablation="zero", heads=how))
    return results


def rank_heads(rows: Rows, folder: Path | None) -> np.ndarray:
    """Return all heads, those with the strongest effect of their own first.

    The folder remembers the ranking: near-ties must not ask for other heads when a run goes on.
    """
    file = folder and folder / "strongest.json"
    if file and file.exists():
        return np.array(json.loads(file.read_text()))
    found = fit(rows, "lasso", 1)
    effects = np.zeros(rows.masks.shape[1])
    for term, value in zip(found.support, found.coefficients.tolist(), strict=True):
        if len(term) == 1:
            effects[term[0]] = abs(value)
    ranked = np.argsort(-effects, kind="stable")
    if file:
        file.write_text(json.dumps(ranked.tolist()))
    return ranked


def read_pool(model: Any, task: cs.Task, folder: Path, keep_rate: float) -> pa.Table:
    """Return what real_decoders.py evaluated at a keep rate; nothing if it did not."""
    store = folder / f"keep-{keep_rate}"
    with cs.CircuitSpex(model, task, cs.heads(model), store=store) as spex:
        return spex.evaluation.store.table()


def main() -> None:
    """Check, measure, print; the last line of output is one JSON object."""
    parser = argparse.ArgumentParser(description="Variance by order of interaction.")
    parser.add_argument("--model", default="toy-induction")
    parser.add_argument("--keep-rates", type=float, nargs="+", default=[0.95, 0.9, 0.8, 0.5])
    parser.add_argument("--keep-rates-others", type=float, nargs="*", default=[0.95, 0.5])
    parser.add_argument("--sizes", type=int, nargs="*", default=[16, 32, 64])
    parser.add_argument("--chains", type=int, default=80, help="of 10 evaluations each")
    parser.add_argument("--store", type=Path, help="folder for the evaluations")
    parser.add_argument("--pool", type=Path, help="folder of real_decoders.py's evaluations")
    parser.add_argument("--smoke", action="store_true", help="a toy model, under 20 seconds")
    options = parser.parse_args()
    if options.smoke:
        options.model, options.sizes, options.chains = "toy-induction", [4], 40
        options.keep_rates, options.keep_rates_others = [0.8], [0.8]
    check_answers()
    model = cs.models.load(options.model)
    toy = options.model.startswith("toy-")
    task = cs.tasks.make("induction" if toy else "ioi", model, 16, seed=0)
    results = all_heads(model, task, options)
    print(
        json.dumps(
            {
                "benchmark": "spectrum",
                "model": model.cfg.model_name,
                "prompts": len(task),
                "smoke": options.smoke,
                "rows": results,
            }
        )
    )


if __name__ == "__main__":
    main()
