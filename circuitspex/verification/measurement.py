r"""What ablating a set of units does beyond its parts, measured instead of estimated.

Around a context, the mask z, the effect of a set T takes the ``2**|T|`` masks in which T's own
units are kept or ablated in every way and all others stay as z has them:

.. math:: \theta_z(T) = \sum_{S \subseteq T} (-1)^{|T| - |S|} \, v\big((z \cup T) \setminus S\big).

At z = N it is the Möbius coefficient at the intact origin. Which masks are needed is planned here,
each of them once however many sets share it; whoever has the plan evaluates them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex._shared import check_masks
from circuitspex.algebra import all_kept, alternating_signs, enumerate_masks, pack
from circuitspex.errors import ResultError

MAX_MEASURED_ORDER = 12
"""Most units in one measured set, which takes 4,096 masks."""


@dataclass(frozen=True)
class MeasurementPlan:
    """The masks that measure some sets of units, and where each set finds its own among them."""

    terms: tuple[tuple[int, ...], ...]
    """The sets, those that were affordable, in the order they were given."""
    masks: Bool[Tensor, "masks units"]
    """Distinct keep-masks, in the order in which they are first needed."""
    rows: tuple[Int[Tensor, "contexts _"], ...]
    """For every set, the rows of its masks, patterns as in :func:`enumerate_masks`."""

    def coefficients(
        self, values: Float[Tensor, "masks ..."]
    ) -> Float[Tensor, "coefficients contexts ..."]:
        """Add up every set's values with their signs.

        Args:
            values: Value of every mask of the plan; further axes (prompts, say) stay apart.

        Returns:
            Effect of every set in every context, in float64.
        """
        table = values.double()
        effects = [_alternating_sum(table[rows]) for rows in self.rows]
        shape = (0, 0, *values.shape[1:])
        return torch.stack(effects) if effects else torch.zeros(shape, dtype=torch.float64)


def plan_measurement(
    terms: Sequence[tuple[int, ...]],
    contexts: Bool[Tensor, "contexts units"],
    max_masks: int | None = None,
) -> MeasurementPlan:
    """Choose the masks that measure sets of units in some contexts.

    Args:
        terms: Unit indices of every set, the most wanted first.
        contexts: Keep-masks that say what becomes of all other units.
        max_masks: How many distinct masks at most. Sets are taken in turn, and one that would
            need more than are left is passed over; all are taken when None.

    Returns:
        The plan.

    Raises:
        ResultError: If a set is empty, too large, or names a unit twice or one that is not there.

    Example:
        >>> plan = plan_measurement([(0, 1), (0, 2)], torch.ones(1, 4, dtype=torch.bool))
        >>> len(plan.masks)  # of 4 + 4, the intact model and 0 alone are shared
        6
    """  # noqa: DOC502 - raised by the check
    contexts = check_masks(contexts, contexts.shape[-1]).cpu()
    place_of: dict[bytes, int] = {}
    masks = [contexts[:0]]
    chosen, rows = [], []
    for term in terms:
        own = _patterns(_checked(term, contexts.shape[1]), contexts)
        keys = [packed.tobytes() for packed in pack(own)]
        fresh = {key: row for row, key in enumerate(keys) if key not in place_of}
        if max_masks is not None and len(place_of) + len(fresh) > max_masks:
            continue
        for key in fresh:
            place_of[key] = len(place_of)
        masks.append(own[list(fresh.values())])
        places = torch.tensor([place_of[key] for key in keys], dtype=torch.int64)
        rows.append(rearrange(places, "(c patterns) -> c patterns", c=len(contexts)))
        chosen.append(term)
    return MeasurementPlan(tuple(chosen), torch.cat(masks), tuple(rows))


def measure_coefficients(
    values_of_masks: Callable[[Bool[Tensor, "masks units"]], Float[Tensor, "masks ..."]],
    terms: Sequence[tuple[int, ...]],
    n_units: int,
) -> Float[Tensor, "coefficients ..."]:
    """Measure Möbius coefficients at the intact origin, every mask that they share once.

    Args:
        values_of_masks: Called once with all masks; a set function, or its ``per_prompt``.
        terms: Unit indices of every set.
        n_units: How many units a mask covers.

    Returns:
        One coefficient per set, and per prompt where the values are, in float64.

    Example:
        Two heads that back each other up: only losing both costs anything.

        >>> either = lambda masks: masks[:, :2].any(1).double()
        >>> measure_coefficients(either, [(0,), (0, 1)], 3)
        tensor([ 0., -1.], dtype=torch.float64)
    """
    plan = plan_measurement(terms, all_kept(n_units))
    return plan.coefficients(values_of_masks(plan.masks)).flatten(0, 1)


def _patterns(
    term: tuple[int, ...], contexts: Bool[Tensor, "contexts units"]
) -> Bool[Tensor, "rows units"]:
    """Return every context with the units of a set kept and ablated in every way."""
    kept = enumerate_masks(len(term))
    masks = repeat(contexts, "contexts units -> contexts patterns units", patterns=len(kept))
    masks = masks.clone()
    masks[:, :, list(term)] = kept
    return rearrange(masks, "contexts patterns units -> (contexts patterns) units")


def _alternating_sum(
    values: Float[Tensor, "contexts patterns ..."],
) -> Float[Tensor, "contexts ..."]:
    n_kept = enumerate_masks(values.shape[1].bit_length() - 1).sum(1)
    signs = torch.from_numpy(alternating_signs(n_kept.numpy()))
    return einsum(values, signs, "c patterns ..., patterns -> c ...")


def _checked(term: tuple[int, ...], n_units: int) -> tuple[int, ...]:
    inside = all(0 <= unit < n_units for unit in term)
    if not 1 <= len(term) <= MAX_MEASURED_ORDER or not inside or len(set(term)) < len(term):
        raise ResultError(
            f"a measured set must name 1 to {MAX_MEASURED_ORDER} distinct units in "
            f"0..{n_units - 1}; got {term}, of {len(term)}."
        )
    return term
