"""The context manager that ablates; the only code that touches hooks.

Phases:

1. *Plan* (:mod:`circuitspex.units`): units become sites, one per hook point, each knowing which
   mask column rules which entry of its axis.
2. *Enter*: hooks are added once, stand-ins for mean and resample ablation are computed, and the
   model is probed: every hook fires with the expected axis; the all-kept mask gives the unhooked
   logits; a canary at every site changes them; a forked pass equals the flat one.
3. *Run*: every row of a batch has its own mask, or its own gates between 0 and 1 where a gradient
   is wanted. Where masks share layers (``forking``), one row goes in, and a hook at
   the input of a block returns more rows than it was given. What nobody reads is left out
   (``shortcuts``). Outside our own forward passes the hooks do nothing, so the
   model stays usable inside the block, and blocks nest.
4. *Leave*: on every way out our hooks, and only ours, are gone and every module's training flag is
   as it was.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex._shared import check_gates, check_masks
from circuitspex.ablation import forking, probes, shortcuts
from circuitspex.ablation.batching import Batcher, Room
from circuitspex.ablation.forking import Forest, Fork
from circuitspex.ablation.shortcuts import Hook, mark
from circuitspex.errors import ForkWarning, HookError, MaskError, ModelError, TaskError
from circuitspex.units import (
    ByHook,
    Replacement,
    Site,
    StandIns,
    UnitSet,
    check_units,
    ones,
    plan_sites,
    replacements,
    zeros,
)


@dataclass(frozen=True)
class _Batch:
    """What the hooks need while one batch runs."""

    gates: Bool[Tensor, "rows columns"] | Float[Tensor, "rows columns"]
    """Keep-masks, or gates, with one more, always kept, column at the end."""
    stand_ins: ByHook
    fork: Fork | None
    """Where rows become more; None where every row runs through all layers."""
    position: int | None
    """The one position that is read; None where there are several, or all is computed."""
    columns: Int[Tensor, " read"] | None
    """The tokens whose logits are read; None for all."""


@dataclass(frozen=True)
class _Job:
    """Rows to run, each a mask on a prompt."""

    tokens: Int[Tensor, "prompts positions"]
    masks: Bool[Tensor, "masks units"]
    prompt_of_row: Int[Tensor, " rows"]
    mask_of_row: Int[Tensor, " rows"]
    answer_positions: Int[Tensor, " prompts"] | None
    columns: Int[Tensor, " read"] | None
    stand_ins: Callable[[Int[Tensor, " rows"]], ByHook]
    """From the prompt of every row of a batch to what its hooks need."""
    at_once: bool = False
    """Whether all rows are one pass."""

    def ends(self, prompts: Int[Tensor, " rows"]) -> Int[Tensor, " rows"] | None:
        return None if self.answer_positions is None else self.answer_positions[prompts]


_WAYS_TO_FORK: tuple[Callable[[int], str], ...] = (
    lambda layer: f"blocks.{layer}.hook_resid_pre",
    # Where a block notes at its very beginning how many rows there are, as OPT's does.
    lambda layer: f"blocks.{layer - 1}.hook_resid_post" if layer else "hook_pos_embed",
)
"""Hook points at which rows can become more before a layer; the first that works is taken."""
_LEAST_SAVING = 0.02
"""Rows are sorted and forked where that saves at least this share of the work."""


class Ablated:
    """A model whose units can be ablated row by row; made by :func:`ablate`."""

    def __init__(
        self,
        model: Any,
        units: UnitSet,
        replacement: Replacement,
        batcher: Batcher,
        *,
        probe: bool,
        forks: bool,
    ) -> None:
        check_units(units, model)
        self.model = model
        self.units = units
        self.replacement = replacement
        self.sites = plan_sites(units, model)
        self.forks = forks
        """Whether masks share layers; inside the block, False where the model cannot do that."""
        self._batcher = batcher
        self._gradient_batcher = batcher.for_gradients()
        self._layers = torch.tensor([unit.layer for unit in units])
        self._probe = probe
        self._wants_forks = forks
        self._exits = ExitStack()
        self._running: _Batch | None = None
        self._captured: dict[str, Tensor] | None = None
        self._fired: set[str] = set()
        self._inside = False
        self._stand_ins = StandIns(replacement)
        self._takes_shortcuts = False
        self._late_points = shortcuts.late_points(model)

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
            self._add_hooks()
            self._inside = True
            self._run_probes()
            self._stand_ins.compute(self._capture)
            # Only now: stand-ins are needed at every position.
            self._probe_shortcuts()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the hooks away and leave the model as it was."""
        self._leave()

    def _add_hooks(self) -> None:
        hooks = self._hooks()
        try:
            self._exits.enter_context(self.model.hooks(fwd_hooks=hooks))
        except (ValueError, NotImplementedError) as error:
            raise HookError(
                f"the model has these hooks, but one is switched off or cannot fire: {error}"
            ) from error

    def _leave(self) -> None:
        self._inside = False
        self.forks, self._takes_shortcuts = self._wants_forks, False
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
        prompts = repeat(torch.arange(n_prompts), "prompts -> (masks prompts)", masks=n_masks)
        which = repeat(torch.arange(n_masks), "masks -> (masks prompts)", prompts=n_prompts)
        logits = torch.zeros(0, self.model.cfg.d_vocab)
        for rows, part in self.stream(tokens, masks, prompts, which, answer_positions):
            if not len(logits):
                logits = part.new_empty(len(which), part.shape[1])
            logits[rows.to(part.device)] = part
        return rearrange(
            logits, "(masks prompts) vocab -> masks prompts vocab", masks=n_masks, prompts=n_prompts
        )

    def stream(
        self,
        tokens: Int[Tensor, "prompts positions"],
        masks: Bool[Tensor, "masks units"],
        prompt_of_row: Int[Tensor, " rows"],
        mask_of_row: Int[Tensor, " rows"],
        answer_positions: Int[Tensor, " prompts"] | None = None,
        prompt_ids: Int[Tensor, " prompts"] | None = None,
        columns: Int[Tensor, " read"] | None = None,
        *,
        forked: bool | None = None,
    ) -> Iterator[tuple[Int[Tensor, " batch"], Float[Tensor, "batch vocab"]]]:
        """Run chosen pairs of mask and prompt, yielding each batch's logits as it is done.

        Where masks share layers, rows are sorted so that each batch shares the most.

        Args:
            tokens: Prompts of one length as token ids.
            masks: Keep-masks.
            prompt_of_row: Index into ``tokens`` of every row.
            mask_of_row: Index into ``masks`` of every row.
            answer_positions: Position whose logits are wanted, per prompt; the last one when None.
            prompt_ids: Index of every prompt among the counterfactuals of a resample ablation;
                0, 1, … when None.
            columns: Token ids whose logits are wanted, if only a few are; all when None.
            forked: For rows that :meth:`passes` named: run them as the one pass they are.

        Yields:
            The rows of a batch, in any order, each once over all batches, and their logits.

        Raises:
            HookError: If called outside the block.
            MaskError: If tokens are not two-dimensional.
        """  # noqa: DOC502 - raised by the checks
        device = torch.device(self.model.cfg.device)
        masks = check_masks(masks, len(self.units)).to(device)
        ids = torch.arange(len(tokens)) if prompt_ids is None else prompt_ids
        n_positions = self._check_tokens(tokens, ids)
        tokens = tokens.to(device)

        def stand_ins(prompts: Tensor) -> ByHook:
            return self._stand_ins.of(ids[prompts], n_positions)

        job = _Job(tokens, masks, prompt_of_row, mask_of_row, answer_positions, columns, stand_ins)
        if forked is None:
            forest = self._worthwhile_forest(masks, prompt_of_row, mask_of_row, n_positions)
        else:
            job = replace(job, at_once=True)
            forest = self._plan(masks, prompt_of_row, mask_of_row) if forked else None
        yield from self._run_flat(job) if forest is None else self._run_forked(job, forest)

    def passes(
        self,
        masks: Bool[Tensor, "masks units"],
        prompt_of_row: Int[Tensor, " rows"],
        mask_of_row: Int[Tensor, " rows"],
        n_positions: int,
    ) -> Iterator[tuple[Int[Tensor, " pass"], bool]]:
        """Say which rows :meth:`stream` runs together; each pass can be run by itself, anywhere.

        Args:
            masks: Keep-masks.
            prompt_of_row: Prompt of every row.
            mask_of_row: Index into ``masks`` of every row.
            n_positions: Tokens per row.

        Yields:
            The rows of a pass, and whether masks share layers in it.
        """
        forest = self._worthwhile_forest(masks, prompt_of_row, mask_of_row, n_positions)
        if forest is None:
            for rows in self._slices(self._batcher, len(prompt_of_row), n_positions):
                yield torch.arange(rows.start, rows.stop), False
            return
        alive = forest.alive(self._batcher.size(n_positions))
        for tree in forest.trees():
            for leaves in self._slices(self._batcher, tree, n_positions, alive):
                yield forest.rows_of(leaves)[0], True

    def gradient_passes(self, n_rows: int, n_positions: int) -> Iterator[slice]:
        """Say which rows :meth:`stream_gradients` runs together.

        Args:
            n_rows: How many rows there are.
            n_positions: Tokens per row.

        Returns:
            Slices of rows.
        """
        return self._slices(self._gradient_batcher, n_rows, n_positions)

    @staticmethod
    def _slices(
        batcher: Batcher, rows: int | slice, n_positions: int, alive: float = 1.0
    ) -> Iterator[slice]:
        return (part for part, _ in batcher(rows, n_positions, lambda part: None, alive=alive))

    def _worthwhile_forest(
        self, masks: Tensor, prompt_of_row: Tensor, mask_of_row: Tensor, n_positions: int
    ) -> Forest | None:
        if not self.forks:
            return None
        forest = self._plan(masks, prompt_of_row, mask_of_row)
        flat = self._batcher.size(n_positions)
        saving = forest.saving(self._batcher.size(n_positions, alive=forest.alive(flat)), flat)
        return forest if saving >= _LEAST_SAVING else None

    def _plan(self, masks: Tensor, prompt_of_row: Tensor, mask_of_row: Tensor) -> Forest:
        n_layers = self.model.cfg.n_layers
        return forking.plan(masks, prompt_of_row, mask_of_row, self._layers, n_layers)

    def _run_flat(self, job: _Job) -> Iterator[tuple[Tensor, Tensor]]:
        device = job.tokens.device

        def run(rows: slice) -> Tensor:
            prompts = job.prompt_of_row[rows]
            kept = job.masks[job.mask_of_row[rows].to(device)]
            tokens, ends = job.tokens[prompts.to(device)], job.ends(prompts)
            return self._forward(tokens, kept, job.stand_ins(prompts), ends, job.columns)

        n_rows, n_positions = len(job.prompt_of_row), job.tokens.shape[1]
        for rows, logits in self._batcher(n_rows, n_positions, run, at_once=job.at_once):
            yield torch.arange(rows.start, rows.stop), logits

    def _run_forked(self, job: _Job, forest: Forest) -> Iterator[tuple[Tensor, Tensor]]:
        device, n_positions = job.tokens.device, job.tokens.shape[1]
        alive = forest.alive(self._batcher.size(n_positions))

        def run(leaves: slice) -> Tensor:
            # Attention masks and the like have as many rows as go in: those of one row are
            # broadcast, those of several would not fit what they become.
            prompt = forest.prompts[leaves][:1]
            kept = job.masks[forest.masks[leaves].to(device)]
            fork = forest.fork(leaves)
            tokens, ends = job.tokens[prompt.to(device)], job.ends(prompt)
            return self._forward(tokens, kept, job.stand_ins(prompt), ends, job.columns, fork)

        for tree in forest.trees():
            batches = self._batcher(tree, n_positions, run, alive=alive, at_once=job.at_once)
            for leaves, logits in batches:
                rows, leaf = forest.rows_of(leaves)
                # Rows that are the same run once, yet no batch grows beyond its size.
                for part in zip(rows.split(len(logits)), leaf.split(len(logits)), strict=True):
                    yield part[0], logits[part[1].to(logits.device)]

    def stream_gradients(
        self,
        tokens: Int[Tensor, "prompts positions"],
        gates: Bool[Tensor, "masks units"] | Float[Tensor, "masks units"],
        prompt_of_row: Int[Tensor, " rows"],
        mask_of_row: Int[Tensor, " rows"],
        measure: Callable[[Tensor, slice], Tensor],
        prompt_ids: Int[Tensor, " prompts"] | None = None,
        *,
        at_once: bool = False,
    ) -> Iterator[tuple[slice, tuple[Float[Tensor, " batch"], Float[Tensor, "batch units"]]]]:
        """Run chosen pairs of gates and prompt, forward and backward.

        A unit's gate g turns its activation a into s + g (a - s), s being what replaces it when
        ablated: 1 keeps it, 0 ablates it. No gradient of a parameter is computed.

        Args:
            tokens: Prompts of one length as token ids.
            gates: Keep-masks, or gates between 0 and 1.
            prompt_of_row: Index into ``tokens`` of every row.
            mask_of_row: Index into ``gates`` of every row.
            measure: From a batch's logits, and which rows they are of, to one number per row.
            prompt_ids: Index of every prompt among the counterfactuals of a resample ablation;
                0, 1, … when None.
            at_once: For rows that :meth:`gradient_passes` named: run them as the one pass they are.

        Yields:
            The rows of a batch, their values, and the derivatives of these by their own gates.

        Raises:
            HookError: If called outside the block.
            MaskError: If tokens are not two-dimensional, or gates do not fit.
            ModelError: If the weights were made in inference mode.
            TaskError: If ``measure`` cannot be differentiated.
        """  # noqa: DOC502 - raised by the checks
        device = torch.device(self.model.cfg.device)
        gates = check_gates(gates, len(self.units)).to(device)
        ids = torch.arange(len(tokens)) if prompt_ids is None else prompt_ids
        n_positions = self._check_tokens(tokens, ids)
        tokens = tokens.to(device)

        def run(rows: slice) -> tuple[Tensor, Tensor]:
            prompts = prompt_of_row[rows]
            stand_ins = self._stand_ins.of(ids[prompts], n_positions)
            # Whatever mode the caller is in; the caller's own graph stays out of it.
            with torch.inference_mode(False), torch.enable_grad(), _frozen(self.model):
                own = gates[mask_of_row[rows].to(device)]
                leaf = own.detach().to(torch.promote_types(own.dtype, torch.float32), copy=True)
                leaf.requires_grad_()
                logits = self._forward(tokens[prompts.to(device)], leaf, stand_ins)
                values = measure(logits, rows)
                gradient = _derivatives(values, leaf)
            return values.detach(), gradient

        n_rows = len(prompt_of_row)
        yield from self._gradient_batcher(n_rows, n_positions, run, at_once=at_once)

    def batch_size(self, n_positions: int) -> int:
        """Say how many rows run at once.

        Args:
            n_positions: Tokens per row.

        Returns:
            At least 1.
        """
        return self._batcher.size(n_positions)

    def _check_tokens(self, tokens: Tensor, prompt_ids: Tensor) -> int:
        if not self._inside:
            raise HookError("call this inside the block: with cs.ablate(...) as ablated: ...")
        if tokens.ndim != 2:
            raise MaskError(f"tokens must have shape (prompts, positions); got {tokens.shape}.")
        self._stand_ins.check(prompt_ids, tokens.shape[1])
        return tokens.shape[1]

    def _forward(
        self,
        tokens: Tensor,
        gates: Tensor,
        stand_ins: ByHook,
        answer_positions: Tensor | None = None,
        columns: Tensor | None = None,
        fork: Fork | None = None,
    ) -> Tensor:
        gates = torch.cat([gates, torch.ones_like(gates[:, :1])], dim=1)
        whole = not self._takes_shortcuts or shortcuts.somebody_looks(self._late_points)
        position = None if whole else _only_position(tokens, answer_positions)
        self._running = _Batch(gates, stand_ins, fork, position, None if whole else columns)
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

    def _hooks(self) -> list[tuple[str, Hook]]:
        points = self.model.hook_dict
        absent = [site.hook for site in self.sites if site.hook not in points]
        if absent:
            raise HookError(
                f"the model has no hook {absent[0]} ({len(absent)} of {len(self.sites)} are "
                "missing). Choose units that this architecture has, such as cs.heads(model)."
            )
        # By canonical name: under an alias, compatibility mode would call each hook twice.
        hooks = [(points[s.hook].name or s.hook, self._hook(s)) for s in self.sites]
        return hooks + shortcuts.make_hooks(self.model, lambda: self._running)

    def _forking_hooks(self, way: Callable[[int], str]) -> list[tuple[str, Hook]]:
        points = self.model.hook_dict
        names = [(layer, way(layer)) for layer in self._layers.unique().tolist()]
        return [(points[n].name or n, self._grow(layer)) for layer, n in names if n in points]

    def _grow(self, layer: int) -> Hook:
        @mark
        def grow(activation: Tensor, *, hook: Any) -> Tensor | None:
            batch = self._running
            if batch is None or batch.fork is None or layer not in batch.fork.grow:
                return None
            return activation[batch.fork.grow[layer].to(activation.device)]

        return grow

    def _hook(self, site: Site) -> Hook:
        columns: dict[torch.device, Tensor] = {}

        @mark
        def ablate_site(activation: Tensor, *, hook: Any) -> Tensor | None:
            batch = self._running
            if batch is None:
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
            gates = batch.gates.to(device)[:, columns[device]]
            if batch.fork is not None:
                gates = gates[batch.fork.alive[site.layer].to(device)]
            site.check_axis(activation, len(gates), self.model.cfg.d_model)
            gate = site.broadcast(gates)
            stand_in = batch.stand_ins(site.hook).to(activation)
            if batch.position is not None and stand_in.ndim > 1 and activation.shape[1] == 1:
                stand_in = stand_in[:, batch.position : batch.position + 1]
            if gate.dtype == torch.bool:
                return torch.where(gate, activation, stand_in)
            return torch.lerp(stand_in.expand_as(activation), activation, gate.to(activation))

        return ablate_site

    def _capture(self, tokens: Tensor) -> dict[str, Tensor]:
        tokens = tokens.to(self.model.cfg.device)
        kept = torch.ones(len(tokens), len(self.units), dtype=torch.bool, device=tokens.device)

        def run(rows: slice) -> dict[str, Tensor]:
            self._captured = {}
            try:
                self._forward(tokens[rows], kept[rows], zeros)
                return self._captured
            finally:
                self._captured = None

        parts = [part for _, part in self._batcher(len(tokens), tokens.shape[1], run)]
        return {site.hook: torch.cat([part[site.hook] for part in parts]) for site in self.sites}

    def _run_probes(self) -> None:
        job = self._probe_job()

        def run(row: int) -> Tensor:
            return self._forward(job.tokens, job.masks[row][None], ones)

        unhooked = answer_logits(self.model, job.tokens)
        if self._probe:
            probes.check_intact(run(-1), unhooked)
        flat = probes.in_order(self._run_flat(job))
        if self._probe:
            probes.check_canaries(flat[:-1], unhooked, run, self.sites)
        if self._wants_forks:
            self._probe_forks(job, flat)

    def _probe_job(self) -> _Job:
        masks = probes.canaries(self.sites, len(self.units)).to(self.model.cfg.device)
        rows = torch.arange(len(masks))
        tokens = probes.short_prompt(self.model)
        return _Job(tokens, masks, torch.zeros_like(rows), rows, None, None, lambda prompts: ones)

    def _probe_shortcuts(self) -> None:
        if shortcuts.somebody_looks(self._late_points):
            return
        job = self._probe_job()
        job = replace(job, prompt_of_row=job.prompt_of_row[-3:], mask_of_row=job.mask_of_row[-3:])
        flat = probes.in_order(self._run_flat(job))
        self._takes_shortcuts = True
        job = replace(job, columns=torch.arange(flat.shape[1])[:3])
        reason = probes.why_different(flat[:, :3], lambda: self._run_flat(job))
        self._takes_shortcuts = reason is None

    def _probe_forks(self, job: _Job, flat: Tensor) -> None:
        reasons = []
        forest = self._plan(job.masks, job.prompt_of_row, job.mask_of_row)
        for way in _WAYS_TO_FORK:
            with ExitStack() as attempt:
                attempt.enter_context(self.model.hooks(fwd_hooks=self._forking_hooks(way)))
                reason = probes.why_different(flat, lambda: self._run_forked(job, forest))
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
    batcher = Batcher(model, batch_size, room=room)
    return Ablated(model, units, replacements.get(ablation), batcher, probe=probe, forks=forks)


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


def _derivatives(values: Tensor, gates: Tensor) -> Tensor:
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


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    # Saves the activations that only gradients of parameters would need.
    parameters = {*model.parameters(), *model.original_model.parameters()}
    if any(parameter.is_inference() for parameter in parameters):
        raise ModelError(
            "no gradient can be taken through weights made under torch.inference_mode(). Load "
            "the model outside of it; calling it inside is fine."
        )
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
