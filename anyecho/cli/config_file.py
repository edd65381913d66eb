"""Options from a TOML file (``--config``), with a table for each verb: ``[serve]`` has ``idle-timeout = "5m"``.

The command line overrides a variable, a variable overrides the file. The reader of cyclopts (5.5) is not used: it
fails with a `TypeError` for a file that it may not read, and its errors name the key or the file, not both.
"""

from __future__ import annotations

__all__ = ("FROM_FILE", "ConfigFile")

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin

from cyclopts import App, Token
from cyclopts.argument import Argument, ArgumentCollection

from anyecho.cli.environment import Environment, is_readable
from anyecho.errors import UsageError, quoted

_FLAG = "--config"
#: What some messages of cyclopts add, although the keyword of a token names the file.
FROM_FILE = f" from {_FLAG}"


class ConfigFile:
    """A cyclopts configuration that reads flags from the file of ``--config`` where no earlier source has them."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        self._environment.in_file = {}
        [path] = [each.value for argument in arguments if argument.name == _FLAG for each in argument.tokens] or [
            ""
        ]
        if not path:
            return

        root = self._environment.root or app
        tables = _read(path)
        _check_key(
            path, tables, [verb for verb in root if not verb.startswith("-")], "the tables are one for each verb"
        )
        keys = {
            argument.field_info.name.replace("_", "-"): argument
            for argument in arguments
            if is_readable(argument) and argument.name != _FLAG
        }
        for verb in commands:
            table = tables.get(verb, {})
            if not isinstance(table, dict):
                raise UsageError(f"{verb} in {path} must be a table, as [{verb}] begins it, not {quoted(table)}")

            _check_key(path, table, keys, f"see anyecho {verb} --help")
            for key, value in table.items():
                self._set(keys[key], value, f"{key} in {path}")

    def _set(self, argument: Argument, value: Any, name: str) -> None:
        values = value if isinstance(value, list) and get_origin(argument.hint) is tuple else [value]
        for each in values:
            if expected := _expected(argument.hint, each):
                raise UsageError(f"{name} must be {expected}, not {quoted(each)}")
        if argument.tokens:
            return

        for index, each in enumerate(values):
            text = str(each).lower() if isinstance(each, bool) else str(each)
            argument.append(Token(keyword=name, value=text, source=_FLAG, index=index))
        self._environment.in_file[argument.field_info.name] = name


def _read(path: str) -> dict[str, Any]:
    # Late: most command lines name no file.
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    except ValueError as exc:  # tomllib.TOMLDecodeError, UnicodeDecodeError
        raise UsageError(f"{path} is not TOML: {exc}") from exc


def _check_key(path: str, given: Collection[str], known: Collection[str], hint: str) -> None:
    for key in given:
        if key not in known:
            nearest = get_close_matches(key, known, n=1)
            raise UsageError(f"unknown key {key} in {path}: {f'did you mean {nearest[0]}?' if nearest else hint}")


def _expected(hint: Any, value: Any) -> str:
    """Return what a value of the type `hint` must be in a file; empty if `value` is that."""
    kinds = {*_kinds(hint)}
    is_text = isinstance(value, str)
    if bool in kinds:
        fits = isinstance(value, bool) or (is_text and len(kinds) > 1)
        return "" if fits else "true or false"
    if kinds & {int, float}:
        fits = is_text or (isinstance(value, int | float) and not isinstance(value, bool))
        return "" if fits else "a number or a string"

    # N of N|auto, or a port alone: workers = 4, admin = 9100
    is_number = str in kinds and get_origin(hint) is not tuple and type(value) is int
    return "" if is_text or is_number else "a string"


def _kinds(hint: Any) -> Iterator[Any]:
    """Yield the types of which `hint` is a union or a tuple."""
    if get_origin(hint) in (tuple, Union, UnionType):
        for each in get_args(hint):
            yield from _kinds(each)
    else:
        yield hint
