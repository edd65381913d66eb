"""Time limits while the event loop is blocked."""

from __future__ import annotations

import math
import time

import pytest
from anyio import CancelScope, current_time, sleep_forever, sleep_until
from anyio.lowlevel import checkpoint

from anyecho.clock import call_until, due_after, run_within


async def test_a_call_that_blocks_the_loop_at_its_deadline_is_repeated_once() -> None:
    calls = 0

    async def block() -> None:
        nonlocal calls
        calls += 1
        if calls < 10:
            time.sleep(0.05)  # noqa: ASYNC251 - the loop has to stop, for longer than deadline and extra time
            await sleep_forever()

    await call_until(current_time() + 0.01, 0.01, block)
    assert calls == 2


async def test_a_call_that_ends_in_time_is_not_repeated() -> None:
    calls = 0

    async def end() -> None:
        nonlocal calls
        calls += 1

    await call_until(current_time() + 60, 7.5, end)
    assert calls == 1


async def test_a_time_that_is_due_is_never_early() -> None:
    """The clock of uvloop counts whole milliseconds."""
    for step in range(20):
        seconds = 0.003 + step * 0.0001
        before = time.monotonic()
        await sleep_until(due_after(seconds))
        assert time.monotonic() - before >= seconds


async def test_no_delay_is_due_at_once() -> None:
    before = current_time()
    assert before <= due_after(0.0) <= current_time()
    assert due_after(math.inf) == math.inf


async def test_an_error_within_a_time_limit_is_raised_alone_although_a_cancellation_comes() -> None:
    with CancelScope() as scope:

        async def fail() -> None:
            scope.cancel()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await run_within(60, fail)
        await checkpoint()
    assert scope.cancelled_caught
