"""A running server: echo, close reasons, limits, bugs and clean-up."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
import pytest
from anyio import (
    CancelScope,
    create_task_group,
    fail_after,
    get_running_tasks,
    move_on_after,
    to_thread,
)
from anyio.abc import ByteStream

from anyecho.address import Address, UnixAddress
from anyecho.client.client import connect
from anyecho.echo import echo
from anyecho.errors import BindError
from anyecho.server import events
from anyecho.server import tasks as task_engine
from anyecho.server.options import ServeOptions
from anyecho.server.reasons import CloseReason
from anyecho.server.server import Server, open_server, serve
from tests.support.leaks import live_connections
from tests.support.peers import SOON, dial, flood, receive, receive_all, until, until_closed
from tests.support.tasks import wait_all_tasks_blocked

LARGE = os.urandom(5000)


async def test_a_client_gets_back_its_bytes(server: Server) -> None:
    async with await connect(server.addresses[0]) as client:
        assert await client.exchange(b"hello") == b"hello"


@pytest.mark.parametrize("engine", ["events"], indirect=True)
async def test_input_larger_than_a_turn_is_read_in_several_turns(
    carrier: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later input causes another event."""
    monkeypatch.setattr(events, "_BUFFER_SIZE", 1000)
    async with open_server(carrier) as server:
        with dial(server.addresses[0]) as sock:
            await to_thread.run_sync(sock.sendall, LARGE[:5000])
            with fail_after(SOON):
                assert await to_thread.run_sync(receive, sock, 5000) == LARGE[:5000]


async def test_data_after_a_short_read_is_echoed(carrier: Address) -> None:
    """An urgent byte or a passed descriptor in the middle of unread input ends a read early."""
    async with open_server(carrier, options=ServeOptions(max_connections=1)) as server:
        with dial(server.addresses[0]) as first:
            await until(lambda: server.stats.active == 1)
            with dial(server.addresses[0]) as sock:
                sock.sendall(b"before")
                if isinstance(carrier, UnixAddress):
                    socket.send_fds(sock, [b"!"], [sock.fileno()])
                else:
                    sock.send(b"!", socket.MSG_OOB)
                sock.sendall(b"after")
                first.close()
                with fail_after(SOON):
                    assert await to_thread.run_sync(receive, sock, 12) == b"before!after"


@pytest.mark.fault(row=8, injected="a peer half-closes after 0, 1, 300000 or 8 Mi bytes, before it reads any")
@pytest.mark.parametrize("size", [0, 1, 300_000, 8 << 20])
async def test_a_half_close_is_answered_by_the_rest_and_eof(size: int, server: Server) -> None:
    payload = os.urandom(size)

    def send(sock: socket.socket) -> None:
        sock.sendall(payload)
        sock.shutdown(socket.SHUT_WR)

    async with create_task_group() as tasks:
        with dial(server.addresses[0]) as sock:
            tasks.start_soon(to_thread.run_sync, send, sock)
            if size:
                await until(lambda: bool(server.stats.closed) or any(peer.bytes_sent for peer in server.peers()))
            assert await to_thread.run_sync(receive_all, sock) == payload

    await until_closed(server, 1)
    assert server.stats.closed == {"eof": 1}
    assert server.stats.bytes_received == server.stats.bytes_sent == size


async def test_many_peers_are_served_side_by_side(server: Server) -> None:
    async def one(number: int) -> None:
        async with await connect(server.addresses[0]) as client:
            for turn in range(20):
                await client.exchange(f"{number}:{turn}".encode() * 100)

    async with create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(one, number)

    await until_closed(server, 50)
    assert server.stats.accepted == 50
    assert server.stats.active == 0
    assert server.stats.closed == {"eof": 50}


async def test_serve_reports_its_addresses_and_ends_when_cancelled(carrier: Address) -> None:
    async with create_task_group() as tasks:
        [address] = await tasks.start(serve, carrier)
        async with await connect(address) as client:
            await client.exchange(b"x")
        tasks.cancel_scope.cancel()


