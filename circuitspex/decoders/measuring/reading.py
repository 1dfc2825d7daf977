"""One value per mask, whatever the set function is made of: prompts, all or few, or nothing."""

import numpy as np
import torch
from jaxtyping import Bool, Float

from circuitspex.algebra import Origin
from circuitspex.decoders.measuring.samples import Meter, PromptsPerMask

_BLOCK = 4096  # masks asked for at once, so that a long list can be resumed


def rounding_of(values: Float[np.ndarray, "..."]) -> float:
    """Return the relative error of values: that of single precision if all of them fit into it.

    Args:
        values: What a set function returned.

    Returns:
        Some units of the last place: batches are summed in different orders.
    """
    with np.errstate(over="ignore"):
        return 1e-6 if (values == values.astype(np.float32)).all() else 1e-12


def explained_share(
    values: Float[np.ndarray, " masks"], predicted: Float[np.ndarray, " masks"]
) -> float | None:
    """Return the R² of predictions of values that no fit has seen; None where they do not vary."""
    spread = np.square(values - values.mean()).mean()
    if spread <= 1e-20 * np.square(values).max():
        return None
    return float(1 - np.square(values - predicted).mean() / spread)


class Reader:
    """Reads keep-masks, and knows what one of them costs."""

    def __init__(
        self,
        meter: Meter,
        prompts_per_mask: PromptsPerMask,
        origin: Origin,
        rng: np.random.Generator,
    ) -> None:
        """Check how many prompts to draw.

        Args:
            meter: The metered set function.
            prompts_per_mask: Prompts for each mask.
            origin: With few prompts per mask, a prompt counts by its difference to its own value
                there, so that easy and hard prompts do not look like effects of masks.
            rng: Draws the prompts.

        Raises:
            DecoderError: If more prompts are asked for than there are, or there are none.
        """  # noqa: DOC502 - raised by the check
        drawn = prompts_per_mask if isinstance(prompts_per_mask, int) else None
        if drawn is not None:
            meter.check_drawn(drawn)
        self.meter, self.rng = meter, rng
        self.n_drawn = None if drawn == meter.n_prompts else drawn
        self.cost = meter.n_prompts if self.n_drawn is None else self.n_drawn
        self._kept = origin == "intact"
        self._reference: np.ndarray | None = None

    @property
    def reads_prompts(self) -> bool:
        """Whether every prompt is read under every mask."""
        return self.meter.sampled is not None and self.n_drawn is None

    @property
    def overhead(self) -> int:
        """What is paid once, beside the cost of the masks."""
        return 0 if self.n_drawn is None else self.meter.n_prompts

    def prepare(self) -> None:
        """Read what is read once: every prompt's value at the origin, if few are drawn."""
        if self.n_drawn is not None:
            model = torch.full((1, self.meter.n_units), self._kept)
            self._reference = self.meter.per_prompt(model)[0]

    def read(self, masks: Bool[np.ndarray, "masks units"]) -> Float[np.ndarray, "masks columns"]:
        """Return the values of masks: a column per prompt if all are read, otherwise one.

        Args:
            masks: Keep-masks.

        Returns:
            The values.
        """
        blocks = torch.from_numpy(np.ascontiguousarray(masks)).split(_BLOCK)
        if self.n_drawn is None:
            return np.concatenate([self.meter.per_prompt(block) for block in blocks])
        assert self._reference is not None, "prepare() comes first"
        departures = []
        for block in blocks:
            values, prompts = self.meter.sample(block, self.n_drawn, self.rng)
            departures.append((values - self._reference[prompts]).mean(axis=1))
        return np.concatenate(departures)[:, None] + self._reference.mean()

    def noise(self, masks: Bool[np.ndarray, "masks units"]) -> float:
        """Return the standard deviation of one value, from reading masks twice.

        Args:
            masks: The masks.

        Returns:
            Zero where all prompts are read, because these values repeat.
        """
        if self.reads_prompts or not len(masks):
            return 0.0
        twice = self.read(np.repeat(masks, 2, axis=0))[:, 0]
        return float(np.sqrt(np.square(twice[0::2] - twice[1::2]).mean() / 2))
