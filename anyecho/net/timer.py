"""A timer for absolute times in nanoseconds of `time.perf_counter_ns`, more exact than those of the event loops.

asyncio and trio round a sleep up to a millisecond, and uvloop rounds it down to 0. A timerfd on the `Poller` is
exact to the wake-up by the scheduler, about 50 us. Busy-waiting hides that: the descriptor becomes readable a
little early, and the event loop turns until the time has come. Without epoll or timerfd, a task sleeps and
busy-waits.
"""

from __future__ import annotations

__all__ = ("Callback", "open_timer", "open_timerfd")

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import perf_counter_ns
from typing import TYPE_CHECKING, TypeAlias

from anyio import create_task_group, sleep
from anyio.lowlevel import checkpoint

from anyecho.net.poller import Fallback, Poller
from anyecho.net.readiness import READ

if TYPE_CHECKING:
    from anyecho.net.timerfd import TimerFD

#: Called when its time has come, or later; returns the next time, or None for no more. It must not raise.
Callback: TypeAlias = "Callable[[], int | None]"

#: No event loop oversleeps by more, in nanoseconds: it rounds to a millisecond, and then has to be woken.
_OVERSLEEP = 3_000_000


@asynccontextmanager
async def open_timer(
    poller: Poller | Fallback, when: int, callback: Callback, *, busy_wait: int = 0
) -> AsyncIterator[None]:
    """Call `callback` at `when`, and then at each time that it returns, while the block runs.

    Busy-waiting takes the last `busy_wait` nanoseconds of each gap; a task that sleeps needs longer.
    """
    timer = open_timerfd() if isinstance(poller, Poller) else None
    if timer is None or not isinstance(poller, Poller):
        async with create_task_group() as tasks:
            tasks.start_soon(_call_after_sleeping, when, callback)
            yield
            tasks.cancel_scope.cancel()
        return

    polled = _PolledTimer(poller, timer, when, callback, busy_wait)
    try:
        yield
    finally:
        polled.poller_stopped()
        timer.close()


def open_timerfd() -> TimerFD | None:
    """Return a timerfd for times of `perf_counter_ns`; None without one."""
    if "CLOCK_MONOTONIC" not in time.get_clock_info("perf_counter").implementation:
        return None
    try:
        # Imported late: it needs ctypes, which is missing in a Python built without libffi.
        from anyecho.net.timerfd import TimerFD

        return TimerFD()
    except (ImportError, AttributeError, OSError):
        return None


class _PolledTimer:
    """A `Pollable` that calls `callback` from events of `timer`, which is never read: each `set` clears it."""

    __slots__ = ("_busy_wait", "_callback", "_poller", "_timer", "_when", "batch")

    batch: int

    def __init__(self, poller: Poller, timer: TimerFD, when: int, callback: Callback, busy_wait: int) -> None:
        self._poller = poller
        self._timer = timer
        self._when = when
        self._callback = callback
        self._busy_wait = busy_wait
        timer.set(when - busy_wait)
        poller.report(timer.descriptor, READ, self)

    def dispatch(self, mask: int) -> None:
        now = perf_counter_ns()
        if now < self._when:
            return  # the descriptor stays readable, and the loop comes back at once

        when = self._callback()
        if when is None:
            self.poller_stopped()
            return

        self._when = when
        if when - self._busy_wait > now:
            self._timer.set(when - self._busy_wait)

    def poller_stopped(self) -> None:
        self._poller.stop_reporting(self._timer.descriptor, self)


async def _call_after_sleeping(when: int, callback: Callback) -> None:
    following: int | None = when
    while following is not None:
        gap = following - perf_counter_ns()
        if gap > _OVERSLEEP:
            await sleep((gap - _OVERSLEEP) / 1e9)
            continue
        if gap <= 0:
            following = callback()
        await checkpoint()
