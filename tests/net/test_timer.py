"""The timer calls at absolute times: never early, in order, and with each kind of poller and system."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import perf_counter_ns
from types import SimpleNamespace

import anyio.lowlevel
import pytest
from anyio import Event, fail_after

from anyecho.net import exclusive, timer
from anyecho.net.exclusive import ExclusivePoller
from anyecho.net.fallback import Fallback
from anyecho.net.poller import Poller, has_epoll, open_poller
from anyecho.net.timer import open_timer
from tests.support.machine import skip
from tests.support.peers import SOON
from tests.support.process import descriptors

MILLISECOND = 1_000_000


@pytest.fixture(params=["poller", "exclusive", "poller, no timerfd", "exclusive, no timerfd", "no epoll"])
async def poller(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Poller | Fallback]:
    if request.param == "no epoll":
        yield Fallback()
        return

    if not has_epoll():
        skip("epoll")
    if "no timerfd" in request.param:
        for module in (timer, exclusive):
            monkeypatch.setattr(module, "open_timerfd", lambda: None)
    async with open_poller(ExclusivePoller if "exclusive" in request.param else None) as opened:
        yield opened


class Calls:
    """A callback that is called at each of `times` after now; it records when."""

    def __init__(self, *times: int) -> None:
        self.begin = perf_counter_ns()
        self.times = [self.begin + each for each in times]
        self.called: list[int] = []
        self.is_over = Event()

    def __call__(self) -> int | None:
        self.called.append(perf_counter_ns())
        if len(self.called) < len(self.times):
            return self.times[len(self.called)]
        self.is_over.set()
        return None


@pytest.mark.parametrize("busy_wait", [0, 300_000])
async def test_a_timer_calls_at_each_time_and_never_early(busy_wait: int, poller: Poller | Fallback) -> None:
    calls = Calls(2 * MILLISECOND, 2 * MILLISECOND + 1, 3 * MILLISECOND, 8 * MILLISECOND, 8 * MILLISECOND + 100_000)
    async with open_timer(poller, calls.times[0], calls, busy_wait=busy_wait):
        with fail_after(SOON):
            await calls.is_over.wait()
    assert [pair for pair in zip(calls.called, calls.times, strict=True) if pair[0] < pair[1]] == []


async def test_times_in_the_past_are_called_at_once(poller: Poller | Fallback) -> None:
    calls = Calls(-1, -MILLISECOND, 0, -(10**18))
    async with open_timer(poller, calls.times[0], calls):
        with fail_after(SOON):
            await calls.is_over.wait()
    assert len(calls.called) == 4


async def test_a_timer_ends_with_its_block_and_leaves_no_descriptor(poller: Poller | Fallback) -> None:
    before = descriptors()
    calls = Calls(3600 * 1000 * MILLISECOND)
    with fail_after(SOON):
        async with open_timer(poller, calls.times[0], calls, busy_wait=MILLISECOND):
            await anyio.lowlevel.checkpoint()
    assert descriptors() == before
    assert calls.called == []


async def test_other_tasks_run_while_a_timer_waits_busily(poller: Poller | Fallback) -> None:
    turns = 0
    calls = Calls(50 * MILLISECOND)
    async with open_timer(poller, calls.times[0], calls, busy_wait=50 * MILLISECOND):
        with fail_after(SOON):
            while not calls.called:
                turns += 1
                await anyio.lowlevel.checkpoint()
    assert turns > 1


def test_a_clock_that_no_timerfd_has_is_left_to_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.get_clock_info", lambda _: SimpleNamespace(implementation="mach_absolute_time()"))
    assert timer.open_timerfd() is None
