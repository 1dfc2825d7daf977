"""From measured effects to a verdict; :mod:`circuitspex.verification` words the rules."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from circuitspex.algebra import Verdict

MIN_SHARE = 0.1
"""Share of the estimate that must be left in the measurement for it to be verified."""
CLAIMED_SHARE = 0.5
"""Share of the estimate that must be ruled out for it to be refuted."""

_CONFIDENCE = 0.95


class Mean(NamedTuple):
    """A mean over contexts and prompts; without an error where there is only one of both."""

    mean: float
    std_error: float | None
    freedom: float
    rounding: float

    @property
    def p_value(self) -> float | None:
        """Two-sided, of a mean of zero; None without an error."""
        from scipy.stats import t  # slow to import

        if self.std_error is None:
            return None
        if self.std_error == 0:
            return float(self.mean == 0)
        return float(2 * t.sf(abs(self.mean) / self.std_error, self.freedom))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval by the t distribution; None without an error."""
        from scipy.stats import t

        if self.std_error is None:
            return None
        half = float(t.ppf((1 + _CONFIDENCE) / 2, self.freedom)) * self.std_error
        return self.mean - half, self.mean + half


def mean_over_draws(effects: Float[Tensor, "contexts prompts"], rounding: float) -> Mean:
    """Return the mean with its error under both draws, those of contexts and of prompts.

    The variance of a mean over a crossed layout is that of the row means plus that of the column
    means minus that of what neither explains, which is in both.
    """
    n_contexts, n_prompts = effects.shape
    mean = effects.mean()
    by_context, by_prompt = effects.mean(1), effects.mean(0)
    parts = []  # variance of the grand mean, degrees of freedom, sign
    if n_contexts > 1:
        parts.append((float(by_context.var()) / n_contexts, n_contexts - 1, 1))
    if n_prompts > 1:
        parts.append((float(by_prompt.var()) / n_prompts, n_prompts - 1, 1))
    if len(parts) == 2:
        rest = effects - by_context[:, None] - by_prompt + mean
        freedom = (n_contexts - 1) * (n_prompts - 1)
        parts.append((float(rest.square().sum()) / freedom / effects.numel(), freedom, -1))
    if not parts:
        return Mean(float(mean), None, 0.0, rounding)
    largest = max(part for part, _, sign in parts if sign > 0)
    variance = max(largest, sum(sign * part for part, _, sign in parts))
    spread = sum(part**2 / freedom for part, freedom, _ in parts)
    freedom = variance**2 / spread if spread > 0 else 1.0
    return Mean(float(mean), variance**0.5, freedom, rounding)


def discoveries(p_values: Sequence[float | None]) -> list[bool]:
    """Return which p-values pass; all where there are none because means are exact."""
    from scipy.stats import false_discovery_control  # slow to import

    known = [p for p in p_values if p is not None]
    if len(known) < len(p_values):
        return [True] * len(p_values)
    return (false_discovery_control(known) <= 1 - _CONFIDENCE).tolist()


def judge(estimate: float, mean: Mean, significant: bool) -> Verdict:
    """Return the verdict by the rules of :mod:`circuitspex.verification`."""
    sign = 1.0 if estimate > 0 else -1.0
    along = sign * mean.mean
    if significant and along >= max(MIN_SHARE * abs(estimate), mean.rounding):
        return "verified"
    ends = mean.interval or (mean.mean, mean.mean)
    ruled_out = max(sign * end for end in ends) < CLAIMED_SHARE * abs(estimate)
    return "refuted" if ruled_out or mean.interval is None else "undecided"
