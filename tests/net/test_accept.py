"""Accepting continues after the errors of accept(2), and counts and logs them."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Any
from unittest.mock import Mock

import pytest
from anyio import CancelScope, Event, create_task_group, current_time, fail_after
from anyio.lowlevel import checkpoint

from anyecho.net.accept import Acceptor
from anyecho.net.poller import Fallback, Poller, open_poller
from tests.support.machine import needs_epoll
from tests.support.peers import until
from tests.support.tasks import wait_all_tasks_blocked

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


class ManualLimit:
    """An `AcceptLimit` that a test sets and lifts."""

    def __init__(self) -> None:
        self.allowed = True
        self.changed = Event()
        self.awaited = Event()

    def may_accept(self) -> bool:
        return self.allowed

    async def wait_may_accept(self) -> None:
        self.awaited.set()
        while not self.allowed:
            await self.changed.wait()

    def lift(self) -> None:
        self.allowed = True
        self.changed.set()


class Server:
    """A listener, its acceptor, and the accepted connections."""

    def __init__(self, opened: ExitStack) -> None:
        self._opened = opened
        self.sock = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.sock.setblocking(False)
        self.limit = ManualLimit()
        self.accepted: list[socket.socket] = []
        self._arrived = Event()
        self.acceptor = Acceptor(sock=self.sock, limit=self.limit, hand_over=self._take, errors=Counter())

    def _take(self, sock: socket.socket, _: Any) -> None:
        self.accepted.append(self._opened.enter_context(sock))
        self._arrived.set()

    def connect(self) -> socket.socket:
        return self._opened.enter_context(socket.create_connection(self.sock.getsockname()))

    async def wait_accepted(self, count: int, seconds: float = 5.0) -> None:
        with fail_after(seconds):
            while len(self.accepted) < count:
                self._arrived = Event()
                await self._arrived.wait()


@pytest.fixture
def server() -> Iterator[Server]:
    with ExitStack() as opened:
        yield Server(opened)


def fail_accept(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make accept(2) fail once with each error in `names`, then work again."""
    accept = socket.socket.accept
    failures = [getattr(errno, name) for name in names]

    def failing(sock: socket.socket) -> tuple[socket.socket, Any]:
        if failures:
            code = failures.pop(0)
            raise OSError(code, os.strerror(code))
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", failing)


