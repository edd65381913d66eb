"""The value of ``--handler``: the name of a ready-made handler, or ``module:function`` for a function of a user."""

from __future__ import annotations

__all__ = ("find_handler",)

import os
import sys
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any

from anyecho.errors import UsageError
from anyecho.handlers import HANDLERS, Handler, is_async


def find_handler(text: str) -> Handler:
    """Return the handler that `text` names. A module is looked for in the working directory too.

    Raises `UsageError` if there is none, or if its module cannot be imported.
    """
    module, colon, path = text.partition(":")
    if not colon:
        if text not in HANDLERS:
            known = f"there are {', '.join(HANDLERS)}, and module:function"
            raise _error(text, f"no such name{_nearest(text, list(HANDLERS))}; {known}")

        return HANDLERS[text]

    found: Any = _import(text, module)
    for name in path.split("."):
        if not hasattr(found, name):
            raise _error(text, f"{module} has no {path!r}{_nearest(name, dir(found))}")
        found = getattr(found, name)
    if not is_async(found):
        raise _error(text, "it is not an async function")

    handler: Handler = found
    return handler


def _import(text: str, module: str) -> ModuleType:
    if os.getcwd() not in sys.path:  # a console script has the directory of the script there
        sys.path.insert(0, os.getcwd())
    try:
        return import_module(module)
    except Exception as exc:  # whatever the module raises
        reason = " ".join(str(exc).split())
        raise _error(text, f"cannot import {module!r}: {type(exc).__name__}: {reason}") from exc


def _error(text: str, reason: str) -> UsageError:
    return UsageError(f"handler {text!r}: {reason}", options=("handler",))


def _nearest(word: str, known: list[str]) -> str:
    nearest = get_close_matches(word, known, n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""
