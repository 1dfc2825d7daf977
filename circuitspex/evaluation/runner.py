"""Rows through the model, measured: which run together, and what each gives.

A row is one mask on one prompt. Where rows run is somebody else's choice: here, or, as passes that
each can be run by itself, on other processes (:mod:`circuitspex.cluster`). Both give the same bits,
as the same rows run together.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitspex.ablation import Ablated, Room, answer_logits
from circuitspex.errors import TaskError
from circuitspex.tasks import Metric, Targets, Task, tokens_read


@dataclass(frozen=True, eq=False)
class Rows:
    """Masks on prompts: row i is mask ``mask_of_row[i]`` on prompt ``prompt_of_row[i]``."""

    masks: Bool[Tensor, "masks units"] | Float[Tensor, "masks units"]
    """Keep-masks; or gates between 0 and 1, where gradients are wanted."""
    mask_of_row: Int[Tensor, " rows"]
    prompt_of_row: Int[Tensor, " rows"]
    """Index into the task's prompts."""

    def __len__(self) -> int:
        return len(self.prompt_of_row)

    def own_masks(
        self, rows: Int[Tensor, " _"] | slice
    ) -> Bool[Tensor, "_ units"] | Float[Tensor, "_ units"]:
        """Return the mask of every one of some rows."""
        return self.masks[self.mask_of_row[rows]]


@dataclass(frozen=True, eq=False)
class Pass:
    """Rows that go through the model together."""

    rows: Int[Tensor, " pass"]
    """Which ones."""
    forked: bool = False
    """Whether masks share layers."""


@runtime_checkable
class Runner(Protocol):
    """Runs rows somewhere and yields what is done, in whatever order."""

    def values(self, rows: Rows) -> Iterator[tuple[Int[Tensor, " _"], Float[Tensor, " _"]]]:
        """Yield some rows and their values, double precision on the CPU; each row once."""
        ...

    def gradients(
        self, rows: Rows
    ) -> Iterator[tuple[Int[Tensor, " _"], Float[Tensor, " _"], Float[Tensor, "_ units"]]]:
        """Yield some rows, their values, and their derivatives by all gates; each row once."""
        ...


@runtime_checkable
class Workers(Protocol):
    """Processes that hold the model; a block starts them, and its end stops them."""

    def __enter__(self) -> "Workers":
        """Start them and wait until they are ready."""
        ...

    def __exit__(self, *exception: object) -> None:
        """Stop them."""
        ...

    def room(self) -> Room:
        """Return the memory that rows may fill on each of them."""
        ...

    def runner(
        self, local: "LocalRunner", batch_size: int | None = None
    ) -> AbstractContextManager[Runner]:
        """Make a runner that gives what the local one gives, bit for bit."""
        ...


