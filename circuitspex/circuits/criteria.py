"""What a circuit must show: faithfulness, completeness, minimality, and the MIB curves.

Everything here asks the set function itself, never the surrogate that a circuit was chosen with.
N is the set of all units, C the circuit, v the set function; a set stands for the mask that keeps
just its units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitspex._shared import Saved, SetFunction, check_masks
from circuitspex.algebra import all_ablated, all_kept, keep_only
from circuitspex.circuits.circuit import Circuit
from circuitspex.errors import ResultError

MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Fractions of units kept on the curves of the Mechanistic Interpretability Benchmark."""

_NO_DIFFERENCE = 1e-9


@dataclass(frozen=True)
class CircuitReport(Saved):
    """What a circuit does in the real model, beside what was predicted."""

    document: ClassVar[str] = "report"

    units: tuple[str, ...]
    """Labels of the kept units."""
    n_units: int
    """How many units there are, kept or not."""
    intact: float
    """v(N), in the units of the metric."""
    ablated: float
    """v(∅), everything ablated."""
    circuit: float
    """v(C), everything but the circuit ablated."""
    faithfulness: float
    """(v(C) − v(∅)) / (v(N) − v(∅)): 0 is as bad as nothing, 1 as good as the intact model."""
    std_error: float | None
    """Of the faithfulness, over the draw of prompts; None with fewer than two prompts."""
    predicted_value: float | None
    """What the interactions said v(C) would be."""
    predicted_faithfulness: float | None
    """What they said the faithfulness would be."""
    held_out: bool
    """Whether the prompts are others than those the circuit was found on."""
    n_prompts: int | None
    """How many prompts; None for a plain function of masks."""
    n_evaluations: int
    """What verifying took."""
    label: str = ""
    """Name of the task or the run."""
    notes: str = ""
    """Anything a reader should know."""

    def __str__(self) -> str:
        """Return the report as a few lines of text."""
        error = "" if self.std_error is None else f" ± {self.std_error:.3f} (standard error)"
        predicted = self.predicted_faithfulness
        lines = [
            f"circuit of {len(self.units)} of {self.n_units} units"
            + (f", {self.label}" if self.label else ""),
            f"  faithfulness {self.faithfulness:.3f}{error}"
            + ("" if predicted is None else f", predicted {predicted:.3f}"),
            f"  value: circuit {self.circuit:.3f}, intact {self.intact:.3f}, "
            f"all ablated {self.ablated:.3f}",
            f"  {'held-out' if self.held_out else 'the same'} prompts"
            + ("" if self.n_prompts is None else f" ({self.n_prompts})")
            + f", {self.n_evaluations} evaluations",
            f"  units: {', '.join(self.units) or 'none'}",
        ]
        return "\n".join([*lines, f"  {self.notes}"] if self.notes else lines)


class Incompleteness(NamedTuple):
    """How differently circuit and model react to the same ablations."""

    maximum: float
    """Largest gap found: a lower bound of the largest there is."""
    mean: float
    """Mean gap over the subsets tried."""
    subset: tuple[int, ...]
    """Unit indices whose ablation shows the largest gap."""


class FaithfulnessCurve(NamedTuple):
    """Faithfulness of the best units of a ranking, as more and more are kept."""

    fractions: tuple[float, ...]
    """Fractions of all units."""
    n_kept: tuple[int, ...]
    """How many units each is, rounded down."""
    faithfulness: tuple[float, ...]
    """At each fraction."""

    @property
    def cpr(self) -> float:
        """Area under the curve; higher is better, and it can exceed 1."""
        return _area(self.faithfulness, self.fractions)

    @property
    def cmd(self) -> float:
        """Area between the curve and 1; 0 is best."""
        return _area([abs(1 - value) for value in self.faithfulness], self.fractions)


def faithfulness(set_function: SetFunction, circuit_mask: Bool[Tensor, "1 units"]) -> float:
    r"""Measure how much of the intact model's value a circuit restores.

    .. math:: \frac{v(C) - v(\emptyset)}{v(N) - v(\emptyset)}

    Args:
        set_function: What to measure on.
        circuit_mask: Keep-mask of the circuit.

    Returns:
        0 where the circuit does as badly as everything ablated, 1 where it does as well as the
        intact model.

    Example:
        >>> class Count:
        ...     n_units = 4
        ...     def __call__(self, masks):
        ...         return masks.double().sum(1)
        >>> faithfulness(Count(), torch.tensor([[True, False, False, False]]))
        0.25
    """
    return float(_faithfulness(_values(set_function, circuit_mask).mean(1))[0])


