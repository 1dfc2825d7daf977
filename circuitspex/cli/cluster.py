"""What ``circuitspex sweep run`` does with ``--cluster``: submit, or print what it would submit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from circuitspex.cli.console import out
from circuitspex.errors import ClusterError

if TYPE_CHECKING:
    from circuitspex.cluster import Resources
    from circuitspex.sweeps import WandbMode


class Cluster(StrEnum):
    """Who runs what is submitted."""

    SLURM = "slurm"


@dataclass(frozen=True)
class Request:
    """The options that are for clusters only."""

    resources: Path | None
    partition: str | None
    minutes: int | None
    print_sbatch: bool

    def refuse(self) -> None:
        """Refuse these options where everything runs here.

        Raises:
            ClusterError: If one was given.
        """
        given = [name for name, value in vars(self).items() if value not in (None, False)]
        if given:
            options = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ClusterError(f"{options} needs --cluster slurm; without it runs start here.")

    def read(self) -> "Resources":
        """Return what each job gets: the file's values under those of the options."""
        from circuitspex._shared import read_mapping
        from circuitspex.cluster import Resources

        asked = Resources.from_mapping(read_mapping(self.resources) if self.resources else {})
        options = {"partition": self.partition, "minutes": self.minutes}
        return replace(asked, **{key: x for key, x in options.items() if x is not None})


def submit(
    folder: Path,
    request: Request,
    only: Sequence[int] | None,
    *,
    jobs: int,
    retry_failed: bool,
    wandb: "WandbMode",
) -> None:
    """Submit a sweep's runs, or print the script.

    Args:
        folder: The sweep's folder.
        request: What was asked of the cluster.
        only: Which runs; all when None.
        jobs: Runs at a time, which on a cluster are the resources' to say.
        retry_failed: Whether to run again what failed before.
        wandb: Where runs are logged.

    Raises:
        ClusterError: If ``--jobs`` was given.
    """
    from circuitspex.sweeps import submit_sweep, sweep_script

    if jobs != 1:
        raise ClusterError(
            "--jobs is for runs here; on a cluster, set max_parallel in --resources."
        )
    resources = request.read()
    if request.print_sbatch:
        typer.echo(sweep_script(folder, resources, only=only, retry_failed=retry_failed))
        return
    submission = submit_sweep(folder, resources, only=only, retry_failed=retry_failed, wandb=wandb)
    if submission is None:
        out.print("Nothing to submit: every run is done, running, failed or in the queue.")
        return
    n_runs = sum(len(runs) for runs in submission.items_of.values())
    array = next(iter(submission.items_of)).partition("_")[0]
    out.print(
        f"{n_runs} runs submitted as {len(submission.items_of)} jobs, array {array}. "
        f"See how far they are: circuitspex sweep status {folder}",
        soft_wrap=True,
    )