class LocalRunner:
    """Runs rows here, in the block of an :class:`~circuitspex.ablation.Ablated`."""

    def __init__(self, ablated: Ablated, task: Task, metric: Metric) -> None:
        self.ablated = ablated
        self.task = task
        self.metric = metric
        lengths = torch.tensor([len(tokens) for tokens in task.tokens])
        self._prompts_by_length = {
            int(length): (lengths == length).nonzero().squeeze(1) for length in lengths.unique()
        }

    def values(
        self, rows: Rows, planned: Pass | None = None
    ) -> Iterator[tuple[Int[Tensor, " _"], Float[Tensor, " _"]]]:
        """Run rows and measure them.

        Args:
            rows: Masks on prompts.
            planned: The pass that these rows are, if :meth:`passes` named it.

        Yields:
            Rows that ran together and their values, in double precision on the CPU.
        """
        for members, here in self._by_length(rows):
            prompt_of_row = rows.prompt_of_row[here]
            read = self._tokens_read(members)
            stream = self.ablated.stream(
                torch.stack([self.task.tokens[i] for i in members]),
                rows.masks,
                torch.searchsorted(members, prompt_of_row),
                rows.mask_of_row[here],
                prompt_ids=members,
                columns=read,
                forked=None if planned is None else planned.forked,
            )
            for done, logits in stream:
                values = self._metric_of(logits, prompt_of_row[done], read)
                yield here[done], values.detach().double().cpu()

    def gradients(
        self, rows: Rows, planned: Pass | None = None
    ) -> Iterator[tuple[Int[Tensor, " _"], Float[Tensor, " _"], Float[Tensor, "_ units"]]]:
        """Run rows forward and backward and measure them.

        Args:
            rows: Masks, or gates between 0 and 1, on prompts.
            planned: The pass that these rows are, if :meth:`gradient_passes` named it.

        Yields:
            Rows that ran together, their values in double precision and the derivatives by all
            gates in single precision, on the CPU.
        """
        for members, here in self._by_length(rows):
            prompt_of_row = rows.prompt_of_row[here]

            def measure(logits: Tensor, part: slice, prompts: Tensor = prompt_of_row) -> Tensor:
                return self._metric_of(logits, prompts[part])

            stream = self.ablated.stream_gradients(
                torch.stack([self.task.tokens[i] for i in members]),
                rows.masks,
                torch.searchsorted(members, prompt_of_row),
                rows.mask_of_row[here],
                measure,
                prompt_ids=members,
                at_once=planned is not None,
            )
            for part, (values, gradients) in stream:
                yield here[part], values.double().cpu(), gradients.float().cpu()

    def passes(self, rows: Rows) -> Iterator[Pass]:
        """Say which rows :meth:`values` runs together.

        Args:
            rows: Masks on prompts.

        Yields:
            Passes, of which each can be run by itself, anywhere, to the same bits.
        """
        for members, here in self._by_length(rows):
            planned = self.ablated.passes(
                rows.masks,
                torch.searchsorted(members, rows.prompt_of_row[here]),
                rows.mask_of_row[here],
                len(self.task.tokens[int(members[0])]),
            )
            yield from (Pass(here[part], forked) for part, forked in planned)

    def gradient_passes(self, rows: Rows) -> Iterator[Pass]:
        """Say which rows :meth:`gradients` runs together.

        Args:
            rows: Masks, or gates between 0 and 1, on prompts.

        Yields:
            Passes, of which each can be run by itself, anywhere, to the same bits.
        """
        for members, here in self._by_length(rows):
            n_positions = len(self.task.tokens[int(members[0])])
            planned = self.ablated.gradient_passes(len(here), n_positions)
            yield from (Pass(here[part]) for part in planned)

    def _by_length(self, rows: Rows) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all prompts of one length, and the rows whose prompts these are."""
        for members in self._prompts_by_length.values():
            here = torch.isin(rows.prompt_of_row, members).nonzero().squeeze(1)
            if len(here):
                yield members, here

    def _tokens_read(self, prompts: Tensor) -> Tensor | None:
        if tokens_read(self.metric) == "all":
            return None
        wrong, is_wrong = self.task.wrong_table
        answers = torch.tensor(self.task.answers)[prompts]
        return torch.cat([answers, wrong[prompts][is_wrong[prompts]]]).unique()

    def _metric_of(self, logits: Tensor, prompts: Tensor, read: Tensor | None = None) -> Tensor:
        answers = torch.tensor(self.task.answers)[prompts]
        wrong, is_wrong = (table[prompts] for table in self.task.wrong_table)
        if read is not None:
            answers = torch.searchsorted(read, answers)
            wrong = torch.searchsorted(read, wrong).where(is_wrong, 0)
        device = logits.device
        targets = Targets(
            answers=answers.to(device),
            wrong_answers=wrong.to(device),
            is_wrong=is_wrong.to(device),
            read_intact=lambda: self._intact_logits[prompts].to(device),
        )
        values = self.metric(logits, targets)
        if not isinstance(values, Tensor) or values.shape != (len(prompts),):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise TaskError(
                f"the metric must return one number per row, shape ({len(prompts)},); got {got}."
            )
        return values

    @cached_property
    def _intact_logits(self) -> Float[Tensor, "prompts vocab"]:
        model, device = self.ablated.model, self.ablated.model.cfg.device
        rows = [answer_logits(model, tokens[None].to(device)) for tokens in self.task.tokens]
        return torch.cat(rows).cpu()
