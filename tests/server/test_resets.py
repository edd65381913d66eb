"""A reset in any phase of a connection: its reason is counted, nothing is logged, nothing leaks."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest
from anyio import create_task_group, fail_after, to_thread

from anyecho.server.options import ServeOptions
from anyecho.server.reasons import CloseReason
from anyecho.server.server import Server, open_server
from tests.net.pairs import reset
from tests.support.certificates import Files
from tests.support.leaks import nothing_left_behind
from tests.support.peers import SOON, dial, exchange, flood, receive_all, until
from tests.support.tasks import wait_all_tasks_blocked
from tests.support.tls import TLS, options, shake_hands


@pytest.fixture(autouse=True)
def _no_log_line(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def before_accept(server: Server, sock: socket.socket) -> None:
    sock.sendall(b"x")
    reset(sock)


async def mid_echo(server: Server, sock: socket.socket) -> None:
    assert await to_thread.run_sync(exchange, sock, b"hello") == b"hello"
    sock.sendall(b"more")
    reset(sock)


async def with_pending_echo(server: Server, sock: socket.socket) -> None:
    sock.setblocking(False)
    async with create_task_group() as tasks:
        tasks.start_soon(flood, sock)
        await until(lambda: any(peer.bytes_received > peer.bytes_sent for peer in server.peers()))
        tasks.cancel_scope.cancel()
    reset(sock)


async def half_closed(server: Server, sock: socket.socket) -> None:
    sock.sendall(b"x")
    sock.shutdown(socket.SHUT_WR)
    reset(sock)


async def in_a_linger(server: Server, sock: socket.socket) -> None:
    await until(lambda: server.stats.active == 1)
    await wait_all_tasks_blocked()  # a task that begins would echo what is there before it notices the close
    sock.sendall(b"unread")  # otherwise the server would not linger
    [connection] = server._connections
    connection.request_close(CloseReason.DRAINED)
    assert await to_thread.run_sync(receive_all, sock) == b""
    sock.sendall(b"never echoed")
    reset(sock)


async def in_a_drain(server: Server, sock: socket.socket) -> None:
    await until(lambda: server.stats.active == 1)
    async with create_task_group() as tasks:
        tasks.start_soon(server.drain, 10)
        await wait_all_tasks_blocked()
        reset(sock)


Moment: TypeAlias = Callable[[Server, socket.socket], Awaitable[None]]


@pytest.mark.fault(
    row=7, injected="a RST before accept, mid-echo, with pending echo, half-closed, in drain or linger"
)
@pytest.mark.parametrize(
    "moment", [before_accept, mid_echo, with_pending_echo, half_closed, in_a_drain, in_a_linger]
)
async def test_a_reset_is_counted_and_logged_nowhere(moment: Moment) -> None:
    async with nothing_left_behind():
        async with open_server("tcp://127.0.0.1:0", options=ServeOptions(linger=10)) as server:
            with dial(server.addresses[0]) as sock, fail_after(SOON):
                await moment(server, sock)
            await until(lambda: server.stats.closed.total() == 1)

        assert server.stats.closed == {"drained" if moment is in_a_linger else "reset": 1}


@pytest.mark.fault(row=7, injected="10 peers of a Unix socket close with unread bytes on both sides")
async def test_unix_peers_that_close_with_unread_bytes_are_counted_as_resets(short_path: Path) -> None:
    async with nothing_left_behind():
        async with open_server(f"unix:{short_path}/echo", options=ServeOptions(linger=10)) as server:
            with ExitStack() as opened:
                for _ in range(10):
                    sock = opened.enter_context(dial(server.addresses[0]))
                    assert await to_thread.run_sync(exchange, sock, b"hello") == b"hello"
                    sock.sendall(b"more")
            await until(lambda: server.stats.closed.total() == 10)

        assert server.stats.closed == {"reset": 10}


@pytest.mark.fault(row=7, injected="over TLS, a RST in a handshake, mid-echo, or after a close_notify")
@pytest.mark.parametrize("moment", ["handshake", "mid-echo", "after close_notify"])
async def test_a_reset_over_tls_is_counted_and_logged_nowhere(moment: str, files: Files) -> None:
    async with nothing_left_behind():
        async with open_server(TLS, options=options(files, linger=10)) as server:
            if moment == "handshake":
                sock = dial(server.addresses[0])
                sock.sendall(b"\x16\x03\x01\x02\x00\x01")
                await until(lambda: server.stats.active == 1)
            else:
                stream = await shake_hands(server.addresses[0])
                sock = stream._sock
                await stream.send(b"hello")
                assert await stream.receive() == b"hello"
                await stream.send(b"more")
                if moment == "after close_notify":
                    await stream.send_eof()
            reset(sock)
            await until(lambda: server.stats.closed.total() == 1)

        # The echo of the last bytes may be complete before the reset.
        allowed = {"handshake": {"handshake"}, "mid-echo": {"reset"}}.get(moment, {"reset", "eof"})
        assert server.stats.closed.keys() <= allowed
