"""What is checked of a model before ablations on it are believed.

Every probe is a few rows of one short prompt. :mod:`circuitspex.ablation.ablated` runs them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitspex.ablation.passes import Rows
from circuitspex.errors import HookError
from circuitspex.units import Site

Batches: TypeAlias = Iterator[tuple[Int[Tensor, " batch"], Float[Tensor, "batch vocab"]]]
"""Rows of a batch and their logits, batch by batch."""


def short_prompt(model: Any) -> Int[Tensor, "1 positions"]:
    """Make a prompt that every model can read.

    Args:
        model: A TransformerBridge.

    Returns:
        Token ids.
    """
    n_positions = min(8, model.cfg.n_ctx)
    return torch.arange(n_positions, device=model.cfg.device)[None] % model.cfg.d_vocab


def canaries(sites: Sequence[Site], n_units: int) -> Rows:
    """Make one mask per site that ablates everything there, and one that keeps everything.

    Args:
        sites: Hook points.
        n_units: Columns of a mask.

    Returns:
        Each of them on the short prompt, the one that keeps everything last.
    """
    masks = torch.ones(len(sites) + 1, n_units, dtype=torch.bool)
    for row, site in enumerate(sites):
        masks[row, [column for column in site.columns.tolist() if column < n_units]] = False
    return Rows.of_table(masks, torch.zeros(len(masks), 1, dtype=torch.long))


def check_intact(kept: Tensor, unhooked: Tensor) -> None:
    """Refuse hooks that change a model of which everything is kept.

    Args:
        kept: Logits under the mask that keeps all units.
        unhooked: Logits without the hooks.

    Raises:
        HookError: If they differ.
    """
    tolerance = 1e-5 if _is_fine(kept) else 1e-2
    if not torch.allclose(kept, unhooked, rtol=tolerance, atol=tolerance):
        raise HookError(
            "keeping every unit changed the logits by "
            f"{(kept - unhooked).abs().max().item():.3g}; the hooks disturb this model."
        )


def check_canaries(
    logits: Tensor, unhooked: Tensor, run: Callable[[int], Tensor], sites: Sequence[Site]
) -> None:
    """Refuse sites at which ablation changes nothing.

    Args:
        logits: Those of every site's canary.
        unhooked: Those of the intact model.
        run: Runs one canary alone.
        sites: Hook points.

    Raises:
        HookError: If a canary gives the logits of the intact model.
    """
    coarse = 1e-3 if _is_fine(unhooked) else 0.1
    close = torch.isclose(logits, unhooked, rtol=coarse, atol=coarse).all(dim=1)
    for row in close.nonzero().squeeze(1).tolist():
        # Rounding depends on the size of the batch: only alone is "the same" exact.
        if torch.equal(run(row), unhooked):
            raise HookError(
                f"ablating at {sites[row].hook} does not change the logits, so nothing could be "
                "found there. If its output weights are zero on purpose, pass probe=False."
            )


def why_different(expected: Tensor, run: Callable[[], Batches]) -> str | None:
    """Say why a faster way of running rows must not be taken on this model, if so.

    Args:
        expected: Logits of the rows when nothing is left out.
        run: Runs the same rows the faster way.

    Returns:
        The reason, or None where the logits are the same.
    """
    scale = float(expected.abs().where(expected.isfinite(), 0).max())
    tolerance = scale * (1e-4 if _is_fine(expected) else 3e-2)
    try:
        found = in_order(run())
        if torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True):
            return None
    except Exception as error:  # noqa: BLE001
        # Whatever a model does with other shapes than it was made for, the long way is there.
        return f"{type(error).__name__}: {error}".splitlines()[0]
    difference = float((found - expected).abs().max())
    return f"logits differ by {difference:.2g}, the largest being {scale:.2g}"


def in_order(batches: Batches) -> Tensor:
    """Join the logits of batches.

    Args:
        batches: Rows and their logits, batch by batch.

    Returns:
        The logits of row 0, 1, ….
    """
    rows, logits = zip(*batches, strict=True)
    return torch.cat(logits)[torch.cat(rows).argsort()]


def _is_fine(logits: Tensor) -> bool:
    return logits.dtype in (torch.float32, torch.float64)
