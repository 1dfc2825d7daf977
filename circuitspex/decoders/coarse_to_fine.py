"""The coarse-to-fine decoder: gradients for very many units, ablations for the few that matter."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitspex.decoders._blocks import Screen, as_blocks, screen
from circuitspex.decoders._contexts import Contexts
from circuitspex.decoders._deletions import run_side_by_side, search
from circuitspex.decoders._expansion import Expansion
from circuitspex.decoders._group_tests import Term
from circuitspex.decoders._lattice import Lattice, best_units
from circuitspex.decoders._reading import Reader
from circuitspex.decoders._samples import Meter, is_count
from circuitspex.decoders.base import Decoder, unit_labels
from circuitspex.decoders.exact import errors_over_prompts, transform_all
from circuitspex.designs import bernoulli_masks
from circuitspex.errors import BudgetError, DecoderError
from circuitspex.interactions import Interactions
from circuitspex.transforms import Coordinates, convert, evaluate

_FEWEST_MASKS = 16
_FEWEST_BLOCKS = 16
_MOST_HELD_OUT = 256
_EXHAUSTIBLE = 20  # units; more are never transformed exactly
_SHARES = {"screen": 0.12, "units": 0.2, "split": 0.04, "interactions": 0.46, "fit": 0.08}
"""Of what the intact model leaves of the budget, stage by stage; the rest is held out."""
_SHARES_OF_UNITS = {"screen": 0.28, "units": 0.55, "fit": 0.1}
"""The same where single units are all that is wanted."""
_CONTEXT_SHARE = 0.25  # of what a round of interactions may spend
_ROUND_SHARE = 2 / 3  # of what is left for interactions goes to the present order
_UNEXPLAINED = 5.0  # times the typical residual of a block, for it to be split
_PRIOR_SD = 0.5  # of the weights that a fit gives to what is known, about 1


@dataclass(frozen=True, kw_only=True)
class CoarseToFineDecoder(Decoder):
    r"""Screens all units by gradients in ablated blocks, then measures what stands out.

    Among tens of thousands of units, single ablations and random masks are hopeless, but one
    backward pass through the gates differentiates by all of them. For most neurons of a language
    model the derivative *is* the effect of an ablation; a few dozen, whose derivative changes when
    they are ablated or when others are, carry most of what it misses. So:

    1. *Screen.* Gradients of the intact model, and with random blocks ablated, each unit in one
       block a round, several rounds: how does a unit's derivative change where it is itself
       ablated, and where others are?
    2. *Units.* Those with the largest of either change, in turns, are ablated one by one.
    3. *Split.* Blocks that do more than all of this explains are halved until the units that do it
       are found: some are silent under every derivative.
    4. *Interactions.* Gradients with single units ablated rank all pairs that hold one of them,
       gradients with pairs ablated all triples, and so on. The best are verified: all subsets are
       ablated, on every prompt.
    5. *Fit.* Values at the keep rate tell how much of the gradients, of the measured units and of
       the measured interactions around the intact model is left there, prompt by prompt.

    The result is the expansion around the intact model with these weights. Its diagnostics hold the
    verified θ themselves, as measured.

    **Cost:** the budget, which the stages share: 12 % screen, 20 % units, 4 % split, 46 %
    interactions, 8 % fit, the rest is held out. A gradient counts three evaluations. If all masks
    cost no more than the budget, all are evaluated.

    **Assumption:** near the intact model most units act on their own; interactions are among units
    whose derivatives change. Values repeat; nothing is averaged but prompts.

    **Prompts:** what is measured is measured on every prompt. Contexts and fitted masks are read on
    ``prompts_per_mask`` of them, ``"auto"`` for one, and compared with the same prompts intact.

    **When it fails:** at keep rates so low that an expansion around the intact model says little;
    the held-out R² tells. A pair whose derivatives are flat at both ends and whose units influence
    nobody is found only if a block that holds both is split.

    **Errors:** over prompts (``error_source="prompts"``): not how far a derivative is from an
    effect. Without prompts there are none.

    References:
        Nanda (2023), "Attribution patching"; Kramár et al. (2024), "AtP*", arXiv:2403.00745, for
        what derivatives by gates miss.
    """

    name: ClassVar[str] = "coarse_to_fine"

    max_order: int | None = 3
    """Most units in one interaction; 1 spends on units what interactions would cost."""

    n_blocks: int = 64
    """Blocks of a round, fewer where the budget is small."""

    n_rounds: int = 3
    """How often blocks are drawn anew, fewer where the budget is small."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            DecoderError: If one is outside its range.
        """
        super().__post_init__()
        if self.max_order is None or self.max_order > 6:
            raise DecoderError(
                f"coarse_to_fine needs max_order from 1 to 6; got {self.max_order}. "
                "Verifying a term ablates all its subsets."
            )
        if not is_count(self.n_blocks) or not is_count(self.n_rounds) or self.n_blocks < 2:
            raise DecoderError(
                f"coarse_to_fine needs n_blocks of at least 2 and n_rounds of at least 1; got "
                f"{self.n_blocks} and {self.n_rounds}."
            )

    def _decode(self, meter: Meter, rng: np.random.Generator) -> Interactions:
        labels = unit_labels(meter)
        Reader(meter, self.prompts_per_mask, "intact", rng)  # refuses prompts there are not
        n_units, cost = meter.n_units, meter.n_prompts
        if n_units <= _EXHAUSTIBLE and 2**n_units * cost <= meter.budget:
            return transform_all(replace(self, prompts_per_mask="all"), meter)
        if not meter.differentiable:
            raise DecoderError(
                "coarse_to_fine needs a set function with value_and_gradient(); "
                f"{type(meter.set_function).__name__} has none. Use a decoder that needs values "
                "only, such as 'hybrid' or 'moebius'."
            )
        if meter.budget < _FEWEST_MASKS * cost:
            raise BudgetError(
                f"{n_units} units need at least {_FEWEST_MASKS} masks at {cost} evaluation(s) "
                f"each, {_FEWEST_MASKS * cost} in all; the budget is {meter.budget}. Raise it, or "
                "take fewer prompts."
            )
        return _Search(self, meter, rng).run(labels)

    def n_drawn(self, meter: Meter) -> int | None:
        """Return on how many prompts contexts and fitted masks are read; None without prompts."""
        if meter.sampled is None:
            return None
        if self.prompts_per_mask == "all":
            return meter.n_prompts
        return 1 if self.prompts_per_mask == "auto" else int(self.prompts_per_mask)


class _Search:
    """One run: the stages, and what each has spent and found."""

    def __init__(
        self, options: CoarseToFineDecoder, meter: Meter, rng: np.random.Generator
    ) -> None:
        self.options, self.meter, self.rng = options, meter, rng
        self.max_order = min(options.max_order or 1, meter.n_units)
        self.n_drawn = options.n_drawn(meter)
        self.contexts = Contexts(meter, self.n_drawn, rng)
        self.expansion = Expansion(self.contexts, Reader(meter, "all", "intact", rng))
        self.expansion.measure([()], meter.budget)
        scale = np.abs(self.contexts.values).max() + np.abs(self.contexts.gradient).max()
        self.lattice = Lattice(self.contexts, 1e-6 * float(scale))
        self.report: dict[str, Any] = {"evaluations": {"intact": meter.n_evaluations}}
        self.n_masks = 0

    def run(self, labels: tuple[str, ...]) -> Interactions:
        """Return what all stages find."""
        spent, first = 0.0, self.meter.n_evaluations
        for stage, share in (_SHARES if self.max_order > 1 else _SHARES_OF_UNITS).items():
            spent += share
            before = self.meter.n_evaluations
            getattr(self, f"_{stage}")(first + int(spent * (self.meter.budget - first)))
            self.report["evaluations"][stage] = self.meter.n_evaluations - before
        return self._result(labels)

    def _screen(self, limit: int) -> None:
        affordable = self.contexts.affordable(limit)
        n_blocks = min(self.options.n_blocks, self.meter.n_units)
        n_rounds = min(self.options.n_rounds, max(1, affordable // min(_FEWEST_BLOCKS, n_blocks)))
        n_blocks = min(n_blocks, affordable // n_rounds)
        self.screened: Screen | None = None
        if n_blocks >= 2:
            self.screened = screen(self.contexts, n_blocks, n_rounds, self.rng)
        self.report |= {"n_blocks": n_blocks, "n_rounds": n_rounds if self.screened else 0}

    def _units(self, limit: int) -> None:
        terms = [(unit,) for unit in self._notable()]
        self.report["n_units_measured"] = self.expansion.measure(terms, limit)

    def _notable(self) -> list[int]:
        """Return units ranked by how much their derivative depends on gates.

        Where it depends on none, it is the effect, however large; such units come last.
        """
        floor, plain = self.lattice.tolerance, best_units(np.abs(self.expansion.single()))
        if self.screened is None:
            return plain
        scores = (self.screened.bend(), self.screened.reach())
        bent = best_units(*(np.where(score > floor, score, 0) for score in scores))
        return list(dict.fromkeys([*bent, *plain]))

    def _split(self, limit: int) -> None:
        """Halve the blocks whose value is not explained, until the units behind it are found."""
        self.report |= {"n_blocks_split": 0, "n_found_by_splitting": 0}
        if self.screened is None:
            return
        for row in range(len(self.screened.blocks)):
            pools = as_blocks(self.screened.blocks[row])
            residuals = np.abs(self._unexplained(self.screened, row, pools))
            typical = max(float(np.median(residuals)), self.lattice.tolerance)
            order = np.argsort(-residuals, kind="stable")
            chosen = order[residuals[order] > _UNEXPLAINED * typical]
            found = self._halve(pools[chosen], residuals[chosen] / 2, limit)
            self.expansion.measure(found, limit)
            self.report["n_blocks_split"] += len(chosen)
            self.report["n_found_by_splitting"] += len(found)

    def _unexplained(
        self, screened: Screen, row: int, pools: Bool[np.ndarray, "blocks units"]
    ) -> Float[np.ndarray, " blocks"]:
        """Return what the blocks of a round do beyond what is known, on the prompts read."""
        explained = self.expansion.parts_of(pools, self._terms).sum(axis=2)
        if self.n_drawn is None:
            return screened.values[row] - explained.mean(axis=1)
        chosen = np.take_along_axis(explained, screened.prompts[row], axis=1)
        return screened.values[row] - chosen.mean(axis=1)

    def _halve(
        self,
        pools: Bool[np.ndarray, "pools units"],
        needed: Float[np.ndarray, " pools"],
        limit: int,
    ) -> list[Term]:
        """Return the terms that searches by halving find, the strongest pools first."""
        each = int(np.ceil(np.log2(self.meter.n_units))) * self._cost
        n_searches = max(1, (limit - self.meter.n_evaluations) // (2 * each))
        game = self.expansion.search_beyond(limit)
        silent = game.relative_rounding * game.largest
        searches = [
            search(
                self.rng.permutation(np.flatnonzero(pool)),
                self.meter.n_units,
                self.max_order,
                float(least),
                silent,
            )
            for pool, least in zip(pools[:n_searches], needed, strict=False)
        ]
        found = run_side_by_side(searches, game, 1, 0)
        return list(dict.fromkeys(term for term in found if term))

    def _interactions(self, limit: int) -> None:
        """Climb from units to pairs to triples: contexts of the strongest, then verification."""
        self.report["verified_by_order"] = {}
        bases: list[Term] = [(unit,) for unit in self._notable()]
        for order in range(2, self.max_order + 1):
            left = limit - self.meter.n_evaluations
            share = 1.0 if order == self.max_order else _ROUND_SHARE
            stop = self.meter.n_evaluations + int(share * left)
            self.lattice.read(bases, stop - int((1 - _CONTEXT_SHARE) * share * left))
            terms = self._candidates(order, (stop - self.meter.n_evaluations) // self._cost)
            verified = self.expansion.measure(terms, stop)
            self.report["verified_by_order"][str(order)] = verified
            bases = [term for term in self.expansion.of_order(order) if self._is_more(term)]

    @property
    def _cost(self) -> int:
        return self.meter.n_prompts

    def _candidates(self, order: int, n_wanted: int) -> list[Term]:
        """Return terms to verify: what contexts point to, not measured so far."""
        if n_wanted < 1:
            return []
        single, derivative = np.abs(self.expansion.single()), np.abs(self.contexts.gradient)
        trust = np.minimum(1, single / np.maximum(derivative, self.lattice.tolerance))
        trust[derivative <= self.lattice.tolerance] = 1
        terms = self.lattice.extensions(order, trust, n_wanted + len(self.expansion.effects))
        return [term for term in terms if term not in self.expansion.effects][:n_wanted]

    def _is_more(self, term: Term) -> bool:
        """Return whether a measured effect is more than rounding."""
        game = self.expansion.residuals
        return bool(
            abs(self.expansion.effects[term].mean()) > game.relative_rounding * game.largest
        )

    @property
    def _terms(self) -> list[Term]:
        """Measured interactions that are more than rounding."""
        return [t for t in self.expansion.effects if len(t) > 1 and self._is_more(t)]

    def _fit(self, limit: int) -> None:
        """Weigh gradients, measured units and interactions by values at the keep rate."""
        self.shift, self.weights = 0.0, np.ones(3)
        each = self.n_drawn or 1
        n_masks = (limit - self.meter.n_evaluations) // each
        if n_masks < 1:
            return
        masks = bernoulli_masks(n_masks, self.meter.n_units, self.options.keep_rate, self.rng)
        known = self.expansion.parts_of(~masks.numpy(), self._terms)
        values, parts = self._departures(masks, known)
        self.n_masks += n_masks
        self.shift, self.weights = _weigh(values, parts)

    def _departures(
        self, masks: Bool[Tensor, "masks units"], known: Float[np.ndarray, "masks prompts 3"]
    ) -> tuple[Float[np.ndarray, " masks"], Float[np.ndarray, "masks 3"]]:
        """Return what masks change against the intact model, and what is known of that.

        Both are averaged over the prompts that each mask is read on.
        """
        intact = self.expansion.effects[()]
        if self.n_drawn is None:
            return self.meter.values(masks) - intact.mean(), known.mean(axis=1)
        values, prompts = self.meter.sample(masks, self.n_drawn, self.rng)
        chosen = np.take_along_axis(known, prompts[:, :, None], axis=1)
        return (values - intact[prompts]).mean(axis=1), chosen.mean(axis=1)

    def _result(self, labels: tuple[str, ...]) -> Interactions:
        """Return the weighted expansion in the Fourier basis, held against fresh masks."""
        terms, effects = self._weighted()
        place = Coordinates("moebius", "intact", self.options.keep_rate)
        r2 = self._held_out_r2(terms, effects.mean(axis=1), place)
        target = Coordinates("fourier", None, self.options.keep_rate)
        support, matrix = convert(terms, place, target)
        spectrum = torch.from_numpy(matrix @ effects)
        errors = covariance = None
        if spectrum.shape[1] > 1:
            errors, covariance = errors_over_prompts(spectrum)
        return Interactions(
            n_units=self.meter.n_units,
            units=labels,
            basis="fourier",
            origin=None,
            keep_rate=self.options.keep_rate,
            support=support,
            coefficients=spectrum.mean(dim=1),
            std_errors=errors,
            covariance=covariance,
            error_source="none" if errors is None else "prompts",
            n_evaluations=self.meter.n_evaluations,
            held_out_r2=r2,
            decoder=self.options.name,
            diagnostics=self._diagnostics(labels),
        )

    def _weighted(self) -> tuple[list[Term], Float[np.ndarray, "terms prompts"]]:
        """Return the terms of the expansion with their weighted effects, prompt by prompt."""
        effects = self.expansion.effects
        measured = [t for t in effects if len(t) == 1 and self._is_more(t)]
        known = {term[0] for term in effects if len(term) == 1}
        slopes = np.abs(self.contexts.gradients).max(axis=0)
        rest = [u for u in np.flatnonzero(slopes > 0).tolist() if u not in known]
        gradients = np.zeros((len(rest), len(effects[()])))
        gradients += -self.contexts.gradients.T[rest]
        rows = [
            (effects[()] + self.shift)[None],
            self.weights[0] * gradients,
            *(self.weights[1] * effects[term][None] for term in measured),
            *(self.weights[2] * effects[term][None] for term in self._terms),
        ]
        terms = [(), *((unit,) for unit in rest), *measured, *self._terms]
        return terms, np.concatenate(rows)

    def _held_out_r2(
        self, terms: Sequence[Term], effects: Float[np.ndarray, " terms"], place: Coordinates
    ) -> float | None:
        """Return how well fresh masks at the keep rate are predicted; None where none vary."""
        before = self.meter.n_evaluations
        n_masks = min(_MOST_HELD_OUT, (self.meter.budget - before) // self._cost)
        if n_masks < _FEWEST_MASKS:
            return None
        masks = bernoulli_masks(n_masks, self.meter.n_units, self.options.keep_rate, self.rng)
        values = self.meter.values(masks)
        self.n_masks += n_masks
        self.report["evaluations"]["held_out"] = self.meter.n_evaluations - before
        predicted = evaluate(masks, terms, torch.from_numpy(effects), place).numpy()
        spread = np.square(values - values.mean()).mean()
        if spread <= 1e-20 * np.square(values).max():
            return None
        return float(1 - np.square(values - predicted).mean() / spread)

    def _diagnostics(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """Return what was done and verified, as plain values."""
        ranked = sorted(self._terms, key=lambda term: -abs(self.expansion.effects[term].mean()))
        return {
            "design": "coarse to fine",
            **self.report,
            "n_contexts": self.contexts.n_read,
            "n_masks": self.n_masks + self.contexts.n_read + len(self.expansion.residuals.rows),
            "shift": float(self.shift),
            "weights": dict(
                zip(("gradients", "units", "interactions"), self.weights.tolist(), strict=True)
            ),
            "prompts_per_mask": self.options.prompts_per_mask,
            "verified": [self._verified(term, labels) for term in ranked],
        }

    def _verified(self, term: Term, labels: tuple[str, ...]) -> dict[str, Any]:
        effects = self.expansion.effects[term]
        n_prompts = len(effects)
        error = float(effects.std(ddof=1) / n_prompts**0.5) if n_prompts > 1 else None
        return {
            "units": [labels[unit] for unit in term],
            "theta": float(effects.mean()),
            "std_error": error,
        }


def _weigh(
    values: Float[np.ndarray, " masks"], parts: Float[np.ndarray, "masks 3"]
) -> tuple[float, Float[np.ndarray, " 3"]]:
    """Return a constant and a weight per part, drawn towards 1, by ridge regression."""
    missed = values - parts.sum(axis=1)
    variance = max(float(missed.var()), np.finfo(float).tiny)
    columns = parts - parts.mean(axis=0)
    gram = columns.T @ columns + variance / _PRIOR_SD**2 * np.eye(3)
    weights = np.linalg.solve(gram, columns.T @ (missed - missed.mean()))
    shift = missed.mean() - parts.mean(axis=0) @ weights
    return float(shift), 1 + weights
