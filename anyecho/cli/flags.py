"""Options dataclasses as flags, so that no default and no line of help is written twice.

A command takes whole dataclasses; cyclopts is shown their fields instead, and what was given on the command line
is put back together. A field without ``help`` in its metadata is no flag; what else is there is how the flag looks.
"""

from __future__ import annotations

__all__ = ("BackendFlag", "flattened")

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from cyclopts import Parameter, Token

from anyecho.backends import Backend
from anyecho.units import Unit

T = TypeVar("T")

BackendFlag = Annotated[Backend, Parameter(help="The event loop to run on.")]


def flattened(command: Callable[..., T]) -> Callable[..., T]:
    """`command`, with a flag per field in place of each parameter that is a dataclass."""
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

    def wrapper(*args: Any, **given: Any) -> T:
        options = {name: _build(group, given) for name, group in groups.items()}
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
            yield inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=_annotate(field, hints[field.name]),
            )


def _annotate(field: Field[Any], hint: Any) -> Any:
    unit = next((extra for extra in get_args(hint)[1:] if isinstance(extra, Unit)), None)
    if unit is None:
        # A flag of several values is given again for each; none of them needs one that empties it.
        given: dict[str, Any] = {"negative": ()} if get_origin(hint) is tuple else {}
        return Annotated[hint, Parameter(**given | field.metadata)]

    def convert(_: type, tokens: Sequence[Token]) -> float:
        return unit.parse(tokens[0].value)

    flag = Parameter(help=field.metadata["help"], converter=convert, show_default=unit.format, metavar=unit.name)
    return Annotated[hint, flag]


def _build(options: Any, given: dict[str, Any]) -> Any:
    """An instance of `options` from what `given` has of it, which is taken out."""
    hints = get_type_hints(options)
    values = {}
    for field in fields(options):
        if is_dataclass(hints[field.name]):
            values[field.name] = _build(hints[field.name], given)
        elif (value := given.pop(field.name, MISSING)) is not MISSING:
            values[field.name] = value

    return options(**values)
