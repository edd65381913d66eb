"""Run blocking calls in a thread, with one error for a lack of threads.

RLIMIT_NPROC and the pids controller of a cgroup limit threads too.
"""

from __future__ import annotations

__all__ = ("NoThreadError", "run_in_thread", "write_in_thread")

import errno
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from anyio import CapacityLimiter, to_thread

from anyecho.net.descriptors import write_all

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class NoThreadError(OSError):
    """The system does not let the process start a thread."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "no thread can be started for it (see ulimit -u and pids.max)")


async def run_in_thread(call: Callable[[*Ts], T], *args: *Ts, limiter: CapacityLimiter | None = None) -> T:
    """Return ``call(*args)``, run in a thread, which a cancellation abandons. Raises `NoThreadError`."""
    started = False

    def run() -> T:
        nonlocal started
        started = True
        return call(*args)

    try:
        return await to_thread.run_sync(run, abandon_on_cancel=True, limiter=limiter)
    except RuntimeError as exc:
        if started:
            raise
        raise NoThreadError from exc


async def write_in_thread(descriptor: int, data: bytes) -> None:
    """Write all of `data` in a thread; without one, in the event loop, where a slow reader blocks it."""
    try:
        await run_in_thread(write_all, descriptor, data)
    except NoThreadError:
        write_all(descriptor, data)
