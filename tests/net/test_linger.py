"""The lingering close waits for EOF while the peer sends, and can be cancelled during a flood."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress

import pytest
import trio
from anyio import (
    CancelScope,
    EndOfStream,
    Event,
    create_task_group,
    fail_after,
    move_on_after,
)
from trio.testing import MockClock

from anyecho.net.linger import linger
from anyecho.net.poller import Fallback, Poller
from anyecho.net.stream import PolledStream
from tests.net.pairs import raw_pair, stream_over
from tests.support.tasks import wait_all_tasks_blocked


@pytest.mark.parametrize("stuck", [0.0, 0.05], ids=["running loop", "stuck loop"])
async def test_a_peer_that_sends_during_a_linger_is_read_until_eof(
    stuck: float, poller: Poller | Fallback, opened: ExitStack
) -> None:
    """In a stuck loop, the data comes together with the time to look whether all is acknowledged."""
    peer, ours = (opened.enter_context(sock) for sock in raw_pair("unix"))
    stream = stream_over(ours, poller)
    await stream.send(b"echo")
    ended = Event()

    async def close() -> None:
        with suppress(EndOfStream):
            await linger(stream, ours, None, quiet=True)
        ended.set()

    async with create_task_group() as tasks:
        tasks.start_soon(close)
        await wait_all_tasks_blocked()
        assert peer.recv(10) == b"echo"  # acknowledged now
        peer.send(b"late")
        time.sleep(stuck)  # noqa: ASYNC251 - what the test is about
        with move_on_after(0.1):
            await ended.wait()
        assert not ended.is_set()
        peer.close()
        with fail_after(5):
            await ended.wait()


def test_a_peer_that_acknowledges_nothing_is_checked_ever_less_often(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses are 1 ms, 2 ms and so on, so sixteen of them take a minute. The clock jumps over each pause."""
    checks: list[float] = []
    monkeypatch.setattr("anyecho.net.linger.is_acknowledged", lambda _: checks.append(trio.current_time()))
    _, ours = (opened.enter_context(sock) for sock in raw_pair("unix"))

    async def main() -> None:
        with move_on_after(60):
            await linger(stream_over(ours, Fallback()), ours, None, quiet=True)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert 15 <= len(checks) <= 18


async def test_a_flood_does_not_keep_a_linger_from_being_cancelled(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on asyncio, which does not cancel a task that has just been woken, `receive` is never cancelled."""
    _, ours = (opened.enter_context(sock) for sock in raw_pair("unix"))
    calls = 0

    async def receive(_: PolledStream) -> bytes:
        nonlocal calls
        calls += 1
        assert calls == 1, "not cancelled"
        scope.cancel()
        return b"x"

    monkeypatch.setattr(PolledStream, "receive", receive)
    with CancelScope() as scope:
        await linger(stream_over(ours, Fallback()), ours, None, quiet=False)
