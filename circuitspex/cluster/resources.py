"""What to ask of a cluster for each job: time, processors, memory, a partition, and how to end."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from circuitspex._shared import did_you_mean
from circuitspex.errors import ClusterError

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Resources:
    """What each job gets; the keys of a resources file, one by one."""

    minutes: int = 60
    """Time limit. A run that needs longer is requeued and goes on from its store."""
    gpus: int = 0
    """GPUs of the node."""
    cpus: int = 1
    """Processors."""
    memory_gb: float | int | None = None
    """Main memory; None is the partition's own default."""
    partition: str | None = None
    """Where to queue; None is the cluster's own default."""
    account: str | None = None
    """Whom the time is charged to."""
    qos: str | None = None
    """Quality of service, where the cluster has several."""
    constraint: str | None = None
    """Features that a node must have, such as ``a100``."""
    runs_per_job: int = 1
    """Runs that one job does one after the other."""
    max_parallel: int = 256
    """Jobs of the array that may run at the same time."""
    grace_seconds: int = 120
    """How long before the time limit a job is told to end; longer than one batch takes."""
    max_requeues: int = 20
    """How often a job may reach its time limit before it gives up."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the run: ``module load``, ``source …/activate``."""
    sbatch: Mapping[str, Scalar] = field(default_factory=dict)
    """Any other option of sbatch, by its long name; ``true`` for one without a value."""

    def __post_init__(self) -> None:
        """Refuse numbers that no cluster can give.

        Raises:
            ClusterError: If a number is too small.
        """
        least = {"minutes": 1, "cpus": 1, "runs_per_job": 1, "max_parallel": 1}
        for name, bound in {**least, "gpus": 0, "grace_seconds": 0, "max_requeues": 0}.items():
            if getattr(self, name) < bound:
                raise ClusterError(
                    f"{name} must be at least {bound}; got {getattr(self, name)}. "
                    "Correct it in the resources."
                )
        if self.memory_gb is not None and not 0.1 <= self.memory_gb < float("inf"):
            raise ClusterError(
                f"memory_gb must be at least 0.1; got {self.memory_gb}. Leave it out to take the "
                "partition's default."
            )

    @classmethod
    def from_mapping(cls, given: object) -> "Resources":
        """Read what a YAML file of resources holds.

        Args:
            given: The file's contents: names of this class's fields and their values.

        Returns:
            The resources; what the file leaves out has its default.

        Raises:
            ClusterError: If a name is unknown or a value has the wrong type.
        """
        if not isinstance(given, Mapping):
            raise ClusterError(
                f"resources must be a mapping such as 'minutes: 60'; got {type(given).__name__}. "
                f"Its keys are {', '.join(_KINDS)}."
            )
        for name, value in given.items():
            if name not in _KINDS:
                hint = did_you_mean(str(name), _KINDS) or f"; there are {', '.join(_KINDS)}."
                raise ClusterError(
                    f"there is no resource {name!r}{hint} Other options of sbatch go under sbatch."
                )
            _check_kind(name, value)
        setup = tuple(given.get("setup") or ())
        return cls(**{**given, "setup": setup, "sbatch": dict(given.get("sbatch") or {})})


_KINDS: dict[str, str] = {
    **dict.fromkeys((f.name for f in fields(Resources)), "a word"),
    **dict.fromkeys(("minutes", "gpus", "cpus", "runs_per_job", "max_parallel"), "a whole number"),
    **dict.fromkeys(("grace_seconds", "max_requeues"), "a whole number"),
    "memory_gb": "a number",
    "setup": "a list of lines",
    "sbatch": "options and their values",
}
"""What each field takes from a file, in words."""


def _check_kind(name: str, value: Any) -> None:
    """Refuse a value that its field cannot take."""  # noqa: DOC501
    kind = _KINDS[name]
    if value is None and kind != "a whole number":  # left empty, as in "partition:"
        return
    number = isinstance(value, int) and not isinstance(value, bool)
    fits = {
        "a whole number": number,
        "a number": number or isinstance(value, float),
        "a word": isinstance(value, str),
        "a list of lines": isinstance(value, list) and all(isinstance(x, str) for x in value),
        "options and their values": isinstance(value, Mapping)
        and all(isinstance(k, str) and isinstance(v, Scalar) for k, v in value.items()),
    }
    if not fits[kind]:
        raise ClusterError(f"resource {name} must be {kind}; got {value!r}. Correct the file.")
