"""Accepting goes on whatever accept(2) says, and says what it met."""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from anyio import CancelScope, Event, create_task_group, fail_after, move_on_after, wait_all_tasks_blocked

from anyecho.net.accept import Acceptor
from anyecho.net.poller import Fallback, Poller, open_poller

CAPACITY = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")
IGNORABLE = (
    "ECONNABORTED",
    "ECONNRESET",
    "EHOSTDOWN",
    "EHOSTUNREACH",
    "EINTR",
    "ENETDOWN",
    "ENETUNREACH",
    "ENONET",
    "ENOPROTOOPT",
    "EOPNOTSUPP",
    "EPERM",
    "EPROTO",
    "ETIMEDOUT",
)


class Turnstile:
    """A gate that a test opens and shuts."""

    def __init__(self) -> None:
        self.open = True
        self.changed = Event()

    def may_accept(self) -> bool:
        return self.open

    async def wait_may_accept(self) -> None:
        while not self.open:
            await self.changed.wait()

    def let_in(self) -> None:
        self.open = True
        self.changed.set()


class Door:
    """A listener, its acceptor, and those who came in."""

    def __init__(self, opened: ExitStack) -> None:
        self._opened = opened
        self.sock = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.sock.setblocking(False)
        self.gate = Turnstile()
        self.came_in: list[socket.socket] = []
        self._came = Event()
        self.acceptor = Acceptor(sock=self.sock, limit=self.gate, hand_over=self._take, errors=Counter())

    def _take(self, sock: socket.socket, _: Any) -> None:
        self.came_in.append(self._opened.enter_context(sock))
        self._came.set()

    def knock(self) -> socket.socket:
        return self._opened.enter_context(socket.create_connection(self.sock.getsockname()))

    async def wait_for(self, count: int, seconds: float = 5.0) -> None:
        with fail_after(seconds):
            while len(self.came_in) < count:
                self._came = Event()
                await self._came.wait()


@pytest.fixture
def door() -> Iterator[Door]:
    with ExitStack() as opened:
        yield Door(opened)


