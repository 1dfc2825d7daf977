"""A model, a task and units as a set function: keep-masks in, values out.

Every value, and every gradient at a mask, is asked of the store first and given to it as soon as
its batch is done, so whatever interrupts a run, nothing finished is evaluated again.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex._shared import GRADIENT_COST, check_gates, check_masks
from circuitspex.ablation import Ablated, Rows
from circuitspex.errors import BudgetError, MaskError, NonFiniteError
from circuitspex.evaluation.runner import LocalRunner, Runner
from circuitspex.evaluation.store import Store
from circuitspex.models import describe_model
from circuitspex.tasks import Metric, Task, identify
from circuitspex.units import UnitSet

Progress: TypeAlias = Callable[[int, int], None]
"""Called after every batch with how many evaluations were made and how many came from the store."""

_LOOK_UP_BYTES = 2**26
"""Masks are repeated for every prompt when the store is asked, and gradients of every prompt come
back; at most so many bytes at once."""


class Evaluation:
    """The set function of a task: the mean over its prompts of the metric, mask by mask.

    Lives inside the block of the :class:`~circuitspex.ablation.Ablated` it is made of.
    """

    def __init__(
        self,
        ablated: Ablated,
        task: Task,
        metric: Metric,
        store: Store,
        progress: Progress | None = None,
        runner: Runner | None = None,
    ) -> None:
        self.ablated = ablated
        self.task = task
        self.metric = metric
        self.store = store
        self.n_units = len(ablated.units)
        self.n_prompts = len(task)
        self.n_evaluated = 0
        """Evaluations by the model so far: rows, and three for a row with its gradient."""
        self.n_replayed = 0
        """Evaluations answered by the store so far, counted alike."""
        self._progress = progress or (lambda evaluated, replayed: None)
        self._runner = runner or LocalRunner(ablated, task, metric)

    @property
    def units(self) -> UnitSet:
        """What the columns of a mask stand for."""
        return self.ablated.units

    def __call__(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, " masks"]:
        """Evaluate every mask on every prompt.

        Args:
            masks: Keep-masks; True means kept.

        Returns:
            The mean over prompts of the metric.
        """
        return self.per_prompt(masks).mean(dim=1)

    def per_prompt(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, "masks prompts"]:
        """Evaluate every mask on every prompt, and keep prompts apart.

        Args:
            masks: Keep-masks; True means kept.

        Returns:
            The metric, mask by mask and prompt by prompt, in double precision on the CPU.
        """
        masks = check_masks(masks, self.n_units)
        return self._evaluate(masks, torch.arange(self.n_prompts).expand(len(masks), -1))

    def sample(
        self,
        masks: Bool[Tensor, "masks units"],
        prompts_per_mask: int,
        rng: np.random.Generator,
        groups: Int[Tensor, " masks"] | None = None,
    ) -> tuple[Float[Tensor, "masks drawn"], Int[Tensor, "masks drawn"]]:
        """Evaluate each mask on a few prompts.

        Prompts are drawn at random, without repetition within a mask, and balanced: over all masks
        every prompt is drawn equally often, give or take one.

        Args:
            masks: Keep-masks; True means kept.
            prompts_per_mask: How many prompts each mask is evaluated on.
            rng: Source of the draw.
            groups: Masks with the same number are evaluated on the same prompts, which are balanced
                over groups, so that those that agree on the first layers can share them; every mask
                is its own group when None.

        Returns:
            Values and the index of the prompt each is of.

        Raises:
            BudgetError: If a mask should be evaluated on no prompt, or on more than there are.
            MaskError: If there is not one group per mask.
        """  # noqa: DOC502 - raised by the draw
        masks = check_masks(masks, self.n_units)
        if groups is None:
            prompts = self._draw(len(masks), prompts_per_mask, rng)
            return self._evaluate(masks, prompts), prompts
        if groups.shape != (len(masks),):
            raise MaskError(
                f"groups must hold one number per mask, shape ({len(masks)},); got "
                f"{tuple(groups.shape)}."
            )
        kinds, group = groups.cpu().unique(return_inverse=True)
        prompts = self._draw(len(kinds), prompts_per_mask, rng)[group]
        return self._evaluate(masks, prompts), prompts

    def value_and_gradient(
        self, masks: Bool[Tensor, "masks units"] | Float[Tensor, "masks units"]
    ) -> tuple[Float[Tensor, " masks"], Float[Tensor, "masks units"]]:
        r"""Evaluate every mask with its gradient on every prompt.

        A unit's gate g turns its activation a into s + g (a - s), s being what replaces it when
        ablated. Were the model multilinear in its gates, the derivative by a gate would be what
        keeping that unit adds to the rest of the mask.

        Args:
            masks: Keep-masks; or gates between 0, ablated, and 1, kept, as integrated gradients
                need them.

        Returns:
            The mean over prompts of the metric, in double precision, and its derivative by every
            gate, in single precision, both on the CPU. Every row counts as
            :data:`~circuitspex._shared.protocols.GRADIENT_COST` evaluations.
        """
        gates = check_gates(masks, self.n_units)
        prompts = torch.arange(self.n_prompts).expand(len(gates), -1)
        values, gradients = self._differentiate(gates, prompts, average=True)
        return values.mean(dim=1), gradients.squeeze(1)

    def sample_gradients(
        self,
        masks: Bool[Tensor, "masks units"] | Float[Tensor, "masks units"],
        prompts_per_mask: int,
        rng: np.random.Generator,
    ) -> tuple[
        Float[Tensor, "masks drawn"], Float[Tensor, "masks drawn units"], Int[Tensor, "masks drawn"]
    ]:
        """Evaluate each mask with its gradient on a few prompts, drawn as :meth:`sample` does.

        Args:
            masks: Keep-masks, or gates between 0 and 1.
            prompts_per_mask: How many prompts each mask is evaluated on.
            rng: Source of the draw.

        Returns:
            Values, gradients, and the index of the prompt each is of.
        """
        gates = check_gates(masks, self.n_units)
        prompts = self._draw(len(gates), prompts_per_mask, rng)
        return *self._differentiate(gates, prompts), prompts

    def _draw(
        self, n_masks: int, prompts_per_mask: int, rng: np.random.Generator
    ) -> Int[Tensor, "masks drawn"]:
        if not 1 <= prompts_per_mask <= self.n_prompts:
            raise BudgetError(
                f"prompts_per_mask must lie in 1..{self.n_prompts}, the task's prompts, or be "
                f"'all'; got {prompts_per_mask}."
            )
        return draw_balanced(n_masks, prompts_per_mask, self.n_prompts, rng)

    def _evaluate(
        self, masks: Bool[Tensor, "masks units"], prompts: Int[Tensor, "masks drawn"]
    ) -> Float[Tensor, "masks drawn"]:
        masks = masks.cpu()
        values = torch.full(prompts.shape, torch.nan, dtype=torch.float64)
        for part in self._parts(prompts, bytes_per_row=self.n_units):
            asked = Rows.of_table(masks[part], prompts[part])
            some, found = self.store.look_up(asked.own_masks, asked.prompt_of_row)
            self._count_replayed(found)
            missing = (~found).nonzero().squeeze(1)
            rows = asked.take(missing)
            for done, value in self._runner.values(rows):
                some[missing[done]], finite = value, value.isfinite()
                known = rows.take(done[finite])
                self.store.append(known.own_masks, known.prompt_of_row, value[finite])
                self._count_evaluated(done)
            values[part] = some.reshape(values[part].shape)
        self._refuse_non_finite(masks, prompts, values)
        return values

    def _differentiate(
        self,
        gates: Bool[Tensor, "masks units"] | Float[Tensor, "masks units"],
        prompts: Int[Tensor, "masks drawn"],
        *,
        average: bool = False,
    ) -> tuple[Float[Tensor, "masks drawn"], Float[Tensor, "masks drawn_or_1 units"]]:
        gates, drawn = gates.cpu(), prompts.shape[1]
        values = torch.full(prompts.shape, torch.nan, dtype=torch.float64)
        shape = (len(gates), 1 if average else drawn, self.n_units)
        gradients = torch.full(shape, torch.nan, dtype=torch.float32)
        for part in self._parts(prompts, bytes_per_row=4 * self.n_units):
            some, slopes = self._differentiate_rows(Rows.of_table(gates[part], prompts[part]))
            values[part] = some.reshape(values[part].shape)
            each = rearrange(slopes, "(masks drawn) units -> masks drawn units", drawn=drawn)
            gradients[part] = each.mean(dim=1, keepdim=True) if average else each
        self._refuse_non_finite(gates > 0, prompts, values, "values or gradients")
        return values, gradients

    def _differentiate_rows(self, asked: Rows) -> tuple[Tensor, Tensor]:
        is_kept = asked.masks.dtype == torch.bool  # fractions are too many to be asked for again
        if is_kept:
            found = self.store.look_up_gradients(asked.own_masks, asked.prompt_of_row)
            values, gradients, is_known = found
            self._count_replayed(is_known, GRADIENT_COST)
            missing = (~is_known).nonzero().squeeze(1)
        else:
            values = torch.full((len(asked),), torch.nan, dtype=torch.float64)
            gradients = torch.full((len(asked), self.n_units), torch.nan, dtype=torch.float32)
            missing = torch.arange(len(asked))
        rows = asked.take(missing)
        for done, value, gradient in self._runner.gradients(rows):
            here, finite = missing[done], value.isfinite() & gradient.isfinite().all(dim=1)
            values[here], gradients[here] = value.where(finite, torch.nan), gradient
            if is_kept:
                known = rows.take(done[finite])
                self.store.append_gradients(
                    known.own_masks, known.prompt_of_row, value[finite], gradient[finite]
                )
            self._count_evaluated(done, GRADIENT_COST)
        return values, gradients

    def _parts(self, prompts: Tensor, bytes_per_row: int) -> Iterator[slice]:
        """Yield masks of which few enough come at once."""
        step = max(1, _LOOK_UP_BYTES // max(1, prompts.shape[1] * bytes_per_row))
        yield from (slice(start, start + step) for start in range(0, len(prompts), step))

    def _count_evaluated(self, rows: Tensor, cost: int = 1) -> None:
        self.n_evaluated += cost * len(rows)
        self._progress(cost * len(rows), 0)

    def _count_replayed(self, found: Tensor, cost: int = 1) -> None:
        n_found = cost * int(found.sum())
        if n_found:
            self.n_replayed += n_found
            self._progress(0, n_found)

    def _refuse_non_finite(
        self, masks: Tensor, prompts: Tensor, values: Tensor, what: str = "values"
    ) -> None:
        bad = (~values.isfinite()).nonzero()
        if len(bad) == 0:
            return
        row, column = bad[0].tolist()
        ablated = [self.units.labels[i] for i in (~masks[row]).nonzero().squeeze(1).tolist()]
        more = f", … ({len(ablated)} in all)" if len(ablated) > 8 else ""
        raise NonFiniteError(
            f"{len(bad)} of {values.numel()} evaluations gave NaN or infinite {what}; the first is "
            f"mask {row} on prompt {int(prompts[row, column])}, which ablates "
            f"{', '.join(ablated[:8]) or 'nothing'}{more}. The finite values are kept. Leave these "
            "units out, use mean ablation, or load the model in float32."
        )


def draw_balanced(
    n_masks: int, n_drawn: int, n_prompts: int, rng: np.random.Generator
) -> Int[Tensor, "masks drawn"]:
    """Draw prompts for masks so that every prompt is drawn equally often, give or take one.

    Args:
        n_masks: How many masks.
        n_drawn: Different prompts per mask.
        n_prompts: How many prompts there are.
        rng: Source of the draw.

    Returns:
        Prompt indices, ascending within a mask.
    """
    counts = np.zeros(n_prompts)
    drawn = np.empty((n_masks, n_drawn), dtype=np.int64)
    for row in range(n_masks):
        # Least used first; the random part breaks ties.
        drawn[row] = np.argsort(counts + rng.random(n_prompts))[:n_drawn]
        counts[drawn[row]] += 1
    return torch.from_numpy(np.sort(drawn, axis=1))


def describe_evaluation(ablated: Ablated, task: Task, metric: Metric) -> dict[str, Any]:
    """Say everything that decides the value of a mask on a prompt.

    Args:
        ablated: Model, units and replacement.
        task: The prompts.
        metric: What is measured.

    Returns:
        The evaluation part of a spec.
    """
    labels = ablated.units.labels
    sequences = [tokens.tolist() for tokens in ablated.replacement.sequences]
    return {
        "model": describe_model(ablated.model),
        "task": task.describe(),
        "metric": identify(metric),
        "ablation": {"name": ablated.replacement.name, "digest": _digest(repr(sequences))},
        "units": {"first": labels[0], "last": labels[-1], "digest": _digest("\n".join(labels))},
        "n_units": len(labels),
        "n_prompts": len(task),
    }


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
