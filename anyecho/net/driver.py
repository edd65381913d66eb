"""How the event loop calls a Poller, and how a Poller wakes a task.

`drive` calls a Poller whenever its epoll descriptor is readable. On asyncio and uvloop a reader stays registered
for the Poller's whole life. A waiting task would cost about half of an echo at 1,000 a second: a reader added and
removed, a Future, a second pass of the loop. On other loops a task waits; on trio that is one epoll_ctl(2) and a
reschedule.

`make_waiter` returns an object that a task waits on. By the loop's own means a wait costs 1.5, 0.9 and 1.7 us of
processor time (asyncio, uvloop, trio), by a semaphore of anyio 1.8, 1.2 and 4.0 us.

This module must not know what a descriptor reports.
"""

from __future__ import annotations

__all__ = ("Waiter", "drive", "make_waiter")

from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Protocol, cast

from anyio import Event, wait_readable
from anyio.lowlevel import checkpoint, current_token
from sniffio import current_async_library_cvar

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future


async def drive(descriptor: int, turn: Callable[[], bool]) -> None:
    """Call `turn` while `descriptor` is readable, and again whenever it returns true, until cancelled.

    Ready tasks and callbacks run between two calls. Raises what `turn` raises.
    """
    loop = current_token().native_token
    if hasattr(loop, "add_reader"):  # trio's token has none
        await _Reader(cast("AbstractEventLoop", loop), descriptor, turn).run()

    while True:
        await wait_readable(descriptor)
        while turn():
            await checkpoint()


class _Reader:
    """Calls `turn` from a reader of `loop`, outside any task."""

    def __init__(self, loop: AbstractEventLoop, descriptor: int, turn: Callable[[], bool]) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._turn = turn
        self._is_scheduled = False
        self._is_ended = False
        self._failed = Event()
        self._failure: BaseException | None = None

    async def run(self) -> None:
        """Call `turn` while the descriptor is readable, until a cancellation or its exception, which is raised.

        Return at once if the loop has no readers (proactor of Windows).
        """
        # anyio finds the running loop by the current task, which a callback lacks. So the library is set in the
        # context that the loop copies for its callbacks.
        context = copy_context()
        context.run(current_async_library_cvar.set, "asyncio")
        try:
            context.run(self._loop.add_reader, self._descriptor, self._on_readable)
        except NotImplementedError:
            return
        try:
            await self._failed.wait()
        finally:
            self._is_ended = True
            self._loop.remove_reader(self._descriptor)

        assert self._failure is not None
        raise self._failure

    def _on_readable(self) -> None:
        # At most one turn in a pass of the loop (fairness): other tasks wait for one slice, not for two.
        if self._is_scheduled or self._is_ended:
            return
        try:
            if self._turn():
                self._is_scheduled = True
                self._loop.call_soon(self._call_again)
        except (KeyboardInterrupt, SystemExit):
            raise  # these end the loop
        except BaseException as exc:  # the loop would only log it
            self._failure = exc
            self._is_ended = True
            self._failed.set()

    def _call_again(self) -> None:
        self._is_scheduled = False
        self._on_readable()


class Waiter(Protocol):
    """Suspends one task until it is woken."""

    async def wait(self) -> None:
        """Wait until `wake` is called. A cancellation loses no more than this call."""

    def wake(self) -> None:
        """Resume the task that waits. Does nothing if none does."""


def make_waiter() -> Waiter:
    """Return a waiter for a task of the running loop."""
    loop = current_token().native_token
    if hasattr(loop, "create_future"):
        return _FutureWaiter(cast("AbstractEventLoop", loop))

    from anyecho.net.trio_waiter import TrioWaiter

    return TrioWaiter()


class _FutureWaiter:
    __slots__ = ("_future", "_make_future")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._make_future = loop.create_future
        self._future: Future[None] | None = None

    async def wait(self) -> None:
        self._future = future = self._make_future()
        await future

    def wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
