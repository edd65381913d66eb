"""Time limits that count only the time for which the event loop ran.

A process that is stopped (SIGSTOP, Ctrl-Z) or blocked does not read. Bytes that arrive meanwhile stay in the
receive buffer, and a timer may fire before they are read. Such a gap counts as two intervals at most, and no limit
is reached at the end of a gap. This module must not know what a limit is for.
"""

from __future__ import annotations

__all__ = ("INTERVALS", "LoopClock", "call_until", "due_after", "run_within", "running_clock", "sleep_running")

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import TypeVar, TypeVarTuple

from anyio import CancelScope, create_task_group, current_time, sleep, sleep_forever

from anyecho.errors import unwrap_single

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Intervals that a limit is divided into. A gap takes at most a quarter of the limit.
INTERVALS = 8


def due_after(seconds: float) -> float:
    """Return the `current_time` at which `seconds` have passed, and not less.

    The clock of uvloop counts whole milliseconds, and its timers round: a millisecond may be missing from each end.
    """
    now = current_time()
    # A clock that is not the system's, as in a test, may show whole milliseconds too.
    if not 0 < seconds < math.inf or now != round(now, 3) or not 0 <= monotonic() - now < 1:
        return now + seconds

    return math.ceil((now + seconds) * 1000) / 1000 + 0.001


class LoopClock:
    """Seconds for which the event loop has run since the clock was made.

    `wait_until` or the owner calls `tick` every `interval` seconds. A gap of more than two intervals means that the
    loop did not run.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.elapsed = 0.0
        #: Whether there was a gap before the last tick.
        self.was_blocked = False
        self._ticked_at = current_time()

    def tick(self) -> float:
        """Count the time since the last tick, at most two intervals; return the seconds counted."""
        now = current_time()
        gap, self._ticked_at = now - self._ticked_at, now
        self.was_blocked = gap > 2 * self.interval
        counted = min(gap, 2 * self.interval)
        self.elapsed += counted
        return counted

    async def wait_until(self, limit: float) -> None:
        """Return once the clock shows `limit` seconds and the loop has run for an interval since a gap."""
        if math.isinf(self.interval):
            await sleep_forever()
        while self.elapsed < limit:
            await sleep(min(limit - self.elapsed, self.interval))
            self.tick()
        if self.was_blocked:
            await sleep(self.interval)
            self.tick()


async def sleep_running(seconds: float) -> None:
    """Sleep for `seconds`; if the loop is late by as much, sleep once more, so that it reads what arrived."""
    began = current_time()
    await sleep(seconds)
    if current_time() - began > 2 * seconds:
        await sleep(seconds)


async def call_until(deadline: float, extra: float, call: Callable[[], Awaitable[object]]) -> None:
    """Await `call()`, and cancel it at `deadline`, in the loop's time.

    If the loop did not run when the deadline passed, `call` is called once more, for `extra` seconds. It must
    resume where it was cancelled. There is no third call: with a thousand calls that end together, each pass of the
    loop takes longer than `extra`, and no call would ever end. The deadline is the only timer; there is no task.
    """
    with CancelScope(deadline=deadline) as scope:
        await call()

    if scope.cancelled_caught and current_time() - deadline > extra:
        with CancelScope(deadline=current_time() + extra):
            await call()


@asynccontextmanager
async def running_clock(limit: float) -> AsyncIterator[LoopClock]:
    """Run a clock while the block runs, to tell how much of `limit` seconds is left."""
    clock = LoopClock(limit / INTERVALS)
    async with create_task_group() as tasks:
        tasks.start_soon(clock.wait_until, math.inf)
        yield clock
        tasks.cancel_scope.cancel()


async def run_within(seconds: float, call: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """Return the result of `call(*args)`. Raises `TimeoutError` if the loop has run for `seconds` before that.

    A result is never lost: if there is one, a cancellation from outside is delivered at the next checkpoint. An
    exception of `call` is raised alone, without such a cancellation beside it.
    """
    if math.isinf(seconds):
        return await call(*args)

    async def end() -> None:
        await LoopClock(seconds / INTERVALS).wait_until(seconds)
        scope.cancel()

    with unwrap_single():
        async with create_task_group() as tasks:
            with CancelScope() as scope:
                tasks.start_soon(end)
                try:
                    result = await call(*args)
                except Exception:
                    tasks.cancel_scope.shield = True
                    raise
            tasks.cancel_scope.shield = True
            tasks.cancel_scope.cancel()

    if scope.cancelled_caught:
        raise TimeoutError

    return result
