"""Results as JSON files: versioned, written in one step, checked field by field when read."""

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import (
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitspex._shared.files import write_result
from circuitspex.errors import ResultError

_VERSION = 1


def write_document(path: str | Path, kind: str, fields: Mapping[str, Any]) -> None:
    """Write a JSON file that is there whole or not at all.

    Args:
        path: Where to; an existing file is replaced.
        kind: What the document is, such as "interactions".
        fields: Its content, in JSON values.

    Raises:
        ResultError: If a field is no JSON value, or the file cannot be written.
    """
    try:
        text = json.dumps({"format": f"circuitspex.{kind}/{_VERSION}", **fields})
    except TypeError as error:
        raise ResultError(
            f"the {kind} cannot be saved: {error}. Diagnostics may hold only strings, numbers, "
            "booleans, None, lists and dictionaries of them."
        ) from error
    write_result(path, text.encode())


def read_document(path: str | Path, kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read what :func:`write_document` wrote.

    Args:
        path: The file.
        kind: What it must be.
        fields: Type of every field, such as ``list[float] | None``; all must be there.

    Returns:
        The fields.

    Raises:
        ResultError: If the file is missing, damaged, of another kind or version, or a field is
            missing, unknown or of another type.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{path} cannot be read: {error}. Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise ResultError(
            f"{path} is not a whole JSON file ({error}). It was cut short or is something else; "
            "save the result again."
        ) from error
    wanted = f"circuitspex.{kind}/{_VERSION}"
    found = document.pop("format", None) if isinstance(document, dict) else None
    if found != wanted:
        raise ResultError(
            f"{path} must be of format {wanted!r}; got {found!r}. Load it with what saved it."
        )
    if document.keys() != fields.keys():
        odd = ", ".join(sorted(document.keys() ^ fields.keys()))
        raise ResultError(f"{path} has missing or unknown fields: {odd}. Save the result again.")
    for name, hint in fields.items():
        if not _fits(document[name], hint):
            wanted = hint if get_args(hint) else hint.__name__
            raise ResultError(
                f"field {name!r} of {path} must be {wanted}; it holds "
                f"{str(document[name])[:80]!r}. Save the result again."
            )
        document[name] = _with_floats(document[name], hint)
    return document


_Record = TypeVar("_Record", bound="Saved")


class Saved:
    """A dataclass of numbers, text and tuples of them, which is saved as a document."""

    document: ClassVar[str]
    """What kind of document."""

    def save(self, path: str | Path) -> None:
        """Write it to a JSON file, in one step: never a half-written file.

        Args:
            path: Where to; an existing file is replaced.
        """
        write_document(path, self.document, asdict(cast(Any, self)))

    @classmethod
    def load(cls: type[_Record], path: str | Path) -> _Record:
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            An equal value.
        """
        hints = get_type_hints(cls)
        types = {name: _in_json(hints[name]) for name in hints if name != "document"}
        fields = read_document(path, cls.document, types)
        return cls(**{name: _as_tuples(value) for name, value in fields.items()})


def _in_json(hint: Any) -> Any:
    """Return the type that a field is read as: there are no tuples in JSON."""
    if get_origin(hint) in {Union, UnionType}:
        return reduce(or_, map(_in_json, get_args(hint)))
    return list[_in_json(get_args(hint)[0])] if get_origin(hint) is tuple else hint


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def pack_matrix(matrix: Float[Tensor, "n n"]) -> str:
    """Return a matrix as compressed base64 text of little-endian float64, row by row."""
    return base64.b64encode(zlib.compress(matrix.numpy().astype("<f8").tobytes())).decode()


def unpack_matrix(text: str, n: int, path: str | Path) -> Float[Tensor, "n n"]:
    """Undo :func:`pack_matrix`.

    Args:
        text: What it returned.
        n: How many rows and columns the matrix must have.
        path: The file the text is from, for the message.

    Returns:
        The matrix, bit by bit the same.

    Raises:
        ResultError: If the text is damaged or holds a matrix of another size.
    """
    unpacking = zlib.decompressobj()
    try:
        # one byte more than fits shows that it is longer without unpacking all of it
        raw = unpacking.decompress(base64.b64decode(text, validate=True), 8 * n**2 + 1)
    except (ValueError, zlib.error) as error:
        raise ResultError(f"the covariance in {path} is damaged; save the result again.") from error
    if len(raw) != 8 * n**2 or (n and not unpacking.eof):
        raise ResultError(
            f"the covariance in {path} does not cover {n} terms; save the result again."
        )
    return torch.from_numpy(np.frombuffer(raw, "<f8").reshape(n, n).astype(np.float64))


def _with_floats(value: Any, hint: Any) -> Any:
    """Return a JSON value that fits, its whole numbers as floats where floats are meant."""
    if get_origin(hint) in {Union, UnionType}:
        hint = next(option for option in get_args(hint) if _fits(value, option))
    if get_origin(hint) is list:
        return [_with_floats(item, get_args(hint)[0]) for item in value]
    return float(value) if hint is float else value


def _fits(value: object, hint: Any) -> bool:
    """Return whether a JSON value is of a type; a whole number is a float, a bool is no number."""
    if hint is Any:
        return True
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) in {Union, UnionType}:
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict)
    if hint in {int, float}:
        # larger whole numbers are no float64, and no count of anything
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
        return whole or (hint is float and isinstance(value, float))
    return isinstance(value, hint)
