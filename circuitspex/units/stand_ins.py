"""What replaces ablated activations, computed once per block and looked up row by row."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from circuitspex.errors import AblationError
from circuitspex.units.replacements import Replacement

ByHook: TypeAlias = Callable[[str], Tensor]
"""From a hook point's name to what replaces its activation: one for all rows, or one per row."""


class StandIns:
    """The activations that a replacement puts in the place of ablated ones."""

    def __init__(self, replacement: Replacement) -> None:
        self._replacement = replacement
        self._by_length: dict[int, dict[str, Tensor]] = {}
        self._ranks: Tensor = torch.zeros(0, dtype=torch.long)

    def compute(self, capture: Callable[[Tensor], dict[str, Tensor]]) -> None:
        """Run the replacement's sequences and keep their activations.

        Args:
            capture: From sequences of one length to their activations at every hook point.
        """
        sequences = self._replacement.sequences
        lengths = torch.tensor([len(tokens) for tokens in sequences])
        self._ranks = torch.zeros(len(sequences), dtype=torch.long)
        for length in lengths.unique().tolist():
            members = (lengths == length).nonzero().squeeze(1)
            self._ranks[members] = torch.arange(len(members))
            captured = capture(torch.stack([sequences[i] for i in members]))
            self._by_length[length] = {
                hook: self._replacement.combine(values) for hook, values in captured.items()
            }

    def clear(self) -> None:
        """Forget all activations."""
        self._by_length = {}

    def check(self, prompt_ids: Int[Tensor, " prompts"], n_positions: int) -> None:
        """Refuse prompts for which nothing was computed.

        Args:
            prompt_ids: Index of every prompt among the counterfactuals of a resample ablation.
            n_positions: Tokens per prompt.

        Raises:
            AblationError: If no reference prompt, or not the right counterfactual, is as long.
        """
        name, sequences = self._replacement.name, self._replacement.sequences
        if not sequences:
            return
        if n_positions not in self._by_length:
            known = ", ".join(map(str, sorted(self._by_length)))
            raise AblationError(
                f"{name} ablation has no stand-in for prompts of {n_positions} tokens, only for "
                f"{known}. Give reference prompts of that length."
            )
        if self._replacement.one_per_prompt and (
            prompt_ids.max() >= len(sequences)
            or any(len(sequences[i]) != n_positions for i in prompt_ids.tolist())
        ):
            raise AblationError(
                f"{name} ablation needs one counterfactual per prompt, of the same length; got "
                f"{len(sequences)} counterfactuals for prompts of {n_positions} tokens."
            )

    def of(self, prompt_ids: Int[Tensor, " rows"], n_positions: int) -> ByHook:
        """Look up what replaces the activations of some rows.

        Args:
            prompt_ids: Prompt of every row.
            n_positions: Tokens per row.

        Returns:
            The look-up, by hook point.
        """
        if not self._replacement.sequences:
            return zeros
        table = self._by_length[n_positions]
        is_own = self._replacement.one_per_prompt
        rows = self._ranks[prompt_ids] if is_own else torch.zeros_like(prompt_ids)
        return lambda hook: table[hook][rows.to(table[hook].device)]


def zeros(hook: str) -> Tensor:
    """Replace by 0 at every hook point.

    Args:
        hook: Name of a hook point.

    Returns:
        One number.
    """
    return torch.zeros(())


def ones(hook: str) -> Tensor:
    """Replace by 1 at every hook point, which shows even where activations are 0.

    Args:
        hook: Name of a hook point.

    Returns:
        One number.
    """
    return torch.ones(())
