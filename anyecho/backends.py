"""Run a coroutine function on a backend: asyncio, uvloop or trio."""

from __future__ import annotations

__all__ = ("BACKENDS", "Backend", "run")

import errno
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any, Literal, TypeVar, TypeVarTuple, get_args

import anyio

from anyecho.errors import BackendError, StartError, UsageError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Backend = Literal["asyncio", "uvloop", "trio"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
#: Descriptors that an event loop opens when it starts.
_DESCRIPTORS: dict[Backend, int] = {"asyncio": 3, "uvloop": 10, "trio": 5}


def run(main: Callable[[*Ts], Awaitable[T]], *args: *Ts, backend: Backend = "asyncio") -> T:
    """Run `main(*args)` in a new event loop of `backend` and return its result.

    Errors of `main` pass unchanged. Ctrl-C cancels `main`, and `KeyboardInterrupt` is raised once it has ended.

    Raises:
        UsageError: `backend` is unknown.
        BackendError: `backend` is not installed; the text has the command to install it.
        StartError: too few descriptors are free for an event loop.
        RuntimeError: an event loop runs in this thread already.
    """
    name, options = _anyio_arguments(backend)
    _check_descriptors(backend)
    return anyio.run(main, *args, backend=name, backend_options=options)


def _anyio_arguments(backend: str) -> tuple[str, dict[str, Any]]:
    if backend not in BACKENDS:
        raise UsageError(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")

    if backend != "asyncio" and find_spec(backend) is None:
        # trio is a dependency of anyecho: it is missing only in a broken installation.
        requirement = "'anyecho[uvloop]'" if backend == "uvloop" else backend
        raise BackendError(f"{backend} is not installed: pip install {requirement}")

    if backend == "uvloop":
        return "asyncio", {"use_uvloop": True}

    return backend, {}


def _check_descriptors(backend: Backend) -> None:
    """Raise `StartError` if too few are free: asyncio would print a traceback, uvloop would abort the process."""
    count = _DESCRIPTORS[backend]
    try:
        with ExitStack() as taken:
            for _ in range(count):
                taken.callback(os.close, os.open(os.devnull, os.O_RDONLY))
    except OSError as exc:
        if exc.errno in (errno.EMFILE, errno.ENFILE):
            needs = f"an event loop of {backend} needs {count} descriptors"
            raise StartError(f"{needs}: {exc.strerror} (ulimit -n)") from exc
