"""The context manager that ablates.

Phases:

1. *Plan* (:mod:`circuitspex.units`): units become sites, one per hook point, each knowing which
   mask column rules which entry of its axis.
2. *Enter*: hooks are added once, stand-ins for mean and resample ablation are computed, and the
   model is probed: every hook fires with the expected axis; the all-kept mask gives the unhooked
   logits; a canary at every site changes them; a forked pass equals the flat one.
3. *Run*: every row of a batch has its own mask, or its own gates between 0 and 1 where a gradient
   is wanted (``gradients``). Where masks share layers (``forking``), one row goes in, and a hook at
   the input of a block returns more rows than it was given (``hooks``). What nobody reads is left
   out (``shortcuts``). Outside our own forward passes the hooks do nothing, so the model stays
   usable inside the block, and blocks nest.
4. *Leave*: on every way out our hooks, and only ours, are gone and every module's training flag is
   as it was.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex._shared import check_masks
from circuitspex.ablation import probes
from circuitspex.ablation.batching import Room
from circuitspex.ablation.gradients import as_leaf, by_gates_only, derivatives
from circuitspex.ablation.hooks import WAYS_TO_FORK, HookedModel, answer_logits
from circuitspex.ablation.passes import EachAlone, Pass, Plan, Planner, Rows
from circuitspex.errors import ForkWarning, HookError, MaskError
from circuitspex.units import (
    ByHook,
    Replacement,
    StandIns,
    UnitSet,
    check_units,
    ones,
    replacements,
)


class Ablated:
    """A model whose units can be ablated row by row; made by :func:`ablate`."""

    def __init__(
        self,
        model: Any,
        units: UnitSet,
        replacement: Replacement,
        planner: Planner,
        *,
        probe: bool,
        forks: bool,
    ) -> None:
        check_units(units, model)
        self.model = model
        self.units = units
        self.replacement = replacement
        self.forks = forks
        """Whether masks share layers; inside the block, False where the model cannot do that."""
        self._hooked = HookedModel(model, units)
        self._planner = planner
        self._probe = probe
        self._wants_forks = forks
        self._exits = ExitStack()
        self._inside = False
        self._stand_ins = StandIns(replacement)

    def __enter__(self) -> "Ablated":
        """Add the hooks, compute stand-ins, probe.

        Returns:
            This object, ready to be called.

        Raises:
            HookError: If the model lacks a hook point, one does not fire, has an unexpected axis,
                or has no effect; or if the block is already entered.
        """
        if self._inside:
            raise HookError("this block is already entered; make another one with cs.ablate(...).")
        try:
            self._exits.callback(_stop_training(self.model))
            self._hooked.enter(self._exits)
            self._inside = True
            self._run_probes()
            self._stand_ins.compute(self._capture)
            # Only now: stand-ins are needed at every position.
            self._try_shortcuts()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the hooks away and leave the model as it was."""
        self._leave()

    def _leave(self) -> None:
        self._inside = False
        self.forks, self._hooked.takes_shortcuts = self._wants_forks, False
        self._stand_ins.clear()
        self._exits.close()

    def __call__(
        self,
        tokens: Int[Tensor, "prompts positions"],
        masks: Bool[Tensor, "masks units"],
        answer_positions: Int[Tensor, " prompts"] | None = None,
    ) -> Float[Tensor, "masks prompts vocab"]:
        """Run every mask on every prompt.

        Args:
            tokens: Prompts of one length as token ids; shorter ones may be padded on the right if
                ``answer_positions`` says where each really ends.
            masks: Keep-masks; True means kept.
            answer_positions: Position whose logits are wanted, per prompt; the last one when None.

        Returns:
            Logits at the answer position, on the model's device.
        """
        masks = check_masks(masks, len(self.units))
        n_masks, n_prompts = len(masks), len(tokens)
        rows = Rows.of_table(masks, torch.arange(n_prompts).expand(n_masks, -1))
        logits = torch.zeros(0, self.model.cfg.d_vocab)
        for done, part in self.stream(tokens, rows, answer_positions):
            if not len(logits):
                logits = part.new_empty(len(rows), part.shape[1])
            logits[done.to(part.device)] = part
        return rearrange(
            logits, "(masks prompts) vocab -> masks prompts vocab", masks=n_masks, prompts=n_prompts
        )

    def stream(
        self,
        tokens: Int[Tensor, "prompts positions"],
        rows: Rows,
        answer_positions: Int[Tensor, " prompts"] | None = None,
        *,
        prompt_ids: Int[Tensor, " prompts"] | None = None,
        columns: Int[Tensor, " read"] | None = None,
        planned: Pass | None = None,
    ) -> Iterator[tuple[Int[Tensor, " batch"], Float[Tensor, "batch vocab"]]]:
        """Run chosen pairs of mask and prompt, giving each batch's logits as it is done.

        Where masks share layers, rows are sorted so that each batch shares the most.

        Args:
            tokens: Prompts of one length as token ids.
            rows: Masks, which the caller has checked, on these prompts.
            answer_positions: Position whose logits are wanted, per prompt; the last one when None.
            prompt_ids: Index of every prompt among the counterfactuals of a resample ablation;
                0, 1, … when None.
            columns: Token ids whose logits are wanted, if only a few are; all when None.
            planned: The pass that these rows are, if :meth:`passes` named it.

        Returns:
            Yields the rows of a batch, in any order, each once over all batches, and their logits.

        Raises:
            HookError: If called outside the block.
            MaskError: If tokens are not two-dimensional.
        """  # noqa: DOC502 - raised by the checks
        stand_ins = self._stand_ins_for(tokens, prompt_ids)
        if planned is None:
            plan = self._planner.plan(rows, tokens.shape[1], forks=self.forks)
        else:
            plan = self._planner.share(rows) if planned.forked else EachAlone(rows)
        at_once = planned is not None
        return self._run(tokens, rows, plan, stand_ins, answer_positions, columns, at_once=at_once)

    def _run(
        self,
        tokens: Tensor,
        rows: Rows,
        plan: Plan,
        stand_ins: Callable[[Tensor], ByHook],
        answer_positions: Tensor | None = None,
        columns: Tensor | None = None,
        *,
        at_once: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        tokens, masks = self._to_device(tokens), self._to_device(rows.masks)
        n_positions = tokens.shape[1]
        alive = plan.alive(self._planner.batcher.size(n_positions))
        for group in plan.groups():
            for batch in self._planner.batcher(group, n_positions, alive=alive, at_once=at_once):
                with batch:
                    prompts, which, fork = plan.inputs(batch.rows)
                    ends = None if answer_positions is None else answer_positions[prompts]
                    logits = self._hooked.forward(
                        tokens[self._to_device(prompts)],
                        masks[self._to_device(which)],
                        stand_ins(prompts),
                        ends,
                        columns,
                        fork,
                    )
                    done, leaf = plan.rows_of(batch.rows)
                    if not plan.forked:
                        yield done, logits
                        continue
                    # Rows that are the same run once, yet no batch grows beyond its size.
                    for part in zip(done.split(len(logits)), leaf.split(len(logits)), strict=True):
                        yield part[0], logits[part[1].to(logits.device)]

    def stream_gradients(
        self,
        tokens: Int[Tensor, "prompts positions"],
        rows: Rows,
        measure: Callable[[Tensor, Tensor], Tensor],
        *,
        prompt_ids: Int[Tensor, " prompts"] | None = None,
        planned: Pass | None = None,
    ) -> Iterator[
        tuple[Int[Tensor, " batch"], Float[Tensor, " batch"], Float[Tensor, "batch units"]]
    ]:
        """Run chosen pairs of gates and prompt, forward and backward.

        A unit's gate g turns its activation a into s + g (a - s), s being what replaces it when
        ablated: 1 keeps it, 0 ablates it. No gradient of a parameter is computed.

        Args:
            tokens: Prompts of one length as token ids.
            rows: Masks, or gates between 0 and 1, which the caller has checked, on these prompts.
            measure: From a batch's logits, and which rows they are of, to one number per row.
            prompt_ids: Index of every prompt among the counterfactuals of a resample ablation;
                0, 1, … when None.
            planned: The pass that these rows are, if :meth:`passes` named it.

        Yields:
            The rows of a batch, their values, and the derivatives of these by their own gates.

        Raises:
            HookError: If called outside the block.
            MaskError: If tokens are not two-dimensional.
            ModelError: If the weights were made in inference mode.
            TaskError: If ``measure`` cannot be differentiated.
        """  # noqa: DOC502 - raised by the checks
        stand_ins = self._stand_ins_for(tokens, prompt_ids)
        tokens, gates = self._to_device(tokens), self._to_device(rows.masks)
        batches = self._planner.gradient_batcher(
            slice(0, len(rows)), tokens.shape[1], at_once=planned is not None
        )
        for batch in batches:
            with batch:
                prompts = rows.prompt_of_row[batch.rows]
                done = torch.arange(batch.rows.start, batch.rows.stop)
                # The caller's own graph stays out of it.
                with by_gates_only(self.model):
                    own = as_leaf(gates[self._to_device(rows.mask_of_row[batch.rows])])
                    logits = self._hooked.forward(
                        tokens[self._to_device(prompts)], own, stand_ins(prompts)
                    )
                    values = measure(logits, done)
                    gradients = derivatives(values, own)
                yield done, values.detach(), gradients

    def passes(self, rows: Rows, n_positions: int, *, gradients: bool = False) -> Iterator[Pass]:
        """Say which rows :meth:`stream`, or :meth:`stream_gradients`, runs together.

        Args:
            rows: Masks on prompts.
            n_positions: Tokens per row.
            gradients: Whether gradients are wanted.

        Returns:
            The passes; each can be run by itself, anywhere.
        """
        plan = self._planner.plan(rows, n_positions, forks=self.forks and not gradients)
        return self._planner.passes(plan, n_positions, gradients=gradients)

    def batch_size(self, n_positions: int) -> int:
        """Say how many rows run at once.

        Args:
            n_positions: Tokens per row.

        Returns:
            At least 1.
        """
        return self._planner.batcher.size(n_positions)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.model.cfg.device)

    def _stand_ins_for(
        self, tokens: Tensor, prompt_ids: Tensor | None
    ) -> Callable[[Tensor], ByHook]:
        """Return what gives the stand-ins of some prompts, after checking that there are any."""  # noqa: DOC501
        if not self._inside:
            raise HookError("call this inside the block: with cs.ablate(...) as ablated: ...")
        if tokens.ndim != 2:
            raise MaskError(f"tokens must have shape (prompts, positions); got {tokens.shape}.")
        ids = torch.arange(len(tokens)) if prompt_ids is None else prompt_ids
        self._stand_ins.check(ids, tokens.shape[1])
        return lambda prompts: self._stand_ins.of(ids[prompts], tokens.shape[1])

    def _capture(self, tokens: Tensor) -> dict[str, Tensor]:
        tokens = self._to_device(tokens)
        kept = torch.ones(len(tokens), len(self.units), dtype=torch.bool, device=tokens.device)
        parts = []
        for batch in self._planner.batcher(slice(0, len(tokens)), tokens.shape[1]):
            with batch:
                parts.append(self._hooked.capture(tokens[batch.rows], kept[batch.rows]))
        return {hook: torch.cat([part[hook] for part in parts]) for hook in parts[0]}

    # ---- what is tried before anything is believed ----

    def _run_canaries(
        self, canaries: Rows, *, share: bool = False, columns: Tensor | None = None
    ) -> probes.Batches:
        tokens = probes.short_prompt(self.model)
        plan = self._planner.share(canaries) if share else EachAlone(canaries)
        return self._run(tokens, canaries, plan, lambda prompts: ones, columns=columns)

    def _run_probes(self) -> None:
        sites, tokens = self._hooked.sites, probes.short_prompt(self.model)
        canaries = probes.canaries(sites, len(self.units))

        def alone(row: int) -> Tensor:
            return self._hooked.forward(tokens, self._to_device(canaries.masks[row][None]), ones)

        unhooked = answer_logits(self.model, tokens)
        if self._probe:
            probes.check_intact(alone(-1), unhooked)
        logits = probes.in_order(self._run_canaries(canaries))
        if self._probe:
            probes.check_canaries(logits[:-1], unhooked, alone, sites)
        if self._wants_forks:
            self._try_forks(canaries, logits)

    def _try_forks(self, canaries: Rows, logits: Tensor) -> None:
        reasons = []
        for way in WAYS_TO_FORK:
            with ExitStack() as attempt:
                attempt.enter_context(self._hooked.forking(way))
                reason = probes.why_different(
                    logits, lambda: self._run_canaries(canaries, share=True)
                )
                if reason is None:
                    self.forks = True
                    self._exits.push(attempt.pop_all())
                    return
            reasons.append(reason)
        self.forks = False
        warnings.warn(
            "masks cannot share layers on this model, so each runs through all of them, which is "
            f"slower and as exact ({reasons[0]}). To not try, pass forks=False to cs.ablate.",
            ForkWarning,
            stacklevel=4,
        )

    def _try_shortcuts(self) -> None:
        if self._hooked.is_watched:
            return
        canaries = probes.canaries(self._hooked.sites, len(self.units))
        last = canaries.take(torch.arange(len(canaries))[-3:])
        logits = probes.in_order(self._run_canaries(last))[:, :3]
        self._hooked.takes_shortcuts = True
        columns = torch.arange(logits.shape[1])
        reason = probes.why_different(logits, lambda: self._run_canaries(last, columns=columns))
        self._hooked.takes_shortcuts = reason is None