def verify_circuit(
    set_function: SetFunction, circuit: Circuit, *, held_out: bool, label: str = "", notes: str = ""
) -> CircuitReport:
    r"""Measure a circuit on a set function, with an error where it is a mean over prompts.

    The faithfulness R is a ratio of two means over prompts, of a_j = v_j(C) − v_j(∅) and
    b_j = v_j(N) − v_j(∅), so by the delta method

    .. math:: \mathrm{se}(R)^2 = \frac{\sum_j (a_j - R b_j)^2}{P (P - 1) \bar b^2}.

    Args:
        set_function: What to measure on; per prompt if it offers ``per_prompt``.
        circuit: The circuit.
        held_out: Whether its prompts are others than those the circuit was found on.
        label: Name of the task or the run, for the report.
        notes: Anything a reader of the report should know.

    Returns:
        The report.
    """
    values = _values(set_function, _mask(set_function, circuit))
    circuit_value, ablated, intact = values.mean(1).tolist()
    ratio = float(_faithfulness(values.mean(1))[0])
    n_prompts = values.shape[1]
    std_error = None
    if n_prompts > 1:
        gain, range_ = values[0] - values[1], values[2] - values[1]
        variance = (gain - ratio * range_).square().sum() / (n_prompts * (n_prompts - 1))
        std_error = float(variance.sqrt() / range_.mean().abs())
    return CircuitReport(
        units=circuit.units,
        n_units=circuit.n_units,
        intact=intact,
        ablated=ablated,
        circuit=circuit_value,
        faithfulness=ratio,
        std_error=std_error,
        predicted_value=circuit.predicted_value,
        predicted_faithfulness=circuit.predicted_faithfulness,
        held_out=held_out,
        n_prompts=n_prompts if hasattr(set_function, "per_prompt") else None,
        n_evaluations=values.numel(),
        label=label,
        notes=notes,
    )


def incompleteness(
    set_function: SetFunction, circuit: Circuit, n_subsets: int, rng: np.random.Generator
) -> Incompleteness:
    r"""Compare circuit and model under the same further ablations.

    .. math:: \max_{K \subseteq C} |v(C \setminus K) - v(N \setminus K)|

    over K = ∅ and random K, in which each unit of the circuit is with probability ½. A complete
    circuit reacts as the model does; one that lacks the model's backup units does not.

    Args:
        set_function: What to measure on.
        circuit: The circuit.
        n_subsets: How many random K to draw; each costs two masks.
        rng: Where the draws come from.

    Returns:
        The largest gap found, the mean gap, and the K of the largest.

    References:
        Wang et al. (2022), "Interpretability in the Wild", section 4.
    """
    kept = _mask(set_function, circuit)
    removed = torch.from_numpy(rng.random((n_subsets, circuit.n_units)) < 0.5) & kept
    removed = torch.cat([torch.zeros_like(kept), removed])
    values = set_function(torch.cat([kept & ~removed, ~removed])).double()
    gaps = (values[: len(removed)] - values[len(removed) :]).abs()
    worst = int(gaps.argmax())
    subset = tuple(removed[worst].nonzero()[:, 0].tolist())
    return Incompleteness(float(gaps[worst]), float(gaps.mean()), subset)


def minimality(
    set_function: SetFunction,
    circuit: Circuit,
    n_subsets: int = 0,
    rng: np.random.Generator | None = None,
) -> Float[Tensor, " kept"]:
    r"""Ask of every unit of a circuit whether it is needed there.

    .. math:: \max_K |v(C \setminus (K \cup \{i\})) - v(C \setminus K)|, \quad
              K \subseteq C \setminus \{i\}

    over K = ∅ and, where asked for, random K. The true maximum can be larger: a unit with a
    backup inside the circuit shows its worth only where K holds the backup.

    Args:
        set_function: What to measure on.
        circuit: The circuit.
        n_subsets: How many random K to try beside ∅, the same for every unit (without that unit).
        rng: Where they come from; needed if there are any.

    Returns:
        One score per unit of the circuit, in the order of ``circuit.indices``, in float64.

    Raises:
        ResultError: If random subsets are asked for without a generator.
    """
    if n_subsets and rng is None:
        raise ResultError(
            f"{n_subsets} random subsets need a generator; pass rng=numpy.random.default_rng(0)."
        )
    kept = _mask(set_function, circuit)
    removed = torch.zeros_like(kept)
    if rng is not None:
        drawn = torch.from_numpy(rng.random((n_subsets, circuit.n_units)) < 0.5) & kept
        removed = torch.cat([removed, drawn])
    own = keep_only([[unit] for unit in circuit.indices], circuit.n_units)
    others = ~removed[None] | own[:, None]
    with_unit = kept & others
    without_unit = with_unit & ~own[:, None]
    masks = torch.cat([with_unit, without_unit]).reshape(-1, circuit.n_units)
    values = set_function(masks).double().reshape(2, len(own), len(removed))
    return (values[0] - values[1]).abs().amax(1)


