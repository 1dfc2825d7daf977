"""What a result is a result of: everything needed to make it again, as an inert value.

A spec has four parts. *Evaluation* decides the value of a mask on a prompt, and its hash says
whose evaluations a store holds. *Discovery* decides which masks are evaluated and how they are
decoded; the hash of a result is of both, and of :data:`RECIPE`. *Versions* and what was *asked* for
are recorded and compared, but are no part of a hash: an upgrade should not throw evaluations away,
and what is reported of a result afterwards does not change it.
"""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from circuitspex._shared.files import write_result
from circuitspex.errors import ResultError

ABSENT = "(absent)"

RECIPE = 1
"""Version of how a result is made of its evaluations. Raise it by one with every change of code
after which the same spec and seed give another result, and say so in the changelog."""


@dataclass(frozen=True)
class Spec:
    """Everything that decides a result. Values are copied, and must be plain JSON.

    Example:
        >>> spec = Spec(evaluation={"model": "gpt2", "n_units": 144, "n_prompts": 16})
        >>> other = Spec(evaluation={"model": "gpt2", "n_units": 12, "n_prompts": 16})
        >>> spec.differences(other)
        {'evaluation.n_units': (144, 12)}
    """

    evaluation: Mapping[str, Any]
    """What decides the value of a mask on a prompt: model, task, metric, ablation, units."""
    discovery: Mapping[str, Any] = field(default_factory=dict)
    """What decides which masks are evaluated and how: decoder, budget, keep rate, seed."""
    versions: Mapping[str, Any] = field(default_factory=dict)
    """Versions of Python and the packages that produced the result."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What a person asked for and what was decided for them, such as a command's options."""
    recipe: int = RECIPE
    """Version of how the result was made."""

    def __post_init__(self) -> None:
        """Copy the parts, so that what the caller does to theirs later changes nothing."""
        for part in _PARTS:
            object.__setattr__(self, part, _plain_json(part, getattr(self, part)))

    def __hash__(self) -> int:
        """Return a hash of what decides the result; the rest is left to equality."""
        return hash(self.run_hash)

    @property
    def evaluation_hash(self) -> str:
        """BLAKE2b of the evaluation part, 32 hexadecimal digits; the same on every machine."""
        return _hash(self.evaluation)

    @property
    def run_hash(self) -> str:
        """BLAKE2b of recipe, evaluation and discovery, 32 hexadecimal digits."""
        parts = {"evaluation": self.evaluation, "discovery": self.discovery}
        return _hash({"recipe": self.recipe, **parts})

    def as_dict(self) -> dict[str, Any]:
        """Return a copy of the four parts as plain dictionaries, and the recipe."""
        return asdict(self)

    def differences(
        self,
        other: "Spec",
        parts: tuple[str, ...] = ("evaluation", "discovery", "recipe", "versions"),
    ) -> dict[str, tuple[Any, Any]]:
        """Find the keys in which two specs differ.

        Args:
            other: The spec to compare with.
            parts: Which parts to compare.

        Returns:
            Dotted key to this spec's and the other's value, :data:`ABSENT` where one has none.
        """
        mine, theirs = (
            dict(_leaves({part: getattr(spec, part) for part in parts})) for spec in (self, other)
        )
        pairs = {key: (mine.get(key, ABSENT), theirs.get(key, ABSENT)) for key in mine | theirs}
        return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}

    def save(self, path: str | Path) -> None:
        """Write the spec as JSON, whole or not at all.

        Args:
            path: The file to write or replace.
        """
        write_result(path, json.dumps(self._document(), indent=2, sort_keys=True).encode())

    @classmethod
    def load(cls, path: str | Path) -> "Spec":
        """Read a spec that :meth:`save` wrote.

        Args:
            path: The file to read.

        Returns:
            The spec.

        Raises:
            ResultError: If the file is missing, cut short, damaged, or holds something else.
        """
        try:
            document = json.loads(Path(path).read_bytes())
            spec = cls(*(document[part] for part in _PARTS), recipe=document["recipe"])
            intact = document == spec._document()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(_unreadable(path, f"{type(error).__name__}: {error}")) from error
        if not intact:
            raise ResultError(_unreadable(path, "its contents do not match the hashes in it"))
        return spec

    def _document(self) -> dict[str, Any]:
        hashes = {"evaluation_hash": self.evaluation_hash, "run_hash": self.run_hash}
        return self.as_dict() | hashes


_PARTS = ("evaluation", "discovery", "versions", "asked")


def current_versions() -> dict[str, str]:
    """Return the versions that belong in a spec, read without importing the packages.

    Returns:
        Name to version; packages that are not installed are left out.
    """
    versions = {"python": platform.python_version()}
    for name, package in {
        "torch": "torch",
        "transformer_lens": "transformer-lens",
        "circuitspex": "circuitspex",
    }.items():
        try:
            versions[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_differences(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """Put what :meth:`Spec.differences` found into words, for error messages.

    Args:
        differences: Dotted key to the two values.

    Returns:
        One clause per key, such as ``evaluation.model: 'gpt2' here, 'pythia-70m' there``.
    """
    return "; ".join(f"{key}: {a!r} here, {b!r} there" for key, (a, b) in differences.items())


def _unreadable(path: str | Path, why: str) -> str:
    return (
        f"{path} is not a spec that can be read ({why}). It must be a spec.json as a run wrote "
        "it; repeat the run to have it written again."
    )


def _plain_json(part: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain = json.loads(_canonical(dict(mapping)))
    except (TypeError, ValueError) as error:
        raise ResultError(
            f"{part} holds something that is not plain JSON ({error}). Use finite numbers, "
            "strings, booleans, lists and dictionaries; write a dtype or a path as a string."
        ) from error
    return plain


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _hash(value: object) -> str:
    return hashlib.blake2b(_canonical(value), digest_size=16).hexdigest()


def _leaves(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
