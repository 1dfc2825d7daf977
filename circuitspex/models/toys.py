"""The two toy models that ship with the package: their shape, their weights, how to build them.

Both have 2 layers of 4 heads and no MLPs and continue a repeated pattern of random tokens. They
differ in one thing. ``toy-induction`` saw patterns of random period, so it had to learn the
two-step algorithm: previous-token heads feed induction heads (an AND across layers).
``toy-redundant`` saw one fixed period, so single heads that attend a fixed distance back suffice,
and several back each other up (an OR).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from circuitspex.errors import ModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WEIGHTS = Path(__file__).parent / "weights"
BOS = 0
N_POSITIONS = 33


@dataclass(frozen=True)
class Toy:
    """How a toy model was trained."""

    name: str
    """Name under which it is loaded."""
    periods: tuple[int, int]
    """Smallest and largest period of the patterns it saw."""
    seed: int
    """Seed of weights and data. Of seeds 0 to 4, 4 gave ``toy-induction`` one clear previous-token
    head that all four induction heads read; the others share that work among two or three."""


TOYS = {
    toy.name: toy for toy in (Toy("toy-induction", (6, 14), 4), Toy("toy-redundant", (16, 16), 0))
}


def build_toy(
    toy: Toy, device: str | None = None, dtype: torch.dtype = torch.float32
) -> "TransformerBridge":
    """Make the model with its random starting weights.

    Args:
        toy: Which one.
        device: Where to put it.
        dtype: Type of the weights.

    Returns:
        A bridge of about 40,000 parameters, in evaluation mode.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    config = TransformerBridgeConfig(
        n_layers=2,
        n_heads=4,
        d_model=64,
        d_head=16,
        n_ctx=N_POSITIONS,
        d_vocab=33,
        attn_only=True,
        normalization_type="LN",
        act_fn="gelu",
        seed=toy.seed,
        model_name=toy.name,
        dtype=dtype,
    )
    # transformer-lens attaches its boot_… methods when it is imported, where pyright cannot see.
    boot = TransformerBridge.boot_native  # pyright: ignore[reportAttributeAccessIssue]
    bridge = boot(config, model_name=toy.name, device=device, dtype=dtype)
    return bridge.eval()


def load_toy(
    name: str, device: str | None = None, dtype: torch.dtype = torch.float32
) -> "TransformerBridge":
    """Load a trained toy model.

    Args:
        name: ``toy-induction`` or ``toy-redundant``.
        device: Where to put it.
        dtype: Type of the weights.

    Returns:
        The trained model.

    Raises:
        ModelError: If the weights do not cover the model.
    """
    model = build_toy(TOYS[name], device, dtype)
    weights = load_file(WEIGHTS / f"{name}.safetensors")
    parameters: dict[str, Any] = dict(model.original_model.named_parameters())
    if parameters.keys() != weights.keys():
        raise ModelError(
            f"the weights of {name} name other parameters than this transformer-lens builds; "
            "train them again with: python -m circuitspex.models.train_toys"
        )
    for key, parameter in parameters.items():
        parameter.data.copy_(weights[key])
    return model
