"""Faults of a server, as a plain blocking socket sees them."""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from anyio import fail_after, to_thread

from anyecho.address import Address
from anyecho.errors import UsageError
from anyecho.faults import (
    Bandwidth,
    Corrupt,
    Cut,
    Fault,
    HalfClose,
    Latency,
    LimitData,
    Loss,
    PacketLoss,
    ResetPeer,
    Slicer,
    SlowClose,
    Stall,
    Timeout,
)
from anyecho.net import abrupt
from anyecho.server.server import open_server
from tests.server.faulty import TCP, error_of, options, talk
from tests.support.certificates import Files, client_context
from tests.support.peers import SOON, converse, dial, exchange, receive, receive_all, until_closed
from tests.support.tls import TLS
from tests.support.tls import options as tls_options

pytestmark = pytest.mark.by_turns("engine")

#: Seconds of a delay, and of the patience of a peer with a black hole.
DELAY = 0.15


def timed_echo(sock: socket.socket) -> tuple[bytes, float]:
    start = time.monotonic()
    return exchange(sock, b"hello"), time.monotonic() - start


@pytest.mark.parametrize("stream", ["upstream", "downstream"])
@pytest.mark.parametrize(
    "fault",
    [
        lambda stream: Latency(latency=DELAY, stream=stream),
        lambda stream: Stall(bytes=2, seconds=DELAY, stream=stream),
        lambda stream: Bandwidth(rate=5 / DELAY, stream=stream),
        lambda stream: Slicer(average_size=3, delay=DELAY, stream=stream),
    ],
    ids=["latency", "stall", "bandwidth", "slicer"],
)
async def test_an_echo_is_never_earlier_than_the_fault_lets_it(
    fault: Callable[[str], Fault], stream: str, carrier: Address
) -> None:
    async with open_server(carrier, options=options(fault(stream))) as server:
        echo, seconds = await talk(server, timed_echo)
        assert echo == b"hello"
        assert seconds >= DELAY


async def test_a_latency_delays_messages_in_flight_at_the_same_time() -> None:
    def pipeline(sock: socket.socket) -> float:
        start = time.monotonic()
        for _ in range(20):
            sock.sendall(b"x")
            time.sleep(0.02)
        receive(sock, 20)
        return time.monotonic() - start

    async with open_server(TCP, options=options(Latency(latency=0.4))) as server:
        seconds = await talk(server, pipeline)
        assert seconds < 0.8 * 20 * 0.4


async def test_an_echo_under_latency_is_complete_and_ends_with_eof(carrier: Address) -> None:
    payload = bytes(range(256)) * 400
    faults = (Latency(latency=0.05, jitter=0.05), Slicer(average_size=7000, size_variation=3000))
    async with open_server(carrier, options=options(*faults)) as server:
        assert await talk(server, lambda sock: converse(sock, payload[:100], payload[100:])) == payload
        await until_closed(server)
        assert server.stats.closed == {"eof": 1}
        assert server.stats.bytes_sent == len(payload)


@pytest.mark.parametrize(("stream", "ctypes"), [("upstream", True), ("downstream", True), ("downstream", False)])
async def test_the_peer_of_a_reset_gets_econnreset(
    stream: Any, ctypes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ctypes:
        monkeypatch.setattr(abrupt, "_connect", None)
    fault = ResetPeer(stream=stream)
    async with open_server(TCP, options=options(fault)) as server:

        def script(sock: socket.socket) -> int | None:
            sock.sendall(b"hello")
            return error_of(lambda: sock.recv(100))

        assert await talk(server, script) == errno.ECONNRESET
        await until_closed(server)
        assert server.stats.closed == {"fault": 1}


async def test_a_live_connection_is_reset_after_its_time() -> None:
    async with open_server(TCP, options=options(ResetPeer(timeout=DELAY))) as server:

        def script(sock: socket.socket) -> tuple[int | None, float]:
            start = time.monotonic()
            sock.sendall(b"hello")
            return error_of(lambda: sock.recv(100)), time.monotonic() - start

        code, seconds = await talk(server, script)
        assert code == errno.ECONNRESET
        assert seconds >= DELAY


async def test_a_reset_over_tls_is_a_reset_without_close_notify(files: Files) -> None:
    over_tls = tls_options(files, engine="auto", faults=(ResetPeer(),))
    async with open_server(TLS, options=over_tls) as server:

        def script(sock: socket.socket) -> int | None:
            # The module ssl reports a reset as EOF.
            with (
                client_context().wrap_socket(sock, server_hostname="localhost") as wrapped,
                socket.socket(fileno=os.dup(wrapped.fileno())) as plain,
            ):
                plain.settimeout(SOON)
                wrapped.sendall(b"hello")
                return error_of(lambda: receive_all(plain))

        assert await talk(server, script) == errno.ECONNRESET


async def test_a_cut_over_tls_is_a_fin_without_close_notify(files: Files) -> None:
    over_tls = tls_options(files, engine="auto", faults=(Cut(bytes=3),))
    async with open_server(TLS, options=over_tls) as server:

        def script(sock: socket.socket) -> bytes:
            context = client_context()
            with context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False) as wrapped:
                wrapped.sendall(b"hello")
                got = wrapped.recv(100)
                with pytest.raises(ssl.SSLEOFError):
                    wrapped.recv(100)
                return got

        assert await talk(server, script) == b"hel"


