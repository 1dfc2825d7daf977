"""What stands in for an ablated activation: nothing, its mean, or another prompt's.

A replacement says which sequences must be run once beforehand (``sequences``) and how their
activations become stand-ins (``combine``). It knows no model; :mod:`circuitspex.ablation` does the
running. Stand-ins are kept per position, so a row finds one only if a sequence of its own length
was given. A new kind is a class here and a line in ``REPLACEMENTS``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitspex.errors import AblationError

Sequences: TypeAlias = Tensor | Iterable[Tensor | Sequence[int]]


@dataclass(frozen=True, eq=False)
class Replacement:
    """What stands in for ablated activations: what some sequences' activations become."""

    sequences: tuple[Int[Tensor, " _"], ...] = ()
    """Token ids of what is run beforehand; lengths may differ. Without any, 0 stands in."""
    name: ClassVar[str]
    """Recorded in results."""
    one_per_prompt: ClassVar[bool] = False
    """Whether sequence i is that of prompt i alone, and as long."""

    @classmethod
    def of_prompts(
        cls, reference: Sequences | None, counterfactuals: Sequences | None
    ) -> "Replacement":
        """Make the replacement from what is known of a task.

        Args:
            reference: Prompts that are like the task's.
            counterfactuals: One prompt for each prompt of the task.

        Returns:
            The replacement.

        Raises:
            AblationError: If what it needs was not given.
        """
        raise NotImplementedError

    def combine(self, activations: Float[Tensor, "prompts ..."]) -> Float[Tensor, "some ..."]:
        """Turn activations of sequences of one length into stand-ins, position by position.

        Args:
            activations: One row per sequence of that length.

        Returns:
            One stand-in per sequence where there is one per prompt, else one for every row.
        """
        raise NotImplementedError


class Zero(Replacement):
    """Ablated activations become 0."""

    name = "zero"

    @classmethod
    def of_prompts(cls, reference: Sequences | None, counterfactuals: Sequences | None) -> "Zero":
        """Return the replacement, which needs nothing."""
        return cls()


class Mean(Replacement):
    """Ablated activations become their mean over reference prompts of the same length."""

    name = "mean"

    @classmethod
    def of_prompts(cls, reference: Sequences | None, counterfactuals: Sequences | None) -> "Mean":
        """Return the mean over the reference prompts."""  # noqa: DOC501
        if reference is None:
            raise AblationError(
                "ablation='mean' needs a reference batch to average over. Pass "
                "ablation=cs.mean(reference_tokens), or a task, whose prompts then serve."
            )
        return mean(reference)

    def combine(self, activations: Float[Tensor, "prompts ..."]) -> Float[Tensor, "1 ..."]:
        """Return the mean of the activations."""
        return activations.mean(dim=0, keepdim=True)


class Resample(Replacement):
    """Ablated activations become those of the prompt's counterfactual, position by position."""

    name = "resample"
    one_per_prompt = True

    @classmethod
    def of_prompts(
        cls, reference: Sequences | None, counterfactuals: Sequences | None
    ) -> "Resample":
        """Return the replacement by the counterfactuals."""  # noqa: DOC501
        if counterfactuals is None:
            raise AblationError(
                "ablation='resample' needs counterfactual prompts. Pass "
                "ablation=cs.resample(counterfactual_tokens), or a task that has counterfactuals."
            )
        return resample(counterfactuals)

    def combine(self, activations: Float[Tensor, "prompts ..."]) -> Float[Tensor, "prompts ..."]:
        """Return the activations of every counterfactual as they are."""
        return activations


REPLACEMENTS: dict[str, type[Replacement]] = {kind.name: kind for kind in (Zero, Mean, Resample)}


def mean(reference: Sequences) -> Mean:
    """Ablate to the mean activation over a reference batch, per position.

    Args:
        reference: Token ids, shape ``(prompts, positions)``, or a list of sequences of any lengths.

    Returns:
        The replacement, for ``cs.ablate(..., ablation=cs.mean(reference))``.
    """
    return Mean(read_sequences(reference, "mean ablation needs reference prompts"))


def resample(counterfactuals: Sequences) -> Resample:
    """Ablate to the activations of counterfactual prompts.

    Args:
        counterfactuals: Token ids, one sequence per prompt and as long as that prompt.

    Returns:
        The replacement, for ``cs.ablate(..., ablation=cs.resample(counterfactuals))``.
    """
    need = "resample ablation needs counterfactual prompts"
    return Resample(read_sequences(counterfactuals, need))


def get(
    ablation: str | Replacement,
    reference: Sequences | None = None,
    counterfactuals: Sequences | None = None,
) -> Replacement:
    """Turn the name of an ablation into a replacement.

    Args:
        ablation: A key of ``REPLACEMENTS``, or a replacement, which is returned as it is.
        reference: Prompts that a mean is taken over.
        counterfactuals: One prompt for each prompt of the task.

    Returns:
        The replacement.

    Raises:
        AblationError: If the name is unknown or what it needs was not given.
    """
    if isinstance(ablation, Replacement):
        return ablation
    if ablation not in REPLACEMENTS:
        *names, last = map(repr, REPLACEMENTS)
        raise AblationError(f"ablation must be {', '.join(names)} or {last}; got {ablation!r}.")
    return REPLACEMENTS[ablation].of_prompts(reference, counterfactuals)


def read_sequences(given: Sequences, need: str) -> tuple[Int[Tensor, " _"], ...]:
    """Turn what a caller gave into sequences of token ids.

    Args:
        given: Token ids, shape ``(prompts, positions)``, or a list of sequences of any lengths.
        need: What is refused if it is not there, for people.

    Returns:
        The sequences.

    Raises:
        AblationError: If there are none, or one is empty or not one-dimensional.
    """
    sequences = tuple(torch.as_tensor(tokens, dtype=torch.long) for tokens in given)
    if not sequences or any(tokens.ndim != 1 or len(tokens) == 0 for tokens in sequences):
        raise AblationError(
            f"{need}: token ids of shape (prompts, positions), or a list of one-dimensional "
            f"sequences; got shapes {[tuple(tokens.shape) for tokens in sequences][:3]}."
        )
    return sequences