async def test_an_address_in_use_is_an_error_before_the_block(carrier: Address) -> None:
    async with open_server(carrier) as server:
        with pytest.raises(BindError):
            async with open_server("tcp://127.0.0.1:0", server.addresses[0]):
                pytest.fail("it opened")


async def test_an_exception_in_the_block_propagates_unchanged(carrier: Address) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_server(carrier):
            raise ZeroDivisionError


async def test_a_server_leaves_no_descriptor_or_task_behind(carrier: Address) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), len(get_running_tasks())
    async with open_server(carrier) as server, await connect(server.addresses[0]) as client:
        await client.exchange(b"x")
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), len(get_running_tasks())) == before


class Bug(Exception):
    """Raised on purpose."""


only_tasks = pytest.mark.parametrize("engine", ["tasks"], indirect=True)


@pytest.mark.fault(row=3, injected="in the tasks engine, the echo raises, bare or in a group that has another task")
@only_tasks
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "in a group"])
async def test_a_bug_closes_one_connection_and_is_logged(
    wrapped: bool, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def buggy(stream: Any) -> None:
        if await stream.receive() == b"raise":
            if not wrapped:
                raise Bug
            async with create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                raise Bug
        await stream.send(b"x")
        await echo(stream)

    monkeypatch.setattr(task_engine, "echo", buggy)
    neighbour = await connect(server.addresses[0])
    async with neighbour, await connect(server.addresses[0]) as victim:
        await neighbour.exchange(b"x")
        await victim.stream.send(b"raise")
        await until_closed(server, 1)
        assert server.stats.closed == {"error": 1}
        await neighbour.exchange(b"still here")

    assert [record.getMessage() for record in caplog.records if record.exc_info] == ["connection failed"]


async def fail_in_cleanup(stream: ByteStream) -> None:
    """Fail in the cleanup after a cancellation: on trio a group of both, which is no `Exception`."""
    async with create_task_group() as tasks:
        tasks.start_soon(stream.receive)
        try:
            await anyio.sleep_forever()
        finally:
            raise Bug


@pytest.mark.fault(row=3, injected="in the tasks engine, cleaning up raises in 3 connections that a drain cancels")
@only_tasks
async def test_a_bug_in_cleanup_does_not_stop_a_drain(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as clients:
        good = await clients.enter_async_context(await connect(server.addresses[0]))
        await good.exchange(b"before")
        monkeypatch.setattr(task_engine, "echo", fail_in_cleanup)
        for _ in range(3):
            await clients.enter_async_context(await connect(server.addresses[0]))
        await until(lambda: server.stats.active == 4)
        await wait_all_tasks_blocked()
        with fail_after(SOON):
            await server.drain(0)

    assert server.stats.closed == {"error": 3, "drained": 1}


@only_tasks
async def test_a_bug_in_cleanup_does_not_propagate_from_a_cancelled_server(
    carrier: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_engine, "echo", fail_in_cleanup)
    with CancelScope() as outside:
        async with open_server(carrier, options=ServeOptions(linger=0.1)) as server:
            client = await connect(server.addresses[0])
            await until(lambda: server.stats.active == 1)
            await wait_all_tasks_blocked()
            outside.cancel()
            await anyio.sleep_forever()

    assert server.stats.closed == {"error": 1}
    with CancelScope(shield=True):
        await client.aclose()


@pytest.mark.fault(row=21, injected="3 clients connect where 2 are allowed; then one of the 2 closes")
async def test_connections_over_max_connections_wait_in_the_backlog(carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(max_connections=2)) as server:
        async with await connect(server.addresses[0]) as first, await connect(server.addresses[0]) as second:
            for client in (first, second):
                await client.exchange(b"x")
            third = await connect(server.addresses[0])
            async with third, create_task_group() as tasks:
                tasks.start_soon(third.exchange, b"waiting")
                await wait_all_tasks_blocked()
                assert (server.stats.active, server.stats.accepted) == (2, 2)
                await first.aclose()  # frees a slot for the third

        await until_closed(server, 3)
        assert server.stats.accepted == 3


async def test_max_connections_applies_to_all_addresses_together() -> None:
    options = ServeOptions(max_connections=1)
    async with open_server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", options=options) as server:
        one, other = server.addresses
        async with await connect(one) as client, await connect(other) as waiting:
            await client.exchange(b"x")
            with move_on_after(0.05) as scope:
                await waiting.exchange(b"x")
            assert scope.cancelled_caught


@pytest.mark.fault(row=6, injected="a peer sends nothing, beside one that does; idle_timeout=0.4 s")
async def test_a_silent_connection_is_closed_and_a_busy_one_is_not(carrier: Address) -> None:
    options = ServeOptions(idle_timeout=0.4, linger=0.1)
    async with open_server(carrier, options=options) as server, create_task_group() as tasks:
        start = time.monotonic()
        busy = await connect(server.addresses[0])
        silent = await connect(server.addresses[0])

        async def keep_busy() -> None:
            async with busy:
                while True:
                    await busy.exchange(b"x")
                    await anyio.sleep(0.02)

        tasks.start_soon(keep_busy)
        async with silent:
            with pytest.raises(anyio.EndOfStream), fail_after(SOON):
                await silent.stream.receive()
            assert time.monotonic() - start >= 0.39

        await until_closed(server, 1)
        assert server.stats.closed == {"idle": 1}
        tasks.cancel_scope.cancel()


async def test_a_peer_that_never_reads_is_idle(carrier: Address) -> None:
    options = ServeOptions(idle_timeout=0.3, linger=0.1)
    async with open_server(carrier, options=options) as server:
        with dial(server.addresses[0]) as sock:
            sock.setblocking(False)
            async with create_task_group() as tasks:
                tasks.start_soon(flood, sock)
                await until_closed(server, 1)
                tasks.cancel_scope.cancel()

        assert server.stats.closed == {"idle": 1}


@pytest.mark.fault(row=9, injected="a drain or max_bytes closes on a peer that has read nothing, and keeps sending")
@pytest.mark.parametrize(("limit", "reason"), [(0, "drained"), (200_000, "bytes")])
async def test_an_echo_is_not_destroyed_when_the_server_closes_first(
    limit: int, reason: str, carrier: Address
) -> None:
    """Without lingering, further input causes a reset, which destroys echo that the peer has not read."""
    async with open_server(carrier, options=ServeOptions(linger=2.0, max_bytes=limit)) as server:
        payload = os.urandom(200_000)
        drained = threading.Event()

        def send_on() -> bytes:
            with dial(server.addresses[0]) as sock:
                sock.sendall(payload)
                drained.wait(10)
                for _ in range(20):
                    sock.sendall(b"never echoed")
                sock.shutdown(socket.SHUT_WR)
                return receive_all(sock)

        got: list[bytes] = []

        async def client() -> None:
            got.append(await to_thread.run_sync(send_on))

        async with create_task_group() as tasks:
            tasks.start_soon(client)
            await until(lambda: any(sum(each.totals) == 2 * len(payload) for each in server._connections))
            if not limit:
                tasks.start_soon(server.drain, 0)
                await wait_all_tasks_blocked()
            drained.set()

        assert got == [payload]
        await until_closed(server, 1)
        assert server.stats.closed == {reason: 1}


async def test_data_that_arrived_while_the_loop_was_blocked_is_echoed(carrier: Address) -> None:
    """The server was late, not the peer: the connection is not idle."""
    async with open_server(carrier, options=ServeOptions(idle_timeout=0.3, linger=0.1)) as server:
        with dial(server.addresses[0]) as sock:
            await until(lambda: server.stats.active == 1)
            await anyio.sleep(0.15)  # half of the idle timeout
            sock.sendall(b"in time!")
            time.sleep(0.7)  # noqa: ASYNC251 - block the loop
            assert await to_thread.run_sync(sock.recv, 8) == b"in time!"


async def test_a_busy_address_does_not_starve_another_at_the_limit() -> None:
    options = ServeOptions(max_connections=1)
    async with open_server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", options=options) as server:
        busy, other = server.addresses

        async def reconnect() -> None:
            while True:
                async with await connect(busy) as client:
                    await client.exchange(b"x")

        async with create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(reconnect)
            await until(lambda: server.stats.accepted > 10)
            async with await connect(other) as client:
                with fail_after(3):
                    await client.exchange(b"mine")
            tasks.cancel_scope.cancel()


async def test_an_exception_group_in_the_block_propagates_unchanged(carrier: Address) -> None:
    with pytest.raises(ExceptionGroup, match="mine"):
        async with open_server(carrier):
            raise ExceptionGroup("mine", [ZeroDivisionError()])


@pytest.mark.fault(row=3, injected="in the events engine, recv_into of a connection raises")
@pytest.mark.parametrize("engine", ["events"], indirect=True)
async def test_a_bug_in_a_turn_closes_one_connection_and_is_logged(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recv_into = socket.socket.recv_into

    def buggy(sock: socket.socket, buffer: memoryview) -> int:
        count = recv_into(sock, buffer)
        if bytes(buffer[:count]) == b"raise":
            raise Bug
        return count

    monkeypatch.setattr(socket.socket, "recv_into", buggy)
    async with await connect(server.addresses[0]) as neighbour, await connect(server.addresses[0]) as victim:
        await neighbour.exchange(b"x")
        await victim.stream.send(b"raise")
        await until_closed(server, 1)
        assert server.stats.closed == {"error": 1}
        await neighbour.exchange(b"still here")

    assert [record.getMessage() for record in caplog.records if record.exc_info] == ["connection failed"]


@pytest.mark.parametrize("turn", range(5))
async def test_a_connection_accepted_while_the_server_closes_is_closed(turn: int, carrier: Address) -> None:
    """A callback may accept it after the server has listed the connections to close."""
    before = len(os.listdir("/proc/self/fd"))
    left = threading.Event()

    def hammer(address: Address) -> None:
        with suppress(OSError):
            while not left.is_set():
                dial(address).close()

    async with create_task_group() as tasks:
        async with open_server(carrier, options=ServeOptions(linger=0.1)) as server:
            tasks.start_soon(to_thread.run_sync, hammer, server.addresses[0])
            await until(lambda: server.stats.accepted > 10)
        left.set()

    assert server.stats.active == 0
    assert server.stats.closed.total() == server.stats.accepted
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("how", ["eof", "idle", "drained", "aborted"])
async def test_a_connection_that_ended_is_freed_without_the_garbage_collector(carrier: Address, how: str) -> None:
    """An exception that keeps the frames of the cancelling task would keep the connection too."""
    idle = 0.1 if how == "idle" else 600.0
    async with open_server(carrier, options=ServeOptions(idle_timeout=idle, linger=0.1)) as server:
        gc.collect()
        gc.disable()
        try:
            for number in range(5):
                with dial(server.addresses[0]):
                    await until(lambda: server.stats.active == 1)
                    if how == "drained":
                        close_all(server, CloseReason.DRAINED)
                    elif how == "aborted":
                        abort_all(server)
                    elif how == "idle":
                        await until_closed(server, number + 1)
                await until_closed(server, number + 1)
            # The reaper or the event loop may hold the last one a little longer.
            await until(lambda: live_connections() == 0)
        finally:
            gc.enable()


def close_all(server: Server, reason: CloseReason) -> None:
    for connection in list(server._connections):
        connection.request_close(reason)


def abort_all(server: Server) -> None:
    for connection in list(server._connections):
        connection.abort()
