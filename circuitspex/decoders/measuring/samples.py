"""What a decoder has measured: masks, values, and which prompts the values are of.

:class:`Meter` is the only way a decoder reaches a set function: it counts evaluations, refuses to
go past the budget, and turns bad values into errors that name the masks. :class:`Samples` is what
the regression decoders fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from circuitspex._shared import (
    GRADIENT_COST,
    Count,
    DifferentiableSetFunction,
    SampledDifferentiableSetFunction,
    SampledSetFunction,
)
from circuitspex.algebra import row_keys
from circuitspex.designs import AffineDesign
from circuitspex.errors import BudgetError, DecoderError, NonFiniteError

PromptsPerMask = Count | Literal["all", "auto"]

_GRADIENTS_OF = {True: "value_and_gradient()", False: "n_prompts and sample_gradients()"}


class Meter:
    """Calls a set function and counts evaluations: masks times prompts, never past the budget."""

    def __init__(self, set_function: Any, budget: Any) -> None:
        """Check the set function and the budget.

        Args:
            set_function: A callable from masks to values with ``n_units``.
            budget: Most evaluations that may be spent.

        Raises:
            DecoderError: If it is not callable or has no positive integer ``n_units``.
            BudgetError: If the budget is not a positive integer.
        """
        n_units = getattr(set_function, "n_units", None)
        if not callable(set_function) or not is_count(n_units):
            raise DecoderError(
                "a set function must be callable on masks and have an integer n_units >= 1; got "
                f"{type(set_function).__name__} with n_units={n_units!r}. For a plain function f "
                "write f.n_units = ... first."
            )
        if not is_count(budget):
            raise BudgetError(f"budget must be an integer of at least 1; got {budget!r}.")
        self.set_function = set_function
        self.n_units = int(set_function.n_units)
        self.budget = int(budget)
        self.n_evaluations = 0
        self.sampled = set_function if isinstance(set_function, SampledSetFunction) else None
        self.n_prompts = int(self.sampled.n_prompts) if self.sampled is not None else 1
        self.differentiable = isinstance(set_function, DifferentiableSetFunction)

    def values(self, masks: Bool[Tensor, "masks units"]) -> Float[np.ndarray, " masks"]:
        """Return the mean over all prompts under every mask."""
        self._pay(len(masks) * self.n_prompts)
        return self._checked(self.set_function(masks), masks, (len(masks),))

    def per_prompt(self, masks: Bool[Tensor, "masks units"]) -> Float[np.ndarray, "masks prompts"]:
        """Return the value of every prompt under every mask; one column if there are no prompts."""
        if self.sampled is None:
            return self.values(masks)[:, None]
        self._pay(len(masks) * self.n_prompts)
        shape = (len(masks), self.n_prompts)
        return self._checked(self.sampled.per_prompt(masks), masks, shape)

    def sample(
        self, masks: Bool[Tensor, "masks units"], n_drawn: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "masks drawn"], Int[np.ndarray, "masks drawn"]]:
        """Return the values on a few prompts per mask and the indices of these prompts.

        Args:
            masks: Keep-masks.
            n_drawn: Prompts per mask.
            rng: Draws them.

        Returns:
            Values and prompt indices.

        Raises:
            DecoderError: If the set function is not made from prompts.
        """  # noqa: DOC502 - raised by the check
        self.check_drawn(n_drawn)
        assert self.sampled is not None
        self._pay(len(masks) * n_drawn)
        values, prompts = self.sampled.sample(masks, n_drawn, rng)
        shape = (len(masks), n_drawn)
        return self._checked(values, masks, shape), np.asarray(prompts, dtype=np.int64)

    def gradients(
        self, masks: Bool[Tensor, "masks units"], n_drawn: int | None, rng: np.random.Generator
    ) -> tuple[
        Float[np.ndarray, "masks drawn"],
        Float[np.ndarray, "masks drawn units"],
        Int[np.ndarray, "masks drawn"],
    ]:
        """Return values and gradients, each mask on a few prompts or on the mean over all.

        Args:
            masks: Keep-masks.
            n_drawn: Prompts per mask; None for the mean over all prompts, as a single draw.
            rng: Draws the prompts.

        Returns:
            Values, gradients and prompt indices, which are 0 for means.

        Raises:
            DecoderError: If the set function has no gradients, or none prompt by prompt.
        """
        game = self.set_function
        if n_drawn is not None:
            self.check_drawn(n_drawn)
        if n_drawn is None and isinstance(game, DifferentiableSetFunction):
            self._pay(GRADIENT_COST * len(masks) * self.n_prompts)
            values, gradients = (part[:, None] for part in game.value_and_gradient(masks))
            prompts = np.zeros((len(masks), 1), dtype=np.int64)
        elif n_drawn is not None and isinstance(game, SampledDifferentiableSetFunction):
            self._pay(GRADIENT_COST * len(masks) * n_drawn)
            values, gradients, prompts = game.sample_gradients(masks, n_drawn, rng)
        else:
            raise DecoderError(
                f"gradients need a set function with {_GRADIENTS_OF[n_drawn is None]}; "
                f"{type(game).__name__} has none. Use a decoder that needs values only, such as "
                "'hybrid'."
            )
        shape = (len(masks), values.shape[1])
        return (
            self._checked(values, masks, shape),
            self._checked(gradients, masks, (*shape, self.n_units)),
            np.asarray(prompts, dtype=np.int64),
        )

    def check_drawn(self, n_drawn: int) -> None:
        """Refuse to draw prompts that there are not.

        Args:
            n_drawn: Prompts per mask.

        Raises:
            DecoderError: If the set function is not made from so many prompts.
        """
        if self.sampled is None:
            raise DecoderError(
                f"prompts_per_mask={n_drawn} needs a set function made from prompts, with "
                "n_prompts and sample(); this one has none. Use prompts_per_mask='all'."
            )
        if n_drawn > self.n_prompts:
            raise DecoderError(
                f"prompts_per_mask={n_drawn} is more than the {self.n_prompts} prompt(s) "
                "there are. Use at most that many, or 'all'."
            )

    def _pay(self, n_evaluations: int) -> None:
        if self.n_evaluations + n_evaluations > self.budget:
            raise BudgetError(
                f"{n_evaluations} more evaluations would pass the budget of {self.budget}, of "
                f"which {self.n_evaluations} are spent. Raise the budget or lower prompts_per_mask."
            )
        self.n_evaluations += n_evaluations

    def _checked(
        self, values: object, masks: Bool[Tensor, "masks units"], shape: tuple[int, ...]
    ) -> np.ndarray:
        if isinstance(values, Tensor):
            values = values.detach().cpu().numpy()
        array = np.asarray(values, dtype=np.float64)
        if array.shape != shape:
            raise DecoderError(
                f"the set function must return values of shape {shape} for these masks; "
                f"got {array.shape}."
            )
        finite = np.isfinite(array).reshape(len(masks), -1).all(axis=1)
        if not finite.all():
            raise NonFiniteError(_name_masks(masks[torch.from_numpy(~finite)], len(masks)))
        return array


def fewest_prompts(n_units: int, n_prompts: int, budget: int) -> int:
    """Return one prompt per mask, or as few as the masks there are leave no choice but to take.

    With k of them, a budget of B affords B / k masks. If σ² is the variance of what the fit cannot
    explain of the average game and τ² that of a prompt's departure from it, a coefficient has
    variance (σ² + τ² / k) k / B = (k σ² + τ²) / B: no k is better than 1.
    """
    return min(n_prompts, -(-budget // 2 ** min(n_units, 40)))


def is_count(value: object) -> bool:
    """Return whether a value is an integer of at least 1."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 1


