"""The totals that a running server reports, while clients come, stay and go."""

from __future__ import annotations

import logging
import math
import time

import pytest
from anyio import create_task_group, fail_after, sleep

import anyecho
from anyecho.server import monitor as monitor_module
from anyecho.server.server import Server, open_server
from anyecho.server.totals import Totals
from tests.support.certificates import Files
from tests.support.peers import SOON, dial, until, until_closed
from tests.support.tasks import wait_all_tasks_blocked
from tests.support.tls import TLS, options, shake_hands

TCP = "tcp://127.0.0.1:0"


def is_consistent(totals: Totals) -> bool:
    return totals.accepted == totals.open + sum(totals.closed.values())


async def test_totals_include_the_bytes_of_open_connections(server: Server) -> None:
    monitor = server.monitor()
    async with await anyecho.connect(server.address) as client:
        await client.exchange(b"hello")
        while_open = await monitor.totals()
    await until_closed(server)
    after_close = await monitor.totals()

    assert (while_open.open, while_open.bytes_received, while_open.bytes_sent) == (1, 5, 5)
    assert (after_close.open, after_close.bytes_received, after_close.bytes_sent) == (0, 5, 5)
    assert after_close.closed == {"eof": 1}
    assert is_consistent(while_open)
    assert is_consistent(after_close)


async def test_bytes_never_decrease_while_connections_close_during_the_reading(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "_TOTALS_SLICE", 1)
    monitor = server.monitor()
    read = []

    async def come_and_go() -> None:
        for _ in range(10):
            async with await anyecho.connect(server.address) as client:
                await client.exchange(b"hello")

    async with create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(come_and_go)
        while server.stats.closed.total() < 50:
            read.append(await monitor.totals())
    await until_closed(server, 50)
    read.append(await monitor.totals())

    received = [totals.bytes_received for totals in read]
    assert received == sorted(received)
    assert received[-1] == 250
    assert all(map(is_consistent, read))


async def test_each_closed_connection_has_a_duration(server: Server) -> None:
    before = await anyecho.connect(server.address)
    await before.exchange(b"x")
    monitor = server.monitor()
    for _ in range(3):
        async with await anyecho.connect(server.address) as client:
            await client.exchange(b"hello")
    await before.aclose()
    await until_closed(server, 4)

    totals = await monitor.totals()
    assert sum(totals.connections.counts) == 3  # the first began before the monitor
    assert totals.connections.seconds > 0
    assert sum(totals.handshakes.counts) == 0


async def test_handshakes_are_measured_and_failures_counted_by_name(files: Files) -> None:
    async with open_server(TLS, options=options(files)) as server:
        monitor = server.monitor()
        async with await shake_hands(server.address) as stream:
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            with dial(server.address) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                await until(lambda: server.stats.closed["handshake"] == 1)
            totals = await monitor.totals()

    assert sum(totals.handshakes.counts) == 1
    assert 0 < totals.handshakes.seconds < 60
    assert totals.tls_failures == {"http_request": 1}
    assert totals.closed == {"handshake": 1}
    assert is_consistent(totals)


async def test_peers_are_those_with_a_complete_handshake(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_module, "_PEERS_SLICE", 1)
    async with open_server(TLS, options=options(files)) as server:
        monitor = server.monitor()
        with dial(server.address):
            async with await shake_hands(server.address) as stream:
                await stream.send(b"hello")
                assert await stream.receive() == b"hello"
                await until(lambda: server.stats.active == 2)
                peers = [peer async for some in monitor.peers() for peer in some]

    assert [each.bytes_received for each in peers] == [5]


async def test_a_draining_server_is_not_ready(server: Server) -> None:
    monitor = server.monitor()
    assert monitor.ready()
    async with await anyecho.connect(server.address) as client, create_task_group() as tasks:
        await client.exchange(b"x")
        tasks.start_soon(server.drain, math.inf)
        await wait_all_tasks_blocked()
        assert not monitor.ready()
        assert await client.exchange(b"still echoed") == b"still echoed"
        await client.aclose()


async def test_dropped_log_lines_are_in_the_totals(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = logging.NullHandler()
    monkeypatch.setattr(handler, "dropped_lines", 3, raising=False)
    monkeypatch.setattr(logging.getLogger(), "handlers", [*logging.getLogger().handlers, handler])

    assert (await server.monitor().totals()).log_lines_dropped == 3


async def test_a_second_monitor_is_the_same(server: Server) -> None:
    assert server.monitor() is server.monitor()


@pytest.mark.by_turns("anyio_backend", "engine", "carrier")
async def test_a_blocked_event_loop_is_a_lag(server: Server) -> None:
    monitor = server.monitor()
    await wait_all_tasks_blocked()
    time.sleep(0.6)  # noqa: ASYNC251 - blocks the event loop on purpose

    async def lagged() -> bool:
        return (await monitor.totals()).loop_lag.seconds > 0.3

    with fail_after(SOON):
        while not await lagged():  # noqa: ASYNC110 - there is no event for it
            await sleep(0.01)
