"""Each limit of a connection: its close reason, and no effect on other connections."""

from __future__ import annotations

import errno
import math
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import anyio
import pytest
from anyio import create_task_group, fail_after, to_thread

from anyecho.address import Address
from anyecho.client.client import Client, connect
from anyecho.client.options import ConnectOptions
from anyecho.errors import UsageError
from anyecho.server import reaper as reaper_module
from anyecho.server.connection import Connection
from anyecho.server.limits import ConnectionLimit, SourceLimit
from anyecho.server.options import ServeOptions
from anyecho.server.phases import CLOSING, OPEN
from anyecho.server.reaper import Reaper
from anyecho.server.reasons import CloseReason
from anyecho.server.server import Server, open_server
from anyecho.server.udp_guard import SourceGuard
from tests.net.proxy.headers import v2
from tests.support.machine import needs_epoll, needs_ipv6
from tests.support.peers import SOON, dial, flood, receive_all, until
from tests.support.tasks import wait_all_tasks_blocked

#: A small limit, and its maximum delay: an eighth of it, and SOON for a busy machine.
LIMIT = 0.24
LATE = LIMIT / 8 + SOON


async def chat(client: Client) -> None:
    """Exchange small messages until cancelled."""
    while True:
        await client.exchange(b"x" * 100)
        await anyio.sleep(0.01)


@asynccontextmanager
async def busy_neighbour(server: Server) -> AsyncIterator[Client]:
    """A connection that exchanges messages inside the block and must not be closed."""
    async with await connect(server.addresses[0]) as client, create_task_group() as tasks:
        await client.exchange(b"before")
        tasks.start_soon(chat, client)
        yield client
        # Checked before it closes: a close in the middle of an exchange may be a reset.
        assert not [reason for reason in server.stats.closed if reason in ("broken", "error")]
        tasks.cancel_scope.cancel()


@pytest.mark.fault(row=4, injected="a peer floods and never reads, beside a good client; write_timeout=0.24 s")
async def test_a_peer_that_takes_none_of_its_echo_is_closed(carrier: Address) -> None:
    """Earlier than after the idle timeout."""
    options = ServeOptions(write_timeout=LIMIT, linger=0.1)
    async with open_server(carrier, options=options) as server, busy_neighbour(server):
        with dial(server.addresses[0]) as sock:
            sock.setblocking(False)
            start = time.monotonic()
            async with create_task_group() as tasks:
                tasks.start_soon(flood, sock)
                await until(lambda: server.stats.closed["write"] == 1)
                tasks.cancel_scope.cancel()
            assert time.monotonic() - start > LIMIT

        assert server.stats.closed == {"write": 1}
        assert server.stats.bytes_received > server.stats.bytes_sent > 0


async def test_a_silent_peer_without_pending_echo_is_not_under_the_write_timeout(carrier: Address) -> None:
    options = ServeOptions(write_timeout=LIMIT / 2, idle_timeout=10, linger=0.1)
    async with open_server(carrier, options=options) as server, await connect(server.addresses[0]) as client:
        await client.exchange(b"x")
        await anyio.sleep(LIMIT)
        await client.exchange(b"y")
        assert not server.stats.closed


async def test_a_write_timeout_in_the_kernel_is_counted_as_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_server("tcp://127.0.0.1:0", options=ServeOptions(linger=0.1)) as server:
        with dial(server.addresses[0]) as sock:
            sock.setblocking(False)
            async with create_task_group() as tasks:
                tasks.start_soon(flood, sock)
                await until(lambda: any(received > sent for received, sent in all_totals(server)))
                tasks.cancel_scope.cancel()

            time_out(sock.getsockname(), monkeypatch, "send")
            await to_thread.run_sync(make_room, sock)
            await until(lambda: server.stats.closed == {"write": 1})