def _name_masks(bad: Bool[Tensor, "bad units"], n_masks: int) -> str:
    """Return a message that names bad masks by the shorter of what they keep and ablate."""
    names = []
    for mask in bad[:3]:
        kept, ablated = mask.nonzero().flatten().tolist(), (~mask).nonzero().flatten().tolist()
        verb, units = ("keeps", kept) if len(kept) < len(ablated) else ("ablates", ablated)
        listed = ", ".join(map(str, units[:8])) + (", ..." if len(units) > 8 else "")
        names.append(f"the mask that {verb} units [{listed}]")
    more = "; ..." if len(bad) > 3 else ""
    return (
        f"the set function is NaN or infinite under {len(bad)} of {n_masks} masks: "
        f"{'; '.join(names)}{more}. Check the ablation, or use a keep rate nearer to 1."
    )


@dataclass(frozen=True)
class Samples:
    """Rows of one mask each, with the values of the prompts the mask was evaluated on."""

    masks: Bool[np.ndarray, "rows units"]
    """Keep-masks; the same mask may fill several rows."""

    draws: Float[np.ndarray, "rows drawn"]
    """One value per prompt drawn; a single column if each row is the mean over all prompts."""

    prompts: Int[np.ndarray, "rows drawn"]
    """Which prompt each draw is of; zeros if each row is the mean over all prompts."""

    n_prompts: int
    """How many prompts the average game averages; 1 if each row is the mean over all of them."""

    groups: Int[np.ndarray, " rows"]
    """Rows of one group (a mask, and its complement at keep rate ½) are never separated."""

    mask_ids: Int[np.ndarray, " rows"]
    """Rows of the same mask have the same number."""

    designs: tuple[AffineDesign, ...] = ()
    """The coded designs that some of the masks are of."""

    cells: Int[np.ndarray, "rows 3"] | None = None
    """Group, word and delay of each row, groups numbered through all designs; -1 for none."""

    table: Float[np.ndarray, "rows all_prompts"] | None = None
    """Every prompt's own value, where each row was evaluated on all of several prompts."""

    @property
    def values(self) -> Float[np.ndarray, " rows"]:
        """Mean of each row's draws: what is regressed."""
        return self.draws.mean(axis=1)

    @property
    def incidence(self) -> Float[np.ndarray, "rows prompts"]:
        """Share of each prompt in each row; no columns if every row holds every prompt."""
        rows, drawn = self.draws.shape
        if self.n_prompts == 1:
            return np.zeros((rows, 0))
        shares = np.zeros((rows, self.n_prompts))
        np.add.at(shares, (np.arange(rows)[:, None], self.prompts), 1 / drawn)
        return shares

    def with_values(self, values: Float[np.ndarray, " rows"]) -> "Samples":
        """Return the same rows with one value each, as if there were no prompts."""
        prompts = np.zeros((len(values), 1), dtype=np.int64)
        return replace(self, draws=values[:, None], prompts=prompts, n_prompts=1)

    def keep_together(self, groups: Int[np.ndarray, " rows"]) -> "Samples":
        """Return the same rows, of which those with the same number are not separated either."""
        _, other = np.unique(groups, return_inverse=True)
        _, own = np.unique(self.groups, return_inverse=True)
        links = coo_array((np.ones(len(own)), (own, own.max() + 1 + other)))
        links.resize((own.max() + other.max() + 2,) * 2)
        return replace(self, groups=connected_components(links, directed=False)[1][own])

    def take(self, rows: Int[np.ndarray, " taken"]) -> "Samples":
        """Return some of the rows."""
        by_row = ("masks", "draws", "prompts", "groups", "mask_ids", "cells", "table")
        parts = {name: getattr(self, name) for name in by_row}
        return replace(self, **{k: part[rows] for k, part in parts.items() if part is not None})


