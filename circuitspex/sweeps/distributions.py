"""The distributions of a sweep's parameters, as Weights & Biases defines them.

Each is a percentile function, so a draw is one uniform number put through it. ``log_uniform`` and
its kin take exponents of e as bounds, ``…_values`` the bounds themselves. A ``q_…`` distribution
rounds to multiples of ``q``. Source: the schema and the sampler of the package ``sweeps`` 0.3.0,
which W&B's local controller runs; its values are in ``tests/data/wandb_sweeps.json``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import stats

from circuitspex._shared import did_you_mean
from circuitspex.errors import SweepError

Number = int | float

BOUNDED = {
    "uniform",
    "q_uniform",
    "int_uniform",
    "log_uniform",
    "q_log_uniform",
    "inv_log_uniform",
    "log_uniform_values",
    "q_log_uniform_values",
    "inv_log_uniform_values",
}
_LIMITS = {"min", "max"}
_SHAPES = {"normal": {"mu", "sigma"}, "log_normal": {"mu", "sigma"}, "beta": {"a", "b"}}
KEYS: dict[str, set[str]] = {
    "constant": {"value"},
    "categorical": {"values"},
    "categorical_w_probabilities": {"values", "probabilities"},
    **{name: _LIMITS | ({"q"} if name.startswith("q_") else set()) for name in BOUNDED},
    **_SHAPES,
    **{f"q_{name}": keys | {"q"} for name, keys in _SHAPES.items()},
}
"""Every distribution and the keys it takes besides ``distribution``."""


def distribution_of(name: str, parameter: Mapping[str, Any]) -> str:
    """Return the distribution of a parameter: the one it names, or the one its keys imply.

    Args:
        name: The parameter, for messages.
        parameter: Its entry in the sweep, such as ``{"min": 1, "max": 8}``.

    Returns:
        A key of :data:`KEYS`.

    Raises:
        SweepError: If the distribution is unknown, or keys are missing, unknown or of a wrong type.
    """
    kind = parameter.get("distribution", _implied(parameter))
    if kind is None:
        raise SweepError(
            f"parameter {name!r} needs value, values, or min and max, or a distribution with its "
            f"own keys; it has {', '.join(map(str, parameter)) or 'nothing'}."
        )
    if not isinstance(kind, str) or kind not in KEYS:
        hint = did_you_mean(kind, KEYS) if isinstance(kind, str) else ""
        raise SweepError(
            f"parameter {name!r} has no known distribution{hint or ':'} W&B has "
            f"{', '.join(sorted(KEYS))}."
        )
    odd = [str(key) for key in parameter if key not in KEYS[kind] | {"distribution"}]
    if odd:
        raise SweepError(
            f"parameter {name!r}: {kind} does not take {', '.join(odd)}; it takes "
            f"{', '.join(sorted(KEYS[kind]))}."
        )
    _check_values(name, kind, parameter)
    return kind


def percentile(name: str, parameter: Mapping[str, Any], x: float) -> Any:
    """Return the value of a parameter at a percentile.

    Args:
        name: The parameter, for messages.
        parameter: Its entry in the sweep.
        x: The percentile, from 0 to below 1.

    Returns:
        One of the values, or a number.
    """
    kind = distribution_of(name, parameter)
    if kind == "constant":
        return parameter["value"]
    if kind == "categorical":
        return parameter["values"][int(x * len(parameter["values"]))]
    if kind == "categorical_w_probabilities":
        edges = np.cumsum(parameter["probabilities"])
        return parameter["values"][min(int((x >= edges).sum()), len(edges) - 1)]
    drawn = float(_CURVES[kind.removeprefix("q_")](parameter, x))
    if kind.startswith("q_"):
        q = parameter.get("q", 1.0)
        drawn = float(np.round(drawn / q) * q)
    return as_sent(drawn)


def as_sent(value: Any) -> Any:
    """Return a value as W&B's server passes it on: a number without decimals is whole.

    Example:
        >>> as_sent(32.0), as_sent(0.5)
        (32, 0.5)
    """
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _implied(parameter: Mapping[str, Any]) -> str | None:
    if "value" in parameter:
        return "constant"
    if "values" in parameter:
        return "categorical_w_probabilities" if "probabilities" in parameter else "categorical"
    if {"min", "max"} <= parameter.keys():
        whole = all(_is_whole(parameter[key]) for key in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    return None


def _check_values(name: str, kind: str, parameter: Mapping[str, Any]) -> None:
    wanted = KEYS[kind] & {"value", "values", "probabilities", "min", "max"}
    missing = sorted(wanted - parameter.keys())
    if missing:
        raise SweepError(f"parameter {name!r}: {kind} needs {', '.join(missing)}.")
    for key in ("values", "probabilities"):
        if key in parameter and not (isinstance(parameter[key], list) and parameter[key]):
            raise SweepError(f"parameter {name!r}: {key} must be a list that is not empty.")
    for key in KEYS[kind] - {"value", "values", "probabilities"}:
        if key in parameter and not _is_number(parameter[key]):
            raise SweepError(f"parameter {name!r}: {key} must be a finite number.")
    if kind == "categorical_w_probabilities":
        _check_probabilities(name, parameter["values"], parameter["probabilities"])
    if kind in BOUNDED:
        _check_limits(name, kind, parameter["min"], parameter["max"])
    if any(parameter.get(key, 1) <= 0 for key in {"q", "sigma", "a", "b"} & KEYS[kind]):
        raise SweepError(f"parameter {name!r}: q, sigma, a and b must be above 0.")


def _check_probabilities(name: str, values: list[Any], shares: list[Any]) -> None:
    fine = len(shares) == len(values) and all(_is_number(p) and p >= 0 for p in shares)
    if not fine or abs(sum(shares) - 1) > 1e-8:
        raise SweepError(
            f"parameter {name!r} needs one probability for each of its {len(values)} values, "
            "and they must add up to 1."
        )


def _check_limits(name: str, kind: str, low: Number, high: Number) -> None:
    if low >= high:
        raise SweepError(f"parameter {name!r}: min {low} is not below max {high}.")
    if kind == "int_uniform" and not (_is_whole(low) and _is_whole(high)):
        raise SweepError(f"parameter {name!r}: int_uniform needs whole numbers as min and max.")
    if kind.endswith("_values") and low <= 0:
        raise SweepError(f"parameter {name!r}: {kind} needs a min above 0.")
    if "log_uniform" in kind and not kind.endswith("_values") and max(-low, high) > 700:
        raise SweepError(
            f"parameter {name!r}: {kind} takes exponents of e as min and max, within ±700; "
            f"{kind}_values takes the limits themselves."
        )


def _is_number(value: object) -> bool:
    # Numbers of more than 2^53 are no settings, and beyond 1e308 no floats.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _uniform(low: Number, high: Number, x: float) -> float:
    return float(stats.uniform.ppf(x, low, high - low))


def _log_uniform(low: Number, high: Number, x: float) -> float:
    return float(np.exp(_uniform(low, high, x)))


_CURVES: dict[str, Callable[[Mapping[str, Any], float], Any]] = {
    "uniform": lambda p, x: _uniform(p["min"], p["max"], x),
    # scipy's percentile of x = 0 is one below the smallest
    "int_uniform": lambda p, x: max(p["min"], stats.randint.ppf(x, p["min"], p["max"] + 1)),
    "log_uniform": lambda p, x: _log_uniform(p["min"], p["max"], x),
    "log_uniform_values": lambda p, x: _log_uniform(np.log(p["min"]), np.log(p["max"]), x),
    "inv_log_uniform": lambda p, x: 1 / _log_uniform(p["min"], p["max"], 1 - x),
    "inv_log_uniform_values": lambda p, x: (
        1 / _log_uniform(-np.log(p["max"]), -np.log(p["min"]), 1 - x)
    ),
    "normal": lambda p, x: stats.norm.ppf(x, p.get("mu", 0), p.get("sigma", 1)),
    "log_normal": lambda p, x: stats.lognorm.ppf(
        x, s=p.get("sigma", 1), scale=np.exp(p.get("mu", 0))
    ),
    "beta": lambda p, x: stats.beta.ppf(x, p.get("a", 1), p.get("b", 1)),
}