async def test_a_reset_of_a_unix_socket_is_an_end_at_once(short_path: Any) -> None:
    async with open_server(f"unix:{short_path}/echo", options=options(ResetPeer())) as server:

        def script(sock: socket.socket) -> bytes:
            sock.sendall(b"hello")
            return sock.recv(100)

        assert await talk(server, script) == b""
        await until_closed(server)
        assert server.stats.closed == {"fault": 1}


@pytest.mark.parametrize("stream", ["upstream", "downstream"])
async def test_the_peer_of_a_black_hole_gets_a_timeout(stream: Any, carrier: Address) -> None:
    async with open_server(carrier, options=options(Timeout(stream=stream))) as server:

        def script(sock: socket.socket) -> None:
            sock.settimeout(DELAY)
            sock.sendall(b"hello")
            with pytest.raises(TimeoutError):
                sock.recv(100)

        await talk(server, script)
        assert server.stats.closed.keys() <= {"eof", "reset"}


async def test_a_timeout_ends_the_connection_with_eof(carrier: Address) -> None:
    async with open_server(carrier, options=options(Timeout(timeout=DELAY))) as server:

        def script(sock: socket.socket) -> tuple[bytes, float]:
            start = time.monotonic()
            sock.sendall(b"hello")
            return receive_all(sock), time.monotonic() - start

        echo, seconds = await talk(server, script)
        assert echo == b""
        assert seconds >= DELAY - 0.05  # counted from accept
        await until_closed(server)
        assert server.stats.closed == {"fault": 1}


async def test_the_pieces_of_a_slicer_have_their_sizes(carrier: Address) -> None:
    async with open_server(carrier, options=options(Slicer(average_size=3, delay=0.1))) as server:

        def script(sock: socket.socket) -> list[bytes]:
            sock.sendall(b"abcdefgh")
            return [sock.recv(100) for _ in range(3)]

        assert await talk(server, script) == [b"abc", b"def", b"gh"]


async def test_a_limit_lets_its_bytes_pass_and_ends_with_eof(carrier: Address) -> None:
    async with open_server(carrier, options=options(LimitData(bytes=70_000))) as server:

        def script(sock: socket.socket) -> bytes:
            sock.sendall(bytes(100_000))  # the rest is unread when the server closes
            return receive_all(sock)

        assert await talk(server, script) == bytes(70_000)
        await until_closed(server)
        assert server.stats.closed == {"fault": 1}


async def test_a_cut_ends_the_connection_in_the_middle(carrier: Address) -> None:
    async with open_server(carrier, options=options(Cut(bytes=3))) as server:

        def script(sock: socket.socket) -> bytes:
            sock.sendall(b"hello")
            return receive_all(sock)

        assert await talk(server, script) == b"hel"
        await until_closed(server)
        assert server.stats.closed == {"fault": 1}


async def test_a_cut_after_its_time_ends_a_connection_on_which_data_flows(carrier: Address) -> None:
    async with open_server(carrier, options=options(Cut(seconds=DELAY))) as server:

        def script(sock: socket.socket) -> float:
            start = time.monotonic()
            with suppress(ConnectionError):  # a FIN, or a RST for what has not been read
                while exchange(sock, b"hello"):
                    pass
            return time.monotonic() - start

        assert await talk(server, script) >= DELAY - 0.05  # counted from accept
        await until_closed(server)
        assert server.stats.closed == {"fault": 1}


@pytest.mark.parametrize("stream", ["upstream", "downstream"])
async def test_a_stall_without_an_end_is_a_black_hole_after_its_bytes(stream: Any, carrier: Address) -> None:
    async with open_server(carrier, options=options(Stall(bytes=2, stream=stream))) as server:

        def script(sock: socket.socket) -> bytes:
            sock.sendall(b"hello")
            got = receive(sock, 2)
            sock.settimeout(DELAY)
            with pytest.raises(TimeoutError):
                sock.recv(100)
            return got

        assert await talk(server, script) == b"he"


