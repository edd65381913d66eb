"""Echo that is pending when the server closes a connection is sent within the linger."""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias

import pytest
from anyio import create_task_group, fail_after, to_thread

from anyecho.address import Address
from anyecho.server.connection import Connection
from anyecho.server.options import ServeOptions
from anyecho.server.reasons import CloseReason
from anyecho.server.server import Server, open_server
from tests.support.blocked import LIMIT, block_loop_while
from tests.support.certificates import Files
from tests.support.conformance import drain as drain_stream
from tests.support.peers import SOON, dial, until
from tests.support.tasks import wait_all_tasks_blocked
from tests.support.tls import TLS, options, shake_hands

Verb: TypeAlias = Callable[[Server], Coroutine[Any, Any, None]]

LONG = 60.0


def stream_of_bytes(start: int, count: int) -> bytes:
    """Return `count` bytes from position `start` of a sequence in which neighbours differ."""
    return bytes((start + i) % 251 for i in range(count))


async def make_echo_pending(server: Server, sock: socket.socket) -> Connection:
    """Send on `sock`, without reading, until echo is pending and the server reads no more."""
    sock.setblocking(False)
    offset = 0
    while True:
        try:
            offset += sock.send(stream_of_bytes(offset % 251, 65536))
        except BlockingIOError:
            await wait_all_tasks_blocked()
            for connection in server._connections:  # none before the socket is accepted
                received, sent = connection.totals
                if received > sent:
                    sock.setblocking(True)
                    sock.settimeout(SOON)
                    return connection


def read(sock: socket.socket, count: int) -> bytes:
    """Return the next `count` bytes, or fewer at EOF, and shut the socket down."""
    got = bytearray()
    try:
        while len(got) < count and (chunk := sock.recv(min(65536, count - len(got)))):
            got += chunk
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # a reset: the caller checks the length

    return bytes(got)


def is_whole(echo: bytes, count: int) -> bool:
    return echo == stream_of_bytes(0, count)


async def drain(server: Server) -> None:
    await server.drain(0)


async def close(server: Server, reason: CloseReason) -> None:
    [connection] = server._connections
    connection.request_close(reason)
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("how", [drain, partial(close, reason=CloseReason.DURATION)], ids=["drain", "limit"])
async def test_all_bytes_read_before_a_close_are_echoed(how: Verb, carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(linger=LONG)) as server:
        with dial(server.addresses[0]) as sock:
            connection = await make_echo_pending(server, sock)
            received, _ = connection.totals
            async with create_task_group() as tasks:
                tasks.start_soon(how, server)
                with fail_after(SOON):
                    echo = await to_thread.run_sync(read, sock, received)

    assert len(echo) == received
    assert is_whole(echo, received)


async def test_a_linger_that_ends_in_a_blocked_loop_still_sends_pending_echo(
    carrier: Address,
) -> None:
    async with open_server(carrier, options=ServeOptions(linger=LIMIT)) as server:
        with dial(server.addresses[0]) as sock:
            connection = await make_echo_pending(server, sock)
            received, _ = connection.totals
            async with create_task_group() as tasks:
                tasks.start_soon(server.drain, 0)
                await wait_all_tasks_blocked()
                echo = await block_loop_while(partial(read, sock, received))

    assert len(echo) == received
    assert is_whole(echo, received)


async def test_a_linger_that_ends_in_a_blocked_loop_still_reads_input(carrier: Address) -> None:
    """If input stayed unread, the kernel would send a reset, which destroys echo that the peer has not read."""

    def send_more_and_end() -> None:
        sock.sendall(b"more")
        sock.shutdown(socket.SHUT_WR)

    async with open_server(carrier, options=ServeOptions(linger=LIMIT)) as server:
        with dial(server.addresses[0]) as sock:
            await until(lambda: server.stats.active == 1)
            await wait_all_tasks_blocked()
            sock.sendall(b"unread")
            [connection] = server._connections
            connection.request_close(CloseReason.DURATION)
            assert await to_thread.run_sync(sock.recv, 1) == b""
            await block_loop_while(send_more_and_end)
            await until(lambda: server.stats.active == 0)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    assert error == 0


async def test_a_linger_over_tls_that_ends_in_a_blocked_loop_still_reads_input(files: Files) -> None:
    async with open_server(TLS, options=options(files, linger=LIMIT)) as server:
        stream = await shake_hands(server.addresses[0])
        await until(lambda: server.peers() != [])
        await wait_all_tasks_blocked()
        await stream.send(b"unread")
        [connection] = server._connections
        connection.request_close(CloseReason.DURATION)

        def send_more_and_end() -> None:
            stream.records.send(b"more")
            stream.records.send_eof()
            stream.records.flush(stream._sock.send)

        assert await drain_stream(stream) == b""
        await block_loop_while(send_more_and_end)
        await until(lambda: server.stats.active == 0)
        error = stream._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        await stream.aclose()

    assert error == 0