@pytest.mark.fault(row=2, injected="accept(2) fails once with each of 17 errors, while 3 clients connect")
@pytest.mark.parametrize("without_poller", [False, True], ids=["poller", "fallback"])
@pytest.mark.parametrize("name", CAPACITY + IGNORABLE)
@pytest.mark.by_turns("anyio_backend")
async def test_an_accept_error_in_a_burst_is_counted_and_no_connection_is_lost(
    name: str, without_poller: bool, poller: Poller | Fallback, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with create_task_group() as tasks:
        tasks.start_soon(server.acceptor.run, Fallback() if without_poller else poller)
        server.connect()
        await server.wait_accepted(1)
        for _ in range(3):
            server.connect()
        fail_accept(monkeypatch, name)
        await server.wait_accepted(4, 1.0)
        server.connect()
        await server.wait_accepted(5, 1.0)
        tasks.cancel_scope.cancel()

    assert server.acceptor.errors == {errno.errorcode[getattr(errno, name)]: 1}


async def test_an_error_of_the_listener_itself_is_raised(
    poller: Poller | Fallback, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_accept(monkeypatch, "EINVAL")
    server.connect()
    with fail_after(5), pytest.raises(OSError, match="Invalid argument"):
        await server.acceptor.run(poller)


async def test_repeated_capacity_errors_are_one_log_line(
    poller: Poller | Fallback, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail_accept(monkeypatch, *["ENOBUFS"] * 8)
    async with create_task_group() as tasks:
        tasks.start_soon(server.acceptor.run, poller)
        server.connect()
        await server.wait_accepted(1)
        tasks.cancel_scope.cancel()

    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "cannot accept: No buffer space available (1 times)"
    ]


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Lower the limit, so that `count` more descriptors can be opened within the block."""
    used = {int(name) for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [number for number in range(soft) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.fault(row=1, injected="30 clients connect where 10 descriptors are free")
async def test_connections_without_a_descriptor_are_closed(poller: Poller | Fallback, server: Server) -> None:
    with ExitStack() as clients:
        waiting = [clients.enter_context(socket.socket()) for _ in range(30)]
        async with create_task_group() as tasks:
            tasks.start_soon(server.acceptor.run, poller)
            await wait_all_tasks_blocked()
            with descriptors_left(10):
                for client in waiting:
                    client.connect(server.sock.getsockname())
                with fail_after(5):
                    while server.acceptor.errors["shed"] < 20:
                        await wait_all_tasks_blocked()

            assert len(server.accepted) == 10
            assert server.acceptor.errors["EMFILE"] >= 20
            server.connect()
            await server.wait_accepted(11, 1.0)
            tasks.cancel_scope.cancel()


async def test_an_acceptor_that_makes_room_serves_every_connection(
    poller: Poller | Fallback, server: Server
) -> None:
    def close_all() -> None:
        for sock in server.accepted:
            sock.close()

    server.acceptor.make_room = close_all
    with ExitStack() as clients:
        waiting = [clients.enter_context(socket.socket()) for _ in range(30)]
        async with create_task_group() as tasks:
            tasks.start_soon(server.acceptor.run, poller)
            await wait_all_tasks_blocked()
            with descriptors_left(10):
                for client in waiting:
                    client.connect(server.sock.getsockname())
                await server.wait_accepted(30)
            tasks.cancel_scope.cancel()

    assert server.acceptor.errors["shed"] == 0


async def test_the_spare_descriptor_serves_a_connection_if_there_is_no_room(
    poller: Poller | Fallback, server: Server
) -> None:
    server.acceptor.make_room = lambda: None
    with ExitStack() as clients:
        waiting = [clients.enter_context(socket.socket()) for _ in range(2)]
        async with create_task_group() as tasks:
            tasks.start_soon(server.acceptor.run, poller)
            await wait_all_tasks_blocked()
            with descriptors_left(0):
                for number, client in enumerate(waiting):
                    client.connect(server.sock.getsockname())
                    await server.wait_accepted(number + 1)
                    server.accepted[number].close()
            tasks.cancel_scope.cancel()


async def test_emfile_with_an_empty_backlog_causes_no_retry(poller: Poller | Fallback, server: Server) -> None:
    """accept(2) fails with EMFILE even if the backlog is empty. Ten retries a second would be useless."""
    with ExitStack() as clients:
        async with create_task_group() as tasks:
            tasks.start_soon(server.acceptor.run, poller)
            await wait_all_tasks_blocked()
            with descriptors_left(0):
                for count in (1, 2):  # the first attempt must not lose the spare descriptor
                    assert server.acceptor.accept_some()
                    assert server.acceptor.errors["EMFILE"] == count
            clients.enter_context(server.connect())
            await server.wait_accepted(1)
            tasks.cancel_scope.cancel()


async def test_a_spare_descriptor_is_opened_once_one_is_free(poller: Poller | Fallback, server: Server) -> None:
    with socket.socket() as client:
        async with create_task_group() as tasks:
            with descriptors_left(0):
                tasks.start_soon(server.acceptor.run, poller)
                client.connect(server.sock.getsockname())
                await until(lambda: server.acceptor.errors["EMFILE"] > 0)
            await server.wait_accepted(1)
            with descriptors_left(0):
                assert server.acceptor.accept_some(), "no spare descriptor"
            tasks.cancel_scope.cancel()


async def test_a_reached_limit_leaves_connections_in_the_backlog(poller: Poller | Fallback, server: Server) -> None:
    """The acceptor waits for the limit. It does not poll the backlog, as it does after an error."""
    server.limit.allowed = False
    async with create_task_group() as tasks:
        tasks.start_soon(server.acceptor.run, poller)
        server.connect()
        with fail_after(5):
            await server.limit.awaited.wait()
        assert server.accepted == []
        server.limit.lift()
        await server.wait_accepted(1)
        tasks.cancel_scope.cancel()


@pytest.mark.fault(row=28, injected="accepting is cancelled in the turn in which a client connects, 30 times")
async def test_cancelling_an_acceptor_loses_no_connection(poller: Poller | Fallback, server: Server) -> None:
    """Each connection is handed over or stays in the backlog for the next accept."""
    for round_ in range(30):
        with CancelScope() as scope:
            async with create_task_group() as tasks:
                tasks.start_soon(server.acceptor.run, poller)
                await wait_all_tasks_blocked()
                server.connect()
                scope.cancel()
        server.acceptor.accept_some()
        assert len(server.accepted) == round_ + 1


async def test_a_cancelled_acceptor_leaves_no_descriptor_open_and_accepts_no_more(
    poller: Poller | Fallback, server: Server
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        async with create_task_group() as tasks:
            tasks.start_soon(server.acceptor.run, poller)
            await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()

    assert len(os.listdir("/proc/self/fd")) == before
    server.connect()
    for _ in range(50):
        await checkpoint()
    assert server.accepted == []


async def test_a_stopped_acceptor_accepts_no_more_and_frees_its_spare_descriptor(
    poller: Poller | Fallback, server: Server
) -> None:
    """`Listener.stop`, which comes next, needs a descriptor."""
    with fail_after(5):
        async with create_task_group() as tasks:
            tasks.start_soon(server.acceptor.run, poller)
            await wait_all_tasks_blocked()
            with descriptors_left(0):
                server.acceptor.stop()
                os.close(os.open(os.devnull, os.O_RDONLY))
            server.connect()  # wakes `run`, which returns

    assert server.accepted == []


async def test_an_acceptor_that_is_stopped_by_a_hand_over_accepts_no_more(server: Server) -> None:
    """Its listener may be /dev/null by then, of which accept(2) would be an error."""
    take = server.acceptor.hand_over

    def take_and_stop(sock: socket.socket, peer: Any) -> None:
        take(sock, peer)
        server.acceptor.stop()

    server.acceptor.hand_over = take_and_stop
    for _ in range(3):
        server.connect()
    assert not server.acceptor.accept_some()
    assert len(server.accepted) == 1


@pytest.mark.fault(row=1, injected="accept(2) fails with each of 4 capacity errors, or EPERM, until an end")
@pytest.mark.parametrize(("name", "calls"), [*((name, 1) for name in CAPACITY), ("EPERM", 64)])
@pytest.mark.by_turns("anyio_backend")
async def test_a_persistent_accept_error_is_retried_after_pauses(
    name: str, calls: int, poller: Poller | Fallback, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with create_task_group() as tasks:
        server.connect()
        with monkeypatch.context() as patch:
            fail_accept(patch, *[name] * 1_000_000)
            start = monotonic()
            tasks.start_soon(server.acceptor.run, poller)
            await until(lambda: server.acceptor.errors[name] >= 3 * calls)
            # A pause takes 0.1 s.
            assert server.acceptor.errors[name] <= calls * (1 + (monotonic() - start) / 0.1)
        await server.wait_accepted(1)
        tasks.cancel_scope.cancel()


@needs_epoll
async def test_accepting_retries_if_the_kernel_cannot_watch_another_socket(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fs.epoll.max_user_watches is reached during a pause. Each attempt follows a pause of 0.1 s."""
    refusals, began = 2, current_time()

    def register(self: Any, descriptor: int, mask: int, pollable: Any) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        report(self, descriptor, mask, pollable)

    report = Poller.report
    monkeypatch.setattr(Poller, "report", register)
    async with open_poller() as poller, create_task_group() as tasks:
        tasks.start_soon(server.acceptor.run, poller)
        server.connect()
        await server.wait_accepted(1)
        tasks.cancel_scope.cancel()

    assert server.acceptor.errors["ENOSPC"] == 2
    assert current_time() - began > 0.15


@needs_epoll
async def test_accepting_ends_if_the_listener_cannot_be_watched(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Poller, "report", Mock(side_effect=PermissionError(errno.EPERM, "no epoll")))
    async with open_poller() as poller:
        with fail_after(5), pytest.raises(PermissionError):
            await server.acceptor.run(poller)
