"""Derivatives of values by gates, and of nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from circuitspex.errors import ModelError, TaskError


@contextmanager
def by_gates_only(model: Any) -> Iterator[None]:
    """Let graphs be built in a block, whatever mode the caller is in, but for no parameter.

    Saves the activations that only gradients of parameters would need.

    Args:
        model: A TransformerBridge; on the way out its parameters are as they were.

    Yields:
        Once, for the block.

    Raises:
        ModelError: If the weights were made in inference mode.
    """
    parameters = {*model.parameters(), *model.original_model.parameters()}
    if any(parameter.is_inference() for parameter in parameters):
        raise ModelError(
            "no gradient can be taken through weights made under torch.inference_mode(). Load "
            "the model outside of it; calling it inside is fine."
        )
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    with torch.inference_mode(False), torch.enable_grad():
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


def as_leaf(
    gates: Bool[Tensor, "rows units"] | Float[Tensor, "rows units"],
) -> Float[Tensor, "rows units"]:
    """Return gates as the leaf of a graph of their own, in single precision at least."""
    precision = torch.promote_types(gates.dtype, torch.float32)
    return gates.detach().to(precision, copy=True).requires_grad_()


def derivatives(
    values: Shaped[Tensor, " rows"], gates: Float[Tensor, "rows units"]
) -> Float[Tensor, "rows units"]:
    """Differentiate every row's value by its own gates.

    Args:
        values: One number per row, of any type.
        gates: The leaf that they follow from.

    Returns:
        The derivatives.

    Raises:
        TaskError: If no graph leads from the gates to the values.
    """
    gradient = None
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), gates, allow_unused=True)
    if gradient is None:
        raise TaskError(
            "the metric cannot be differentiated: its values do not follow from the logits by "
            "smooth steps. Things that cut the graph are argmax, comparisons, .detach(), .item() "
            "and torch.no_grad(), also in other hooks on the model. Use a metric without them, "
            "such as 'logit_difference', or a decoder that needs values only."
        )
    return gradient
