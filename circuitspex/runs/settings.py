"""What to run, as one inert value: on the command line, in YAML or JSON, and in a sweep.

Settings are checked when they are made, decoder and options included, and compare by value.

Three hashes tell runs apart. :attr:`Settings.run_id` is of everything asked for, by name: it names
the folder and the run on Weights & Biases, so that two runs that differ only in what is reported
(``verify``, ``circuit_size``) have folders of their own. The spec of a result has the other two, of
contents: :attr:`~circuitspex.Spec.evaluation_hash` of what decides an evaluation, which the store
goes by, so that evaluations stay usable whatever else is changed; and
:attr:`~circuitspex.Spec.run_hash` of what decides the interactions, which is the same from Python
and the command line. Each setting says which of them it changes (:data:`DECIDES`).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Lt, MaxLen, MinLen

from circuitspex import decoders, tasks
from circuitspex._shared import (
    RECIPE,
    Count,
    Declared,
    declared,
    did_you_mean,
    fit_all,
    fit_fields,
    read_mapping,
    short,
    write_result,
)
from circuitspex.errors import DecoderError, SettingsError
from circuitspex.tasks import metrics
from circuitspex.units import REPLACEMENTS

VERIFIED_SHARE = 0.25
"""Evaluations for measuring interactions one by one, as a share of the budget and on top of it."""

DTYPES = ("float32", "bfloat16", "float16", "float64")

_Name = Annotated[str, MinLen(1), MaxLen(1000)]
# Counts stay within what every store and file format holds.
_Natural = Annotated[int, Ge(0), Lt(2**53)]

DECIDES = {
    "evaluations": "What is evaluated",
    "result": "How it is decoded",
    "report": "What is reported of it",
}
"""What a setting decides, and the heading it stands under. What decides the evaluations decides the
result too."""


_EVALUATIONS, _RESULT, _REPORT = ({"decides": what} for what in DECIDES)


@dataclass(frozen=True)
class Settings:
    """What to run; the command line's options, one by one.

    Options of decoders are settings by their own names: ``max_candidates: 200`` in a file or a
    sweep, ``--max-candidates 200`` on the command line, and here
    ``options={"max_candidates": 200}``.

    Raises:
        SettingsError: If a value is of another type, out of range, or names nothing there is; or if
            the decoder has no such option or cannot use its value.

    Example:
        >>> settings = Settings(task="ioi", budget=2000)
        >>> settings == Settings.from_mapping({"task": "ioi", "budget": 2000})
        True
        >>> Settings.from_mapping({"decoder": "lasso", "tolerance": 0.01}).options
        {'tolerance': 0.01}
        >>> Settings.from_mapping({"keep-rte": 0.9})
        Traceback (most recent call last):
        circuitspex.errors.SettingsError: there is no setting 'keep_rte'; did you mean 'keep_rate'?
    """

    model: _Name = field(default="toy-induction", metadata=_EVALUATIONS)
    """toy-induction, toy-redundant, a hub name, a folder, a .gguf file."""
    task: _Name = field(default="induction", metadata=_EVALUATIONS)
    """ioi or induction."""
    units: _Name = field(default="heads", metadata=_EVALUATIONS)
    """heads, neurons, blocks64, attention, mlps; join with +, restrict layers as in heads@0-3,7."""
    decoder: _Name = field(default="auto", metadata=_RESULT)
    """Name of a decoder; auto: exact where all masks fit the budget, else hybrid, or what has the
    options that are given."""
    budget: Count = field(default=4096, metadata=_RESULT)
    """Evaluations to spend: masks × prompts each."""
    keep_rate: float | None = field(default=None, metadata=_RESULT)
    """Share of units that a mask keeps; None: the decoder's own."""
    max_order: int | None = field(default=None, metadata=_RESULT)
    """Largest set of units that is looked for; None: the decoder's own."""
    prompts_per_mask: int | Literal["all", "auto"] = field(default="auto", metadata=_RESULT)
    """all, or how many prompts each mask sees; auto: as few as the decoder can use."""
    options: dict[str, Any] = field(default_factory=dict, metadata=_RESULT)
    """Further options of the decoder, by name."""
    n_prompts: Count = field(default=16, metadata=_EVALUATIONS)
    """Prompts to discover on; as many others are held out."""
    ablation: _Name = field(default="zero", metadata=_EVALUATIONS)
    """zero, mean or resample."""
    metric: _Name = field(default="logit_difference", metadata=_EVALUATIONS)
    """logit_difference, answer_log_probability, probability_difference or negative_kl."""
    seed: _Natural = field(default=0, metadata=_EVALUATIONS)
    """Seed of prompts and masks."""
    dtype: _Name = field(default="float32", metadata=_EVALUATIONS)
    """Type of the weights: float32, bfloat16, float16 or float64."""
    verify: _Natural = field(default=20, metadata=_REPORT)
    """Interactions to measure one by one, within a quarter of the budget on top; 0: none."""
    circuit_size: Count | None = field(default=None, metadata=_REPORT)
    """Units in the circuit; None: half of all."""

    def __post_init__(self) -> None:
        """Check types, ranges, names and the decoder, so that no run begins that cannot end.

        Raises:
            SettingsError: If a value is not what it must be.
        """
        _refuse(fit_fields(self))
        for setting, known in _choices().items():
            _check_choice(setting, getattr(self, setting), known)
        try:
            decoder = decoders.choose(self.decoder, **self._asked_of_decoder()).decoder
        except DecoderError as error:
            raise SettingsError(str(error)) from error
        given = {name: value for name, value in self.options.items() if value is not None}
        plain = {name: _plain(getattr(decoder, name)) for name in given}
        object.__setattr__(self, "options", plain)

    def __hash__(self) -> int:
        """Return a hash that equal settings share."""
        return hash(self.run_id)

    def _asked_of_decoder(self) -> dict[str, Any]:
        """Return every option that the decoder is given, None where it is to decide.

        Raises:
            SettingsError: If an option is there twice.
        """
        twice = self.options.keys() & declared(Settings).keys()
        if twice:
            raise SettingsError(f"options hold {', '.join(sorted(twice))}, which are settings.")
        return {
            "keep_rate": self.keep_rate,
            "max_order": self.max_order,
            "prompts_per_mask": self.prompts_per_mask,
            **self.options,
        }

    @property
    def run_id(self) -> str:
        """BLAKE2b of everything asked for, 16 hexadecimal digits; the same on every machine.

        What is None is left out, so that one more optional setting renames no run there is. The
        recipe is in it: where code gives another result, it is another run.
        """
        asked = {name: value for name, value in self.as_dict().items() if value is not None}
        text = json.dumps(
            {"recipe": RECIPE, **asked}, sort_keys=True, separators=(",", ":"), allow_nan=False
        )
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Return name to value, options of the decoder among them, as plain JSON."""
        named = asdict(self)
        return named | named.pop("options")

    @property
    def run_name(self) -> str:
        """Name of the run's folder, such as ``gpt2-ioi-0f3a…``; it can hold no path."""
        model = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePath(self.model).stem)[:40]
        return f"{model}-{self.task}-{self.run_id}"

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "Settings":
        """Make settings from names and values, as a file or a sweep gives them.

        Args:
            mapping: Name to value, options of decoders among them; ``keep-rate`` is ``keep_rate``.
                What is left out has its default.

        Returns:
            The settings.

        Raises:
            SettingsError: If a name is unknown or given twice, or a value is not what it must be.
        """
        given: dict[str, Any] = {}
        for key, value in mapping.items():
            name = setting_name(key)
            if name in given:
                raise SettingsError(f"the setting {name!r} is given twice; give it once.")
            given[name] = value
        own = declared(cls)
        options = {name: given.pop(name) for name in list(given) if name not in own}
        fitted, wrong = fit_all(cls, given)
        _refuse(wrong)
        return cls(**fitted, options=options)

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
            text = yaml.safe_dump(self.as_dict(), sort_keys=False)  # escapes what YAML would fold
        write_result(path, text.encode())

    def resolve(self, n_units: int, n_prompts: int) -> "Plan":
        """Decide what was left open, now that the numbers of units and prompts are known.

        Args:
            n_units: How many units there are.
            n_prompts: How many prompts the task has.

        Returns:
            The decisions.
        """
        sizes = {"n_units": n_units, "n_prompts": n_prompts}
        asked = self._asked_of_decoder()
        choice = decoders.choose(self.decoder, budget=self.budget, **sizes, **asked)
        decoder = choice.decoder
        return Plan(
            decoder=decoder.name,
            decoder_reason=choice.reason,
            keep_rate=decoder.keep_rate,
            prompts_per_mask=decoder.n_drawn(n_units, n_prompts, self.budget),
            # After exact decoding every mask is known already.
            verify_budget=None if decoder.name == "exact" else int(VERIFIED_SHARE * self.budget),
            circuit_size=self.circuit_size or max(1, n_units // 2),
            **sizes,
        )


@dataclass(frozen=True)
class Plan:
    """What was decided where the settings left it open."""

    decoder: str
    """Name of the decoder."""
    decoder_reason: str
    """Why it is this one."""
    keep_rate: float
    """Share of units that a mask keeps."""
    prompts_per_mask: int
    """Prompts that each mask is evaluated on."""
    verify_budget: int | None
    """Evaluations to spend at most on measuring interactions one by one; None for no limit."""
    circuit_size: int
    """Units in the circuit."""
    n_units: int
    """How many units there are."""
    n_prompts: int
    """How many prompts the task has."""


def all_settings() -> dict[str, Declared]:
    """Return the declaration of every setting by name; options of decoders come last."""
    own = {name: field for name, field in declared(Settings).items() if name != "options"}
    options = {name: next(iter(by.values())) for name, by in decoders.all_options().items()}
    return {**own, **{name: field for name, field in options.items() if name not in own}}


def setting_name(key: str) -> str:
    """Return the setting that a key names.

    Args:
        key: A name, in which ``-`` and ``_`` are the same.

    Returns:
        The name of a field of :class:`Settings`, or of an option of a decoder.

    Raises:
        SettingsError: If there is no such setting; it says which is nearest.
    """
    name, known = key.replace("-", "_"), all_settings()
    if name not in known:
        hint = did_you_mean(name, known) or f". There are {', '.join(known)}."
        raise SettingsError(f"there is no setting {short(name)}{hint}")
    return name


def parse_value(name: str, text: str) -> Any:
    """Read a setting's value from the text of an option, such as W&B's agent writes it.

    Args:
        name: The setting.
        text: What was given: ``0.9``, ``1e-3``, ``None`` or ``all``.

    Returns:
        A number where it can be one, None for ``None`` and ``null``, a tuple where several values
        are wanted, else the text. Settings that are words by nature stay words.
    """
    return all_settings()[name].parse(text)


def _refuse(wrong: list[str]) -> None:
    if wrong:
        raise SettingsError("; ".join(wrong) + ".")


def _choices() -> dict[str, tuple[str, ...]]:
    return {
        "task": tuple(tasks.TASKS),
        "decoder": (decoders.AUTO, *decoders.DECODERS),
        "metric": tuple(metrics.METRICS),
        "ablation": tuple(REPLACEMENTS),
        "dtype": DTYPES,
    }


def _check_choice(setting: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        hint = did_you_mean(value, known) or "."
        raise SettingsError(
            f"there is no {setting} {short(value)}{hint} Choose one of {', '.join(known)}."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
