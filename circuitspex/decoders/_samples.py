"""What a decoder has measured: masks, values, and which prompts the values are of.

:class:`Meter` is the only way a decoder reaches a set function: it counts evaluations, refuses to
go past the budget, and turns bad values into errors that name the masks. :class:`Samples` is what
the regression decoders fit.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex._types import SampledSetFunction
from circuitspex.designs import bernoulli_masks
from circuitspex.errors import BudgetError, DecoderError, NonFiniteError

PromptsPerMask = int | Literal["all"]

MIN_MASKS = 16
"""Fewest masks a regression is tried on, where that many distinct ones exist."""

REPEATS = 4
"""Prompts on each mask that is reserved to measure how much prompts differ, at one per mask."""


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
        """
        if self.sampled is None:
            raise DecoderError(
                f"prompts_per_mask={n_drawn} needs a set function made from prompts, with "
                "n_prompts and sample(); this one has none. Use prompts_per_mask='all'."
            )
        self._pay(len(masks) * n_drawn)
        values, prompts = self.sampled.sample(masks, n_drawn, rng)
        shape = (len(masks), n_drawn)
        return self._checked(values, masks, shape), np.asarray(prompts, dtype=np.int64)

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

    def take(self, rows: Int[np.ndarray, " taken"]) -> "Samples":
        """Return some of the rows."""
        return Samples(
            self.masks[rows],
            self.draws[rows],
            self.prompts[rows],
            self.n_prompts,
            self.groups[rows],
            self.mask_ids[rows],
        )


def gather(
    masks: Bool[np.ndarray, "rows units"],
    draws: Float[np.ndarray, "rows drawn"],
    prompts: Int[np.ndarray, "rows drawn"] | None,
    n_prompts: int,
    keep_rate: float,
) -> Samples:
    """Make samples, finding the rows that must not be separated.

    Args:
        masks: Keep-masks.
        draws: Values, one column per prompt drawn.
        prompts: Which prompt each draw is of; None if every row is the mean over all prompts.
        n_prompts: How many prompts there are; 1 with ``prompts=None``.
        keep_rate: At ½ a mask and its complement form one group.

    Returns:
        The samples.
    """
    mask_ids = _row_ids(masks)
    groups = _row_ids(masks ^ ~masks[:, :1]) if keep_rate == 0.5 else mask_ids
    if len(np.unique(groups)) < 4:  # so few masks that pairs would leave nothing to hold out
        groups = mask_ids
    if prompts is None:
        prompts, n_prompts = np.zeros(draws.shape, dtype=np.int64), 1
    return Samples(masks, draws, prompts, n_prompts, groups, mask_ids)


def _row_ids(masks: Bool[np.ndarray, "rows units"]) -> Int[np.ndarray, " rows"]:
    packed = np.ascontiguousarray(np.packbits(masks, axis=1))
    rows = packed.view(np.dtype((np.void, packed.shape[1]))).reshape(-1)
    return np.unique(rows, return_inverse=True)[1].reshape(-1)


def draw_samples(
    meter: Meter, keep_rate: float, prompts_per_mask: PromptsPerMask, rng: np.random.Generator
) -> Samples:
    """Spend the budget on Bernoulli masks, in complementary pairs at keep rate ½.

    With one prompt per mask, a fifth of the budget goes to masks that get four prompts each: how
    much prompts differ under one mask cannot be told from single evaluations, and without it the
    held-out R² of the average game cannot be told from that of single prompts. All of them are
    fitted like any other.

    Args:
        meter: The metered set function.
        keep_rate: Probability of keeping a unit.
        prompts_per_mask: ``"all"``, or how many prompts each mask is evaluated on.
        rng: Source of every draw.

    Returns:
        The samples; all of the budget is spent unless there are no more masks to ask for.

    Raises:
        BudgetError: If the budget does not cover the fewest masks a regression needs.
    """
    n_drawn = _prompts_to_draw(meter, prompts_per_mask)
    cost = meter.n_prompts if n_drawn is None else n_drawn
    n_all = 2**meter.n_units if meter.n_units < 40 else 2**40
    n_masks = meter.budget // cost
    if n_drawn is None:
        n_masks = min(n_masks, n_all)
    if n_masks < min(MIN_MASKS, n_all):
        raise BudgetError(
            f"{meter.n_units} units need at least {min(MIN_MASKS, n_all)} masks at {cost} "
            f"evaluation(s) each, {min(MIN_MASKS, n_all) * cost} in all; the budget is "
            f"{meter.budget}. Raise it, or lower prompts_per_mask."
        )
    n_repeated = 0
    repeats = min(REPEATS, meter.n_prompts)
    if n_drawn == 1 and repeats > 1:
        n_repeated = min(max(8, meter.budget // (5 * repeats)), meter.budget // (2 * repeats))
        n_masks = meter.budget - n_repeated * (repeats - 1)
    paired = keep_rate == 0.5
    masks = bernoulli_masks(n_masks, meter.n_units, keep_rate, rng, complementary=paired)
    if n_drawn is None:
        draws = meter.values(masks)[:, None]
        return gather(masks.numpy(), draws, None, 1, keep_rate)
    draws, prompts = meter.sample(masks[n_repeated:], n_drawn, rng)
    rows = masks[n_repeated:].numpy()
    if n_repeated:
        more, which = meter.sample(masks[:n_repeated], repeats, rng)
        rows = np.concatenate([rows, masks[:n_repeated].numpy().repeat(repeats, axis=0)])
        draws = np.concatenate([draws, more.reshape(-1, 1)])
        prompts = np.concatenate([prompts, which.reshape(-1, 1)])
    return gather(rows, draws, prompts, meter.n_prompts, keep_rate)


def _prompts_to_draw(meter: Meter, prompts_per_mask: PromptsPerMask) -> int | None:
    """Return how many prompts to draw for each mask, or None for all of them."""  # noqa: DOC501
    if prompts_per_mask == "all":
        return None
    if meter.sampled is not None and prompts_per_mask > meter.n_prompts:
        raise DecoderError(
            f"prompts_per_mask={prompts_per_mask} is more than the {meter.n_prompts} prompt(s) "
            "there are. Use at most that many, or 'all'."
        )
    if meter.sampled is not None and prompts_per_mask == meter.n_prompts:
        return None
    return prompts_per_mask
