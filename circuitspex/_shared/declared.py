"""Dataclass fields that declare what they take: type, bounds and, in the sentence under them, help.

Whoever takes values for them (Python, options of a command, a file) reads the same declaration.
"""

import ast
import inspect
import math
import reprlib
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from itertools import pairwise
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

Count = Annotated[int, Gt(0), Lt(2**53)]
"""A whole number above 0 that every store and file format holds."""


@dataclass(frozen=True)
class Declared:
    """What one field takes."""

    name: str
    """Its name."""
    hint: Any
    """Its type, with bounds."""
    default: Any
    """What it is when nothing is given."""
    help: str
    """What it means; the text under the field."""
    metadata: Any
    """What else the field says about itself."""

    def fit(self, value: Any) -> Any:
        """Return a value as the field has it: 1 is 1.0 where a number may have decimals.

        Args:
            value: What was given.

        Returns:
            The value.

        Raises:
            ValueError: If it is of another type or out of bounds; it says what was needed.
        """
        try:
            return _fit(value, self.hint)
        except _UnfitError:
            raise ValueError(
                f"{self.name} must be {wanted(self.hint)}; got {short(value)}"
            ) from None

    def parse(self, text: str) -> Any:
        """Read a value from the text of an option, such as W&B's agent writes it.

        Args:
            text: What was given: ``0.9``, ``1e-3``, ``None``, ``all`` or ``L0H1,L2H3``.

        Returns:
            A number where it can be one, None for ``None`` and ``null``, a tuple where several
            values are wanted, else the text. What is a word by nature stays a word.
        """
        options = _options(self.hint)
        if all(_kind(option) is str for option in options):
            return text
        if text.lower() in ("none", "null"):
            return None
        if any(get_origin(_kind(option)) is tuple for option in options):
            parts = (part.strip(" '\"") for part in text.strip("[]() ").split(","))
            return tuple(_number(part) for part in parts if part)
        return _number(text)


@cache
def declared(cls: type) -> dict[str, Declared]:
    """Read what the fields of a dataclass declare.

    Args:
        cls: The dataclass; of a field that it declares anew the last declaration counts.

    Returns:
        Name to declaration, in order.
    """
    hints = get_type_hints(cls, include_extras=True)
    helps: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        helps |= _helps(base)
    return {
        field.name: Declared(
            field.name,
            hints[field.name],
            field.default if field.default_factory is MISSING else field.default_factory(),
            helps.get(field.name, ""),
            field.metadata,
        )
        for field in fields(cls)
        if field.init
    }


def fit_all(cls: type, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Give values the types that the fields of a dataclass declare.

    Args:
        cls: The dataclass.
        given: Name of a field to value.

    Returns:
        The values that fit, and what is wrong with the others: what was needed, and what is there.
    """
    fitted, wrong = {}, []
    for name, value in given.items():
        try:
            fitted[name] = declared(cls)[name].fit(value)
        except ValueError as error:
            wrong.append(str(error))
    return fitted, wrong


def fit_fields(instance: Any) -> list[str]:
    """Return what is wrong with the fields of a new dataclass; give the others their own types."""
    given = {name: getattr(instance, name) for name in declared(type(instance))}
    fitted, wrong = fit_all(type(instance), given)
    for name, value in fitted.items():
        object.__setattr__(instance, name, value)
    return wrong


def wanted(hint: Any) -> str:
    """Return in words what a type with bounds takes."""
    return " or ".join(_words(option) for option in _options(hint))


def short(value: object) -> str:
    """Return a value as text for a message, however long or deep it is."""
    try:
        return _SHORT.repr(value)[:200]
    except ValueError:  # a whole number of thousands of digits has no text
        return f"a {type(value).__name__} too long to show"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 2  # aliases make a short file a deep and wide value


class _UnfitError(ValueError):
    """A value is not of a type, or out of its bounds."""


def _fit(value: Any, hint: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        for option in get_args(hint):
            try:
                return _fit(value, option)
            except _UnfitError:
                continue
        raise _UnfitError
    kind, *bounds = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        value = tuple(_fit(item, get_args(kind)[0]) for item in value)
    elif kind is int and isinstance(value, Integral) and not isinstance(value, bool):
        value = int(value)
    elif kind is float and isinstance(value, Real) and not isinstance(value, bool):
        value = _finite(value)
    elif get_origin(kind) is Literal:
        if not isinstance(value, str) or value not in get_args(kind):
            raise _UnfitError
    elif kind in (int, float) or not isinstance(value, get_origin(kind) or kind):
        raise _UnfitError
    if not all(_holds(bound, value) for bound in bounds):
        raise _UnfitError
    return value


def _finite(value: Real) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise _UnfitError from None
    if not math.isfinite(number):
        raise _UnfitError
    return number


def _holds(bound: Any, value: Any) -> bool:
    match bound:
        case Gt(gt=least):
            return value > least
        case Ge(ge=least):
            return value >= least
        case Lt(lt=most):
            return value < most
        case Le(le=most):
            return value <= most
        case MinLen(min_length=least):
            return len(value) >= least
    return len(value) <= bound.max_length


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _kind(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _words(option: Any) -> str:
    kind, *bounds = get_args(option) if get_origin(option) is Annotated else (option,)
    if kind is NoneType:
        return "None"
    if get_origin(kind) is Literal:
        return " or ".join(repr(word) for word in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list {_limits(bounds)}".strip() + f", each {wanted(get_args(kind)[0])},"
    name = {int: "a whole number", float: "a number", str: "a word"}.get(kind, "a mapping")
    return f"{name} {_limits(bounds)}".strip()


def _limits(bounds: Iterable[Any]) -> str:
    match list(bounds):
        case [Ge(ge=least), Le(le=most)]:
            return f"from {least} to {most}" if least != most else f"equal to {least}"
    return " and ".join(_limit(bound) for bound in bounds)


_POWERS: dict[Any, str] = {2**31: "2^31", 2**53: "2^53"}


def _limit(bound: Any) -> str:
    match bound:
        case Gt(gt=least):
            return f"above {least}"
        case Ge(ge=least):
            return f"of at least {least}"
        case Lt(lt=most):
            return f"below {_POWERS.get(most, most)}"
        case Le(le=most):
            return f"of at most {most}"
        case MinLen(min_length=least):
            return f"of at least {least}"
        case MaxLen(max_length=most):
            return f"at most {most} characters"
    raise TypeError(f"no words for the bound {bound!r}")


def _number(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _helps(cls: type) -> dict[str, str]:
    """Return the text under each field of a class's own body."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # typed at a prompt, or made by a call
        return {}
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    helps = {}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    helps[field.target.id] = " ".join(text.split())
    return helps
