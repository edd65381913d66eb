"""Declare options: dataclass fields with one line of help each, for a flag and for the class's docstring."""

from __future__ import annotations

__all__ = ("documented", "option")

import re
from dataclasses import field, fields
from inspect import cleandoc
from typing import Any, TypeVar

T = TypeVar("T")


def option(default: Any, text: str, *, flag: bool = True, **parameter: Any) -> Any:
    """Return a dataclass field described by the line `text`. With `flag` false, no command line has it.

    `parameter` are arguments of the `cyclopts.Parameter` of its flag.
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
    if options.__doc__ is not None:  # python -OO removes docstrings
        options.__doc__ = "\n".join([cleandoc(options.__doc__), *lines])

    return options
