"""Calls that block, in a thread, with one error for the lack of threads.

RLIMIT_NPROC and the pids controller of a cgroup limit threads too. What then cannot be done is one line.
"""

from __future__ import annotations

__all__ = ("NoThreadError", "run_in_thread")

import errno
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class NoThreadError(OSError):
    """The system lets the process start no thread."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "no thread can be started for it (see ulimit -u and pids.max)")


async def run_in_thread(call: Callable[[*Ts], T], *args: *Ts, limiter: CapacityLimiter | None = None) -> T:
    """Return ``call(*args)``, made in a thread that is abandoned when this is cancelled. Raises `NoThreadError`."""
    began = False

    def run() -> T:
        nonlocal began
        began = True
        return call(*args)

    try:
        return await to_thread.run_sync(run, abandon_on_cancel=True, limiter=limiter)
    except RuntimeError as exc:
        if began:
            raise
        raise NoThreadError from exc
