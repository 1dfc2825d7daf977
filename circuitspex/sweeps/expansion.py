"""From a sweep file to the settings of every run, in W&B's order."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from circuitspex.errors import SettingsError, SweepError
from circuitspex.runs import Settings
from circuitspex.sweeps.distributions import as_sent, distribution_of, percentile
from circuitspex.sweeps.file import SweepFile

MAX_RUNS = 100_000
"""More runs than this are refused; a product of lists gets there by a slip."""


def expand(sweep: SweepFile, *, n_runs: int | None = None, seed: int = 0) -> list[Settings]:
    """Say what every run of a sweep is, all of it checked.

    Args:
        sweep: The sweep.
        n_runs: How many runs to draw; random sweeps need it, or a ``run_cap``.
        seed: Seed of the draws.

    Returns:
        Settings of every run, in order; some may be alike.

    Raises:
        SweepError: If a random sweep has no number of runs, a grid has a parameter without a list
            of values, there are too many runs, or a run's settings are not what they must be.
    """
    if sweep.method == "random":
        count = n_runs or sweep.run_cap
        if count is None:
            raise SweepError("a random sweep has no end: give --n-runs, or run_cap in the file.")
        chosen = _draw(sweep, count, seed)
    elif n_runs is not None:
        raise SweepError("--n-runs is for random sweeps; a grid has its own number (run_cap caps).")
    else:
        chosen = _grid(sweep)
    runs: list[Settings] = []
    distinct: set[str] = set()
    for i, values in enumerate(chosen):
        _refuse_too_many(i + 1)
        settings = _make(i, sweep.fixed | values)
        if _is_full(sweep, distinct, settings):
            break
        distinct.add(settings.run_id)
        runs.append(settings)
    return runs


def _refuse_too_many(n_runs: int) -> None:
    if n_runs > MAX_RUNS:
        raise SweepError(f"the sweep has more than {MAX_RUNS:,} runs; cap it with run_cap.")


def _is_full(sweep: SweepFile, runs: set[str], another: Settings) -> bool:
    # As on W&B, the cap counts runs that differ.
    return len(runs) == sweep.run_cap and another.run_id not in runs


def _grid(sweep: SweepFile) -> Iterator[dict[str, Any]]:
    lists = [_values(name, entry) for name, entry in sweep.parameters.items()]
    if sweep.run_cap is None:
        _refuse_too_many(math.prod(map(len, lists)))  # before any is made, which takes its time
    for combination in itertools.product(*lists):
        yield dict(zip(sweep.parameters, combination, strict=True))


def _values(name: str, entry: dict[str, Any]) -> list[Any]:
    kind = distribution_of(name, entry)
    if kind == "constant":
        return [entry["value"]]
    if kind == "categorical":
        return entry["values"]
    low, high, step = entry.get("min", 0), entry.get("max", 0), entry.get("q", 1.0)
    if kind not in ("int_uniform", "q_uniform"):
        raise SweepError(
            f"parameter {name!r} is {kind}, of which a grid has no list of values. Give values, "
            "whole min and max, or q_uniform; or use method: random."
        )
    if (high - low) / step > MAX_RUNS:
        raise SweepError(f"parameter {name!r} alone makes more than {MAX_RUNS:,} runs.")
    if kind == "int_uniform":
        return list(range(low, high + 1))
    return [as_sent(value) for value in np.arange(low, high, step).tolist()]


def _draw(sweep: SweepFile, count: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {
            name: percentile(name, entry, rng.random()) for name, entry in sweep.parameters.items()
        }


def _make(index: int, values: dict[str, Any]) -> Settings:
    try:
        return Settings.from_mapping(values)
    except SettingsError as error:
        raise SweepError(f"run {index} of the sweep: {error}") from error
