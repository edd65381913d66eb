"""Declare options: dataclass fields with one line of help each, for a flag and for the class's docstring."""

from __future__ import annotations

__all__ = ("FilePath", "documented", "group_of", "option", "option_group")

import os
import re
from collections.abc import Callable
from dataclasses import Field, field, fields
from inspect import cleandoc
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

#: The name of a file, as `open` takes it.
FilePath: TypeAlias = str | os.PathLike[str]

#: The group of an option that names none, by the dataclass of the option.
_GROUPS: dict[Any, str] = {}


def option(default: Any, text: str, *, flag: bool = True, **parameter: Any) -> Any:
    """Return a dataclass field described by the line `text`. With `flag` false, no command line has it.

    `parameter` are arguments of the `cyclopts.Parameter` of its flag. Its ``group`` on the help page is by default
    that of the dataclass (`option_group`).
    """
    return field(default=default, metadata={"help" if flag else "doc": text} | parameter)


def documented(options: type[T]) -> type[T]:
    """Append a line for each field of the dataclass `options` to its docstring, for `help` and pydoc.

    The line is the help of the flag, with attribute names in place of flags, or the "doc" of a field that is not a
    flag. An IDE that reads the source alone does not show it: that would take a second copy of each text.
    """
    kind: Any = options
    lines = ["", "Options:"]
    for each in fields(kind):
        text = each.metadata.get("help") or each.metadata["doc"]
        text = re.sub(r"--([a-z-]+)", lambda flag: f"`{flag[1].replace('-', '_')}`", text)
        lines.append(f"    {each.name}: {text}")
    # A dataclass without a docstring, as all are with python -OO, has its signature there.
    options.__doc__ = "\n".join([cleandoc(options.__doc__ or ""), *lines])
    return options


def option_group(name: str) -> Callable[[type[T]], type[T]]:
    """Return a decorator that puts the flags of a dataclass into the group `name` on the help page.

    It also does what `documented` does.
    """

    def decorate(options: type[T]) -> type[T]:
        _GROUPS[options] = name
        return documented(options)

    return decorate


def group_of(options: Any, each: Field[Any]) -> str:
    """Return the name of the group of the field `each` of `options`; it is one of `anyecho.cli.help_pages`."""
    return str(each.metadata.get("group") or _GROUPS.get(options, "Options"))
