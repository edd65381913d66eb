"""Limits of time that do not count the time in which the event loop did not run.

After SIGSTOP and SIGCONT, or a callback that blocked the loop, data may lie in a receive buffer that the server has
not read yet. A limit must not end the connection before that.
"""

from __future__ import annotations

__all__ = ("CHECKS", "end_after", "sleep_running")

from time import monotonic

from anyio import CancelScope, sleep

#: A limit is counted in so many sleeps, so that a stop costs one of them at most.
CHECKS = 8


async def sleep_running(seconds: float) -> None:
    """Sleep for `seconds`; if the loop was late by as much again, sleep once more, in which it reads what came."""
    began = monotonic()
    await sleep(seconds)
    if monotonic() - began > 2 * seconds:
        await sleep(seconds)


async def end_after(seconds: float, scope: CancelScope) -> None:
    """Cancel `scope` after `seconds` in which the loop ran."""
    for _ in range(CHECKS):
        await sleep_running(seconds / CHECKS)

    scope.cancel()