def fail_accept(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let accept(2) itself fail so, once each, then work again."""
    accept = socket.socket.accept
    failures = [getattr(errno, name) for name in names]

    def failing(sock: socket.socket) -> tuple[socket.socket, Any]:
        if failures:
            code = failures.pop(0)
            raise OSError(code, os.strerror(code))
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", failing)


@pytest.mark.parametrize("without_poller", [False, True], ids=["poller", "fallback"])
@pytest.mark.parametrize("name", CAPACITY + IGNORABLE)
@pytest.mark.by_turns("anyio_backend")
async def test_an_error_in_mid_burst_is_counted_and_nobody_is_lost(
    name: str, without_poller: bool, poller: Poller | Fallback, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with create_task_group() as tasks:
        tasks.start_soon(door.acceptor.run, Fallback() if without_poller else poller)
        door.knock()
        await door.wait_for(1)
        for _ in range(3):
            door.knock()
        fail_accept(monkeypatch, name)
        await door.wait_for(4, 1.0)
        door.knock()
        await door.wait_for(5, 1.0)
        tasks.cancel_scope.cancel()

    assert door.acceptor.errors == {errno.errorcode[getattr(errno, name)]: 1}


async def test_an_error_that_no_waiting_mends_is_raised(
    poller: Poller | Fallback, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_accept(monkeypatch, "EINVAL")
    door.knock()
    with fail_after(5), pytest.raises(OSError, match="Invalid argument"):
        await door.acceptor.run(poller)


async def test_capacity_errors_that_last_are_one_log_line(
    poller: Poller | Fallback, door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail_accept(monkeypatch, *["ENOBUFS"] * 8)
    async with create_task_group() as tasks:
        tasks.start_soon(door.acceptor.run, poller)
        door.knock()
        await door.wait_for(1)
        tasks.cancel_scope.cancel()

    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "cannot accept: No buffer space available (1 times)"
    ]


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """A real limit: `count` more descriptors can be opened within the block, and then no more."""
    used = {int(name) for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [number for number in range(soft) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_who_cannot_be_held_is_told_and_the_others_are_kept(poller: Poller | Fallback, door: Door) -> None:
    with ExitStack() as clients:
        knocking = [clients.enter_context(socket.socket()) for _ in range(30)]
        async with create_task_group() as tasks:
            tasks.start_soon(door.acceptor.run, poller)
            await wait_all_tasks_blocked()
            with descriptors_left(10):
                for client in knocking:
                    client.connect(door.sock.getsockname())
                with fail_after(5):
                    while door.acceptor.errors["shed"] < 20:
                        await wait_all_tasks_blocked()

            assert len(door.came_in) == 10
            assert door.acceptor.errors["EMFILE"] >= 20
            door.knock()
            await door.wait_for(11, 1.0)
            tasks.cancel_scope.cancel()


async def test_nobody_is_looked_for_again_and_again_without_a_descriptor(
    poller: Poller | Fallback, door: Door
) -> None:
    """accept(2) says EMFILE also when nobody is there: that is no reason to ask it ten times a second."""
    with ExitStack() as clients:
        async with create_task_group() as tasks:
            tasks.start_soon(door.acceptor.run, poller)
            await wait_all_tasks_blocked()
            with descriptors_left(0):
                assert door.acceptor.accept_some()
                assert door.acceptor.errors["EMFILE"] == 1
            clients.enter_context(door.knock())
            await door.wait_for(1)
            tasks.cancel_scope.cancel()


async def test_a_gate_that_is_shut_leaves_them_in_the_backlog(poller: Poller | Fallback, door: Door) -> None:
    door.gate.open = False
    async with create_task_group() as tasks:
        tasks.start_soon(door.acceptor.run, poller)
        door.knock()
        await wait_all_tasks_blocked()
        assert door.came_in == []
        door.gate.let_in()
        await door.wait_for(1)
        tasks.cancel_scope.cancel()


async def test_cancelling_loses_no_connection(poller: Poller | Fallback, door: Door) -> None:
    """Those that the kernel has accepted are handed over, or stay in the backlog for whoever asks next."""
    for round_ in range(30):
        with CancelScope() as scope:
            async with create_task_group() as tasks:
                tasks.start_soon(door.acceptor.run, poller)
                await wait_all_tasks_blocked()
                door.knock()
                scope.cancel()
        door.acceptor.accept_some()
        assert len(door.came_in) == round_ + 1


async def test_accepting_leaves_no_descriptor_behind(poller: Poller | Fallback, door: Door) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        async with create_task_group() as tasks:
            tasks.start_soon(door.acceptor.run, poller)
            await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()

    assert len(os.listdir("/proc/self/fd")) == before


async def test_an_error_that_does_not_go_away_is_not_asked_about_without_pause(
    poller: Poller | Fallback, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_accept(monkeypatch, *["EPERM"] * 1_000_000)
    door.knock()
    with move_on_after(0.35):
        await door.acceptor.run(poller)

    assert 64 <= door.acceptor.errors["EPERM"] <= 64 * 5


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")
async def test_a_kernel_that_watches_no_more_sockets_is_asked_again(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fs.epoll.max_user_watches, reached between a pause and the end of it."""
    refusals = 2

    def register(self: Any, descriptor: int, mask: int, pollable: Any) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        report(self, descriptor, mask, pollable)

    report = Poller.report
    monkeypatch.setattr(Poller, "report", register)
    async with open_poller() as poller, create_task_group() as tasks:
        tasks.start_soon(door.acceptor.run, poller)
        door.knock()
        await door.wait_for(1)
        tasks.cancel_scope.cancel()

    assert door.acceptor.errors["ENOSPC"] == 2
