"""Options of a passed listener: those that change an echo are reset, also on connections in its backlog."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from anyio import fail_after, sleep, to_thread

from anyecho.address import FDAddress
from anyecho.net.accepted import preparation_for
from anyecho.net.sockets import SocketOptions
from anyecho.server.events import EventConnection
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.support.machine import needs_ipv6, needs_linux, skip
from tests.support.peers import SOON, receive_all, until

pytestmark = needs_linux

SOL, IP, IPV6, TCP = socket.SOL_SOCKET, socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.IPPROTO_TCP
#: SOF_TIMESTAMPING: software timestamps of transmission and of acknowledgement.
SENT_AND_ACKNOWLEDGED = 1 << 1 | 1 << 4 | 1 << 9
#: Level, number, value of the passed listener, value that an echo needs.
RESET: dict[str, tuple[int, int, int | bytes, int | bytes]] = {
    "SO_LINGER 0 s": (SOL, 13, struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)),
    "SO_LINGER 1 s": (SOL, 13, struct.pack("ii", 1, 1), struct.pack("ii", 0, 1)),
    "SO_RCVLOWAT": (SOL, 18, 1000, 1),
    "SO_TIMESTAMP": (SOL, 29, 1, 0),
    "SO_TIMESTAMPING": (SOL, 37, SENT_AND_ACKNOWLEDGED, 0),
    "SO_PEEK_OFF": (SOL, 42, 3, -1),
    "SO_OOBINLINE": (SOL, 10, 0, 1),
    "TCP_CORK": (TCP, 3, 1, 0),
    "TCP_NODELAY": (TCP, 1, 0, 1),
    "IP_RECVERR": (IP, 11, 1, 0),
}
#: Options that keep their value: level, number, value.
KEPT: dict[str, tuple[int, int, int]] = {
    "SO_PRIORITY": (SOL, 12, 3),
    "SO_BUSY_POLL": (SOL, 46, 50),
    "SO_INCOMING_CPU": (SOL, 49, 0),
    "IP_TOS": (IP, 1, 16),
    "IP_TTL": (IP, 2, 33),
    "TCP_DEFER_ACCEPT": (TCP, 9, 1),
    "TCP_FASTOPEN": (TCP, 23, 5),
}


@pytest.fixture
def passed() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def set_option(sock: socket.socket, level: int, option: int, value: int | bytes) -> None:
    try:
        sock.setsockopt(level, option, value)
    except OSError as exc:
        skip(f"a kernel with this option ({exc})")


def echo_few_then_many(sock: socket.socket) -> list[bytes]:
    """Return the echo of three bytes, and that of many bytes and a half-close, read late."""
    sock.settimeout(SOON)
    sock.sendall(b"few")
    few = sock.recv(3, socket.MSG_WAITALL)
    sock.sendall(bytes(50_000))
    sock.shutdown(socket.SHUT_WR)
    return [few, receive_all(sock)]


def accepted_by(server: Server) -> Any:
    [connection] = server._connections
    return connection.sock


@pytest.mark.parametrize("waiting", [True, False], ids=["in the backlog", "later"])
@pytest.mark.parametrize("name", RESET)
@pytest.mark.by_turns("anyio_backend")
async def test_an_option_of_the_listener_that_changes_an_echo_is_reset(
    name: str, waiting: bool, passed: socket.socket
) -> None:
    level, option, value, needed = RESET[name]
    set_option(passed, level, option, value)
    peer = socket.create_connection(passed.getsockname()) if waiting else None
    async with open_server(FDAddress(fd=passed.fileno())) as server:
        with peer or socket.create_connection(passed.getsockname()) as sock:
            await until(lambda: server.stats.active == 1)
            length = len(needed) if isinstance(needed, bytes) else 0
            got = accepted_by(server).getsockopt(level, option, *([length] if length else []))
            assert got == needed
            with fail_after(SOON):
                assert await to_thread.run_sync(echo_few_then_many, sock) == [b"few", bytes(50_000)]

        await until(lambda: server.stats.closed["eof"] == 1)


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.by_turns("anyio_backend", "engine")
async def test_an_option_that_does_not_change_an_echo_is_kept(name: str, passed: socket.socket) -> None:
    level, option, value = KEPT[name]
    set_option(passed, level, option, value)
    before = passed.getsockopt(level, option)
    async with open_server(FDAddress(fd=passed.fileno())):
        assert passed.getsockopt(level, option) == before
        with socket.create_connection(passed.getsockname()) as sock:
            assert await to_thread.run_sync(echo_few_then_many, sock) == [b"few", bytes(50_000)]


async def test_an_echo_that_is_read_late_is_not_destroyed_by_a_reset(passed: socket.socket) -> None:
    set_option(passed, *RESET["SO_LINGER 0 s"][:3])
    with socket.create_connection(passed.getsockname()) as sock:
        async with open_server(FDAddress(fd=passed.fileno())) as server:
            sock.sendall(b"read late")
            sock.shutdown(socket.SHUT_WR)
            await until(lambda: server.stats.closed["eof"] == 1)
            assert await to_thread.run_sync(receive_all, sock) == b"read late"


async def test_socket_options_of_the_server_apply_to_passed_sockets(passed: socket.socket) -> None:
    passed.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    passed.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000)
    options = ServeOptions(socket=SocketOptions(keepalive=False, tcp_user_timeout=0))
    async with open_server(FDAddress(fd=passed.fileno()), options=options) as server:
        with socket.create_connection(passed.getsockname()):
            await until(lambda: server.stats.active == 1)
            sock = accepted_by(server)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


@pytest.mark.parametrize("engine", ["events"], indirect=True)
async def test_transmit_timestamps_do_not_make_the_loop_spin(
    passed: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0

    def dispatch(connection: Any, mask: int) -> Any:
        nonlocal turns
        turns += 1
        return dispatch_once(connection, mask)

    dispatch_once: Any = EventConnection.dispatch
    monkeypatch.setattr(EventConnection, "dispatch", dispatch)
    async with open_server(FDAddress(fd=passed.fileno())) as server:
        with socket.create_connection(passed.getsockname()) as sock:
            await until(lambda: server.stats.active == 1)
            # A parent process cannot set it here, but other entries of the error queue are reported like this.
            set_option(accepted_by(server), *RESET["SO_TIMESTAMPING"][:3])
            sock.sendall(b"hello")
            assert await to_thread.run_sync(sock.recv, 5) == b"hello"
            await sleep(0.2)
            assert 1 <= turns < 10


@needs_ipv6
async def test_ipv6_recverr_is_reset() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as passed:
        set_option(passed, IPV6, 25, 1)
        with socket.create_connection(passed.getsockname()[:2]) as sock:
            async with open_server(FDAddress(fd=passed.fileno())) as server:
                await until(lambda: server.stats.active == 1)
                assert accepted_by(server).getsockopt(IPV6, 25) == 0
                assert await to_thread.run_sync(echo_few_then_many, sock) == [b"few", bytes(50_000)]


UNIX: dict[str, tuple[int, int, int | bytes]] = {
    **{name: RESET[name][:3] for name in ("SO_LINGER 0 s", "SO_RCVLOWAT", "SO_PEEK_OFF", "SO_TIMESTAMPING")},
    "SO_PASSCRED": (SOL, 16, 1),
    "SO_PASSSEC": (SOL, 34, 1),
    "SO_PASSPIDFD": (SOL, 76, 1),
}


@pytest.mark.parametrize("name", UNIX)
@pytest.mark.by_turns("anyio_backend")
async def test_a_unix_socket_echoes_with_any_option_of_its_listener(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind("")  # an abstract name that is free
        set_option(passed, *UNIX[name])
        passed.listen()

        def echo_few_then_many_late() -> list[bytes]:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(passed.getsockname())
                return echo_few_then_many(sock)

        async with open_server(FDAddress(fd=passed.fileno())):
            assert await to_thread.run_sync(echo_few_then_many_late) == [b"few", bytes(50_000)]


@pytest.mark.parametrize("engine", ["tasks"], indirect=True)
def test_only_the_connections_that_were_in_the_backlog_are_prepared(passed: socket.socket) -> None:
    """The preparation takes as long as accept(2). Later connections inherit the options of the listener."""
    level, option, value, needed = RESET["SO_RCVLOWAT"]
    set_option(passed, level, option, value)
    with ExitStack() as opened:
        opened.enter_context(socket.create_connection(passed.getsockname()))
        select.select([passed], [], [])  # the connection is in the backlog
        prepare = preparation_for(passed, SocketOptions(), passed=True)
        assert prepare is not None
        opened.enter_context(socket.create_connection(passed.getsockname()))
        got = []
        for _ in range(2):
            sock = opened.enter_context(passed.accept()[0])
            prepare(sock)
            got.append(sock.getsockopt(level, option))

    assert got == [needed, value]


@pytest.mark.parametrize("waiting", [1, 3])
async def test_options_of_every_connection_in_the_backlog_are_reset(waiting: int, passed: socket.socket) -> None:
    set_option(passed, *RESET["SO_RCVLOWAT"][:3])
    with ExitStack() as opened:
        peers = [opened.enter_context(socket.create_connection(passed.getsockname())) for _ in range(waiting)]
        async with open_server(FDAddress(fd=passed.fileno())):
            peers.append(opened.enter_context(socket.create_connection(passed.getsockname())))
            for peer in peers:
                assert await to_thread.run_sync(echo_few_then_many, peer) == [b"few", bytes(50_000)]