async def test_a_close_is_late_by_slow_close(carrier: Address) -> None:
    async with open_server(carrier, options=options(SlowClose(delay=DELAY))) as server:

        def script(sock: socket.socket) -> float:
            assert exchange(sock, b"hello") == b"hello"
            sock.shutdown(socket.SHUT_WR)
            start = time.monotonic()
            assert receive_all(sock) == b""
            return time.monotonic() - start

        assert await talk(server, script) >= DELAY


async def test_a_half_close_ends_what_the_peer_gets_but_not_what_it_sends(carrier: Address) -> None:
    async with open_server(carrier, options=options(HalfClose(bytes=3))) as server:

        def script(sock: socket.socket) -> bytes:
            sock.sendall(b"hello")
            got = receive_all(sock)
            for _ in range(5):
                sock.sendall(b"still accepted")
            return got

        assert await talk(server, script) == b"hel"
        await until_closed(server)
        assert server.stats.closed == {"eof": 1}
        assert server.stats.bytes_received == 5 + 5 * 14


async def test_a_changed_byte_and_a_lost_chunk_reach_the_peer(carrier: Address) -> None:
    faults = (Corrupt(offset=1, on=1), PacketLoss(loss_rate=1, on=2))
    async with open_server(carrier, options=options(*faults)) as server:
        echo = await talk(server, lambda sock: converse(sock, b"hello"))
        assert [a == b for a, b in zip(echo, b"hello", strict=True)] == [True, False, True, True, True]
        assert await talk(server, lambda sock: converse(sock, b"hello")) == b""


async def test_only_the_connection_with_a_fault_has_a_task_and_a_fault(engine: str) -> None:
    del engine
    async with open_server(TCP, options=options(LimitData(bytes=2, on=2))) as server:
        with dial(server.address) as first, dial(server.address) as second, dial(server.address) as third:
            for sock in (first, third):
                assert await to_thread.run_sync(exchange, sock, b"hello") == b"hello"
            kinds = Counter(type(each).__name__ for each in server._connections)
            assert kinds["HandlerConnection"] == 1
            second.sendall(b"hello")
            assert await to_thread.run_sync(receive_all, second) == b"he"
            for sock in (first, third):
                assert await to_thread.run_sync(exchange, sock, b"hello") == b"hello"


async def test_each_listener_numbers_its_own_connections(short_path: Any) -> None:
    async with open_server(TCP, f"unix:{short_path}/echo", options=options(LimitData(on=1))) as server:
        for address in server.addresses:
            replies = [await to_thread.run_sync(converse, dial(address), b"x") for _ in range(2)]
            assert replies == [b"", b"x"]


async def test_a_drain_ends_connections_with_faults_in_time(carrier: Address) -> None:
    faults = (
        Stall(on=1),
        Latency(latency=60, on=2),
        SlowClose(delay=60, on=3),
        Timeout(on=4),
        Bandwidth(rate=1, on=5),
    )
    async with open_server(carrier, options=options(*faults)) as server:
        socks = [dial(server.address) for _ in faults]
        for sock in socks:
            sock.sendall(b"hello")
        with fail_after(SOON):
            await server.drain(0)
        for sock in socks:
            sock.close()
        assert server.stats.closed.total() == len(faults)


async def test_the_seed_is_logged_at_start(caplog: pytest.LogCaptureFixture) -> None:
    for given in (7, None):
        caplog.clear()
        async with open_server(TCP, options=options(Cut(bytes=1), Timeout(on=3), seed=given)) as server:
            assert server.seed == (7 if given else server.seed)
        [record] = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert record.getMessage() == f"this server misbehaves on purpose: cut, timeout, seed {server.seed}"


async def test_a_run_repeats_with_its_seed() -> None:
    replies = []
    for _ in range(2):
        async with open_server(TCP, options=options(Corrupt(rate=0.1, toxicity=0.5), seed=42)) as server:
            replies.append([await talk(server, lambda sock: converse(sock, bytes(100))) for _ in range(6)])
    assert replies[0] == replies[1]
    assert len(set(replies[0])) > 2


@pytest.mark.parametrize(
    ("addresses", "given", "error"),
    [
        ((TCP,), {"engine": "events"}, "^faults need a task for each connection: engine must be auto or tasks$"),
        (("udp://127.0.0.1:0",), {}, "^cut has no effect: no address is for streams$"),
        ((TCP,), {"faults": (Loss(),)}, "^loss has no effect: no address is for UDP$"),
        ((TCP,), {"faults": ("cut",)}, "^faults must be "),
    ],
)
async def test_faults_that_cannot_act_are_a_usage_error(
    addresses: tuple[str, ...], given: dict[str, Any], error: str
) -> None:
    with pytest.raises(UsageError, match=error):
        async with open_server(*addresses, options=options(**{"faults": (Cut(bytes=1),), **given})):
            pytest.fail("it opened")