def ablate(
    model: Any,
    units: UnitSet,
    ablation: str | Replacement = "zero",
    *,
    batch_size: int | None = None,
    probe: bool = True,
    forks: bool = True,
    room: Room | None = None,
) -> Ablated:
    """Make a block in which sets of units can be ablated, many sets in one forward pass.

    Args:
        model: A TransformerBridge.
        units: What can be ablated; unit i is column i of every mask.
        ablation: ``zero``, or ``cs.mean(tokens)`` or ``cs.resample(tokens)``.
        batch_size: Rows per forward pass; chosen from free memory when None.
        probe: Check at entry that every hook fires, keeps and changes what it should.
        forks: Let masks that agree on the first layers share them, where the model can do that and
            it saves time. Hooks of your own then see one row become many; pass False if they need
            all rows in all layers.
        room: Memory that batches are chosen for; what is free on the model's device when None.

    Returns:
        A context manager; inside, ``ablated(tokens, masks)`` gives the logits at the answer
        position, shape ``(masks, prompts, vocab)``.

    Example:
        >>> import circuitspex as cs, torch
        >>> model = cs.models.load("toy-induction")
        >>> tokens = torch.tensor([[0, 5, 9, 2, 5, 9, 2, 5]])
        >>> units = cs.heads(model)
        >>> with cs.ablate(model, units) as ablated:
        ...     logits = ablated(tokens, cs.masks.ablate_only([[], [3, 4]], len(units)))
        >>> logits.shape
        torch.Size([2, 1, 33])
    """
    planner = Planner(model, units, batch_size, room)
    return Ablated(model, units, replacements.get(ablation), planner, probe=probe, forks=forks)


def _stop_training(model: Any) -> Callable[[], None]:
    # The wrapped model is no submodule of the bridge, yet bridge.eval() reaches all of it.
    modules = {*model.modules(), *model.original_model.modules()}
    flags = [(module, module.training) for module in modules]
    # Asking first: eval() visits what is shared once for every way to it, dozens of times a layer.
    if any(training for _, training in flags):
        model.eval()

    def restore() -> None:
        for module, training in flags:
            module.training = training

    return restore
