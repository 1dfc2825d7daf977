"""Circuits: the units to keep, chosen by an integer program over decoded interactions."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from circuitspex._shared import Saved
from circuitspex.algebra import keep_only
from circuitspex.errors import ResultError


@dataclass(frozen=True)
class Circuit(Saved):
    """Units that are kept while all others are ablated, and what was predicted for them.

    Example:
        >>> circuit = Circuit(indices=(2, 0), units=("L1H0", "L0H0"), n_units=3)
        >>> circuit.units
        ('L0H0', 'L1H0')
        >>> circuit.mask()
        tensor([[ True, False,  True]])
    """

    document: ClassVar[str] = "circuit"

    indices: tuple[int, ...]
    """Kept units, sorted."""
    units: tuple[str, ...]
    """Their labels, in the same order."""
    n_units: int
    """How many units a mask covers, kept or not."""
    predicted_value: float | None = None
    """Value of the circuit according to the interactions it was chosen from."""
    predicted_faithfulness: float | None = None
    """Its faithfulness according to them; None where they see no difference to make up."""
    predicted_by: str = ""
    """Decoder of those interactions."""
    optimal: bool | None = None
    """Whether no other circuit of this size has a higher predicted value; None if not known."""
    gap: float | None = None
    """Relative distance to the proven bound where the search ran out of time."""

    def __post_init__(self) -> None:
        """Sort the units by index, labels along with them."""
        _check(self)
        pairs = sorted(zip(map(int, self.indices), self.units, strict=True))
        object.__setattr__(self, "indices", tuple(index for index, _ in pairs))
        object.__setattr__(self, "units", tuple(label for _, label in pairs))

    def mask(self) -> Bool[Tensor, "1 units"]:
        """Return the keep-mask of the circuit, shape ``(1, n_units)``."""
        return keep_only([self.indices], self.n_units)


def _check(circuit: Circuit) -> None:
    if len(circuit.indices) != len(circuit.units):
        raise ResultError(
            f"a circuit needs one label per index; got {len(circuit.units)} labels for "
            f"{len(circuit.indices)} indices."
        )
    inside = all(0 <= index < circuit.n_units for index in circuit.indices)
    if not inside or len(set(circuit.indices)) < len(circuit.indices):
        raise ResultError(
            f"a circuit must name distinct units in 0..{circuit.n_units - 1}; "
            f"got {circuit.indices}."
        )
