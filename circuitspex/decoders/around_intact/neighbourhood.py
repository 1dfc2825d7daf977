"""What was measured around the intact model, and what it says about interactions there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitspex._shared import Interaction
from circuitspex.decoders.around_intact.contexts import beyond_parts


@dataclass
class Neighbourhood:
    """What was measured around the intact model."""

    n_units: int
    masks: list[Bool[np.ndarray, " units"]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    """Mask, value and prompt of every evaluation."""
    gradient_masks: list[Bool[np.ndarray, " units"]] = field(default_factory=list)
    gradients: list[Float[np.ndarray, " units"]] = field(default_factory=list)
    contexts: dict[Interaction, Float[np.ndarray, " units"]] = field(default_factory=dict)
    """By how much ablating these units changes the gradient of every unit."""
    verified: dict[Interaction, Float[np.ndarray, " prompts"]] = field(default_factory=dict)
    """Exact Möbius coefficients at the intact origin, prompt by prompt."""
    known: dict[Interaction, Float[np.ndarray, " prompts"]] = field(default_factory=dict)
    """Value without these units on every prompt, where it was evaluated on all."""

    def singles(self) -> dict[Interaction, Float[np.ndarray, " prompts"]]:
        """Return the exact effects of single units, as far as they were measured."""
        return {term: v - self.known[()] for term, v in self.known.items() if len(term) == 1}

    def measured(self) -> dict[Interaction, float]:
        """Return the verified coefficients, averaged over prompts."""
        return {term: float(values.mean()) for term, values in self.verified.items()}

    @property
    def intact_gradient(self) -> Float[np.ndarray, " units"]:
        """Mean gradient at the intact model; zeros if it was not taken."""
        pairs = zip(self.gradient_masks, self.gradients, strict=True)
        taken = [gradient for mask, gradient in pairs if mask.all()]
        return np.mean(taken, axis=0) if taken else np.zeros(self.n_units)

    def add(self, mask: Bool[np.ndarray, " units"], value: float, prompt: int) -> None:
        """Remember one evaluation."""
        self.masks.append(mask)
        self.values.append(value)
        self.prompts.append(prompt)

    def note(
        self,
        masks: Bool[np.ndarray, "masks units"],
        values: Float[np.ndarray, "masks drawn"],
        gradients: Float[np.ndarray, "masks drawn units"],
        prompts: Int[np.ndarray, "masks drawn"],
    ) -> None:
        """Remember evaluations with their gradients."""
        drawn = values.shape[1]
        for mask, value, gradient, prompt in zip(
            masks.repeat(drawn, axis=0),
            values.reshape(-1).tolist(),
            gradients.reshape(-1, self.n_units),
            prompts.reshape(-1).tolist(),
            strict=True,
        ):
            self.add(mask, value, prompt)
            self.gradient_masks.append(mask)
            self.gradients.append(gradient)

    def estimates(self, context: Interaction) -> Float[np.ndarray, " units"]:
        """Return the estimate of θ(context ∪ k) for every k; 0 for members of the context."""
        return -beyond_parts(self.contexts, context)


def describe_measured(
    measured: Mapping[Interaction, Float[np.ndarray, " prompts"]], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Return measured interactions as plain values for ``diagnostics``, the strongest first."""
    ranked = sorted(measured.items(), key=lambda item: (-abs(item[1].mean()), item[0]))
    return [
        {
            "units": [labels[unit] for unit in term],
            "coefficient": float(effects.mean()),
            "std_error": float(effects.std(ddof=1) / len(effects) ** 0.5)
            if len(effects) > 1
            else None,
        }
        for term, effects in ranked
    ]
