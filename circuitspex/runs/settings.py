"""What to run, as one inert value: on the command line, in YAML or JSON, and in a sweep.

Settings are checked when they are made, compare by value, and have one :attr:`Settings.hash`: the
same hash is the same run, in the same folder, under the same id on Weights & Biases.
"""

import hashlib
import json
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from circuitspex import decoders, tasks
from circuitspex._shared import did_you_mean, read_mapping, write_result
from circuitspex.errors import SettingsError
from circuitspex.tasks import metrics
from circuitspex.units import REPLACEMENTS

MAX_EXACT_UNITS = 20

VERIFIED_SHARE = 0.25
"""Evaluations for measuring interactions one by one, as a share of the budget and on top of it."""

DTYPES = ("float32", "bfloat16", "float16", "float64")

_Name = Annotated[str, MinLen(1), MaxLen(1000)]
# Counts stay within what every store and file format holds.
_Positive = Annotated[int, Gt(0), Lt(2**53)]
_Natural = Annotated[int, Ge(0), Lt(2**53)]


@dataclass(frozen=True)
class Settings:
    """What to run; the command line's options, one by one.

    Raises:
        SettingsError: If a value is of another type, out of range, or names nothing there is.

    Example:
        >>> settings = Settings(task="ioi", budget=2000)
        >>> settings == Settings.from_mapping({"task": "ioi", "budget": 2000})
        True
        >>> Settings.from_mapping({"keep-rte": 0.9})
        Traceback (most recent call last):
        circuitspex.errors.SettingsError: there is no setting 'keep_rte'; did you mean 'keep_rate'?
    """

    model: _Name = "toy-induction"
    """Name, folder or ``.gguf`` file, as :func:`circuitspex.models.load` takes it."""
    task: _Name = "induction"
    """Name of a built-in task."""
    units: _Name = "heads"
    """Choice of units, as :func:`circuitspex.units.parse_units` takes it."""
    decoder: _Name = "auto"
    """Name of a decoder; ``auto`` is exact where the budget affords all masks, else hybrid."""
    budget: _Positive = 4096
    """Evaluations to spend at most: masks × prompts each."""
    keep_rate: Annotated[float, Gt(0), Lt(1)] | None = None
    """Share of units that a mask keeps; None is 0.5 for exact decoding and 0.95 otherwise."""
    max_order: _Positive | None = None
    """Largest set of units that is looked for; None is the decoder's own default."""
    prompts_per_mask: _Positive | Literal["all", "auto"] = "auto"
    """Prompts each mask is evaluated on; ``auto`` is all for exact decoding and 1 otherwise."""
    tolerance: Annotated[float, Ge(0), Le(1)] | None = None
    """Rise of the held-out R² that is too small to spend more budget for; None spends all."""
    n_prompts: _Positive = 16
    """Prompts to discover on; as many others are held out to verify on."""
    ablation: _Name = "zero"
    """What replaces an ablated activation: ``zero``, ``mean`` or ``resample``."""
    metric: _Name = "logit_difference"
    """What is measured, by name."""
    verify: _Natural = 20
    """How many interactions to measure one by one, the largest of two to four units; at most a
    quarter of the budget is spent on it, on top."""
    circuit_size: _Positive | None = None
    """Units in the circuit; None is half of all."""
    seed: _Natural = 0
    """Seed of prompts and masks."""
    dtype: _Name = "float32"
    """Type of the weights."""

    def __post_init__(self) -> None:
        """Check types, ranges and names, so that no run begins that cannot end."""
        checked = _checked(dict(vars(self)))
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # 1 is 1.0 where a number may have decimals
        for setting, known in _choices().items():
            _check_choice(setting, getattr(self, setting), known)

    @property
    def hash(self) -> str:
        """BLAKE2b of the settings, 16 hexadecimal digits; the same on every machine.

        What is None is left out, so that one more optional setting renames no run there is.
        """
        decided = {name: value for name, value in self.as_dict().items() if value is not None}
        text = json.dumps(decided, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Return name to value, as plain JSON."""
        return asdict(self)

    @property
    def run_name(self) -> str:
        """Name of the run's folder, such as ``gpt2-ioi-0f3a…``; it can hold no path."""
        model = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePath(self.model).stem)[:40]
        return f"{model}-{self.task}-{self.hash}"

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "Settings":
        """Make settings from names and values, as a file or a sweep gives them.

        Args:
            mapping: Name to value; ``keep-rate`` is ``keep_rate``. What is left out has its
                default.

        Returns:
            The settings.

        Raises:
            SettingsError: If a name is unknown or given twice, or a value is not what it must be.
        """
        given: dict[str, Any] = {}
        defaults = {field.name: field.default for field in fields(cls)}
        for key, value in mapping.items():
            name = setting_name(key)
            if name in given:
                raise SettingsError(f"the setting {name!r} is given twice; give it once.")
            given[name] = value
        return cls(**_checked(defaults | given))

    @classmethod
    def load(cls, path: str | Path) -> "Settings":
        """Read settings that :meth:`save` or a person wrote.

        Args:
            path: A YAML file, or a ``.json`` file.

        Returns:
            The settings.

        Raises:
            SettingsError: If the file cannot be read or holds something else; it names the file.
        """
        mapping = read_mapping(path)
        try:
            return cls.from_mapping(mapping)
        except SettingsError as error:
            raise SettingsError(f"in {path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write all settings as YAML, or as JSON where the name ends so, whole or not at all.

        Args:
            path: The file to write or replace.
        """
        if Path(path).suffix.lower() == ".json":
            text = json.dumps(self.as_dict(), indent=2) + "\n"
        else:
            text = yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)
        write_result(path, text.encode())

    def resolve(self, n_units: int, n_prompts: int) -> "Plan":
        """Decide what was left open, now that the numbers of units and prompts are known.

        Args:
            n_units: How many units there are.
            n_prompts: How many prompts the task has.

        Returns:
            The decisions.
        """
        affordable = n_units <= MAX_EXACT_UNITS and 2**n_units * n_prompts <= self.budget
        automatic = "exact" if affordable else "hybrid"
        decoder = automatic if self.decoder == "auto" else self.decoder
        exact = decoder == "exact"
        drawn = self.prompts_per_mask
        return Plan(
            decoder=decoder,
            keep_rate=(0.5 if exact else 0.95) if self.keep_rate is None else self.keep_rate,
            prompts_per_mask=("all" if exact else 1) if drawn == "auto" else drawn,
            # After exact decoding every mask is known already.
            verify_budget=None if exact else int(VERIFIED_SHARE * self.budget),
            circuit_size=self.circuit_size or max(1, n_units // 2),
            n_units=n_units,
            n_prompts=n_prompts,
        )


@dataclass(frozen=True)
class Plan:
    """What was decided where the settings left it open."""

    decoder: str
    """Name of the decoder."""
    keep_rate: float
    """Share of units that a mask keeps."""
    prompts_per_mask: int | Literal["all"]
    """Prompts that each mask is evaluated on."""
    verify_budget: int | None
    """Evaluations to spend at most on measuring interactions one by one; None for no limit."""
    circuit_size: int
    """Units in the circuit."""
    n_units: int
    """How many units there are."""
    n_prompts: int
    """How many prompts the task has."""


def setting_names() -> tuple[str, ...]:
    """Return the names of all settings, in order."""
    return tuple(field.name for field in fields(Settings))


def setting_name(key: str) -> str:
    """Return the setting that a key names.

    Args:
        key: A name, in which ``-`` and ``_`` are the same.

    Returns:
        The name of a field of :class:`Settings`.

    Raises:
        SettingsError: If there is no such setting; it says which is nearest.
    """
    name, known = key.replace("-", "_"), setting_names()
    if name not in known:
        hint = did_you_mean(name, known) or f". There are {', '.join(known)}."
        raise SettingsError(f"there is no setting {_short(name)}{hint}")
    return name


def parse_value(name: str, text: str) -> Any:
    """Read a setting's value from the text of an option, such as W&B's agent writes it.

    Args:
        name: The setting.
        text: What was given: ``0.9``, ``1e-3``, ``None`` or ``all``.

    Returns:
        A number where it can be one, None for ``None`` and ``null``, else the text. Settings
        that are words by nature stay words.
    """
    if _hints()[name] is _Name:
        return text
    if text.lower() in ("none", "null"):
        return None
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _choices() -> dict[str, tuple[str, ...]]:
    return {
        "task": tuple(tasks.TASKS),
        "decoder": ("auto", *decoders.DECODERS),
        "metric": tuple(metrics.METRICS),
        "ablation": tuple(REPLACEMENTS),
        "dtype": DTYPES,
    }


def _check_choice(setting: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        hint = did_you_mean(value, known) or "."
        raise SettingsError(
            f"there is no {setting} {_short(value)}{hint} Choose one of {', '.join(known)}."
        )


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Settings, include_extras=True)


@cache
def _validator() -> Callable[[dict[str, Any]], Any]:
    # Importing the package does not import pydantic.
    from pydantic import ConfigDict, create_model

    strict = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
    hints: dict[str, Any] = {name: (hint, ...) for name, hint in _hints().items()}
    return create_model("Settings", __config__=strict, **hints).model_validate


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    from pydantic import ValidationError

    try:
        return _validator()(values).model_dump()
    except ValidationError as error:
        names = dict.fromkeys(str(found["loc"][0]) for found in error.errors(include_input=False))
        wrong = [f"{name} must be {_wanted(name)}; got {_short(values[name])}" for name in names]
        raise SettingsError("; ".join(wrong) + ".") from error


def _wanted(name: str) -> str:
    hint = _hints()[name]
    options = (
        get_args(hint) if get_origin(hint) is UnionType or get_origin(hint) is Union else [hint]
    )
    return " or ".join(_words(option) for option in options)


def _words(option: Any) -> str:
    if option is NoneType:
        return "null"
    if get_origin(option) is Literal:
        return " or ".join(repr(word) for word in get_args(option))
    kind, *bounds = get_args(option)
    name = {int: "a whole number", float: "a number", str: "a word"}[kind]
    return f"{name} {' and '.join(_bound(bound) for bound in bounds)}"


def _bound(bound: Any) -> str:
    match bound:
        case Gt(gt=least):
            return f"above {least}"
        case Ge(ge=least):
            return f"of at least {least}"
        case Lt(lt=most):
            return f"below {most}"
        case Le(le=most):
            return f"of at most {most}"
        case MinLen(min_length=least):
            return f"of at least {least}"
    return f"at most {bound.max_length} characters"


def _short(value: object) -> str:
    try:
        return _SHORT.repr(value)[:200]
    except ValueError:  # a whole number of thousands of digits has no text
        return f"a {type(value).__name__} too long to show"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 2  # aliases make a short file a deep and wide value
