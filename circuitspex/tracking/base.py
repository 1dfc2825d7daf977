"""What a tracker offers to a run, and which numbers a result is summed up in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa

from circuitspex._shared import Spec
from circuitspex.algebra import Interactions
from circuitspex.circuits import Circuit, CircuitReport
from circuitspex.verification import Verification


@runtime_checkable
class Tracker(Protocol):
    """Records runs somewhere else. It never raises: a run does not fail because of its log.

    A run is ``start``, any number of ``log``, ``finish``. Leaving the ``with`` block ends a run
    that was started and not finished, and marks it as failed.
    """

    def start(self, spec: Spec) -> None:
        """Begin a run of this spec; the same spec continues the same run."""
        ...

    def log(self, scalars: Mapping[str, float]) -> None:
        """Record numbers of a run in progress, such as ``perf/masks_per_s``."""
        ...

    def finish(
        self,
        *,
        spec: Spec,
        interactions: Interactions,
        circuit: Circuit | None = None,
        verification: CircuitReport | None = None,
        verified_interactions: Verification | None = None,
        page: Path | None = None,
        evaluations: pa.Table | None = None,
    ) -> None:
        """Record the result and end the run.

        Args:
            spec: What the result is a result of.
            interactions: What was decoded.
            circuit: The units chosen from it.
            verification: What the circuit does in the real model.
            verified_interactions: What was measured of the largest interactions.
            page: The HTML page of the result.
            evaluations: All evaluations, as a store's ``table()`` gives them.
        """
        ...

    def __enter__(self) -> "Tracker":
        """Return the tracker itself; the end of the block ends its run."""
        ...

    def __exit__(self, *exception: object) -> None:
        """End a run that is still on, as failed."""
        ...


def result_scalars(
    interactions: Interactions,
    circuit: Circuit | None,
    verification: CircuitReport | None,
    verified_interactions: Verification | None = None,
) -> dict[str, float]:
    """Sum a result up in numbers that can be compared across runs.

    Args:
        interactions: What was decoded.
        circuit: The units chosen from it.
        verification: What the circuit does in the real model.
        verified_interactions: What was measured of the largest interactions.

    Returns:
        Name to number; what was not measured is left out.
    """
    scalars: dict[str, float | None] = {
        "fit/r2_heldout": interactions.held_out_r2,
        "fit/r2_heldout_std_error": interactions.diagnostics.get("held_out_r2_std_error"),
        "fit/n_terms": len(interactions.support),
        "fit/n_evaluations": interactions.n_evaluations,
    }
    for order, energy in interactions.energy_by_order().items():
        scalars[f"energy/order_{order}"] = energy
    if circuit is not None:
        scalars["circuit/n_units"] = len(circuit.indices)
        scalars["circuit/predicted_faithfulness"] = circuit.predicted_faithfulness
    if verification is not None:
        scalars["eval/faithfulness"] = verification.faithfulness
        scalars["eval/faithfulness_std_error"] = verification.std_error
        scalars["eval/intact"] = verification.intact
        scalars["eval/ablated"] = verification.ablated
        scalars["eval/circuit"] = verification.circuit
    if verified_interactions is not None:
        for verdict, n in verified_interactions.counts.items():
            scalars[f"interactions/n_{verdict.replace(' ', '_')}"] = n
        scalars["interactions/n_evaluations"] = verified_interactions.n_evaluations
    return {name: float(value) for name, value in scalars.items() if value is not None}