def gather(
    masks: Bool[np.ndarray, "rows units"],
    draws: Float[np.ndarray, "rows drawn"],
    prompts: Int[np.ndarray, "rows drawn"] | None,
    n_prompts: int,
    keep_rate: float,
    designs: tuple[AffineDesign, ...] = (),
    cells: Int[np.ndarray, "rows 3"] | None = None,
    table: Float[np.ndarray, "rows all_prompts"] | None = None,
) -> Samples:
    """Make samples, finding the rows that must not be separated.

    Args:
        masks: Keep-masks.
        draws: Values, one column per prompt drawn.
        prompts: Which prompt each draw is of; None if every row is the mean over all prompts.
        n_prompts: How many prompts there are; 1 with ``prompts=None``.
        keep_rate: At ½ a mask and its complement form one group.
        designs: Coded designs that some of the masks are of.
        cells: Where in them each row is.
        table: Every prompt's own value of every row.

    Returns:
        The samples.
    """
    mask_ids = _row_ids(masks)
    groups = _row_ids(masks ^ ~masks[:, :1]) if keep_rate == 0.5 else mask_ids
    if len(np.unique(groups)) < 4:  # so few masks that pairs would leave nothing to hold out
        groups = mask_ids
    if prompts is None:
        prompts, n_prompts = np.zeros(draws.shape, dtype=np.int64), 1
    return Samples(masks, draws, prompts, n_prompts, groups, mask_ids, designs, cells, table)


