"""What of a forward pass nobody reads, and is therefore not computed.

Logits are read at one position, and often of a few tokens. So the last MLP is given that position
alone, whose output the residual stream adds to every position, right at the one that is read; and
the unembedding is given no row at all, as a few of its columns are a small product.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from jaxtyping import Int
from torch import Tensor

Hook: TypeAlias = Callable[..., Tensor | None]
AnyHook = TypeVar("AnyHook", bound=Hook)


@dataclass(frozen=True)
class Reading:
    """What is read of a forward pass that is running."""

    position: int | None = None
    """The one position whose logits are read; None where there are several, or all is computed."""
    columns: Int[Tensor, " read"] | None = None
    """Token ids whose logits are read; None for all."""


def make_hooks(model: Any, reading: Callable[[], Reading | None]) -> list[tuple[str, Hook]]:
    """Make the hooks that leave out what is not read.

    Args:
        model: A TransformerBridge.
        reading: Says what is read of the pass that is running; None leaves the model alone.

    Returns:
        Names of hook points and what to call there; fewer where the model lacks one.
    """
    final: list[Tensor] = []

    def take_one_position(residual: Tensor, *, hook: Any) -> Tensor | None:
        now = reading()
        if now is None or now.position is None:
            return None
        return residual[:, now.position : now.position + 1]

    def take_no_row(residual: Tensor, *, hook: Any) -> Tensor | None:
        now = reading()
        if now is None or now.columns is None:
            return None
        final[:] = [residual]
        return residual[:0]

    def give_columns(logits: Tensor, *, hook: Any) -> Tensor | None:
        now = reading()
        if now is None or now.columns is None:
            return None
        columns = now.columns.to(logits.device)
        return final.pop() @ model.unembed.W_U[:, columns] + model.unembed.b_U[columns]

    hooks = {
        f"blocks.{model.cfg.n_layers - 1}.mlp.hook_in": take_one_position,
        "unembed.hook_in": take_no_row,
        "unembed.hook_out": give_columns,
    }
    points = model.hook_dict
    return [(points[name].name or name, mark(hooks[name])) for name in hooks if name in points]


def mark(hook: AnyHook) -> AnyHook:
    """Note that a hook is ours, so that it does not count among those who look.

    Args:
        hook: A function for a hook point.

    Returns:
        The same function.
    """
    hook.__dict__["of_circuitspex"] = True
    return hook


def late_points(model: Any) -> list[Any]:
    """List the hook points at which a shortcut could be seen.

    Args:
        model: A TransformerBridge.

    Returns:
        Those of the last block and of what follows it.
    """
    late = (f"blocks.{model.cfg.n_layers - 1}.", "ln_final", "unembed", "hook_unembed")
    return [point for name, point in model.hook_dict.items() if name.startswith(late)]


def somebody_looks(points: Iterable[Any]) -> bool:
    """Say whether any hook point has a hook that is not ours.

    Args:
        points: Hook points.

    Returns:
        True if so; then everything should be computed. Hooks of PyTorch itself are not counted.
    """
    return any(
        "of_circuitspex" not in getattr(handle.user_hook, "__dict__", {})
        for point in points
        for handle in (*point.fwd_hooks, *point.bwd_hooks)
    )
