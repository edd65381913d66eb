"""Dataclasses to and from JSON, by their annotations; another type is converted by its own `to_json`, `from_json`.

Fields that a file has in addition are ignored. A missing field takes its default.
"""

from __future__ import annotations

__all__ = ("decode", "encode")

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from anyecho.errors import UsageError, quoted

T = TypeVar("T")

#: Of any number: products of a few are still floats.
_NUMBER_MAX = 1e60


def encode(value: Any) -> Any:
    """Return `value` as objects, lists and scalars of JSON."""
    if is_dataclass(value):
        return {each.name: encode(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, list | tuple):
        return [encode(each) for each in value]
    if isinstance(value, Mapping):
        return {key: encode(each) for key, each in value.items()}

    return value.to_json() if hasattr(value, "to_json") else value


def decode(kind: type[T], value: Any, where: str = "") -> T:
    """Return the instance of the dataclass `kind` that `encode` made `value` from.

    `where` is its place in the file, for errors. Raises `UsageError` for a missing or mistyped value.
    """
    decoded: T = _decode(kind, value, where)
    return decoded


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _decode(arguments[0], value, where)
    if origin in (Union, UnionType):
        [other] = [each for each in arguments if each is not NoneType]
        return None if value is None else _decode(other, value, where)
    if is_dataclass(hint) and isinstance(value, dict):
        return _decode_fields(hint, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], each, f"{where}[{index}]") for index, each in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _decode(arguments[1], each, f"{where}.{key}") for key, each in value.items()}
    if hasattr(hint, "from_json") and isinstance(value, dict):
        return hint.from_json(value)
    if _is_scalar(hint, value):
        return float(value) if hint is float else value

    raise UsageError(f"{where or 'the file'} is {quoted(value)}, which does not belong there")


def _decode_fields(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    given = {}
    for each in fields(kind):
        place = f"{where}.{each.name}".lstrip(".")
        if each.name in value:
            given[each.name] = _decode(hints[each.name], value[each.name], place)
        elif each.default is MISSING and each.default_factory is MISSING:
            raise UsageError(f"{place} is missing")

    return kind(**given)


def _is_scalar(hint: Any, value: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= _NUMBER_MAX

    return hint in (str, bool) and isinstance(value, hint)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)