def join(parts: Sequence[Samples], keep_rate: float) -> Samples:
    """Put samples together that were taken one after the other.

    Args:
        parts: The samples, all with as many draws per row.
        keep_rate: p of the masks.

    Returns:
        All rows.
    """
    if len(parts) == 1:
        return parts[0]
    cells, n_groups = [], 0
    for part in parts:
        own = np.full((len(part.masks), 3), -1) if part.cells is None else part.cells.copy()
        own[own[:, 0] >= 0, 0] += n_groups
        n_groups += sum(len(design.groups) for design in part.designs)
        cells.append(own)
    tables = [part.table for part in parts if part.table is not None]
    n_prompts = parts[0].n_prompts
    return gather(
        np.concatenate([part.masks for part in parts]),
        np.concatenate([part.draws for part in parts]),
        np.concatenate([part.prompts for part in parts]) if n_prompts > 1 else None,
        n_prompts,
        keep_rate,
        tuple(design for part in parts for design in part.designs),
        np.concatenate(cells),
        np.concatenate(tables) if len(tables) == len(parts) else None,
    )


def _row_ids(masks: Bool[np.ndarray, "rows units"]) -> Int[np.ndarray, " rows"]:
    return np.unique(row_keys(masks), return_inverse=True)[1].reshape(-1)


def variance_components(samples: Samples) -> dict[str, float]:
    r"""Split the variance of single evaluations into masks, and masks × prompts.

    With :math:`v_q(x) = \mu + a_q + v(x) + e_q(x)`, prompts q being centred, this estimates the
    variance of v over masks and of e over masks and prompts: by two-way analysis of variance
    where every prompt was evaluated, else from the masks that were evaluated on several.

    Args:
        samples: The rows.

    Returns:
        The two variances by name; nothing where prompts are not told apart.

    References:
        Searle, Casella & McCulloch (1992), "Variance components", chapter 4, Wiley.
    """
    if samples.table is not None:
        centred = samples.table - samples.table.mean(axis=0)
        means = centred.mean(axis=1)
        rest = np.square(centred - means[:, None]).sum()
        n_masks, n_prompts = centred.shape
        crossed = rest / max(1, (n_masks - 1) * (n_prompts - 1))
        return {"variance_masks": float(means.var()), "variance_masks_x_prompts": float(crossed)}
    if samples.n_prompts == 1:
        return {}
    flat = samples.prompts.reshape(-1)
    levels = np.bincount(flat, weights=samples.draws.reshape(-1), minlength=samples.n_prompts)
    levels /= np.maximum(1, np.bincount(flat, minlength=samples.n_prompts))
    centred = samples.draws - levels[samples.prompts]
    _, mask = np.unique(samples.mask_ids, return_inverse=True)
    counts = np.bincount(mask) * centred.shape[1]
    means = np.bincount(mask, weights=centred.sum(axis=1)) / counts
    squares = np.bincount(mask, weights=np.square(centred - means[mask][:, None]).sum(axis=1))
    several = counts > 1
    if not several.any():
        return {}
    crossed = float((squares[several] / (counts[several] - 1)).mean())
    unseen = 1 / counts[several] - 1 / samples.n_prompts
    own = float(np.square(means[several]).mean() - crossed * unseen.mean())
    return {"variance_masks": max(0.0, own), "variance_masks_x_prompts": crossed}
