"""Limits, PROXY headers and the reaper apply to TLS connections as to plain ones."""

from __future__ import annotations

import errno
import gc
import os
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress

import anyio
import pytest
from anyio import BrokenResourceError, EndOfStream, create_task_group, fail_after, to_thread
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint

from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.net.tls.records import Records
from anyecho.net.tls.stream import TLSStream
from anyecho.server.connection import Connection
from anyecho.server.phases import OPEN
from anyecho.server.reasons import CloseReason
from anyecho.server.server import Server, open_server
from tests.net.proxy.headers import IPV4, v2
from tests.support.certificates import Files
from tests.support.conformance import drain
from tests.support.machine import needs_descriptors
from tests.support.peers import SOON, dial, receive_all, until, until_closed
from tests.support.tls import TLS, options, shake_hands

LIMIT = 0.24


async def flood(stream: TLSStream) -> None:
    """Send, and never read."""
    with suppress(BrokenResourceError):
        while True:
            await stream.send(bytes(65536))


async def drip(stream: TLSStream) -> None:
    with suppress(BrokenResourceError):
        while True:
            await stream.send(b"x")
            await anyio.sleep(0.01)


@pytest.mark.parametrize("size", [1, 1000, 16384, 300_000])
async def test_no_more_bytes_than_the_limit_are_echoed_over_tls(
    size: int, files: Files, ca_options: ConnectOptions
) -> None:
    """The limit counts plaintext, exactly; a peer that sends just as many bytes is within it."""
    payload = os.urandom(size)
    async with open_server(TLS, options=options(files, max_bytes=size)) as server:
        async with await connect(server.addresses[0], options=ca_options) as just:
            await just.exchange(payload[: size // 2])
            async with await shake_hands(server.addresses[0]) as over:
                await over.send(payload + b"more")
                assert await drain(over) == payload
            await just.exchange(payload[size // 2 :])

        await until(lambda: server.stats.active == 0)
        assert server.stats.closed == {"bytes": 1, "eof": 1}


async def test_a_tls_connection_stays_open_after_its_last_allowed_byte(files: Files) -> None:
    async with (
        open_server(TLS, options=options(files, max_bytes=3)) as server,
        await shake_hands(server.addresses[0]) as stream,
    ):
        for byte in (b"a", b"b", b"c"):
            await stream.send(byte)
            assert await stream.receive() == byte
        assert not server.stats.closed
        await stream.send(b"d")
        assert await drain(stream) == b""
        await until(lambda: server.stats.closed == {"bytes": 1})


async def test_a_flooding_peer_is_echoed_no_faster_than_the_rate(files: Files) -> None:
    rate, seconds = 1_000_000, 0.5
    limited = options(files, rate_limit=rate, engine="auto", linger=0.1)
    received, start = 0, time.monotonic()
    async with open_server(TLS, options=limited) as server, await shake_hands(server.addresses[0]) as stream:
        async with create_task_group() as tasks:
            tasks.start_soon(flood, stream)
            while (elapsed := time.monotonic() - start) < seconds:
                received += len(await stream.receive())
            tasks.cancel_scope.cancel()
        assert 0 < received < rate * (elapsed + 0.1) * 1.2


async def test_a_tls_peer_that_reads_nothing_of_its_echo_is_closed(
    files: Files, ca_options: ConnectOptions
) -> None:
    """A busy connection stays open: its totals change."""
    limited = options(files, write_timeout=LIMIT, idle_timeout=2 * LIMIT, linger=0.1)
    async with (
        open_server(TLS, options=limited) as server,
        await connect(server.addresses[0], options=ca_options) as neighbour,
        await shake_hands(server.addresses[0]) as stream,
        create_task_group() as tasks,
    ):
        start = time.monotonic()
        tasks.start_soon(flood, stream)
        while time.monotonic() - start < 3 * LIMIT:
            await neighbour.exchange(b"x" * 100)
            await anyio.sleep(0.01)
        await until(lambda: server.stats.closed == {"write": 1})
        await neighbour.exchange(b"as before")
        tasks.cancel_scope.cancel()


async def test_a_kernel_write_timeout_over_tls_is_counted_as_write(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_server(TLS, options=options(files)) as server:
        stream = await shake_hands(server.addresses[0])
        async with create_task_group() as tasks:
            tasks.start_soon(flood, stream)
            await until(lambda: any(received > sent for received, sent in all_totals(server)))
            tasks.cancel_scope.cancel()

        [connection] = server._connections
        send = socket.socket.send

        def give_up(sock: socket.socket, data: bytes) -> int:
            if sock is connection.sock:
                raise TimeoutError(errno.ETIMEDOUT, "given up")
            return send(sock, data)

        monkeypatch.setattr(socket.socket, "send", give_up)
        with suppress(OSError, BrokenResourceError):
            while True:
                stream._sock.recv(1 << 20)
        await until(lambda: server.stats.closed == {"write": 1})
        stream._sock.close()


def all_totals(server: Server) -> list[tuple[int, int]]:
    return [connection.totals for connection in server._connections]


@pytest.mark.parametrize("reason", ["duration", "rate"])
async def test_a_tls_connection_that_is_too_old_or_too_slow_is_closed(reason: str, files: Files) -> None:
    limits = {"max_duration": LIMIT} if reason == "duration" else {"min_rate": 1000.0, "min_rate_window": LIMIT}
    async with (
        open_server(TLS, options=options(files, linger=0.1, **limits)) as server,
        await shake_hands(server.addresses[0]) as stream,
        create_task_group() as tasks,
    ):
        tasks.start_soon(drip, stream)
        with pytest.raises((BrokenResourceError, EndOfStream)), fail_after(SOON):
            while True:
                await stream.receive()
        tasks.cancel_scope.cancel()
        await until(lambda: server.stats.closed == {reason: 1})


async def test_a_handshake_takes_its_time_limit_and_not_much_more(files: Files) -> None:
    """Both limits are counted in checks of the same loop, so a busy machine delays both."""
    limits = options(files, handshake_timeout=0.4, max_duration=0.65, linger=0)
    async with open_server(TLS, "tcp://127.0.0.1:0", options=limits) as server:
        over_tls, plain = server.addresses
        with dial(over_tls), dial(plain):
            await until(lambda: server.stats.closed["duration"] == 1)
            assert server.stats.closed["handshake"] == 1


@pytest.mark.parametrize(("limit", "count"), [("handshake_timeout", 200), ("idle_timeout", 600)])
async def test_other_tasks_run_while_many_connections_reach_a_limit(
    limit: str, count: int, files: Files, opened: ExitStack
) -> None:
    """A sweep yields after 64 connections."""
    needs_descriptors(2 * count + 100)
    seen = set()
    given = options(files, max_connections=4 * count, linger=0, **{limit: 1.0})
    async with open_server(TLS, "tcp://127.0.0.1:0", options=given) as server:
        began = anyio.current_time()
        address = server.addresses[limit == "idle_timeout"]
        socks = [opened.enter_context(dial(address)) for _ in range(count)]
        await until(lambda: server.stats.active == count)
        for sock in socks:
            sock.send(b"\x16")  # the same age for all
        await anyio.sleep_until(began + 0.9)  # no limit is reached before
        while server.stats.active:
            seen.add(server.stats.active)
            await checkpoint()

    assert len(seen) > 1


async def test_a_connection_over_the_limit_per_ip_is_closed_before_its_handshake(files: Files) -> None:
    async with open_server(TLS, options=options(files, max_connections_per_ip=1)) as server:
        with dial(server.addresses[0]) as held:
            with dial(server.addresses[0]) as sock:
                assert await to_thread.run_sync(receive_all, sock) == b""
            assert server.stats.closed == {"per_ip": 1}
            held.close()
        await until(lambda: server.stats.closed["handshake"] == 1)
        async with await shake_hands(server.addresses[0]) as stream:
            await stream.send(b"there is room again")
            await stream.receive()


async def test_a_proxy_header_comes_before_the_handshake(files: Files, ca_options: ConnectOptions) -> None:
    trusting = options(files, proxy_protocol="v2", proxy_trusted=("127.0.0.1",), max_connections_per_ip=1)
    own = ConnectOptions(tls=ca_options.tls, proxy_header="v2")
    async with open_server(TLS, options=trusting) as server:
        async with await connect(server.addresses[0], options=own) as client:
            await client.exchange(b"x" * 100)
            [peer] = server.peers()
            assert peer.address == client.stream.extra(SocketAttribute.local_address)
            assert (peer.bytes_received, peer.bytes_sent, bool(peer.via)) == (100, 100, True)

        await until(lambda: server.stats.active == 0)
        assert server.stats.closed == {"eof": 1}


async def test_a_proxied_source_is_limited_before_the_handshake(files: Files) -> None:
    trusting = options(files, proxy_protocol="v2", proxy_trusted=("127.0.0.1",), max_connections_per_ip=1)
    async with open_server(TLS, options=trusting) as server:
        with dial(server.addresses[0]) as held, dial(server.addresses[0]) as sock:
            held.sendall(v2(IPV4))
            await until(lambda: any(each.asserted for each in server._connections))
            assert server.peers() == []  # no handshake is complete yet
            sock.sendall(v2(IPV4))
            assert await to_thread.run_sync(receive_all, sock) == b""
            assert server.stats.closed == {"per_ip": 1}
            held.sendall(b"\x16\x03\x01\x00\x04nonsense")
            assert (await to_thread.run_sync(receive_all, held))[0] == 21  # an alert

        with dial(server.addresses[0]) as sock:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01 is no header")
            await until(lambda: server.stats.closed["proxy"] == 1)
        await until(lambda: server.stats.active == 0)
        assert server.stats.closed == {"per_ip": 1, "handshake": 1, "proxy": 1}


async def say_eof(server: Server) -> None:
    async with await shake_hands(server.addresses[0]) as stream:
        await stream.send(b"x")
        await stream.receive()


async def just_stop(server: Server) -> None:
    stream = await shake_hands(server.addresses[0])
    stream._sock.close()


async def refuse(server: Server) -> None:
    with dial(server.addresses[0]) as sock:
        sock.sendall(b"\x16\x03\x01\x00\x04nonsense")
        await to_thread.run_sync(receive_all, sock)


async def give_up(server: Server) -> None:
    with dial(server.addresses[0]) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01")
        await until(lambda: server.stats.active == 1)


async def be_late(server: Server) -> None:
    with dial(server.addresses[0]) as sock:
        await to_thread.run_sync(receive_all, sock)


async def tamper(server: Server) -> None:
    stream = await shake_hands(server.addresses[0])
    stream.records.send(b"bad")
    record = bytearray(stream.records.take())
    record[-1] ^= 1
    with stream._sock as sock:
        sock.send(record)
        await until(lambda: not any(each.phase is OPEN for each in server._connections))


async def be_ended(server: Server) -> None:
    async with await shake_hands(server.addresses[0]) as stream:
        await until(lambda: server.peers() != [])
        for connection in list(server._connections):
            connection.request_close(CloseReason.DRAINED)
        assert await drain(stream) == b""


@pytest.mark.parametrize("how", [say_eof, just_stop, refuse, give_up, be_late, tamper, be_ended])
async def test_a_connection_that_ended_is_freed_without_the_garbage_collector(
    how: Callable[[Server], Awaitable[None]], files: Files
) -> None:
    timeout = 0.1 if how is be_late else 10.0
    async with open_server(TLS, options=options(files, handshake_timeout=timeout, linger=0.1)) as server:
        gc.collect()
        gc.disable()
        try:
            for number in range(3):
                with fail_after(SOON):
                    await how(server)
                await until_closed(server, number + 1)
            await until(lambda: held() == 0)
        finally:
            gc.enable()


def held() -> int:
    return sum(isinstance(each, (Connection, Records)) for each in gc.get_objects())
