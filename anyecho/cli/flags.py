"""Turn the fields of options dataclasses into flags, so that no default and no help text is written twice.

A command takes whole dataclasses. cyclopts sees a flag for each field, and the values are put back together before
the call. A field without ``help`` in its metadata is not a flag; the other metadata are arguments of `Parameter`.
"""

from __future__ import annotations

__all__ = (
    "BackendFlag",
    "IPv4Flag",
    "IPv6Flag",
    "build_options",
    "explicit",
    "flattened",
    "given_flags",
    "verb",
    "whole_number",
)

import inspect
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from cyclopts import App, Parameter, Token

from anyecho.backends import Backend
from anyecho.cli.environment import ENVIRONMENT, Environment
from anyecho.cli.help_pages import COMMON, GROUPS, SOURCES
from anyecho.options import FilePath, group_of, option
from anyecho.units import OFF, Unit

T = TypeVar("T")

BackendFlag = Annotated[Backend, Parameter(help="Event loop to run on.", group=COMMON)]
#: Switches that may have another value than yes and no, as in ``--access-log=all``.
_SWITCHES_WITH_VALUES = ("--access-log",)
_CONNECTING = GROUPS["Connecting"]
IPv4Flag = Annotated[bool, Parameter(name="-4", help="Use only IPv4.", negative=(), group=_CONNECTING)]
IPv6Flag = Annotated[bool, Parameter(name="-6", help="Use only IPv6.", negative=(), group=_CONNECTING)]


@dataclass(frozen=True, kw_only=True)
class _ConfigOptions:
    config: FilePath | None = option(None, "Read flags from this TOML file, which has a table for each verb.")


def verb(command: Callable[..., object]) -> App:
    """Return the application for the verb `command`. Its name and its docstring are those of the function."""
    # A page has line breaks between paragraphs only; the width of the terminal decides on the rest.
    summary, *details = [" ".join(each.split()) for each in (inspect.getdoc(command) or "").split("\n\n")]
    app = App(name=command.__name__, help=summary, help_epilogue="\n\n".join([*details, SOURCES]))
    app.default(flattened(command, ENVIRONMENT))
    return app


def flattened(command: Callable[..., T], environment: Environment | None = None) -> Callable[..., T]:
    """Return `command` with a flag per field in place of each parameter that is a dataclass.

    With the `environment` that reads variables there is ``--config`` too, which `ConfigFile` reads.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if is_dataclass(hint):
            groups[parameter.name] = hint
            parameters += _flags(hint)
        else:
            parameters.append(parameter.replace(annotation=hint))

    if environment is not None:
        parameters += _flags(_ConfigOptions)

    def wrapper(*args: Any, **given: Any) -> T:
        given.pop("config", None)
        used = environment.used if environment else ()
        options = {name: build_options(group, given, used) for name, group in groups.items()}
        return command(*args, **given, **options)

    wrapper.__name__ = command.__name__
    wrapper.__doc__ = command.__doc__
    wrapper.__dict__["__signature__"] = inspect.Signature(parameters)
    return wrapper


def _flags(options: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        if is_dataclass(hints[field.name]):
            yield from _flags(hints[field.name])
        elif "help" in field.metadata:
            settings = {**field.metadata, "group": GROUPS[group_of(options, field)]}
            yield inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=_annotate(settings, hints[field.name]),
            )


def explicit(arguments: Sequence[str]) -> list[str]:
    """Return `arguments` with the value of each switch that may have another: the next word is not its value."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    return [
        f"{word}=yes" if place < end and word in _SWITCHES_WITH_VALUES else word
        for place, word in enumerate(arguments)
    ]


def _file_name(_: type, tokens: Sequence[Token]) -> Path:
    """Convert to a path. Empty, as of ``--file "$UNSET"``, is an error: `Path` takes it for the directory."""
    if not tokens[0].value:
        raise ValueError("it is empty: name a file")
    if re.match("-.", tokens[0].value):  # an option, where a file called - is allowed
        raise ValueError(f"the name of a file is missing before {tokens[0].value}")

    return Path(tokens[0].value)


def whole_number(_: type, tokens: Sequence[Token]) -> int:
    """Convert to an integer. (cyclopts would round 1.5 to 2.)"""
    return _parse_int(tokens[0].value)


def _parse_int(text: str) -> int:
    if not re.fullmatch("[+-]?[0-9]{1,20}", text, re.A):
        raise ValueError(f"{text!r} is not a whole number")

    return int(text)


_INT = Unit("INT", _parse_int, str)


def _annotate(settings: dict[str, Any], hint: Any) -> Any:
    """Return the type of a flag with its `Parameter`, which has `settings` and what follows from the type."""
    is_list = get_origin(hint) is tuple
    unit, is_limit = _unit_of(get_args(hint)[0] if is_list else hint)
    if any(get_origin(each) is os.PathLike for each in get_args(hint)):
        return Annotated[Path | None, Parameter(converter=_file_name, **settings)]
    if unit is None or "converter" in settings:
        # A flag of several values is repeated for each; a negative flag that clears the list is not needed.
        given: dict[str, Any] = {"negative": (), "show_default": False} if is_list else {}
        return Annotated[hint, Parameter(**given | settings)]

    def parse(text: str) -> float | None:
        return None if is_limit and text == OFF else unit.parse(text)

    def show(value: float | None) -> str:
        return OFF if value is None else unit.format(value)

    if is_list:
        flag: dict[str, Any] = {
            "converter": lambda _, tokens: tuple(parse(part) for each in tokens for part in each.value.split(",")),
            "show_default": lambda values: ",".join(map(show, values)),
            "metavar": f"{unit.name},...",
            "negative": (),
        }
        return Annotated[tuple[float | None, ...], Parameter(**flag | settings)]

    flag = {
        "converter": lambda _, tokens: parse(tokens[0].value),
        "show_default": show,
        "metavar": unit.name,
    }
    return Annotated[float | None, Parameter(**flag | settings)]


def _unit_of(hint: Any) -> tuple[Unit | None, bool]:
    """Return the unit of a number, None for other types, and whether it may be None ("off")."""
    is_limit = NoneType in get_args(hint)
    kind = get_args(hint)[0] if is_limit else hint
    unit = next((extra for extra in get_args(kind)[1:] if isinstance(extra, Unit)), _INT if kind is int else None)
    return unit, is_limit


def given_flags(options: Any) -> dict[str, Any]:
    """Return the fields with a flag that differ from their defaults, nested ones included, for `build_options`.

    Each value can be written as JSON.
    """
    given: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            given |= given_flags(value)
        elif "help" in field.metadata and value != field.default:
            given[field.name] = os.fspath(value) if isinstance(value, os.PathLike) else value

    return given


def build_options(options: Any, given: dict[str, Any], from_environment: tuple[str, ...]) -> Any:
    """Build an instance of `options` from its fields in `given`, which are removed there."""
    hints = get_type_hints(options)
    values = {}
    for field in fields(options):
        if is_dataclass(hints[field.name]):
            values[field.name] = build_options(hints[field.name], given, from_environment)
        elif field.name == "from_environment":
            values[field.name] = from_environment
        elif "help" in field.metadata and (value := given.pop(field.name, MISSING)) is not MISSING:
            values[field.name] = value

    return options(**values)
