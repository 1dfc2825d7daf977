"""Rows through the model, measured: which run together, and what each gives.

A row is one mask on one prompt. Where rows run is somebody else's choice: here, or, as passes that
each can be run by itself, on other processes (:mod:`circuitspex.cluster`). Both give the same bits,
as the same rows run together.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitspex.ablation import Ablated, Pass, Room, Rows, answer_logits
from circuitspex.errors import TaskError
from circuitspex.tasks import Metric, Targets, Task, tokens_read


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
        for prompts, tokens, here, some in self._by_length(rows):
            read = self._tokens_read(prompts)
            stream = self.ablated.stream(
                tokens, some, prompt_ids=prompts, columns=read, planned=planned
            )
            for done, logits in stream:
                values = self._measure(logits, prompts[some.prompt_of_row[done]], read)
                yield here[done], values.detach().double().cpu()

    def gradients(
        self, rows: Rows, planned: Pass | None = None
    ) -> Iterator[tuple[Int[Tensor, " _"], Float[Tensor, " _"], Float[Tensor, "_ units"]]]:
        """Run rows forward and backward and measure them.

        Args:
            rows: Masks, or gates between 0 and 1, on prompts.
            planned: The pass that these rows are, if :meth:`passes` named it.

        Yields:
            Rows that ran together, their values in double precision and the derivatives by all
            gates in single precision, on the CPU.
        """
        for prompts, tokens, here, some in self._by_length(rows):
            prompt_of_row = prompts[some.prompt_of_row]

            def measure(logits: Tensor, done: Tensor, prompts: Tensor = prompt_of_row) -> Tensor:
                return self._measure(logits, prompts[done])

            stream = self.ablated.stream_gradients(
                tokens, some, measure, prompt_ids=prompts, planned=planned
            )
            for done, values, gradients in stream:
                yield here[done], values.double().cpu(), gradients.float().cpu()

    def passes(self, rows: Rows, *, gradients: bool = False) -> Iterator[Pass]:
        """Say which rows :meth:`values`, or :meth:`gradients`, runs together.

        Args:
            rows: Masks, or gates between 0 and 1, on prompts.
            gradients: Whether gradients are wanted.

        Yields:
            Passes, of which each can be run by itself, anywhere, to the same bits.
        """
        for _, tokens, here, some in self._by_length(rows):
            for planned in self.ablated.passes(some, tokens.shape[1], gradients=gradients):
                yield Pass(here[planned.rows], planned.forked)

    def _by_length(self, rows: Rows) -> Iterator[tuple[Tensor, Tensor, Tensor, Rows]]:
        """Yield all prompts of one length, their tokens, which rows run them, and these rows."""
        for prompts in self._prompts_by_length.values():
            here = torch.isin(rows.prompt_of_row, prompts).nonzero().squeeze(1)
            if len(here):
                tokens = torch.stack([self.task.tokens[i] for i in prompts])
                which = torch.searchsorted(prompts, rows.prompt_of_row[here])
                yield prompts, tokens, here, Rows(rows.masks, rows.mask_of_row[here], which)

    def _tokens_read(self, prompts: Tensor) -> Tensor | None:
        if tokens_read(self.metric) == "all":
            return None
        wrong, is_wrong = self.task.wrong_table
        answers = torch.tensor(self.task.answers)[prompts]
        return torch.cat([answers, wrong[prompts][is_wrong[prompts]]]).unique()

    def _measure(self, logits: Tensor, prompts: Tensor, read: Tensor | None = None) -> Tensor:
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