def faithfulness_curve(
    set_function: SetFunction, ranking: Sequence[int], fractions: Sequence[float] = MIB_FRACTIONS
) -> FaithfulnessCurve:
    """Measure the faithfulness of the first units of a ranking at growing fractions.

    Args:
        set_function: What to measure on.
        ranking: All unit indices, the most important first.
        fractions: Fractions of units to keep, rising.

    Returns:
        The curve, whose areas are ``cpr`` and ``cmd``.

    Raises:
        ResultError: If the ranking does not name every unit once, or the fractions do not rise
            within 0..1.
    """
    if sorted(ranking) != list(range(set_function.n_units)):
        raise ResultError(
            f"a ranking must name each of the {set_function.n_units} units once; got "
            f"{len(ranking)} entries, {len(set(ranking))} of them distinct. Append the unranked."
        )
    if list(fractions) != sorted(fractions) or not all(0 <= f <= 1 for f in fractions):
        raise ResultError(f"fractions must rise within 0..1; got {tuple(fractions)}.")
    n_kept = tuple(int(fraction * len(ranking)) for fraction in fractions)
    masks = keep_only([ranking[:n] for n in n_kept], set_function.n_units)
    measured = _faithfulness(_values(set_function, masks).mean(1))
    return FaithfulnessCurve(tuple(fractions), n_kept, tuple(measured.tolist()))


def cpr(set_function: SetFunction, ranking: Sequence[int]) -> float:
    """Return the circuit performance ratio: the area under the faithfulness curve.

    Args:
        set_function: What to measure on.
        ranking: All unit indices, the most helpful first (signed scores).

    Returns:
        Higher is better; it can exceed 1.

    References:
        Mueller et al. (2025), "MIB: A Mechanistic Interpretability Benchmark". Fractions and
        trapezoids are theirs; they count edges or nodes, this counts units.
    """
    return faithfulness_curve(set_function, ranking).cpr


def cmd(set_function: SetFunction, ranking: Sequence[int]) -> float:
    """Return the circuit–model distance: the area between the faithfulness curve and 1.

    Args:
        set_function: What to measure on.
        ranking: All unit indices, the most influential first (absolute scores).

    Returns:
        0 is best.

    References:
        Mueller et al. (2025), as for :func:`cpr`.
    """
    return faithfulness_curve(set_function, ranking).cmd


def _area(heights: Sequence[float], places: Sequence[float]) -> float:
    height, place = (torch.tensor(x, dtype=torch.float64) for x in (heights, places))
    return float(torch.trapezoid(height, place))


def _mask(set_function: SetFunction, circuit: Circuit) -> Tensor:
    if circuit.n_units != set_function.n_units:
        raise ResultError(
            f"the circuit is over {circuit.n_units} units, the set function over "
            f"{set_function.n_units}. Measure it on the units it was found on."
        )
    return circuit.mask()


def _values(set_function: SetFunction, masks: Tensor) -> Float[Tensor, "masks prompts"]:
    """Return values of the masks, then of ∅ and N, per prompt where there are prompts."""
    n_units = set_function.n_units
    rows = torch.cat([check_masks(masks, n_units), all_ablated(n_units), all_kept(n_units)])
    per_prompt = getattr(set_function, "per_prompt", None)
    return (set_function(rows)[:, None] if per_prompt is None else per_prompt(rows)).double()


def _faithfulness(values: Float[Tensor, " masks"]) -> Float[Tensor, " circuits"]:
    # of all but the last two values, which are those of ∅ and N
    ablated, intact = values[-2], values[-1]
    difference = intact - ablated
    if difference.abs() <= _NO_DIFFERENCE * torch.maximum(intact.abs(), ablated.abs()):
        raise ResultError(
            f"faithfulness is undefined: the value is {float(intact):.6g} with everything kept "
            f"and {float(ablated):.6g} with everything ablated. Choose a task the intact model "
            "can do, or units that matter to it."
        )
    return (values[:-2] - ablated) / difference
