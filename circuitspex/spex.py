"""The block people work in: a model, a task and units, from masks to a verified circuit."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex import decoders
from circuitspex._shared import Spec, current_versions
from circuitspex.ablation import Ablated, ablate
from circuitspex.algebra import Interactions, all_kept
from circuitspex.circuits import Circuit, CircuitReport, best_circuit, verify_circuit
from circuitspex.decoders.measuring import Decoder
from circuitspex.errors import HookError, ResultError, TaskWarning
from circuitspex.evaluation import (
    Evaluation,
    LocalRunner,
    Progress,
    Runner,
    Workers,
    describe_evaluation,
    noise_floor,
)
from circuitspex.evaluation.store import MemoryStore, ParquetStore, Store
from circuitspex.findings import Findings
from circuitspex.tasks import Metric, Task, metrics
from circuitspex.tracking import NullTracker, Tracker
from circuitspex.units import Replacement, UnitSet, replacements
from circuitspex.verification import Verification, verify_interactions


class CircuitSpex:
    """A model wrapped for one task: inside the block it is a set function that can be decoded.

    Example:
        >>> import circuitspex as cs
        >>> model = cs.models.load("toy-induction")
        >>> task = cs.tasks.induction(model, n_prompts=4, seed=0)
        >>> with cs.CircuitSpex(model, task, units=cs.heads(model)) as spex:
        ...     interactions = spex.discover(decoder="exact", budget=1024, keep_rate=0.5)
        ...     circuit = spex.circuit(interactions, n_units=4)
        ...     report = spex.verify(circuit)
        >>> "L0H3" in circuit.units
        True
    """

    def __init__(
        self,
        model: Any,
        task: Task,
        units: UnitSet,
        ablation: str | Replacement = "zero",
        metric: str | Metric = "logit_difference",
        store: Store | str | Path | None = None,
        tracker: Tracker | None = None,
        *,
        batch_size: int | None = None,
        progress: Progress | None = None,
        probe: bool = True,
        settings: Mapping[str, Any] | None = None,
        workers: Workers | None = None,
    ) -> None:
        """Name what should be studied; nothing runs before the block is entered.

        Args:
            model: A TransformerBridge.
            task: Prompts with answers.
            units: What can be ablated.
            ablation: ``zero``; ``mean``, over the task's counterfactuals if it has some, else over
                its prompts; ``resample``, from its counterfactuals; or a replacement.
            metric: Name of a metric, or a function of ``(logits, targets)``.
            store: A folder that evaluations are kept in, those on other prompts in folders of
                their own inside; or a store; memory when None.
            tracker: Where runs are logged, such as ``cs.wandb_tracker(...)``; nowhere when None.
            batch_size: Rows per forward pass; chosen from free memory when None.
            progress: Called after every batch with rows evaluated and rows replayed.
            probe: Check at entry that hooks fire and act.
            settings: Recorded in the spec of every result, such as a command line's options.
            workers: Processes that run the rows, such as ``cs.cluster.ray_workers(...)``; this one
                when None. The model given here is then only probed; it may be on a CPU.
        """
        self.model = model
        self.task = task
        self.units = units
        self.n_units = len(units)
        self.n_prompts = len(task)
        self._ablation = ablation
        self._metric = metrics.get(metric)
        self._store = store
        self._tracker = tracker or NullTracker()
        self._batch_size = batch_size
        self._progress = progress
        self._probe = probe
        self._settings = dict(settings or {})
        self._workers = workers
        self._exits = ExitStack()
        self._evaluation: Evaluation | None = None
        self._spec = Spec({})
        self._findings: Findings | None = None
        self._is_tracked = True
        self._started = 0.0

    def __enter__(self) -> "CircuitSpex":
        """Hook the model, open the store, and check that the intact model solves the task.

        Returns:
            This object, now a set function.
        """
        self._findings, self._is_tracked, self._started = None, True, perf_counter()
        with ExitStack() as exits:
            if self._workers is not None:
                exits.enter_context(self._workers)
            ablated = exits.enter_context(self._ablate(self.task, probe=self._probe))
            described = describe_evaluation(ablated, self.task, self._metric)
            self._spec = Spec(described, versions=current_versions())
            store = self._open_store(exits)
            runner = exits.enter_context(self._runner(ablated, self.task))
            self._evaluation = Evaluation(
                ablated, self.task, self._metric, store, self._progress, runner
            )
            self._warn_if_unsolved()
            exits.enter_context(self._tracker)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish tracking, close the store, leave the model as it was."""
        with self._exits:
            if kind is None:
                self.track()
        self._evaluation = None

    @property
    def evaluation(self) -> Evaluation:
        """The set function of the task, with its counters.

        Raises:
            HookError: Outside the block.
        """
        if self._evaluation is None:
            raise HookError("call this inside the block: with cs.CircuitSpex(...) as spex: ...")
        return self._evaluation

    @property
    def spec(self) -> Spec:
        """What the latest result is a result of."""
        return self._spec

    def __call__(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, " masks"]:
        """Evaluate every mask on every prompt.

        Args:
            masks: Keep-masks; True means kept.

        Returns:
            The mean over prompts of the metric.
        """
        return self.evaluation.per_prompt(masks).mean(dim=1)

    def per_prompt(self, masks: Bool[Tensor, "masks units"]) -> Float[Tensor, "masks prompts"]:
        """Evaluate every mask on every prompt, and keep prompts apart.

        Args:
            masks: Keep-masks; True means kept.

        Returns:
            The metric, mask by mask and prompt by prompt.
        """
        return self.evaluation.per_prompt(masks)

    def sample(
        self,
        masks: Bool[Tensor, "masks units"],
        prompts_per_mask: int,
        rng: np.random.Generator,
        groups: Int[Tensor, " masks"] | None = None,
    ) -> tuple[Float[Tensor, "masks drawn"], Int[Tensor, "masks drawn"]]:
        """Evaluate each mask on a few prompts, balanced over prompts.

        Args:
            masks: Keep-masks; True means kept.
            prompts_per_mask: How many prompts each mask is evaluated on.
            rng: Source of the draw.
            groups: Masks with the same number are evaluated on the same prompts.

        Returns:
            Values and the index of the prompt each is of.
        """
        return self.evaluation.sample(masks, prompts_per_mask, rng, groups)

    def value_and_gradient(
        self, masks: Bool[Tensor, "masks units"] | Float[Tensor, "masks units"]
    ) -> tuple[Float[Tensor, " masks"], Float[Tensor, "masks units"]]:
        """Evaluate every mask on every prompt, with the derivative by every unit's gate.

        Args:
            masks: Keep-masks; or gates between 0, ablated, and 1, kept.

        Returns:
            The mean over prompts of the metric, and its gradient.
        """
        return self.evaluation.value_and_gradient(masks)

    def sample_gradients(
        self,
        masks: Bool[Tensor, "masks units"] | Float[Tensor, "masks units"],
        prompts_per_mask: int,
        rng: np.random.Generator,
    ) -> tuple[
        Float[Tensor, "masks drawn"], Float[Tensor, "masks drawn units"], Int[Tensor, "masks drawn"]
    ]:
        """Evaluate each mask with its gradient on a few prompts, balanced over prompts.

        Args:
            masks: Keep-masks, or gates between 0 and 1.
            prompts_per_mask: How many prompts each mask is evaluated on.
            rng: Source of the draw.

        Returns:
            Values, gradients, and the index of the prompt each is of.
        """
        return self.evaluation.sample_gradients(masks, prompts_per_mask, rng)

    def noise_floor(self) -> float:
        """Measure how far the intact model's value moves with the rows it happens to run beside.

        Results of models in half precision carry it in their diagnostics, and the page shows it. It
        is no part of any budget, and not how far half precision is from single.

        Returns:
            The root mean square departure, in units of the metric.
        """
        return noise_floor(LocalRunner(self.evaluation.ablated, self.task, self._metric))

    def discover(
        self,
        decoder: str | Decoder = "auto",
        *,
        budget: int,
        keep_rate: float | None = None,
        max_order: int | None = None,
        prompts_per_mask: int | Literal["all", "auto"] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Interactions:
        """Find the interactions among the units.

        Args:
            decoder: Name of a decoder; ``auto``, which is ``exact`` where all masks fit the budget,
                else ``hybrid``, or what has the options that are given; or a decoder, which brings
                all of its options along.
            budget: Evaluations to spend at most: masks × prompts each.
            keep_rate: Share of units that a mask keeps; the decoder's own for models when None: ½
                for ``exact`` and ``spex``, else 0.95.
            max_order: Largest set of units that is looked for; the decoder's own default when None.
            prompts_per_mask: ``all``, how many prompts each mask is evaluated on, or ``auto``, the
                default: all for ``exact`` and ``moebius``, else as few as there are masks for.
            seed: Seed of every draw.
            **options: Further options of the decoder; ``cs.decoders.options_of`` lists them.

        Returns:
            The interactions, in the Fourier basis of the keep rate.

        Raises:
            DecoderError: If the decoder does not have or cannot use an option, or is a decoder that
                was made already and options are given beside it.
        """  # noqa: DOC502 - raised where it is chosen
        choice = decoders.choose(
            decoder,
            budget=budget,
            n_units=self.n_units,
            n_prompts=self.n_prompts,
            keep_rate=keep_rate,
            max_order=max_order,
            prompts_per_mask=prompts_per_mask,
            **options,
        )
        decoder = choice.decoder
        self._spec = Spec(
            self.spec.evaluation,
            {
                "decoder": getattr(decoder, "name", type(decoder).__name__),
                "options": asdict(decoder),
                "budget": budget,
                "seed": seed,
            },
            self.spec.versions,
            asked={**self._settings, "decoder_reason": choice.reason},
        )
        self._tracker.start(self._spec)
        started, before = perf_counter(), self.evaluation.n_evaluated
        interactions = decoder.decode(self, budget=budget, seed=seed)
        seconds, evaluated = perf_counter() - started, self.evaluation.n_evaluated - before
        if self.model.cfg.dtype in (torch.bfloat16, torch.float16):
            noted = {**interactions.diagnostics, "noise_floor": self.noise_floor()}
            interactions = replace(interactions, diagnostics=noted)
        self._tracker.log({"perf/discover_s": seconds, "perf/evaluated": float(evaluated)})
        self._findings = Findings(self._spec, interactions)
        self._note()
        return interactions

    def verify_interactions(
        self,
        interactions: Interactions,
        *,
        top: int = 20,
        max_order: int = 4,
        min_order: int = 2,
        around: Circuit | Literal["intact", "contexts"] = "intact",
        n_contexts: int = 16,
        task: Task | None = None,
        budget: int | None = None,
        seed: int = 0,
    ) -> Verification:
        """Measure the largest interactions exactly, and say which hold.

        See :mod:`circuitspex.verification` for when an interaction is verified, refuted, undecided
        or not checked, and its :func:`~circuitspex.verification.verify_interactions` for what is
        measured around a circuit and in random contexts.

        Args:
            interactions: What a decoder found.
            top: How many to measure; the rest is listed as not checked.
            max_order: Most units in a measured interaction; k units take ``2**k`` masks.
            min_order: Fewest units in a listed interaction.
            around: ``intact``, the intact model; a circuit; or ``contexts``, random masks at the
                keep rate of the interactions.
            n_contexts: How many random masks.
            task: Prompts to measure on, such as ``task.held_out``; those of the discovery when
                None, where the store answers what is known already.
            budget: Evaluations to spend at most, masks × prompts each.
            seed: Seed of the random masks.

        Returns:
            Estimates, measured effects with errors over prompts, and verdicts.
        """
        with self._evaluate_on(task) as evaluation:
            verification = verify_interactions(
                evaluation,
                interactions,
                top=top,
                max_order=max_order,
                min_order=min_order,
                around=around,
                n_contexts=n_contexts,
                budget=budget,
                seed=seed,
                held_out=task is not None,
                label=(task or self.task).name,
            )
        found = self._findings
        same_units = found is not None and found.interactions.units == verification.units
        if same_units and verification.around == "intact":
            self._note(verification=verification)
        return verification

    def circuit(self, interactions: Interactions, n_units: int) -> Circuit:
        """Choose the set of units that the interactions value most.

        Args:
            interactions: What a decoder found.
            n_units: Size of the circuit.

        Returns:
            The circuit; a prediction until it is verified.
        """
        circuit = best_circuit(interactions, n_units)
        self._note(circuit=circuit, criteria=None)  # the latter was of an earlier circuit
        return circuit

    def verify(self, circuit: Circuit, task: Task | None = None) -> CircuitReport:
        """Measure a circuit on the real model, on prompts not used for discovery.

        Args:
            circuit: The circuit.
            task: Prompts to verify on; the task's held-out prompts when None.

        Returns:
            The report. Without held-out prompts it is measured on those of the discovery, which it
            and a warning say.
        """
        other = task or self.task.held_out
        if other is None:
            warnings.warn(
                f"task {self.task.name!r} has no held-out prompts, so the circuit is verified on "
                "the prompts it was found on. Pass task=..., or make the task with task.split(n).",
                TaskWarning,
                stacklevel=2,
            )
        with self._evaluate_on(other) as evaluation:
            report = verify_circuit(
                evaluation,
                circuit,
                held_out=other is not None,
                label=(other or self.task).name,
                notes=self._findings.extrapolation(circuit) if self._findings else "",
            )
        self._note(circuit=circuit, criteria=report)
        return report

    def findings(self) -> Findings:
        """Return everything found since the latest discovery; also after the block.

        Returns:
            The findings, which can be saved, shown as a table and written as a page.

        Raises:
            ResultError: If nothing was discovered yet.
        """
        if self._findings is None:
            raise ResultError("nothing was found yet; call discover(...) first.")
        return self._findings

    def track(self, page: Path | None = None) -> None:
        """Hand everything found so far to the tracker; done once, at the latest on the way out.

        Args:
            page: The report page, if one was written.
        """
        if not self._is_tracked:
            silent = type(self._tracker) is NullTracker  # a large table for nobody
            evaluations = None if silent else self.evaluation.store.table()
            self._tracker.finish(self.findings(), page=page, evaluations=evaluations)
            self._is_tracked = True

    def _note(self, **found: Any) -> None:
        """Add to what was found in this block; what is of other interactions is not part of it."""
        if self._findings is not None:
            self._findings = replace(
                self._findings,
                n_evaluated=self.evaluation.n_evaluated,
                n_replayed=self.evaluation.n_replayed,
                seconds=perf_counter() - self._started,
                **found,
            )
            self._is_tracked = False

    @contextmanager
    def _evaluate_on(self, task: Task | None) -> Iterator[Evaluation]:
        if task is None:
            yield self.evaluation
            return
        # The model was probed when this block was entered.
        with ExitStack() as exits:
            ablated = exits.enter_context(self._ablate(task, probe=False))
            runner = exits.enter_context(self._runner(ablated, task))
            store: Store = MemoryStore(self.n_units, len(task))
            if isinstance(self._store, str | Path):
                spec = Spec(describe_evaluation(ablated, task, self._metric))
                beside = ParquetStore(Path(self._store) / spec.evaluation_hash, spec)
                store = exits.enter_context(beside)
            yield Evaluation(ablated, task, self._metric, store, runner=runner)

    @contextmanager
    def _runner(self, ablated: Ablated, task: Task) -> Iterator[Runner]:
        local = LocalRunner(ablated, task, self._metric)
        if self._workers is None:
            yield local
            return
        with self._workers.runner(local, self._batch_size) as runner:
            yield runner

    def _ablate(self, task: Task, *, probe: bool) -> Ablated:
        reference = task.counterfactuals or task.tokens
        replacement = replacements.get(self._ablation, reference, task.counterfactuals)
        return ablate(
            self.model,
            self.units,
            replacement,
            batch_size=self._batch_size,
            probe=probe,
            room=None if self._workers is None else self._workers.room(),
        )

    def _open_store(self, exits: ExitStack) -> Store:
        if self._store is None:
            return MemoryStore(self.n_units, self.n_prompts)
        if isinstance(self._store, str | Path):
            return exits.enter_context(ParquetStore(self._store, self._spec))
        return self._store

    def _warn_if_unsolved(self) -> None:
        if not metrics.is_positive_when_solved(self._metric):
            return
        values = self.per_prompt(all_kept(self.n_units))[0]
        if values.mean() <= 0:
            failed = int((values <= 0).sum())
            warnings.warn(
                f"the intact model fails task {self.task.name!r}: value {values.mean():.3f}, "
                f"{failed} of {len(values)} prompts at or below 0. Ablations have nothing to take "
                "away; check answers, leading spaces and prepend_bos.",
                TaskWarning,
                stacklevel=3,
            )
