"""A run in, its rows done by Ray's workers out; a sweep in, SLURM jobs out.

Nothing heavy is imported before it is used.
"""

from circuitspex.cluster.ray import RayWorkers, ray_workers
from circuitspex.cluster.resources import Resources
from circuitspex.cluster.slurm import (
    Engine,
    Submission,
    read_submissions,
    sbatch_script,
    submit_array,
)
from circuitspex.cluster.states import JobState, job_states

__all__ = [
    "Engine",
    "JobState",
    "RayWorkers",
    "Resources",
    "Submission",
    "job_states",
    "ray_workers",
    "read_submissions",
    "sbatch_script",
    "submit_array",
]
