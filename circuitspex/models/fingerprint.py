"""Which model a result is of: name, processing mode and a hash of the weights."""

import hashlib
from typing import Any

import torch


def describe_model(model: Any) -> dict[str, Any]:
    """Identify a model, so that results of different models are never mixed up.

    Zero ablation is not invariant to weight processing (folded biases move values), so the mode is
    part of the identity.

    Args:
        model: A TransformerBridge.

    Returns:
        Plain values that JSON holds.
    """
    cfg = model.cfg
    return {
        "name": str(cfg.model_name),
        "architecture": str(cfg.architecture),
        "processing": "compatibility" if getattr(model, "compatibility_mode", False) else "raw",
        "dtype": str(cfg.dtype).removeprefix("torch."),
        "n_layers": int(cfg.n_layers),
        "n_heads": int(cfg.n_heads),
        "weights": hash_weights(model),
    }


def hash_weights(model: Any) -> str:
    """Hash every parameter's name, shape, type and bytes with BLAKE2b.

    Args:
        model: A TransformerBridge.

    Returns:
        32 hexadecimal digits; the same wherever the weights are the same.
    """
    total = hashlib.blake2b(digest_size=16)
    for name, parameter in model.original_model.named_parameters():
        total.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        flat = parameter.detach().contiguous().reshape(-1).view(torch.uint8).cpu()
        total.update(memoryview(flat.numpy()))
    return total.hexdigest()
