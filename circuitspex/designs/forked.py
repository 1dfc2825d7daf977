"""The forked design: random masks in groups that share their first layers.

Rows that agree on all layers below L run as one row up to there, so masks of a group cost less
than as many others. Every mask is still Bernoulli at the keep rate, whichever is looked at; but
masks of one group are not independent, so they must share a fold, and the units below L are seen
in as many contexts as there are groups, not masks.

**When it fails:** where early layers matter. On SmolLM2 such masks run up to 2.7 times faster and
teach that much less each: at equal time they predict about as well as independent ones, no better
(benchmarks/forked_designs.md). So no decoder draws them by itself; give the groups to
``sample`` and to the decoder's ``fit``.
"""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitspex.errors import DecoderError


def forked_masks(
    n_masks: int,
    layers: Sequence[int],
    keep_rate: float,
    branches: Mapping[int, int],
    rng: np.random.Generator,
) -> tuple[Bool[Tensor, "masks units"], Int[Tensor, " masks"]]:
    """Draw masks in groups, each a tree whose leaves share the layers above their first branch.

    Args:
        n_masks: How many masks.
        layers: Layer of every unit.
        keep_rate: Probability of keeping a unit, strictly between 0 and 1.
        branches: Layer to how many masks every mask becomes there: they agree on all units of
            earlier layers, and those of this and later layers are drawn anew for each. Several
            layers nest.
        rng: Source of every draw.

    Returns:
        Masks, True meaning kept, and the group of each. Groups are consecutive and equally large
        but for the last, which ends where there are enough masks.

    Raises:
        DecoderError: If there are no masks or units, the keep rate is not in (0, 1), or a branch
            makes fewer than two masks or lies where it parts no unit from another.

    Example:
        >>> masks, groups = forked_masks(4, [0, 0, 1], 0.5, {1: 2}, np.random.default_rng(0))
        >>> groups.tolist(), bool((masks[0, :2] == masks[1, :2]).all())
        ([0, 0, 1, 1], True)
    """  # noqa: DOC502 - raised by the checks
    layer = np.asarray(layers)
    _check(n_masks, layer, keep_rate, branches)
    size = prod(branches.values())
    n_groups = -(-n_masks // size)
    masks = rng.random((n_groups, len(layer))) < keep_rate
    for start, n in sorted(branches.items()):
        masks = masks.repeat(n, axis=0)
        late = layer >= start
        masks[:, late] = rng.random((len(masks), int(late.sum()))) < keep_rate
    groups = np.arange(n_groups).repeat(size)
    return torch.from_numpy(masks[:n_masks]), torch.from_numpy(groups[:n_masks])


def _check(n_masks: int, layer: np.ndarray, keep_rate: float, branches: Mapping[int, int]) -> None:
    if n_masks < 1 or len(layer) < 1 or not 0 < keep_rate < 1:
        raise DecoderError(
            "a forked design needs n_masks >= 1, at least one unit and 0 < keep_rate < 1; "
            f"got n_masks={n_masks}, {len(layer)} units, keep_rate={keep_rate}."
        )
    for start, n in branches.items():
        if n < 2 or not layer.min() < start <= layer.max():
            raise DecoderError(
                f"branches={dict(branches)}: {n} mask(s) from layer {start} on share nothing, or "
                f"all. Give 2 or more, at a layer from {layer.min() + 1} to {layer.max()}, where "
                "the layers of the units end."
            )
