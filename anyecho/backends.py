"""The three words a backend is chosen by, and what `anyio.run` makes of them.

Nothing else in the package knows that there are backends.
"""

from __future__ import annotations

__all__ = ("BACKENDS", "Backend", "run")

import errno
import os
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any, Literal, TypeVar, TypeVarTuple, get_args

import anyio

from anyecho.errors import BackendError, StartError, UsageError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Backend = Literal["asyncio", "uvloop", "trio"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
#: Descriptors that an event loop takes before it runs anything.
_DESCRIPTORS: dict[Backend, int] = {"asyncio": 3, "uvloop": 10, "trio": 5}


def run(main: Callable[[*Ts], Awaitable[T]], *args: *Ts, backend: Backend = "asyncio") -> T:
    """Run `main(*args)` to its end on `backend`, and return what it returns.

    Raises `BackendError`, with the command that installs it, if the backend is not installed, and `StartError` if
    the process can have too few descriptors for an event loop.
    """
    name, options = _anyio_arguments(backend)
    _check_descriptors(backend)
    return anyio.run(main, *args, backend=name, backend_options=options)


def _anyio_arguments(backend: str) -> tuple[str, dict[str, Any]]:
    if backend not in BACKENDS:
        raise UsageError(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")

    if backend != "asyncio" and find_spec(backend) is None:
        raise BackendError(f"{backend} is not installed: pip install {_requirement(backend)}")

    if backend == "uvloop":
        return "asyncio", {"use_uvloop": True}

    return backend, {}


def _check_descriptors(backend: Backend) -> None:
    """Without enough of them, asyncio leaves a traceback behind and uvloop aborts the process."""
    count = _DESCRIPTORS[backend]
    taken: list[int] = []
    try:
        for _ in range(count):
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as exc:
        if exc.errno in (errno.EMFILE, errno.ENFILE):
            needs = f"an event loop of {backend} needs {count} descriptors"
            raise StartError(f"{needs}: {exc.strerror} (ulimit -n)") from exc
    finally:
        for descriptor in taken:
            os.close(descriptor)


def _requirement(backend: str) -> str:
    # trio comes with anyecho itself; only a broken installation lacks it.
    return "'anyecho[uvloop]'" if backend == "uvloop" else backend