async def test_a_keepalive_timeout_is_counted_as_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports it by the same errno, when no echo is pending."""
    async with open_server("tcp://127.0.0.1:0") as server:
        with dial(server.addresses[0]) as sock:
            await until(lambda: server.stats.active == 1)
            time_out(sock.getsockname(), monkeypatch, "recv", "recv_into")
            sock.sendall(b"x")
            await until(lambda: server.stats.closed == {"broken": 1})


def time_out(peer: object, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the methods `names` of sockets connected to `peer` fail as after a timeout in the kernel."""
    for name in names:
        method = getattr(socket.socket, name)

        def failing(sock: socket.socket, *arguments: Any, method: Any = method) -> Any:
            if sock.type == socket.SOCK_STREAM and sock.family == socket.AF_INET and sock.getpeername() == peer:
                raise TimeoutError(errno.ETIMEDOUT, "timed out")
            return method(sock, *arguments)

        monkeypatch.setattr(socket.socket, name, failing)


def all_totals(server: Server) -> list[tuple[int, int]]:
    return [connection.totals for connection in server._connections]


def make_room(sock: socket.socket) -> None:
    with suppress(OSError):
        while sock.recv(1 << 20):
            pass


async def test_tcp_user_timeout_is_counted_as_write() -> None:
    """The kernel detects it, where the reaper has no limit."""
    options = ServeOptions(write_timeout=math.inf, linger=0.1)
    options = replace(options, socket=replace(options.socket, tcp_user_timeout=0.3))
    async with open_server("tcp://127.0.0.1:0", options=options) as server:
        with dial(server.addresses[0]) as sock:
            sock.setblocking(False)
            async with create_task_group() as tasks:
                tasks.start_soon(flood, sock)
                await until(lambda: server.stats.closed == {"write": 1})
                tasks.cancel_scope.cancel()


async def test_an_active_connection_is_closed_after_max_duration(carrier: Address) -> None:
    options = ServeOptions(max_duration=LIMIT, linger=0.1)
    async with open_server(carrier, options=options) as server:
        start = time.monotonic()
        async with await connect(server.addresses[0]) as client:
            with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)), fail_after(SOON):
                while True:
                    await client.stream.send(b"x" * 100)
                    await client.stream.receive()
            assert LIMIT - 0.01 <= time.monotonic() - start < LIMIT + LATE
            async with await connect(server.addresses[0]) as later:
                await later.exchange(b"x")
                assert server.stats.closed["duration"] <= 1

        await until(lambda: server.stats.active == 0)
        assert server.stats.closed["duration"] == 1


@pytest.mark.fault(
    row=5, injected="a peer is silent, sends a byte every 10 ms, or floods and hardly reads, beside a good client"
)
@pytest.mark.parametrize("slow", ["silent", "dripping", "hardly reading"])
@pytest.mark.by_turns("slow")
async def test_a_connection_below_the_minimum_rate_is_closed(slow: str, carrier: Address) -> None:
    options = ServeOptions(min_rate=1000, min_rate_window=LIMIT, linger=0.1)
    async with open_server(carrier, options=options) as server, busy_neighbour(server):
        with dial(server.addresses[0]) as sock:
            sock.setblocking(False)
            async with create_task_group() as tasks:
                start = time.monotonic()
                if slow != "silent":
                    tasks.start_soon(flood if slow == "hardly reading" else drip, sock)
                await until(lambda: server.stats.closed["rate"] == 1)
                tasks.cancel_scope.cancel()
            # The first window is whole: it begins with the first check of the connection.
            assert time.monotonic() - start >= LIMIT - 0.01

        assert server.stats.closed == {"rate": 1}


async def drip(sock: socket.socket) -> None:
    with suppress(OSError):
        while True:
            sock.send(b"x")
            await anyio.sleep(0.01)


