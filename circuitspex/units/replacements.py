"""What stands in for an ablated activation: nothing, its mean, or another prompt's.

A replacement says which sequences must be run once beforehand (``sequences``) and how their
activations become stand-ins (``combine``, ``rows``). It knows no model; :mod:`circuitspex.ablation`
does the running. Stand-ins are kept per position, so a row finds one only if a sequence of its
own length was given.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitspex.errors import AblationError


@dataclass(frozen=True)
class Zero:
    """Ablated activations become 0."""

    name: ClassVar[Literal["zero"]] = "zero"
    sequences: ClassVar[tuple[Tensor, ...]] = ()


@dataclass(frozen=True, eq=False)
class Mean:
    """Ablated activations become their mean over reference prompts of the same length."""

    sequences: tuple[Int[Tensor, " _"], ...]
    """Reference prompts as token ids; lengths may differ."""
    name: ClassVar[Literal["mean"]] = "mean"

    def combine(self, activations: Float[Tensor, "prompts ..."]) -> Float[Tensor, "1 ..."]:
        """Average the activations of reference prompts of one length, position by position.

        Args:
            activations: One row per reference prompt of that length.

        Returns:
            One stand-in for every row.
        """
        return activations.mean(dim=0, keepdim=True)

    def rows(self, ranks: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """Say which stand-in each row takes: always the one there is.

        Args:
            ranks: Which prompt, among those of its length, each row runs.

        Returns:
            Zeros.
        """
        return torch.zeros_like(ranks)


@dataclass(frozen=True, eq=False)
class Resample:
    """Ablated activations become those of the prompt's counterfactual, position by position."""

    sequences: tuple[Int[Tensor, " _"], ...]
    """Counterfactual of prompt 0, 1, … as token ids; as long as the prompt itself."""
    name: ClassVar[Literal["resample"]] = "resample"

    def combine(self, activations: Float[Tensor, "prompts ..."]) -> Float[Tensor, "prompts ..."]:
        """Keep the activations of every counterfactual.

        Args:
            activations: One row per counterfactual of one length.

        Returns:
            The same.
        """
        return activations

    def rows(self, ranks: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """Say which stand-in each row takes: that of its own prompt.

        Args:
            ranks: Which counterfactual, among those of its length, belongs to each row's prompt.

        Returns:
            The same.
        """
        return ranks


Replacement: TypeAlias = Zero | Mean | Resample
Sequences: TypeAlias = Tensor | Iterable[Tensor | Sequence[int]]


def mean(reference: Sequences) -> Mean:
    """Ablate to the mean activation over a reference batch, per position.

    Args:
        reference: Token ids, shape ``(prompts, positions)``, or a list of sequences of any lengths.

    Returns:
        The replacement, for ``cs.ablate(..., ablation=cs.mean(reference))``.
    """
    return Mean(_sequences(reference, "mean ablation needs reference prompts"))


def resample(counterfactuals: Sequences) -> Resample:
    """Ablate to the activations of counterfactual prompts.

    Args:
        counterfactuals: Token ids, one sequence per prompt and as long as that prompt.

    Returns:
        The replacement, for ``cs.ablate(..., ablation=cs.resample(counterfactuals))``.
    """
    return Resample(_sequences(counterfactuals, "resample ablation needs counterfactual prompts"))


def get(
    ablation: "str | Replacement",
    reference: Sequences | None = None,
    counterfactuals: Sequences | None = None,
) -> Replacement:
    """Turn the name of an ablation into a replacement.

    Args:
        ablation: ``zero``, ``mean`` or ``resample``, or a replacement, which is returned as it is.
        reference: Prompts that a mean is taken over.
        counterfactuals: One prompt for each prompt of the task.

    Returns:
        The replacement.

    Raises:
        AblationError: If the name is unknown or what it needs was not given.
    """
    if isinstance(ablation, Zero | Mean | Resample):
        return ablation
    if ablation == "zero":
        return Zero()
    if ablation == "mean":
        if reference is None:
            raise AblationError(
                "ablation='mean' needs a reference batch to average over. Pass "
                "ablation=cs.mean(reference_tokens), or a task, whose prompts then serve."
            )
        return mean(reference)
    if ablation == "resample":
        if counterfactuals is None:
            raise AblationError(
                "ablation='resample' needs counterfactual prompts. Pass "
                "ablation=cs.resample(counterfactual_tokens), or a task that has counterfactuals."
            )
        return resample(counterfactuals)
    raise AblationError(f"ablation must be 'zero', 'mean' or 'resample'; got {ablation!r}.")


def _sequences(given: Sequences, need: str) -> tuple[Tensor, ...]:
    sequences = tuple(torch.as_tensor(tokens, dtype=torch.long) for tokens in given)
    if not sequences or any(tokens.ndim != 1 or len(tokens) == 0 for tokens in sequences):
        raise AblationError(
            f"{need}: token ids of shape (prompts, positions), or a list of one-dimensional "
            f"sequences; got shapes {[tuple(tokens.shape) for tokens in sequences][:3]}."
        )
    return sequences
