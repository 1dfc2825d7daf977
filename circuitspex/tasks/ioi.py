"""Indirect object identification: "… Emma and David … Emma lent a book to" → " David".

Wang et al. (2022), "Interpretability in the wild", arXiv 2211.00593, §2. The two templates differ
in the order of names in the first clause: ABBA (indirect object first) and BABA (subject first).
Counterfactual prompts (ABC) name three people, so neither answer is right.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from circuitspex.errors import TaskError
from circuitspex.tasks.task import Task

FRAMES = (
    "Then,{first} and{second} went to the {place}.{giver} gave a {thing} to",
    "Yesterday,{first} and{second} met at the {place}.{giver} lent a {thing} to",
    "When{first} and{second} were at the {place},{giver} handed a {thing} to",
    "After{first} and{second} left the {place},{giver} sent a {thing} to",
)
PLACES = ("library", "school", "station", "park", "hospital", "office")
THINGS = ("book", "letter", "ring", "drink", "gift", "map")
NAMES = (
    "Emma", "David", "Mary", "John", "Anna", "Paul", "Laura", "James", "Alice", "Peter",
    "Sarah", "Mark", "Julia", "Simon", "Helen", "Frank", "Kate", "Adam", "Lisa", "Robert",
    "Ruth", "Michael", "Susan", "Thomas", "Jane", "George", "Martin", "Rose", "Henry", "Jack",
)  # fmt: skip


@dataclass(frozen=True)
class _Example:
    prompt: str
    counterfactual: str
    answer: str
    wrong: str
    template: str


def ioi(model: Any, n_prompts: int = 16, seed: int = 0, prepend_bos: bool | None = None) -> Task:
    """Make an indirect-object-identification task for a model.

    Half the prompts are ABBA, half BABA, and each template goes through all sentence frames in
    turn. The ABC counterfactual replaces all three mentions by three other names.

    Args:
        model: A TransformerBridge with a tokenizer.
        n_prompts: How many prompts to discover on; as many again, all different, are held out.
        seed: Seed of every draw.
        prepend_bos: Whether to put BOS in front; the model's default when None.

    Returns:
        The task, with ``held_out`` prompts for verification.

    Raises:
        TaskError: If the model's tokenizer knows fewer than six of the names as single tokens, or
            so many different prompts cannot be made.
    """
    names = [f" {name}" for name in NAMES if _is_single_token(model, f" {name}")]
    if len(names) < 6:
        raise TaskError(
            f"IOI needs at least 6 names that are single tokens of this model; it has {len(names)}."
            " Use Task.from_prompts with names of your own."
        )
    rng = np.random.default_rng(seed)
    examples = _draw_distinct(2 * n_prompts, names, rng)
    found, aside = (
        Task.from_prompts(
            model,
            [e.prompt for e in part],
            [e.answer for e in part],
            [e.wrong for e in part],
            [e.counterfactual for e in part],
            prepend_bos,
            name="ioi",
            strata=[e.template for e in part],
        )
        for part in (examples[:n_prompts], examples[n_prompts:])
    )
    return replace(found, held_out=aside)


def _is_single_token(model: Any, text: str) -> bool:
    if getattr(model, "tokenizer", None) is None:
        raise TaskError(
            "IOI prompts are text and the model has no tokenizer; use cs.tasks.induction, or "
            "Task.from_prompts with token ids."
        )
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return len(ids) == 1 and ids[0] != model.tokenizer.unk_token_id


def _draw_distinct(n: int, names: list[str], rng: np.random.Generator) -> list[_Example]:
    examples: dict[str, _Example] = {}
    for _ in range(100 * n):
        if len(examples) == n:
            break
        example = _draw(len(examples), names, rng)
        examples.setdefault(example.prompt, example)
    if len(examples) < n:
        raise TaskError(f"only {len(examples)} different IOI prompts could be made of {n}.")
    return list(examples.values())


def _draw(index: int, names: list[str], rng: np.random.Generator) -> _Example:
    template = ("ABBA", "BABA")[index % 2]
    frame = FRAMES[(index // 2) % len(FRAMES)]
    subject, answer, *others = (names[i] for i in rng.permutation(len(names))[:5])
    filled = {
        "place": PLACES[rng.integers(len(PLACES))],
        "thing": THINGS[rng.integers(len(THINGS))],
    }
    first, second = (answer, subject) if template == "ABBA" else (subject, answer)
    return _Example(
        prompt=frame.format(first=first, second=second, giver=subject, **filled),
        counterfactual=frame.format(first=others[0], second=others[1], giver=others[2], **filled),
        answer=answer,
        wrong=subject,
        template=template,
    )
