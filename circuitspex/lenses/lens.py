"""What a lens offers: a set function whose units have names."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from circuitspex._shared import SetFunction


@runtime_checkable
class Lens(SetFunction, Protocol):
    """A set function that says what its units are."""

    @property
    def units(self) -> Sequence[str]:
        """One label per unit, each different, in mask order."""
        ...
