"""Findings in, a record on Weights & Biases out, or nothing."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from circuitspex.errors import TrackingWarning
from circuitspex.tracking.base import Tracker
from circuitspex.tracking.null import NullTracker

__all__ = ["NullTracker", "Tracker", "wandb_tracker"]


def wandb_tracker(
    project: str = "circuitspex",
    *,
    mode: Literal["online", "offline", "disabled"] = "online",
    entity: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    directory: str | Path | None = None,
    name: str | None = None,
    run_id: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Tracker:
    """Make a tracker that records runs on Weights & Biases.

    Nothing it does can fail a run: the first failure, of whatever kind, is one
    :class:`~circuitspex.errors.TrackingWarning`, and then it is silent.

    Args:
        project: W&B project.
        mode: ``"online"``; ``"offline"`` keeps the run on disk for ``wandb sync``; ``"disabled"``
            records nothing and does not even import wandb.
        entity: W&B user or team.
        group: Name that runs of one sweep share.
        tags: Tags of the run.
        directory: Where W&B keeps its files; its own choice when None.
        name: Name of the run; W&B makes one up when None.
        run_id: Id of the run, such as the hash of its settings; the hash of its spec when None.
        config: Added to the run's config beside the spec, such as the settings, so that W&B can
            draw results against them.

    Returns:
        The tracker; one that records nothing if disabled, or if wandb cannot be imported.
    """
    if mode == "disabled":
        return NullTracker()
    try:
        from circuitspex.tracking._wandb import WandbTracker
    except Exception as error:  # noqa: BLE001 - a broken wandb may raise anything on import
        warnings.warn(
            f"wandb cannot be imported ({type(error).__name__}: {error}), so nothing is logged "
            "there. The result itself is not affected. Install it with: pip install wandb",
            TrackingWarning,
            stacklevel=2,
        )
        return NullTracker()
    folder = None if directory is None else str(directory)
    return WandbTracker(
        mode,
        run_id=run_id,
        config=config,
        project=project,
        entity=entity,
        group=group,
        tags=tuple(tags),
        dir=folder,
        name=name,
    )
