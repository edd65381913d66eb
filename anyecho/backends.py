"""The three words a backend is chosen by, and what `anyio.run` makes of them.

Nothing else in the package knows that there are backends.
"""

from __future__ import annotations

__all__ = ("BACKENDS", "Backend", "run")

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any, Literal, TypeVar, TypeVarTuple, get_args

import anyio

from anyecho.errors import BackendError, UsageError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Backend = Literal["asyncio", "uvloop", "trio"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def run(main: Callable[[*Ts], Awaitable[T]], *args: *Ts, backend: Backend = "asyncio") -> T:
    """Run `main(*args)` to its end on `backend`, and return what it returns.

    Raises `BackendError`, with the command that installs it, if the backend is not installed.
    """
    name, options = _anyio_arguments(backend)
    return anyio.run(main, *args, backend=name, backend_options=options)


def _anyio_arguments(backend: str) -> tuple[str, dict[str, Any]]:
    if backend not in BACKENDS:
        raise UsageError(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")

    if backend != "asyncio" and find_spec(backend) is None:
        raise BackendError(f"{backend} is not installed: pip install {_requirement(backend)}")

    if backend == "uvloop":
        return "asyncio", {"use_uvloop": True}

    return backend, {}


def _requirement(backend: str) -> str:
    # trio comes with anyecho itself; only a broken installation lacks it.
    return "'anyecho[uvloop]'" if backend == "uvloop" else backend
