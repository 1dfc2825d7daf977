"""A task: prompts, each with a correct and some incorrect next tokens."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitspex.errors import TaskError

Prompt: TypeAlias = str | Sequence[int] | Tensor
Answer: TypeAlias = str | int


@dataclass(frozen=True, eq=False)
class Task:
    """Prompts with answers, as token ids; lengths may differ.

    The answer is the token that follows a prompt's last one. Prompts are never padded: evaluation
    runs prompts of one length together.
    """

    name: str
    """Such as ``ioi``."""
    tokens: tuple[Int[Tensor, " _"], ...]
    """Token ids of every prompt."""
    answers: tuple[int, ...]
    """Token id of every prompt's correct answer."""
    wrong_answers: tuple[tuple[int, ...], ...]
    """Token ids of every prompt's incorrect answers; values average over them."""
    texts: tuple[str, ...]
    """Every prompt as people read it."""
    strata: tuple[str, ...]
    """Kind of every prompt, such as ``ABBA``; sampling and reports go by it."""
    counterfactuals: tuple[Int[Tensor, " _"], ...] | None = None
    """One prompt of the same length for each prompt, in which the answer is not determined."""
    prepend_bos: bool = False
    """Whether a BOS token was put before the prompts."""
    held_out: "Task | None" = None
    """Other prompts of the same kind, to verify on what was found with these."""

    def __post_init__(self) -> None:
        """Check that all parts are of one length.

        Raises:
            TaskError: If there are no prompts or the parts differ in number.
        """
        counts = {
            "prompts": len(self.tokens),
            "answers": len(self.answers),
            "wrong_answers": len(self.wrong_answers),
            "texts": len(self.texts),
            "strata": len(self.strata),
        }
        if self.counterfactuals is not None:
            counts["counterfactuals"] = len(self.counterfactuals)
        if len(set(counts.values())) != 1 or not self.tokens:
            raise TaskError(
                "a task needs at least one prompt and one of everything per prompt; got "
                + ", ".join(f"{count} {name}" for name, count in counts.items())
                + "."
            )
        for index, (answer, wrong) in enumerate(zip(self.answers, self.wrong_answers, strict=True)):
            if not wrong or answer in wrong:
                raise TaskError(
                    f"prompt {index} needs incorrect answers that differ from the correct one; got "
                    f"answer {answer} and wrong answers {list(wrong)}."
                )

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {len(self)} prompts of {self.lengths_text} tokens)"

    @property
    def lengths_text(self) -> str:
        """Shortest and longest prompt, for people."""
        lengths = sorted({len(t) for t in self.tokens})
        return f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]}–{lengths[-1]}"

    @cached_property
    def wrong_table(self) -> tuple[Int[Tensor, "prompts wrong"], Bool[Tensor, "prompts wrong"]]:
        """Incorrect answers as a padded table, and which entries are real."""
        width = max(map(len, self.wrong_answers))
        padded = [list(w) + [0] * (width - len(w)) for w in self.wrong_answers]
        real = [[i < len(w) for i in range(width)] for w in self.wrong_answers]
        return torch.tensor(padded), torch.tensor(real)

    @cached_property
    def digest(self) -> str:
        """A hash of everything that decides values: tokens, answers and counterfactuals."""
        content = {
            "tokens": [t.tolist() for t in self.tokens],
            "answers": list(self.answers),
            "wrong": [list(w) for w in self.wrong_answers],
            "counterfactuals": self.counterfactuals and [t.tolist() for t in self.counterfactuals],
        }
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Summarise the task for a run's spec.

        Returns:
            Plain values that JSON holds.
        """
        return {
            "name": self.name,
            "n_prompts": len(self),
            "digest": self.digest,
            "prepend_bos": self.prepend_bos,
            "first_prompt": self.texts[0],
        }

    def subset(self, indices: Iterable[int]) -> "Task":
        """Keep some prompts.

        Args:
            indices: Which ones, in their new order.

        Returns:
            The smaller task, with the same held-out prompts.
        """
        chosen = list(indices)
        others = self.counterfactuals
        return replace(
            self,
            tokens=tuple(self.tokens[i] for i in chosen),
            answers=tuple(self.answers[i] for i in chosen),
            wrong_answers=tuple(self.wrong_answers[i] for i in chosen),
            texts=tuple(self.texts[i] for i in chosen),
            strata=tuple(self.strata[i] for i in chosen),
            counterfactuals=None if others is None else tuple(others[i] for i in chosen),
        )

    def split(self, n_held_out: int) -> "Task":
        """Set the last prompts aside for verification.

        Args:
            n_held_out: How many prompts to set aside.

        Returns:
            The other prompts, with those as ``held_out``.

        Raises:
            TaskError: If no prompt would be left on either side.
        """
        if not 0 < n_held_out < len(self):
            raise TaskError(
                f"{len(self)} prompts cannot be split with {n_held_out} held out; "
                f"hold out 1 to {len(self) - 1}."
            )
        first = len(self) - n_held_out
        aside = replace(self.subset(range(first, len(self))), held_out=None)
        return replace(self.subset(range(first)), held_out=aside)

    @classmethod
    def from_prompts(
        cls,
        model: Any,
        prompts: Sequence[Prompt],
        answers: Sequence[Answer],
        wrong_answers: Sequence[Answer | Sequence[Answer]],
        counterfactuals: Sequence[Prompt] | None = None,
        prepend_bos: bool | None = None,
        *,
        name: str = "prompts",
        strata: Sequence[str] | None = None,
        held_out: "Task | None" = None,
    ) -> "Task":
        """Make a task from anybody's own prompts.

        Args:
            model: A TransformerBridge; its tokenizer reads the strings.
            prompts: Strings, or token ids, which are taken as they are. Lengths may differ.
            answers: The correct next token of each prompt: a string of one token, most often with
                a leading space, or a token id.
            wrong_answers: The incorrect next token of each prompt, or several.
            counterfactuals: For resample ablation: a prompt of the same length for each prompt.
            prepend_bos: Whether to put BOS before strings; the model's default when None.
            name: Recorded in results.
            strata: Kind of every prompt.
            held_out: Prompts for verification.

        Returns:
            The task.
        """
        default = bool(getattr(model.cfg, "default_prepend_bos", True))
        bos = default if prepend_bos is None else prepend_bos
        tokens = tuple(read_prompt(model, prompt, bos) for prompt in prompts)
        others = None
        if counterfactuals is not None:
            others = tuple(read_prompt(model, prompt, bos) for prompt in counterfactuals)
            _check_lengths(tokens, others)
        return cls(
            name=name,
            tokens=tokens,
            answers=tuple(read_answer(model, answer) for answer in answers),
            wrong_answers=tuple(
                tuple(read_answer(model, a) for a in ([w] if isinstance(w, str | int) else w))
                for w in wrong_answers
            ),
            texts=tuple(p if isinstance(p, str) else _show(model, p) for p in prompts),
            strata=tuple(strata) if strata is not None else (name,) * len(tokens),
            counterfactuals=others,
            prepend_bos=bos and any(isinstance(p, str) for p in prompts),
            held_out=held_out,
        )


def read_prompt(model: Any, prompt: Prompt, prepend_bos: bool) -> Int[Tensor, " positions"]:
    """Turn a prompt into token ids.

    Args:
        model: Holds the tokenizer.
        prompt: A string or token ids.
        prepend_bos: Whether a string gets a BOS token in front.

    Returns:
        Token ids on the CPU.

    Raises:
        TaskError: If a string is given and the model has no tokenizer, or the prompt is empty.
    """
    if isinstance(prompt, str):
        _check_tokenizer(model, prompt)
        tokens = model.to_tokens(prompt, prepend_bos=prepend_bos)[0].cpu()
    else:
        tokens = torch.as_tensor(prompt, dtype=torch.long).cpu()
    if tokens.ndim != 1 or len(tokens) == 0:
        raise TaskError(f"a prompt needs at least one token; got {prompt!r}.")
    return tokens


def read_answer(model: Any, answer: Answer) -> int:
    """Turn an answer into its token id.

    Args:
        model: Holds the tokenizer.
        answer: A string of one token, or a token id.

    Returns:
        The token id.

    Raises:
        TaskError: If the answer is not exactly one token of the model's vocabulary.
    """
    if isinstance(answer, str):
        _check_tokenizer(model, answer)
        ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            pieces = model.tokenizer.convert_ids_to_tokens(ids)
            raise TaskError(
                f"answer {answer!r} is {len(ids)} tokens {pieces}; it must be one. Names and words "
                f"inside a text usually need a leading space: {' ' + answer.strip()!r}."
            )
        if ids[0] == model.tokenizer.unk_token_id and answer != model.tokenizer.unk_token:
            raise TaskError(f"answer {answer!r} is not in the vocabulary of the model's tokenizer.")
        return int(ids[0])
    if not 0 <= answer < model.cfg.d_vocab:
        raise TaskError(f"token id {answer} is outside the vocabulary 0..{model.cfg.d_vocab - 1}.")
    return int(answer)


def _check_tokenizer(model: Any, text: str) -> None:
    if getattr(model, "tokenizer", None) is None:
        raise TaskError(f"the model has no tokenizer to read {text!r}; give token ids instead.")


def _check_lengths(tokens: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> None:
    for index, (prompt, other) in enumerate(zip(tokens, others, strict=False)):
        if len(prompt) != len(other):
            raise TaskError(
                f"counterfactual {index} has {len(other)} tokens and its prompt {len(prompt)}; "
                "they must align position by position, so choose words of as many tokens."
            )


def _show(model: Any, prompt: Sequence[int] | Tensor) -> str:
    ids = torch.as_tensor(prompt).tolist()
    if getattr(model, "tokenizer", None) is not None:
        return str(model.tokenizer.decode(ids))
    return " ".join(map(str, ids))
