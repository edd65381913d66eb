"""The cost of a message in an engine: the functions it calls, and the memory it leaves allocated."""

from __future__ import annotations

import gc
import socket
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import pytest
from anyio import to_thread
from anyio.lowlevel import checkpoint

from anyecho.address import Address
from anyecho.net import poller
from anyecho.net.readiness import WRITE, Pollable
from anyecho.server.events import EventConnection
from anyecho.server.server import Server, open_server
from tests.support.machine import needs_epoll
from tests.support.peers import dial, receive, until
from tests.support.tasks import wait_all_tasks_blocked

MESSAGE = bytes(range(64))
#: Functions that would log a message, time it, allocate an object for it, or check a limit that is not set.
NEVER = ("CancelScope.", "Event.", "Logger.", "LoggerAdapter.", "Handler.", "Formatter.", "Capped.", "Paced.")


def echo_messages(sock: socket.socket, messages: int) -> None:
    for _ in range(messages):
        sock.sendall(MESSAGE)
        assert sock.recv(1024) == MESSAGE


@contextmanager
def profiled(callback: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    """Call `callback` for every call and return in this thread."""
    sys.setprofile(callback)
    try:
        yield
    finally:
        sys.setprofile(None)


async def test_ten_thousand_echoes_leave_no_memory_allocated(server: Server) -> None:
    with dial(server.addresses[0]) as sock:
        tracemalloc.start()
        try:
            await to_thread.run_sync(echo_messages, sock, 500)  # with all one-time allocations
            before = await blocks()
            await to_thread.run_sync(echo_messages, sock, 10_000)
            after = await blocks()
        finally:
            tracemalloc.stop()

    # Free lists keep a few blocks. A leak of one block in a hundred echoes would be a hundred.
    assert abs(after - before) < 60


async def blocks() -> int:
    """Return the number of memory blocks that Python holds while all tasks wait, without those of the snapshot."""
    await wait_all_tasks_blocked()
    gc.collect()
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, tracemalloc.__file__)])
    return len(snapshot.traces)


@needs_epoll  # without it, every wait has an Event of its own
async def test_a_message_is_neither_logged_nor_timed_nor_limited(server: Server) -> None:
    called: Counter[str] = Counter()

    def record(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            called[frame.f_code.co_qualname] += 1

    with dial(server.addresses[0]) as sock:
        await to_thread.run_sync(echo_messages, sock, 10)
        with profiled(record):
            await to_thread.run_sync(echo_messages, sock, 100)

    assert any(count >= 100 for count in called.values())
    assert [name for name, count in called.items() if count >= 50 and name.startswith(NEVER)] == []


@pytest.mark.parametrize("engine", ["events"], indirect=True)
async def test_a_turn_is_two_system_calls_and_nothing_else(server: Server) -> None:
    called: Counter[str] = Counter()
    inside = 0

    def record(frame: FrameType, event: str, function: Any) -> None:
        nonlocal inside
        in_dispatch = frame.f_code.co_qualname == "EventConnection.dispatch"
        if event == "call" and (in_dispatch or inside):
            inside += 1
            called[frame.f_code.co_name] += 1
        elif event == "return" and inside:
            inside -= 1
        elif event == "c_call" and inside:
            called[function.__name__] += 1

    with dial(server.addresses[0]) as sock:
        await to_thread.run_sync(echo_messages, sock, 10)
        with profiled(record):
            await to_thread.run_sync(echo_messages, sock, 100)

    assert called == {"dispatch": 100, "_turn": 100, "recv_into": 100, "send": 100}


@pytest.mark.parametrize("engine", ["events"], indirect=True)
async def test_reading_is_edge_triggered_again_after_back_pressure(carrier: Address, reports: list[int]) -> None:
    """A level-triggered registration would make the kernel check readiness twice per message."""
    async with open_server(carrier) as server:
        with dial(server.addresses[0]) as sock:
            await to_thread.run_sync(echo_messages, sock, 1)
            first = reports[0]
            sock.setblocking(False)
            sent = 0
            while WRITE not in reports:
                with suppress(BlockingIOError):
                    sent += sock.send(bytes(65536))
                await checkpoint()
            sock.setblocking(True)
            await to_thread.run_sync(receive, sock, sent)
            await until(lambda: reports[-1] != WRITE)
            assert reports[-1] == first


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The event masks that connections pass to the Poller, in order."""
    reports: list[int] = []
    report = poller.Poller.report

    def record(self: poller.Poller, descriptor: int, mask: int, pollable: Pollable) -> None:
        if isinstance(pollable, EventConnection):
            reports.append(mask)
        report(self, descriptor, mask, pollable)

    monkeypatch.setattr(poller.Poller, "report", record)
    return reports
