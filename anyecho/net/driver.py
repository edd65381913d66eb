"""How each event loop calls a Poller: whenever its epoll descriptor is readable.

asyncio and uvloop keep a reader registered for the Poller's whole life. A task that waits would cost them about
half of an echo at 1,000 a second: a reader added and removed, a Future, a second pass of the loop. On trio, a task
waits: that is one epoll_ctl(2) and a reschedule. Any other loop gets the same.

This module knows that event loops differ. It must not know what a descriptor reports.
"""

from __future__ import annotations

__all__ = ("drive",)

from collections.abc import Callable
from contextvars import copy_context
from typing import Protocol, cast

from anyio import Event, wait_readable
from anyio.lowlevel import checkpoint, current_token
from sniffio import current_async_library_cvar


class _Loop(Protocol):
    """What asyncio's and uvloop's event loops have, and trio's token does not."""

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None: ...

    def remove_reader(self, fd: int) -> bool: ...

    def call_soon(self, callback: Callable[[], None]) -> object: ...


async def drive(descriptor: int, turn: Callable[[], bool]) -> None:
    """Call `turn` while `descriptor` is readable, and again whenever it returns true, until cancelled.

    Between two calls every other task and callback that is ready runs. Raises what `turn` raises.
    """
    loop = current_token().native_token
    if hasattr(loop, "add_reader"):
        reader = _Reader(cast("_Loop", loop), descriptor, turn)
        if reader.begin():
            await reader.wait_failed()
            return

    while True:
        await wait_readable(descriptor)
        while turn():
            await checkpoint()


class _Reader:
    """Calls `turn` from a reader of `loop`, in no task."""

    def __init__(self, loop: _Loop, descriptor: int, turn: Callable[[], bool]) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._turn = turn
        self._is_scheduled = False
        self._is_ended = False
        self._failed = Event()
        self._failure: BaseException | None = None

    def begin(self) -> bool:
        """Register with the loop; return false if this loop has no readers (Windows' proactor)."""
        # anyio asks for the current task to know which loop runs, and a callback has none: so say it (the loop
        # copies the context that a callback is added in).
        context = copy_context()
        context.run(current_async_library_cvar.set, "asyncio")
        try:
            context.run(self._loop.add_reader, self._descriptor, self._on_readable)
        except NotImplementedError:
            return False

        return True

    async def wait_failed(self) -> None:
        """Wait until a turn fails, and raise what it raised; cancelled, call no more turns."""
        try:
            await self._failed.wait()
        finally:
            self._end()

        if self._failure is not None:
            raise self._failure

    def _on_readable(self) -> None:
        # Not a second turn in the same pass of the loop: one slice is what the other tasks wait for.
        if not (self._is_scheduled or self._is_ended):
            self._call_turn()

    def _call_again(self) -> None:
        self._is_scheduled = False
        if not self._is_ended:
            self._call_turn()

    def _call_turn(self) -> None:
        try:
            if self._turn():
                self._is_scheduled = True
                self._loop.call_soon(self._call_again)
        except (KeyboardInterrupt, SystemExit):
            raise  # they end the loop
        except BaseException as exc:  # which the loop would only log
            self._failure = exc
            self._end()
            self._failed.set()

    def _end(self) -> None:
        if not self._is_ended:
            self._is_ended = True
            self._loop.remove_reader(self._descriptor)
