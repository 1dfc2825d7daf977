"""How a budget is spent: which masks, and how many prompts on each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int

from circuitspex.decoders.measuring.samples import (
    Meter,
    PromptsPerMask,
    Samples,
    fewest_prompts,
    gather,
)
from circuitspex.designs import AffineDesign, affine_design, affine_size, bernoulli_masks
from circuitspex.errors import BudgetError

MIN_MASKS = 16
"""Fewest masks a regression is tried on, where that many distinct ones exist."""

REPEATS = 4
"""Prompts on each mask that is reserved to measure how much prompts differ, at one per mask."""


@dataclass(frozen=True)
class Round:
    """Masks to evaluate in one go."""

    masks: Bool[np.ndarray, "masks units"]
    """Keep-masks; those that get more than one prompt come first."""

    n_repeated: int = 0
    """How many of them get several prompts, where the others get one."""

    design: AffineDesign | None = None
    """The coded design that the last of the masks are."""

    @property
    def cells(self) -> Int[np.ndarray, "masks 3"]:
        """Group, word and delay of every mask, -1 where it is not coded."""
        cells = np.full((len(self.masks), 3), -1)
        if self.design is not None:
            cells[-self.design.n_masks :] = self.design.cells()
        return cells


def prompts_to_draw(meter: Meter, prompts_per_mask: PromptsPerMask) -> int | None:
    """Return how many prompts to draw for each mask, or None for all of them.

    ``"auto"`` is :func:`~circuitspex.decoders.measuring.samples.fewest_prompts`.

    Args:
        meter: The metered set function.
        prompts_per_mask: The decoder's option.

    Returns:
        The number.

    Raises:
        DecoderError: If there are not so many prompts.
    """  # noqa: DOC502 - raised by the check
    if prompts_per_mask == "auto":
        if meter.sampled is None:
            return None
        prompts_per_mask = fewest_prompts(meter.n_units, meter.n_prompts, meter.budget)
    if prompts_per_mask == "all":
        return None
    meter.check_drawn(prompts_per_mask)
    return None if prompts_per_mask == meter.n_prompts else prompts_per_mask


def plan_rounds(
    meter: Meter,
    keep_rate: float,
    n_drawn: int | None,
    shares: Sequence[float],
    rng: np.random.Generator,
    max_errors: int | None = None,
) -> list[Round]:
    """Choose the masks that the rest of the budget is spent on, before any of them is evaluated.

    Bernoulli masks, in complementary pairs at keep rate ½; with ``max_errors``, as many coded masks
    as fit in each round and Bernoulli masks for the rest.

    With one prompt per mask, a fifth of the budget goes to masks that get four prompts each: how
    much prompts differ under one mask cannot be told from single evaluations, and without it the
    held-out R² of the average game cannot be told from that of single prompts. All of them are
    fitted like any other.

    Args:
        meter: The metered set function.
        keep_rate: Probability of keeping a unit.
        n_drawn: Prompts for each mask; None for all of them.
        shares: Of the budget, for each round; they sum to 1.
        rng: Source of every draw.
        max_errors: What the code of coded masks corrects; None for Bernoulli masks only.

    Returns:
        The rounds.

    Raises:
        BudgetError: If the budget does not cover the fewest masks a regression needs.
    """
    cost = meter.n_prompts if n_drawn is None else n_drawn
    n_all = 2 ** min(meter.n_units, 40)
    n_masks = (meter.budget - meter.n_evaluations) // cost
    if n_drawn is None:
        n_masks = min(n_masks, n_all)
    if n_masks < min(MIN_MASKS, n_all):
        raise BudgetError(
            f"{meter.n_units} units need at least {min(MIN_MASKS, n_all)} masks at {cost} "
            f"evaluation(s) each, {min(MIN_MASKS, n_all) * cost} in all; the budget is "
            f"{meter.budget}. Raise it, or lower prompts_per_mask."
        )
    ends = np.rint(np.cumsum(shares) * n_masks).astype(int)
    sizes = [_split(int(n), n_drawn, meter.n_prompts) for n in np.diff(ends, prepend=0)]
    designs = [_coded(meter.n_units, n - repeated, max_errors, rng) for n, repeated in sizes]
    n_random = [
        n - (0 if design is None else design.n_masks)
        for (n, _), design in zip(sizes, designs, strict=True)
    ]
    # Drawn for all rounds together, so that no mask of one comes again in another.
    drawn = np.zeros((0, meter.n_units), dtype=bool)
    if sum(n_random):
        pairs = keep_rate == 0.5
        masks = bernoulli_masks(sum(n_random), meter.n_units, keep_rate, rng, complementary=pairs)
        drawn = masks.numpy()
    rounds = []
    for (_, repeated), design, n, end in zip(
        sizes, designs, n_random, np.cumsum(n_random), strict=True
    ):
        masks = drawn[end - n : end]
        if design is not None:
            masks = np.concatenate([masks, design.masks().numpy()])
        rounds.append(Round(masks, repeated, design))
    return rounds


def _split(n_masks: int, n_drawn: int | None, n_prompts: int) -> tuple[int, int]:
    """Return how many masks to draw, and how many of them get several prompts instead of one."""
    repeats = min(REPEATS, n_prompts)
    if n_drawn != 1 or repeats == 1:
        return n_masks, 0
    n_repeated = min(max(8, n_masks // (5 * repeats)), n_masks // (2 * repeats))
    return n_masks - n_repeated * (repeats - 1), n_repeated


def _coded(
    n_units: int, n_masks: int, max_errors: int | None, rng: np.random.Generator
) -> AffineDesign | None:
    """Return a coded design of at most so many masks, None if there is none."""
    if max_errors is None or affine_size(n_units, n_masks, max_errors) is None:
        return None
    return affine_design(n_units, n_masks, max_errors, rng)


def describe_designs(samples: Samples) -> dict[str, object]:
    """Say in plain values how the masks were chosen.

    Args:
        samples: The rows.

    Returns:
        The share of coded masks, and the size of each coded design.
    """
    coded = 0 if samples.cells is None else int((samples.cells[:, 0] >= 0).sum())
    return {
        "design": "affine" if samples.designs else "bernoulli",
        "n_coded_rows": coded,
        "codes": [
            {
                "errors": design.code.max_errors,
                "delays": design.n_delays,
                "bits": [group.n_bits for group in design.groups],
            }
            for design in samples.designs
        ],
    }


def evaluate_round(
    meter: Meter,
    planned: Round,
    n_drawn: int | None,
    keep_rate: float,
    rng: np.random.Generator,
) -> Samples:
    """Evaluate the masks of a round.

    Args:
        meter: The metered set function.
        planned: The masks.
        n_drawn: Prompts for each mask; None for all of them.
        keep_rate: p of the masks.
        rng: Draws the prompts.

    Returns:
        The samples.
    """
    masks, cells = torch.from_numpy(planned.masks), planned.cells
    designs = () if planned.design is None else (planned.design,)
    if n_drawn is None:
        table = meter.per_prompt(masks)
        draws = table.mean(axis=1, keepdims=True)
        several = table if table.shape[1] > 1 else None
        return gather(planned.masks, draws, None, 1, keep_rate, designs, cells, several)
    n = planned.n_repeated
    draws, prompts = meter.sample(masks[n:], n_drawn, rng)
    rows, cells = planned.masks[n:], cells[n:]
    if n:
        repeats = min(REPEATS, meter.n_prompts)
        more, which = meter.sample(masks[:n], repeats, rng)
        rows = np.concatenate([rows, planned.masks[:n].repeat(repeats, axis=0)])
        cells = np.concatenate([cells, np.full((n * repeats, 3), -1)])
        draws = np.concatenate([draws, more.reshape(-1, 1)])
        prompts = np.concatenate([prompts, which.reshape(-1, 1)])
    return gather(rows, draws, prompts, meter.n_prompts, keep_rate, designs, cells)
