"""Run-time checks that each option has the type that its field declares, and an effect.

Not every caller uses a type checker, and a misspelt choice must not pass silently. The dataclasses check ranges.
"""

from __future__ import annotations

__all__ = ("check_kind", "check_types", "given_options", "report_unused", "require_min", "require_positive")

import logging
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from anyecho.errors import UsageError, quoted

_UNITS = {"DURATION": "float (seconds)", "SIZE": "int (bytes)", "RATE": "float (per second)"}


def check_types(options: Any, *, error: type[UsageError] = UsageError, zero_is_none: Collection[str] = ()) -> None:
    """Raise `error` for the first field of the dataclass instance `options` with a value of the wrong type.

    A list is replaced by a tuple. An int is accepted as a float. A bool is not accepted as an int or a float, and
    NaN is not accepted. Where None is allowed, infinity is replaced by it; so is 0 in the fields `zero_is_none`.
    """
    kind: Any = type(options)
    for name, hint in _hints(kind).items():
        value = given = getattr(options, name)
        if isinstance(given, list) and get_origin(hint) is tuple:
            value = tuple(given)
        elif NoneType in get_args(hint) and _fits(given, float):
            value = None if given == math.inf or (given == 0 and name in zero_is_none) else given
        if value is not given:
            object.__setattr__(options, name, value)
        if not _fits(value, hint):
            raise error(f"{name} must be {_describe(hint)}, not {quoted(value)}", options=(name,))


def require_positive(options: object, names: Collection[str]) -> None:
    """Raise `UsageError` for the first of the options `names` that is neither None nor more than 0."""
    for name in names:
        if (value := getattr(options, name)) is not None and not value > 0:
            text = f"{name} must be more than 0, not {value} (no limit: off, in Python None)"
            raise UsageError(text, options=(name,))


def require_min(minimum: int, options: object, names: Collection[str]) -> None:
    """Raise `UsageError` for the first of the options `names` that is neither None nor `minimum` or more."""
    for name in names:
        if (value := getattr(options, name)) is not None and not value >= minimum:
            raise UsageError(f"{name} must be {minimum} or more, not {value}", options=(name,))


def check_kind(options: object, kind: type) -> None:
    """Raise `UsageError` if `options` are not of class `kind`, for example client options given to a server."""
    if not isinstance(options, kind):
        raise UsageError(f"options must be {kind.__name__}, not {quoted(options)}")


def given_options(options: Any) -> Iterator[str]:
    """Yield the names of the fields that differ from their defaults, those of nested options included."""
    for each in fields(options):
        value = getattr(options, each.name)
        if is_dataclass(value):
            yield from given_options(value)
        elif value != each.default and each.name != "from_environment":
            yield each.name


def report_unused(
    options: Any,
    reasons: Mapping[str, str],
    logger: logging.Logger,
    *,
    protective: Collection[str],
    mentioned: Collection[str],
) -> None:
    """Raise `UsageError` if a given option without effect is `protective`; else log one warning.

    `reasons` are those of the options without effect, given or not, and of ?proxy= if the address has it in vain.
    Options from the environment are only warned about: a variable is set for many programs. `mentioned` are the
    options that the reasons name.
    """
    unused = [name for name in (*given_options(options), "?proxy=") if name in reasons]
    forbidden = [name for name in unused if name in protective and name not in options.from_environment]
    for names, reason in _by_reason(forbidden, reasons):
        verb = "has" if len(names) == 1 else "have"
        text = f"{', '.join(names)} {verb} no effect: {reason}"
        raise UsageError(text, options=(*names, *mentioned))

    if unused:
        text = ", ".join(f"{', '.join(names)} ({reason})" for names, reason in _by_reason(unused, reasons))
        # The record names the options, for a formatter that writes them as flags.
        logger.warning("without effect: %s", text, extra={"options": (*unused, *mentioned)})


def _by_reason(unused: Collection[str], reasons: Mapping[str, str]) -> Iterator[tuple[list[str], str]]:
    for reason in dict.fromkeys(reasons[name] for name in unused):
        yield [name for name in unused if reasons[name] == reason], reason


@cache
def _hints(options: Any) -> dict[str, Any]:
    hints = get_type_hints(options, include_extras=True)
    return {each.name: hints[each.name] for each in fields(options)}


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, arguments[0])
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is Literal:
        return any(isinstance(value, type(each)) and value == each for each in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(each, arguments[0]) for each in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)

    return isinstance(value, origin or hint)


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _UNITS.get(getattr(arguments[1], "name", ""), _describe(arguments[0]))
    if origin in (Union, UnionType):
        return _alternatives([_describe(each) for each in arguments])
    if origin is Literal:
        return _alternatives([str(each) for each in arguments])
    if origin is tuple:
        return f"a tuple of {_describe(arguments[0])}"
    if origin is os.PathLike:
        return "os.PathLike"

    return "None" if hint is NoneType else str(hint.__name__)


def _alternatives(words: list[str]) -> str:
    flat = ", ".join(words).replace(" or ", ", ").split(", ")
    return " or ".join([", ".join(flat[:-1]), flat[-1]]) if len(flat) > 1 else flat[0]
