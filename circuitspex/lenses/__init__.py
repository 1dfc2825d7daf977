"""What is no component of a model in, a set function with labelled units out.

What a lens gives can be decoded, verified and searched for circuits like a model's components, and
results carry its labels.
"""

from collections.abc import Callable

from circuitspex.lenses.function import FunctionLens, function
from circuitspex.lenses.lens import Lens

__all__ = ["LENSES", "FunctionLens", "Lens", "function"]

LENSES: dict[str, Callable[..., Lens]] = {"function": function}
"""What makes a lens, by its name."""
