"""The sweep file: the YAML of Weights & Biases, read, checked, and nothing in it ignored.

What only W&B's server can do (``bayes``, ``early_terminate``, schedulers, launch jobs) is refused
with what to do instead.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuitspex._shared import did_you_mean, parse_mapping
from circuitspex.errors import SettingsError, SweepError
from circuitspex.runs import parse_value, setting_name
from circuitspex.sweeps.distributions import distribution_of

_ONLINE = "Start it with wandb sweep, and wandb agent on machines with internet"
_REFUSED = {
    "early_terminate": "a run logs its result once, at its end, so there is nothing to stop early; "
    "take the key out",
    "controller": "there is no server to choose runs; take the key out",
    "scheduler": f"only W&B's server schedules. {_ONLINE}, or take the key out",
    "metrics": "several metrics need method: custom. Give one metric",
    "job": "launch jobs need W&B's server; give a command instead",
    "image_uri": "launch jobs need W&B's server; give a command instead",
}
_TEXTS = ("name", "project", "entity", "description", "program", "kind", "apiVersion")
_KNOWN = {*_TEXTS, "method", "parameters", "metric", "command", "run_cap"}
_SCALARS = re.compile(
    r"(fit/(r2_heldout(_std_error)?|n_terms|n_evaluations)|energy/order_\d+"
    r"|circuit/(n_units|predicted_faithfulness)"
    r"|eval/(faithfulness(_std_error)?|intact|ablated|circuit)"
    r"|interactions/n_(verified|refuted|undecided|not_checked|evaluations)"
    r"|perf/(discover_s|evaluated))"
)
_OPTIONS = {"device", "batch-size"}
_HERE = {"wandb", "wandb-project", "wandb-entity", "wandb-group"}


@dataclass(frozen=True)
class SweepFile:
    """What a sweep file says, checked."""

    method: str
    """``grid`` or ``random``."""
    parameters: dict[str, dict[str, Any]]
    """Setting to its entry, such as ``{"values": [1, 2]}``; sorted by name."""
    name: str | None = None
    """Name of the sweep."""
    project: str | None = None
    """W&B project."""
    entity: str | None = None
    """W&B user or team."""
    metric: str = "fit/r2_heldout"
    """The number by which runs are compared."""
    maximize: bool = True
    """Whether more of it is better."""
    run_cap: int | None = None
    """Most runs there may be."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """Settings that the command gives to every run."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of the command that are no settings: ``device``, ``batch-size``."""


