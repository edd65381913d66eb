"""Drain and abort: pending echo is sent, and the server closes within a time limit."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import partial

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, to_thread

from anyecho.address import Address, UnixAddress
from anyecho.client.client import connect
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server, serve
from tests.support.machine import needs_socket_filters
from tests.support.peers import SOON, converse, dial, exchange, flood, until
from tests.support.tasks import wait_all_tasks_blocked


async def make_echo_pending(server: Server, sock: socket.socket) -> None:
    """Send on `sock`, without reading, until the kernel accepts no more echo and some is pending."""
    sock.setblocking(False)
    async with create_task_group() as tasks:
        tasks.start_soon(flood, sock)
        await until(
            lambda: any(received > sent for received, sent in (each.totals for each in server._connections))
        )
        tasks.cancel_scope.cancel()


async def test_draining_an_idle_server_takes_no_time(server: Server) -> None:
    with fail_after(SOON):
        await server.drain(10)
        await server.wait_closed()


async def test_two_drains_at_once_both_return(server: Server) -> None:
    async with create_task_group() as tasks:
        tasks.start_soon(server.drain, 10)
        tasks.start_soon(server.drain, 10)


async def test_a_draining_server_echoes_and_accepts_no_new_connection(server: Server) -> None:
    async with await connect(server.addresses[0]) as client:
        await client.exchange(b"before")
        async with create_task_group() as tasks:
            tasks.start_soon(server.drain, 10)
            await wait_all_tasks_blocked()
            assert await client.exchange(b"during") == b"during"
            with pytest.raises(OSError, match=r"refused|No such file"):
                await to_thread.run_sync(dial, server.addresses[0])
            with fail_after(SOON):
                await client.aclose()

    assert server.stats.closed == {"eof": 1}


@pytest.mark.fault(row=28, injected="a drain begins in the turn in which 20 clients connect")
async def test_a_connection_in_the_backlog_is_served_before_the_listener_closes(server: Server) -> None:
    """The kernel has completed these connections: they must not be reset."""
    socks = [dial(server.addresses[0]) for _ in range(20)]  # all in one turn: none is accepted yet
    assert server.stats.accepted == 0

    async with create_task_group() as tasks:
        tasks.start_soon(server.drain, 10)
        echoes = [await to_thread.run_sync(converse, sock, b"waiting") for sock in socks]

    assert echoes == [b"waiting"] * 20


async def test_a_megabyte_sent_half_before_and_half_during_a_drain_is_echoed(server: Server) -> None:
    payload = os.urandom(1 << 20)

    async def halves() -> AsyncGenerator[bytes, None]:
        yield payload[: len(payload) // 2]
        await until(lambda: server.stats.active == 1)
        tasks.start_soon(server.drain, 10)
        await wait_all_tasks_blocked()
        yield payload[len(payload) // 2 :]

    client = await connect(server.addresses[0])
    async with create_task_group() as tasks, client, client.send(halves()) as echo:
        assert b"".join([chunk async for chunk in echo]) == payload


async def test_a_peer_that_does_not_read_is_cut_after_grace_and_linger(carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(linger=0.3)) as server:
        with dial(server.addresses[0]) as sock:
            await make_echo_pending(server, sock)
            start = time.monotonic()
            await server.drain(0.2)
            assert 0.49 <= time.monotonic() - start < 0.5 + SOON

        assert server.stats.closed == {"drained": 1}


async def test_a_drain_ends_at_once_when_the_peer_closes_after_the_half_close(carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(linger=10)) as server:
        client = await connect(server.addresses[0])
        async with client, create_task_group() as tasks:
            await client.exchange(b"x")
            tasks.start_soon(server.drain, 0)
            with fail_after(SOON):
                with pytest.raises(anyio.EndOfStream):
                    await client.stream.receive()
                await client.aclose()
                await server.wait_closed()


@pytest.mark.parametrize("grace", [10, 0], ids=["while it waits", "while it lingers"])
async def test_aborting_ends_a_drain(grace: float, carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(linger=10)) as server:
        with dial(server.addresses[0]) as sock:
            await make_echo_pending(server, sock)
            async with create_task_group() as tasks:
                tasks.start_soon(server.drain, grace)
                await wait_all_tasks_blocked()
                server.abort()
                with fail_after(SOON):
                    await server.wait_closed()

    assert server.stats.closed == {"cancelled" if grace else "drained": 1}
    assert server.stats.active == 0


async def test_a_cancelled_serve_does_not_linger_after_the_peer_closes(
    carrier: Address,
) -> None:
    """The poller must outlive the cancellation: without it, the lingering close would last until its limit."""
    async with create_task_group() as tasks:
        with CancelScope() as outside:
            async with create_task_group() as serving:
                [address] = await serving.start(partial(serve, options=ServeOptions(linger=4 * SOON)), carrier)
                client = await connect(address)
                await client.exchange(b"x")

                async def close_at_eof() -> None:
                    with pytest.raises(anyio.EndOfStream):
                        await client.stream.receive()
                    await client.aclose()

                tasks.start_soon(close_at_eof)
                await wait_all_tasks_blocked()
                start = time.monotonic()
                outside.cancel()

        assert time.monotonic() - start < SOON


async def test_leaving_the_block_cuts_a_peer_that_does_not_read_after_the_linger(carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(linger=0.3)) as server:
        sock = dial(server.addresses[0])
        await make_echo_pending(server, sock)
        start = time.monotonic()

    assert 0.29 <= time.monotonic() - start < 0.3 + SOON
    sock.close()


async def test_aborting_a_drain_that_has_just_begun_ends_it(carrier: Address) -> None:
    """Connections in the accept backlog get no grace period of their own."""
    async with open_server(carrier, options=ServeOptions(linger=10)) as server:
        waiting = [dial(server.addresses[0]) for _ in range(3)]
        async with create_task_group() as tasks:
            tasks.start_soon(server.drain, 10)
            tasks.start_soon(server.drain, 10)
            server.abort()
            with fail_after(SOON):
                await server.wait_closed()
        for sock in waiting:
            sock.close()


async def test_an_aborted_server_is_closed(server: Server) -> None:
    with dial(server.addresses[0]):
        await until(lambda: server.stats.active == 1)
        server.abort()
        with fail_after(SOON):
            await server.wait_closed()
        with pytest.raises(OSError, match=r"refused|No such file"):
            await to_thread.run_sync(dial, server.addresses[0])

    assert server.stats.closed == {"cancelled": 1}


async def test_a_server_stops_listening_before_it_lingers(carrier: Address) -> None:
    async def close_when_refused(address: Address) -> None:
        try:
            # During the close of the listener a connection is reset; later it is refused, or the path is missing.
            with fail_after(SOON), suppress(ConnectionError, FileNotFoundError):
                while True:
                    (await to_thread.run_sync(dial, address)).close()
                    await anyio.sleep(0.01)
        finally:
            sock.close()

    async with create_task_group() as tasks, open_server(carrier, options=ServeOptions(linger=30)) as server:
        sock = dial(server.addresses[0])
        await make_echo_pending(server, sock)
        tasks.start_soon(close_when_refused, server.addresses[0])


async def test_no_connection_is_made_between_the_last_accept_and_the_end_of_listening(
    carrier: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be reset, although its peer had connected."""
    if not isinstance(carrier, UnixAddress):
        needs_socket_filters()
    async with open_server(carrier, options=ServeOptions(linger=0.5)) as server:
        address = server.addresses[0]
        stop = server._listening.stop
        late: list[str] = []

        def connect_before_stop() -> None:
            with socket.socket(socket.AF_UNIX if isinstance(address, UnixAddress) else socket.AF_INET) as sock:
                sock.setblocking(False)
                name = address.path if isinstance(address, UnixAddress) else sockaddr
                late.append(errno.errorcode[sock.connect_ex(name)])
                try:
                    sock.getpeername()
                except OSError as exc:
                    late.append(errno.errorcode[exc.errno or 0])
            stop()

        with dial(address) as waiting:
            sockaddr = waiting.getpeername()
            monkeypatch.setattr(server._listening, "stop", connect_before_stop)
            server.close()
            # A connection that was complete before is accepted.
            assert await to_thread.run_sync(exchange, waiting, b"hello") == b"hello"

    assert late[:2] == ["ENOENT" if isinstance(address, UnixAddress) else "EINPROGRESS", "ENOTCONN"]
