"""Stopping: everybody who was connected gets what he is owed, and nobody keeps the server for ever."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import partial

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, to_thread, wait_all_tasks_blocked

from anyecho.address import Address
from anyecho.client.client import connect
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server, serve
from tests.support.peers import SOON, dial, flood, receive_all, until


async def owe_echo(server: Server, sock: socket.socket) -> None:
    """Send on `sock`, which is not read, until the server owes it echo that the kernels do not take."""
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


async def test_draining_twice_is_draining(server: Server) -> None:
    async with create_task_group() as tasks:
        tasks.start_soon(server.drain, 10)
        tasks.start_soon(server.drain, 10)


async def test_a_draining_server_goes_on_echoing_and_accepts_nobody(server: Server) -> None:
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


async def test_a_connection_in_the_backlog_is_served_before_the_listener_closes(server: Server) -> None:
    """The kernel has told these that they are connected; they must not be reset."""
    socks = [dial(server.addresses[0]) for _ in range(20)]  # all in one turn: none is accepted yet
    assert server.stats.accepted == 0

    def converse(sock: socket.socket) -> bytes:
        with sock:
            sock.sendall(b"patience")
            sock.shutdown(socket.SHUT_WR)
            return receive_all(sock)

    async with create_task_group() as tasks:
        tasks.start_soon(server.drain, 10)
        echoes = [await to_thread.run_sync(converse, sock) for sock in socks]

    assert echoes == [b"patience"] * 20


async def test_a_megabyte_half_before_and_half_after_is_echoed_whole(server: Server) -> None:
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
        with dial(server.addresses[0]) as deaf:
            await owe_echo(server, deaf)
            start = time.monotonic()
            await server.drain(0.2)
            assert 0.49 <= time.monotonic() - start < 0.5 + SOON

        assert server.stats.closed == {"drained": 1}


async def test_a_drain_ends_at_once_when_the_peer_closes_after_the_half_close(carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(linger=10)) as server:
        polite = await connect(server.addresses[0])
        async with polite, create_task_group() as tasks:
            await polite.exchange(b"x")
            tasks.start_soon(server.drain, 0)
            with fail_after(SOON):
                with pytest.raises(anyio.EndOfStream):
                    await polite.stream.receive()
                await polite.aclose()
                await server.wait_closed()


@pytest.mark.parametrize("grace", [10, 0], ids=["while it waits", "while it lingers"])
async def test_aborting_ends_a_drain(grace: float, carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(linger=10)) as server:
        with dial(server.addresses[0]) as deaf:
            await owe_echo(server, deaf)
            async with create_task_group() as tasks:
                tasks.start_soon(server.drain, grace)
                await wait_all_tasks_blocked()
                server.abort()
                with fail_after(SOON):
                    await server.wait_closed()


async def test_serve_cancelled_from_outside_does_not_linger_for_a_polite_peer(
    carrier: Address,
) -> None:
    """Its poller must outlive the cancellation, or the lingering close waits for the dead until its limit."""
    async with create_task_group() as tasks:
        with CancelScope() as outside:
            async with create_task_group() as serving:
                [address] = await serving.start(partial(serve, options=ServeOptions(linger=4 * SOON)), carrier)
                client = await connect(address)
                await client.exchange(b"x")

                async def be_polite() -> None:
                    with pytest.raises(anyio.EndOfStream):
                        await client.stream.receive()
                    await client.aclose()

                tasks.start_soon(be_polite)
                await wait_all_tasks_blocked()
                start = time.monotonic()
                outside.cancel()

        assert time.monotonic() - start < SOON


async def test_leaving_the_block_cuts_a_peer_that_does_not_read_after_the_linger(carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(linger=0.3)) as server:
        deaf = dial(server.addresses[0])
        await owe_echo(server, deaf)
        start = time.monotonic()

    assert 0.29 <= time.monotonic() - start < 0.3 + SOON
    deaf.close()


async def test_aborting_a_drain_that_is_just_beginning_forces_it(carrier: Address) -> None:
    """Also those who are still in the backlog then: they are not given a grace of their own."""
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


async def test_a_server_that_is_left_listens_no_more_while_it_lingers(carrier: Address) -> None:
    async def leave_when_nobody_listens(address: Address) -> None:
        try:
            # Who dials while the listener closes is reset; who comes later is refused, or finds no path.
            with fail_after(SOON), suppress(ConnectionError, FileNotFoundError):
                while True:
                    (await to_thread.run_sync(dial, address)).close()
                    await anyio.sleep(0.01)
        finally:
            deaf.close()

    async with create_task_group() as tasks, open_server(carrier, options=ServeOptions(linger=30)) as server:
        deaf = dial(server.addresses[0])
        await owe_echo(server, deaf)
        tasks.start_soon(leave_when_nobody_listens, server.addresses[0])
