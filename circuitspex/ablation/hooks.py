"""Our hooks on a model: what they do while a pass runs. Outside of our passes they do nothing.

A hook at every site ablates; hooks at the inputs of blocks make one row many, where masks share
layers; and the hooks of :mod:`~circuitspex.ablation.shortcuts` leave out what is not read.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex.ablation import shortcuts
from circuitspex.ablation.forking import Fork
from circuitspex.ablation.shortcuts import Hook, Reading, mark
from circuitspex.errors import HookError
from circuitspex.units import ByHook, Site, UnitSet, plan_sites, zeros

WAYS_TO_FORK: tuple[Callable[[int], str], ...] = (
    lambda layer: f"blocks.{layer}.hook_resid_pre",
    # Where a block notes at its very beginning how many rows there are, as OPT's does.
    lambda layer: f"blocks.{layer - 1}.hook_resid_post" if layer else "hook_pos_embed",
)
"""Hook points at which rows can become more before a layer; the first that works is taken."""


@dataclass(frozen=True)
class _Running:
    """What the hooks need while one pass runs."""

    gates: Bool[Tensor, "rows columns"] | Float[Tensor, "rows columns"]
    """Keep-masks, or gates, with one more, always kept, column at the end."""
    stand_ins: ByHook
    fork: Fork | None
    """Where rows become more; None where every row runs through all layers."""
    reading: Reading


class HookedModel:
    """A model and our hooks on it."""

    def __init__(self, model: Any, units: UnitSet) -> None:
        self.model = model
        self.sites = plan_sites(units, model)
        self.takes_shortcuts = False
        """Whether what is not read is left out."""
        self._late_points = shortcuts.late_points(model)
        self._running: _Running | None = None
        self._captured: dict[str, Tensor] | None = None
        self._fired: set[str] = set()

    @property
    def is_watched(self) -> bool:
        """Whether other hooks would see that something is left out."""
        return shortcuts.somebody_looks(self._late_points)

    def enter(self, exits: ExitStack) -> None:
        """Put the hooks on the model.

        Args:
            exits: Takes them away again when it is closed.

        Raises:
            HookError: If the model lacks a hook point, or one cannot fire.
        """
        points = self.model.hook_dict
        absent = [site.hook for site in self.sites if site.hook not in points]
        if absent:
            raise HookError(
                f"the model has no hook {absent[0]} ({len(absent)} of {len(self.sites)} are "
                "missing). Choose units that this architecture has, such as cs.heads(model)."
            )
        # By canonical name: under an alias, compatibility mode would call each hook twice.
        hooks = [(points[s.hook].name or s.hook, self._ablating(s)) for s in self.sites]
        hooks += shortcuts.make_hooks(self.model, lambda: self._running and self._running.reading)
        try:
            exits.enter_context(self.model.hooks(fwd_hooks=hooks))
        except (ValueError, NotImplementedError) as error:
            raise HookError(
                f"the model has these hooks, but one is switched off or cannot fire: {error}"
            ) from error

    def forking(self, way: Callable[[int], str]) -> Any:
        """Make a block in which rows can become more at the inputs of layers.

        Args:
            way: Names the hook point before a layer.

        Returns:
            The block.
        """
        points = self.model.hook_dict
        names = [(layer, way(layer)) for layer in sorted({site.layer for site in self.sites})]
        hooks = [(points[n].name or n, self._growing(layer)) for layer, n in names if n in points]
        return self.model.hooks(fwd_hooks=hooks)

    def forward(
        self,
        tokens: Int[Tensor, "rows positions"],
        gates: Bool[Tensor, "out units"] | Float[Tensor, "out units"],
        stand_ins: ByHook,
        answer_positions: Int[Tensor, " rows"] | None = None,
        columns: Int[Tensor, " read"] | None = None,
        fork: Fork | None = None,
    ) -> Float[Tensor, "out columns"]:
        """Run rows with their masks or gates.

        Args:
            tokens: Token ids of the rows that go in.
            gates: A mask, or gates, for every row that comes out.
            stand_ins: What replaces an activation.
            answer_positions: Position whose logits are wanted, per row; the last one when None.
            columns: Tokens whose logits are wanted; all when None.
            fork: Where rows become more.

        Returns:
            Logits.

        Raises:
            HookError: If a site's hook did not fire.
        """
        gates = torch.cat([gates, torch.ones_like(gates[:, :1])], dim=1)
        whole = not self.takes_shortcuts or self.is_watched
        reading = Reading()
        if not whole:
            reading = Reading(_only_position(tokens, answer_positions), columns)
        self._running = _Running(gates, stand_ins, fork, reading)
        self._fired.clear()
        try:
            logits = answer_logits(
                self.model, tokens, answer_positions, gradients=gates.requires_grad
            )
        finally:
            self._running = None
        missing = [site.hook for site in self.sites if site.hook not in self._fired]
        if missing:
            raise HookError(
                f"hook {missing[0]} did not fire ({len(missing)} of {len(self.sites)} hooks). "
                "Either this architecture does not compute it, or model.reset_hooks() was called "
                "inside the block. Choose other units; the table is printed by: circuitspex units"
            )
        return logits if columns is None or not whole else logits[:, columns.to(logits.device)]

    def capture(
        self, tokens: Int[Tensor, "rows positions"], masks: Bool[Tensor, "rows units"]
    ) -> dict[str, Tensor]:
        """Run the intact model and return the activations at every site.

        Args:
            tokens: Token ids.
            masks: Masks that keep all.

        Returns:
            Activations by hook point.
        """
        self._captured = {}
        try:
            self.forward(tokens, masks, zeros)
            return self._captured
        finally:
            self._captured = None

    def _growing(self, layer: int) -> Hook:
        @mark
        def grow(activation: Tensor, *, hook: Any) -> Tensor | None:
            now = self._running
            if now is None or now.fork is None or layer not in now.fork.grow:
                return None
            return activation[now.fork.grow[layer].to(activation.device)]

        return grow

    def _ablating(self, site: Site) -> Hook:
        columns: dict[torch.device, Tensor] = {}

        @mark
        def ablate_site(activation: Tensor, *, hook: Any) -> Tensor | None:
            now = self._running
            if now is None:
                return None
            self._fired.add(site.hook)
            if self._captured is not None:
                self._captured[site.hook] = activation.detach().clone()
                return None
            device = activation.device
            if device not in columns:
                # Autograd refuses what was made in inference mode, as the caller's may be now.
                with torch.inference_mode(False):
                    columns[device] = site.columns.to(device, copy=True)
            gates = now.gates.to(device)[:, columns[device]]
            if now.fork is not None:
                gates = gates[now.fork.alive[site.layer].to(device)]
            site.check_axis(activation, len(gates), self.model.cfg.d_model)
            gate = site.broadcast(gates)
            stand_in = now.stand_ins(site.hook).to(activation)
            position = now.reading.position
            if position is not None and stand_in.ndim > 1 and activation.shape[1] == 1:
                stand_in = stand_in[:, position : position + 1]
            if gate.dtype == torch.bool:
                return torch.where(gate, activation, stand_in)
            return torch.lerp(stand_in.expand_as(activation), activation, gate.to(activation))

        return ablate_site


def answer_logits(
    model: Any,
    tokens: Int[Tensor, "rows positions"],
    answer_positions: Int[Tensor, " rows"] | None = None,
    *,
    gradients: bool = False,
) -> Float[Tensor, "out vocab"]:
    """Run the model and return logits at one position per row, never those of all positions.

    Args:
        model: A TransformerBridge.
        tokens: Token ids.
        answer_positions: Wanted position per row; the last one when None.
        gradients: Whether to build the graph that a backward pass needs.

    Returns:
        Logits; of more rows than went in where hooks made one row many.
    """
    ends = torch.full((len(tokens),), tokens.shape[1] - 1)
    ends = ends if answer_positions is None else answer_positions.cpu()
    wanted, rank = ends.unique(return_inverse=True)
    keep = 1 if answer_positions is None else wanted.to(tokens.device)
    with torch.set_grad_enabled(gradients):
        logits = model(tokens, logits_to_keep=keep, use_cache=False)
    # Models without the option return every position; the small native ones do.
    column = ends if logits.shape[1] == tokens.shape[1] else rank
    return logits[torch.arange(len(logits)), column.to(logits.device)]


def _only_position(tokens: Tensor, answer_positions: Tensor | None) -> int | None:
    ends = {tokens.shape[1] - 1} if answer_positions is None else {*answer_positions.tolist()}
    return ends.pop() if len(ends) == 1 else None