async def test_a_flooding_peer_does_not_prolong_the_linger(carrier: Address) -> None:
    """On asyncio, a task that is woken in every pass of the loop is not cancelled."""
    linger = 0.1
    async with open_server(
        carrier, options=ServeOptions(min_rate=1000, min_rate_window=0.08, linger=linger)
    ) as server:
        for _ in range(5):
            with dial(server.addresses[0]) as sock:
                sock.setblocking(False)
                async with create_task_group() as tasks:
                    tasks.start_soon(flood, sock)
                    await until(lambda: any(each.phase >= CLOSING for each in server._connections))
                    start = time.monotonic()
                    await until(lambda: server.stats.active == 0)
                    assert time.monotonic() - start < linger + SOON
                    tasks.cancel_scope.cancel()

        assert server.stats.closed == {"rate": 5}


@pytest.mark.parametrize("size", [1, 1000, 300_000, 600_000])
async def test_no_more_bytes_are_echoed_than_the_limit(size: int, carrier: Address) -> None:
    """To the byte; a peer that sends exactly as many is not over the limit."""
    options = ServeOptions(max_bytes=size, linger=0.5)
    async with open_server(carrier, options=options) as server:
        payload = os.urandom(size)
        async with await connect(server.addresses[0]) as just, await connect(server.addresses[0]) as over:
            await just.exchange(payload[: size // 2])
            async with over.send([payload + b"more"]) as echo:
                back = bytearray()
                with pytest.raises(Exception, match=r"missing|closed"):
                    async for chunk in echo:
                        back += chunk
            assert back == payload
            await just.exchange(payload[size // 2 :])

        await until(lambda: server.stats.active == 0)
        assert server.stats.closed == {"bytes": 1, "eof": 1}


async def test_a_connection_at_max_bytes_stays_open_until_the_next_byte(carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(max_bytes=3, linger=0.1)) as server:
        with dial(server.addresses[0]) as sock:
            for byte in (b"a", b"b", b"c"):
                sock.sendall(byte)
                assert await to_thread.run_sync(sock.recv, 10) == byte
            assert not server.stats.closed
            sock.sendall(b"d")
            assert await to_thread.run_sync(receive_all, sock) == b""

        await until(lambda: server.stats.closed == {"bytes": 1})


async def test_a_flooding_peer_is_echoed_no_faster_than_the_rate(carrier: Address) -> None:
    """A slow neighbour is not delayed. A benchmark measures how exact the rate is."""
    rate, seconds = 1_000_000, 0.5
    options = ServeOptions(rate_limit=rate, engine="auto", linger=0.1)
    async with open_server(carrier, options=options) as server:
        received = 0

        async def read() -> None:
            nonlocal received
            while True:
                received += len(await fast.stream.receive())

        async def write() -> None:
            while True:
                await fast.stream.send(bytes(65536))

        start = time.monotonic()
        async with await connect(server.addresses[0]) as fast, create_task_group() as tasks:
            tasks.start_soon(read)
            tasks.start_soon(write)
            async with await connect(server.addresses[0]) as slow:
                while time.monotonic() - start < seconds:
                    with fail_after(SOON):
                        await slow.exchange(b"x")
            elapsed = time.monotonic() - start
            assert rate * seconds / 10 < received < rate * (elapsed + 0.1) * 1.2
            tasks.cancel_scope.cancel()


async def test_a_rate_below_one_byte_per_turn_is_kept(carrier: Address) -> None:
    options = ServeOptions(rate_limit=20, engine="auto", linger=0.1)
    async with open_server(carrier, options=options) as server:
        with dial(server.addresses[0]) as sock:
            start = time.monotonic()
            sock.sendall(b"x" * 8)
            sock.shutdown(socket.SHUT_WR)
            assert await to_thread.run_sync(receive_all, sock) == b"x" * 8
            assert 0.2 <= time.monotonic() - start < 0.4 + SOON


async def test_rate_limit_with_the_events_engine_is_an_error() -> None:
    with pytest.raises(UsageError, match="rate_limit needs a task"):
        ServeOptions(rate_limit=1, engine="events")


@pytest.mark.fault(row=21, injected="a client connects beside 3 of 3 allowed, with over_limit=close")
async def test_over_limit_close_closes_connections_over_max_connections(
    carrier: Address, opened: ExitStack
) -> None:
    options = ServeOptions(max_connections=3, over_limit="close", linger=0.1)
    async with open_server(carrier, options=options) as server, busy_neighbour(server):
        held = [opened.enter_context(dial(server.addresses[0])) for _ in range(2)]
        await until(lambda: server.stats.active == 3)
        with dial(server.addresses[0]) as sock:
            assert await to_thread.run_sync(receive_all, sock) == b""
        assert (server.stats.closed, server.stats.accepted) == ({"over_limit": 1}, 4)

        held[0].close()
        await until(lambda: server.stats.active == 2)
        async with await connect(server.addresses[0]) as client:
            await client.exchange(b"there is room again")


@pytest.mark.fault(row=21, injected="10 clients of an address connect where 5 are allowed")
@needs_ipv6
async def test_connections_of_one_address_over_its_limit_are_closed(opened: ExitStack) -> None:
    """Twice as many connect; a connection of another address is echoed."""
    options = ServeOptions(max_connections_per_ip=5, linger=0.1)
    async with open_server("tcp://127.0.0.1:0", "tcp://[::1]:0", options=options) as server:
        one, other = server.addresses
        held = [opened.enter_context(dial(one)) for _ in range(10)]
        await until(lambda: server.stats.closed == {"per_ip": 5})
        assert (server.stats.active, server.stats.accepted) == (5, 10)
        async with await connect(other) as client:
            await client.exchange(b"x")
        for sock in held[:5]:
            sock.sendall(b"x")
            assert await to_thread.run_sync(sock.recv, 1) == b"x"

        held[0].close()
        await until(lambda: server.stats.active == 4)
        async with await connect(one) as client:
            await client.exchange(b"there is room again")


async def test_unix_peers_are_exempt_from_the_limit_per_ip(short_path: object, opened: ExitStack) -> None:
    options = ServeOptions(max_connections_per_ip=1, linger=0.1)
    async with open_server(f"unix:{short_path}/echo", options=options) as server:
        for _ in range(3):
            opened.enter_context(dial(server.addresses[0]))
        await until(lambda: server.stats.active == 3)


async def test_behind_a_proxy_the_asserted_source_is_limited(carrier: Address, opened: ExitStack) -> None:
    options = ServeOptions(
        max_connections_per_ip=2, proxy_protocol="require", proxy_trusted=("127.0.0.1", "unix:"), linger=0.1
    )
    async with open_server(carrier, options=options) as server:

        def call(source: str) -> socket.socket:
            sock = opened.enter_context(dial(server.addresses[0]))
            sock.sendall(f"PROXY TCP4 {source} 192.0.2.2 56324 443\r\n".encode())
            return sock

        first = [call("192.0.2.1") for _ in range(2)]
        await until(lambda: len(server.peers()) == 2)
        assert await to_thread.run_sync(receive_all, call("192.0.2.1")) == b""
        assert server.stats.closed == {"per_ip": 1}
        call("192.0.2.3")
        await until(lambda: len(server.peers()) == 3)
        # An incomplete header has no source yet, and does not count for one.
        opened.enter_context(dial(server.addresses[0])).sendall(b"PROXY TCP4 192.0.2.1")
        first[0].close()
        await until(lambda: server.stats.closed["eof"] == 1)
        call("192.0.2.1")
        await until(lambda: len(server.peers()) == 3)


async def test_max_connections_counts_connections_with_an_incomplete_proxy_header(opened: ExitStack) -> None:
    options = ServeOptions(max_connections=2, over_limit="close", proxy_protocol="v2", proxy_trusted=("127.0.0.1",))
    async with open_server("tcp://127.0.0.1:0", options=options) as server:
        for _ in range(2):
            opened.enter_context(dial(server.addresses[0])).sendall(v2()[:10])
        await until(lambda: server.stats.active == 2)
        with dial(server.addresses[0]) as sock:
            assert await to_thread.run_sync(receive_all, sock) == b""
        assert server.stats.closed == {"over_limit": 1}


@pytest.mark.parametrize(
    ("sockaddr", "other", "same"),
    [
        (("192.0.2.1", 5000), ("192.0.2.1", 5001), True),
        (("192.0.2.1", 5000), ("192.0.2.2", 5000), False),
        (("2001:db8::1", 5000, 0, 0), ("2001:db8::ffff:1", 5000, 0, 0), True),
        (("2001:db8::1", 5000, 0, 0), ("2001:db8:0:1::1", 5000, 0, 0), False),
        (("::ffff:192.0.2.1", 5000, 0, 0), ("192.0.2.1", 5000), True),
        (("::ffff:192.0.2.1", 5000, 0, 0), ("::ffff:192.0.2.2", 5000, 0, 0), False),
        (("fe80::1%eth0", 5000, 0, 2), ("fe80::2%eth1", 5000, 0, 3), True),
        (("64:ff9b::c000:201", 5000, 0, 0), ("64:ff9b::c000:202", 5000, 0, 0), False),
        (("64:ff9b::c000:201", 5000, 0, 0), ("192.0.2.1", 5000), True),
        (("::1", 5000, 0, 0), ("::ffff:192.0.2.1", 5000, 0, 0), False),
        ("", "", False),
        ("/run/a", "/run/a", False),
    ],
)
@pytest.mark.by_turns("engine")
def test_addresses_of_one_source_share_a_limit_over_tcp_and_over_udp(sockaddr: Any, other: Any, same: bool) -> None:
    limit = SourceLimit(1)
    first, second = object(), object()
    assert limit.acquire(first, sockaddr)
    assert limit.acquire(second, other) is not same
    limit.release(first)
    limit.release(second)
    assert limit.acquire(second, sockaddr)
    if isinstance(sockaddr, tuple):
        guard = SourceGuard(ServeOptions(udp_rate=1, udp_burst=1), [], Counter(), clock=lambda: 1e6)
        assert (guard.admit(sockaddr), guard.admit(other)) == (True, not same)


async def test_a_connection_limit_waits_for_its_parent() -> None:
    outer = ConnectionLimit(2)
    inner = ConnectionLimit(1, parent=outer)
    for _ in range(2):
        outer.acquire()
    inner.acquire()
    async with create_task_group() as tasks:
        tasks.start_soon(inner.wait_may_accept)
        for limit in (inner, outer):
            await wait_all_tasks_blocked()
            assert not inner.may_accept()
            limit.release()
        with fail_after(SOON):
            await inner.wait_may_accept()


def test_a_source_limit_keeps_nothing_of_closed_connections() -> None:
    limit = SourceLimit(3)
    for number in range(1000):
        assert limit.acquire(number, (f"192.0.2.{number % 250}", 1)) is (number < 750)
    for number in range(1000):
        limit.release(number)

    assert not limit._held
    assert not limit._holders


class FakeConnection:
    """A connection with totals that the test sets."""

    def __init__(self) -> None:
        self.phase = OPEN
        self.last_total = -1
        self.idle_checks = self.checks = self.window_start = 0
        self.totals = (0, 0)

    has_pending: Any = Connection.has_pending
    stalled_checks: Any = Connection.stalled_checks

    def request_close(self, reason: CloseReason) -> None:
        self.phase = CLOSING


def check_until_closed(options: ServeOptions, totals: list[tuple[int, int]]) -> tuple[int, str]:
    """Return the number of the check that closes a connection with these totals, and the reason."""
    fake: Any = FakeConnection()
    reaper = Reaper([fake], options)
    for number, each in enumerate(totals):
        fake.totals = each
        if reason := reaper._check(fake):
            return number, reason

    return len(totals), ""


NONE = ServeOptions(idle_timeout=math.inf, write_timeout=math.inf)


@pytest.mark.parametrize(
    ("options", "totals", "closed"),
    [
        # A check may notice bytes an interval late: no close is early, and none is more than an eighth late.
        (replace(NONE, idle_timeout=80), [(5, 5)] * 20, (8, "idle")),
        (replace(NONE, idle_timeout=80), [(5, 5)] * 8 + [(6, 6)] * 20, (16, "idle")),
        (replace(NONE, write_timeout=80), [(5, 4)] * 20, (8, "write")),
        (replace(NONE, write_timeout=80), [(5, 5)] * 20, (20, "")),
        (replace(NONE, write_timeout=80, idle_timeout=80), [(5, 4)] * 20, (8, "write")),
        (replace(NONE, write_timeout=80, idle_timeout=160), [(5, 5)] * 20, (16, "idle")),
        (replace(NONE, max_duration=80), [(n, n) for n in range(20)], (8, "duration")),
        (replace(NONE, max_duration=80, idle_timeout=40), [(n, n) for n in range(40)], (16, "duration")),
        (replace(NONE, min_rate=1, min_rate_window=80), [(10 * n, 10 * n) for n in range(99)], (99, "")),
        (replace(NONE, min_rate=1.01, min_rate_window=80), [(10 * n, 10 * n) for n in range(99)], (8, "rate")),
        (replace(NONE, min_rate=1, min_rate_window=80), [(100, 0), *[(100, 50)] * 9], (8, "rate")),
        (NONE, [(5, 4)] * 99, (99, "")),
    ],
)
@pytest.mark.by_turns("engine")
def test_the_reaper_closes_at_the_right_check_with_the_right_reason(
    options: ServeOptions, totals: list[tuple[int, int]], closed: tuple[int, str]
) -> None:
    assert check_until_closed(options, totals) == closed


async def test_no_timer_runs_without_limits_and_without_unfinished_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep_running(seconds: float) -> None:
        slept.append(seconds)
        await anyio.sleep(seconds)

    monkeypatch.setattr(reaper_module, "sleep_running", sleep_running)
    options = replace(NONE, proxy_protocol="v2", proxy_trusted=("127.0.0.1",), proxy_timeout=0.4)
    async with open_server("tcp://127.0.0.1:0", options=options) as server:
        await wait_all_tasks_blocked()
        assert slept == []
        with dial(server.addresses[0]) as sock:
            await to_thread.run_sync(receive_all, sock)
        await until(lambda: server.stats.closed == {"proxy_timeout": 1})
        await wait_all_tasks_blocked()
        assert slept == [0.05] * 9


async def test_a_closing_connection_never_returns_to_an_earlier_phase(carrier: Address) -> None:
    async with open_server(carrier) as server, await connect(server.addresses[0]) as client:
        await client.exchange(b"x")
        [connection] = server._connections
        assert connection.phase is OPEN
        connection.request_close(CloseReason.IDLE)
        connection.engine.advance(connection, OPEN)
        assert connection.phase >= CLOSING


def test_an_invalid_trusted_network_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"^bad network 'localhost'"):
        ServeOptions(proxy_trusted=("localhost",))


@needs_epoll
async def test_a_limited_connection_behind_a_proxy_uses_the_events_engine() -> None:
    options = ServeOptions(
        engine="auto", max_connections_per_ip=9, proxy_protocol="v2", proxy_trusted=("127.0.0.1",)
    )
    async with open_server("tcp://127.0.0.1:0", options=options) as server:
        client = await connect(server.addresses[0], options=ConnectOptions(proxy_header="v2"))
        async with client:
            await client.exchange(b"x")
            assert [type(each).__name__ for each in server._connections] == ["EventConnection"]