def read_sweep(path: str | Path) -> SweepFile:
    """Read a sweep file.

    Args:
        path: YAML, or ``.json``.

    Returns:
        What it says.

    Raises:
        SweepError: If it cannot be read, or asks for what is unknown or cannot be had offline.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise SweepError(f"{path} cannot be read ({error}). Check the path.") from error
    try:
        return parse_sweep(parse_mapping(raw, str(path), is_json=path.suffix.lower() == ".json"))
    except (SettingsError, SweepError) as error:
        message = str(error)
        where = "" if message.startswith(str(path)) else f"in {path}: "
        raise SweepError(f"{where}{message}") from error


def parse_sweep(document: Mapping[str, Any]) -> SweepFile:
    """Check what a sweep file holds.

    Args:
        document: Its keys and values.

    Returns:
        What it says.

    Raises:
        SweepError: If it asks for what is unknown or cannot be had offline.
    """
    for key in document:
        if key in _REFUSED:
            raise SweepError(f"{key} cannot be honoured offline: {_REFUSED[key]}.")
        if key not in _KNOWN:
            hint = did_you_mean(key, _KNOWN | _REFUSED.keys()) or ""
            raise SweepError(f"W&B's sweeps have no key {key[:60]!r}{hint or '.'}")
    for key in _TEXTS:
        if key in document and not isinstance(document[key], str):
            raise SweepError(f"{key} must be a text.")
    metric, maximize = _read_metric(document.get("metric"))
    fixed, options = _read_command(document.get("command"), document.get("program"))
    parameters = _read_parameters(document.get("parameters"))
    doubled = sorted(fixed.keys() & parameters.keys())
    if doubled:
        raise SweepError(f"the command fixes {', '.join(doubled)}, and parameters vary it too.")
    return SweepFile(
        method=_read_method(document.get("method")),
        parameters=parameters,
        name=document.get("name"),
        project=document.get("project"),
        entity=document.get("entity"),
        metric=metric,
        maximize=maximize,
        run_cap=_read_cap(document.get("run_cap")),
        fixed=fixed,
        options=options,
    )


def _read_method(method: object) -> str:
    if method == "bayes":
        raise SweepError(
            "method bayes chooses each run by the results of those before, which only W&B's "
            f"server does. {_ONLINE}; or use method: random or grid offline."
        )
    if method not in ("grid", "random"):
        hint = did_you_mean(method, ["grid", "random"]) if isinstance(method, str) else ""
        raise SweepError(f"method must be grid or random{hint or '.'}")
    return str(method)


def _read_cap(cap: object) -> int | None:
    if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
        raise SweepError("run_cap must be a whole number above 0.")
    return cap


def _read_metric(metric: object) -> tuple[str, bool]:
    if metric is None:
        return "fit/r2_heldout", True
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise SweepError("metric must have a name, and a goal: minimize or maximize.")
    odd = [str(key) for key in metric if key not in ("name", "goal")]
    if odd:
        raise SweepError(
            f"metric: {', '.join(odd)} cannot be honoured offline, where all runs are planned "
            "before the first ends; give name and goal only."
        )
    if not _SCALARS.fullmatch(metric["name"]):
        raise SweepError(
            f"no run logs {metric['name'][:60]!r}. Use fit/r2_heldout, eval/faithfulness, "
            "interactions/n_verified, or another number in a run's summary.json."
        )
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise SweepError("the metric's goal must be minimize or maximize.")
    return metric["name"], metric.get("goal") == "maximize"


def _read_parameters(parameters: object) -> dict[str, dict[str, Any]]:
    if not isinstance(parameters, dict) or not parameters:
        raise SweepError("parameters must name at least one setting, such as seed.")
    read: dict[str, dict[str, Any]] = {}
    for key, entry in parameters.items():
        if not isinstance(key, str) or not isinstance(entry, dict):
            raise SweepError("each parameter must be a name with value, values or min and max.")
        name = setting_name(key)
        if name in read:
            raise SweepError(f"the parameter {name!r} is there twice.")
        if "parameters" in entry:
            raise SweepError(f"parameter {name!r} is nested, but no setting has settings inside.")
        distribution_of(name, entry)
        read[name] = entry
    return dict(sorted(read.items()))


def _read_command(command: object, program: object) -> tuple[dict[str, Any], dict[str, str]]:
    if program is not None and "circuitspex" not in re.split(r"[./\\]", str(program)):
        raise SweepError(f"program is {str(program)[:60]!r}; only circuitspex is run offline.")
    if command is None:
        return {}, {}
    if not isinstance(command, list) or not all(isinstance(w, str | int | float) for w in command):
        raise SweepError("command must be a list of words.")
    words = [str(word) for word in command]
    if "discover" not in words or not set(words[: words.index("discover")]) <= _LAUNCHERS:
        raise SweepError(
            "command must run circuitspex discover, as in [circuitspex, discover, ${args}]; "
            "nothing else is run offline."
        )
    rest = words[words.index("discover") + 1 :]
    if "${args_json_file}" in rest and rest[rest.index("${args_json_file}") - 1] == "--config":
        at = rest.index("${args_json_file}")
        rest[at - 1 : at + 1] = ["${args}"]
    if not _ARGS & set(rest):
        raise SweepError("command must hold ${args}, or no parameter reaches a run.")
    return _read_options([word for word in rest if word not in _ARGS])


_LAUNCHERS = {
    *("${env}", "/usr/bin/env", "${interpreter}", "python", "python3", "-m"),
    *("circuitspex", "circuitspex.cli", "${program}"),
}
_ARGS = {"${args}", "${args_no_equals}", "${args_no_hyphens}", "${args_no_boolean_flags}"}


def _read_options(words: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    fixed: dict[str, Any] = {}
    options: dict[str, str] = {}
    queue = iter(words)
    for word in queue:
        key, sign, value = word.partition("=")
        if not sign and word.startswith("--"):
            value = next(queue, "")
        flag = key.removeprefix("--").replace("_", "-")
        if "${" in word or "${" in value or not (sign or word.startswith("--")):
            raise SweepError(f"the command's {word[:60]!r} is nothing that can be run offline.")
        if flag in _OPTIONS:
            options[flag] = value
        elif flag not in _HERE:  # where runs are logged is for sweep run to say
            if flag in ("out", "config"):
                raise SweepError(f"the command's --{flag} cannot be honoured: a sweep has folders.")
            name = setting_name(flag)
            fixed[name] = parse_value(name, value)
    return fixed, options
