"""Named interactions in, measured effects and verdicts out."""

from circuitspex.verification import measurement
from circuitspex.verification.record import Verification, describe_place
from circuitspex.verification.verification import verify_interactions

__all__ = [
    "Verification",
    "describe_place",
    "measurement",
    "verify_interactions",
]
