"""A server behind a proxy: trusted proxies, asserted sources, and invalid, late or missing PROXY headers."""

from __future__ import annotations

import gc
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from anyio import BrokenResourceError, create_task_group, fail_after, to_thread
from anyio.lowlevel import checkpoint

from anyecho.address import Address, ProxyMode, UnixAddress, parse_address
from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.errors import EchoTruncated, UsageError
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.net.pairs import reset
from tests.net.proxy.headers import IPV4, IPV6, SOURCE, SOURCE6, UNIX, tlv, v2
from tests.support.leaks import live_connections
from tests.support.peers import SOON, converse, dial, receive_all, until, until_closed
from tests.support.tasks import wait_all_tasks_blocked

LINE = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"
UNPRINTABLE = b"/run/\x1b[31m a\nb\xff".ljust(108, b"\0") + bytes(108)
#: Header; asserted source, None if the address of the socket counts; its name in logs.
HEADERS = {
    "v1": (LINE, SOURCE, "192.0.2.1_56324"),
    "v1, IPv6": (b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n", SOURCE6, "2001:db8::1_56324"),
    "v1, unknown": (b"PROXY UNKNOWN\r\n", None, ""),
    "v2": (v2(IPV4), SOURCE, "192.0.2.1_56324"),
    "v2, IPv6": (v2(IPV6, kind=0x21), SOURCE6, "2001:db8::1_56324"),
    "v2, Unix": (v2(UNIX, kind=0x31), "/run/a", "unix_/run/a"),
    "v2, abstract": (v2(b"\0name".ljust(108, b"\0") + bytes(108), kind=0x31), "\0name", "unix_@name"),
    "v2, unprintable": (
        v2(UNPRINTABLE, kind=0x31),
        os.fsdecode(b"/run/\x1b[31m a\nb\xff"),
        "unix_/run/%1B%5B31m%20a%0Ab%FF",
    ),
    "v2, unnamed": (v2(bytes(216), kind=0x31), "", "unix_"),
    "v2, local": (v2(IPV4, command=0x20), None, ""),
}


def behind(**changes: Any) -> ServeOptions:
    """Options of a server behind a proxy on this machine."""
    trusted = ("127.0.0.1", "unix:")
    options = ServeOptions(proxy_protocol="require", proxy_trusted=trusted, linger=0.5)
    return replace(options, **changes)


@pytest.fixture
async def server(carrier: Address) -> AsyncIterator[Server]:
    async with open_server(carrier, options=behind()) as server:
        yield server


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.by_turns("anyio_backend", "engine")
async def test_the_source_of_a_header_is_the_peer(
    name: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    header, source, log_name = HEADERS[name]
    caplog.set_level(logging.INFO, "anyecho.access")
    with dial(server.addresses[0]) as sock:
        sock.sendall(header + b"hello")
        assert await to_thread.run_sync(sock.recv, 5) == b"hello"
        [peer] = server.peers()
        own = sock.getsockname()
        assert peer.address == (own if source is None else source)
        assert (peer.bytes_received, peer.bytes_sent) == (5, 5)
        assert bool(peer.via) is (source is not None)

    await until(lambda: server.stats.active == 0)
    assert server.stats.closed == {"eof": 1}
    assert (server.stats.accepted, server.stats.bytes_received) == (1, 5)
    assert server.peers() == []
    [record] = [record for record in caplog.records if record.name == "anyecho.access"]
    proxy = f"unix_{os.getpid()}" if sock.family == socket.AF_UNIX else f"127.0.0.1_{own[1]}"
    assert vars(record)["peer"] == (log_name or proxy)
    assert vars(record).get("via", "") == (proxy if source is not None else "")


@pytest.mark.parametrize("name", ["v1", "v2"])
async def test_data_in_one_segment_with_the_header_is_echoed(name: str, server: Server) -> None:
    payload = os.urandom(100_000)
    with dial(server.addresses[0]) as sock:
        assert await to_thread.run_sync(converse, sock, HEADERS[name][0] + payload) == payload


async def test_a_second_header_is_data(server: Server) -> None:
    with dial(server.addresses[0]) as sock:
        assert await to_thread.run_sync(converse, sock, LINE + LINE) == LINE


@pytest.mark.parametrize("name", ["v1", "v2"])
async def test_a_header_sent_byte_by_byte_is_read(name: str, server: Server) -> None:
    header = HEADERS[name][0]
    with dial(server.addresses[0]) as sock:
        for at in range(len(header)):
            sock.send(header[at : at + 1])
            for _ in range(10):
                await checkpoint()
        await until(lambda: server.peers() != [])
        assert await to_thread.run_sync(converse, sock, b"hello") == b"hello"


async def test_a_header_without_data_counts_as_eof(server: Server) -> None:
    with dial(server.addresses[0]) as sock:
        assert await to_thread.run_sync(converse, sock, LINE) == b""
    await until(lambda: server.stats.closed == {"eof": 1})


@pytest.mark.fault(row=20, injected="a header is malformed, or a FIN cuts it short")
@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "no PROXY v1 or v2 header"),
        (b"PROXY TCP4 192.0.2.1\r\nhello", "two addresses"),
        (b"PROXY TCP4 \x1b[31m", "no line of the protocol"),
        (v2(IPV4, size=4096) + bytes(100), "are not taken"),
        (v2(IPV4 + tlv(3, bytes(4))), "checksum"),
        (LINE[:20], "EOF inside"),
    ],
)
@pytest.mark.by_turns("anyio_backend", "engine")
async def test_an_invalid_header_closes_the_connection_without_an_echo(
    sent: bytes, why: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with await connect(server.addresses[0], options=ConnectOptions(proxy_header="v1")) as neighbour:
        await neighbour.exchange(b"x")
        with dial(server.addresses[0]) as sock:
            sock.sendall(sent)
            if "EOF" in why:
                sock.shutdown(socket.SHUT_WR)
            # A reset if the server has left input unread.
            with suppress(ConnectionResetError):
                assert await to_thread.run_sync(receive_all, sock) == b""

        await until(lambda: server.stats.closed == {"proxy": 1})
        await neighbour.exchange(b"y")

    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith("rejected ")
    assert why in line
    assert line.isprintable()
    assert SOURCE[0] not in caplog.text


async def test_a_reset_before_the_header_is_counted_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with open_server("tcp://127.0.0.1:0", options=behind()) as server:
        sock = dial(server.addresses[0])
        sock.sendall(LINE[:20])
        await until(lambda: server.stats.active == 1)
        await wait_all_tasks_blocked()
        reset(sock)
        await until(lambda: server.stats.closed == {"reset": 1})

    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.fault(row=20, injected="a peer sends nothing, or half a header, and waits; proxy_timeout=0.2 s")
@pytest.mark.parametrize("sent", [b"", LINE[:20], v2(IPV4)[:20]])
@pytest.mark.by_turns("anyio_backend")
async def test_an_incomplete_header_is_closed_at_the_time_limit(sent: bytes, carrier: Address) -> None:
    async with open_server(carrier, options=behind(proxy_timeout=0.2)) as server:
        options = ConnectOptions(proxy_header="v2")
        async with await connect(server.addresses[0], options=options) as neighbour:
            start = time.monotonic()
            with dial(server.addresses[0]) as sock:
                sock.sendall(sent)
                assert await to_thread.run_sync(receive_all, sock) == b""
            assert time.monotonic() - start >= 0.19
            await neighbour.exchange(b"x")

        await until(lambda: server.stats.active == 0)
        assert server.stats.closed == {"proxy_timeout": 1, "eof": 1}


async def test_the_time_limit_of_a_header_ends_with_it(carrier: Address) -> None:
    async with open_server(carrier, options=behind(proxy_timeout=0.1)) as server:
        options = ConnectOptions(proxy_header="v1")
        async with await connect(server.addresses[0], options=options) as client:
            await client.exchange(b"x")
            with dial(server.addresses[0]) as late:
                await to_thread.run_sync(receive_all, late)
            await client.exchange(b"y")


@pytest.mark.fault(row=20, injected="20 peers outside the trusted networks send a valid header")
async def test_an_untrusted_proxy_is_closed_unread(carrier: Address, caplog: pytest.LogCaptureFixture) -> None:
    """Its header could assert any source: it is not read."""
    caplog.set_level(logging.INFO)
    async with open_server(carrier, options=behind(proxy_trusted=("192.0.2.0/24",))) as server:
        for _ in range(20):
            with dial(server.addresses[0]) as sock, suppress(ConnectionError):
                sock.sendall(LINE + b"hello")
                assert await to_thread.run_sync(receive_all, sock) == b""

        await until(lambda: server.stats.closed == {"untrusted": 20})
        assert (server.stats.accepted, server.stats.active, server.peers()) == (20, 0, [])

    assert "192.0.2.1" not in caplog.text
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "--proxy-trusted" in line


@pytest.mark.parametrize("trusted", ["0.0.0.0/0", "::/0"])
async def test_networks_do_not_make_a_unix_peer_trusted(trusted: str, short_path: Path) -> None:
    options = behind(proxy_trusted=(trusted,))
    async with open_server(UnixAddress(path=str(short_path / "echo")), options=options) as server:
        with dial(server.addresses[0]) as sock:
            assert await to_thread.run_sync(receive_all, sock) == b""
        await until(lambda: server.stats.closed == {"untrusted": 1})


@pytest.mark.parametrize(
    ("general", "own", "name", "taken"),
    [
        ("off", "v1", "v1", True),
        ("off", "v1", "v2", False),
        ("v1", None, "v2", False),
        ("v2", None, "v2", True),
        ("v2", "v1", "v1", True),
        ("v1", "require", "v2", True),
    ],
)
@pytest.mark.by_turns("anyio_backend", "engine")
async def test_an_address_may_have_a_mode_of_its_own(
    general: ProxyMode, own: ProxyMode | None, name: str, taken: bool, carrier: Address
) -> None:
    options = behind(proxy_protocol=general)
    address = parse_address(f"{carrier}?proxy={own}") if own else carrier
    async with open_server(address, options=options) as server:
        with dial(server.addresses[0]) as sock:
            sock.sendall(HEADERS[name][0])
            sock.shutdown(socket.SHUT_WR)
            await until(lambda: server.stats.closed == {"eof" if taken else "proxy": 1})


@pytest.mark.fault(row=20, injected="a header is sent where none is expected")
async def test_an_unexpected_header_is_data() -> None:
    """If headers were detected, any peer could assert any source."""
    async with open_server("tcp://127.0.0.1:0?proxy=off", "tcp://127.0.0.1:0", options=behind()) as server:
        with dial(server.addresses[0]) as sock:
            assert await to_thread.run_sync(converse, sock, LINE) == LINE
            assert server.stats.closed["proxy"] == 0


@pytest.mark.parametrize(
    ("address", "mode"), [("tcp://127.0.0.1:0?proxy=v2", "off"), ("tcp://127.0.0.1:0", "require")]
)
async def test_proxy_headers_without_a_trusted_proxy_are_a_usage_error(address: str, mode: ProxyMode) -> None:
    with pytest.raises(UsageError, match="proxy_trusted is missing"):
        async with open_server(address, options=ServeOptions(proxy_protocol=mode)):
            pytest.fail("it opened")

    async with open_server("tcp://127.0.0.1:0?proxy=off", options=ServeOptions(proxy_protocol=mode)):
        pass


async def test_a_drain_waits_for_a_header_for_at_most_its_grace_period(carrier: Address) -> None:
    async with open_server(carrier, options=behind()) as server:
        with dial(server.addresses[0]) as half, dial(server.addresses[0]) as whole:
            half.sendall(LINE[:20])
            whole.sendall(LINE[:20])
            await until(lambda: server.stats.active == 2)
            async with create_task_group() as tasks:
                tasks.start_soon(server.drain, 1)
                await wait_all_tasks_blocked()
                whole.sendall(LINE[20:])
                assert await to_thread.run_sync(converse, whole, b"late") == b"late"
            assert await to_thread.run_sync(receive_all, half) == b""

        assert server.stats.closed == {"eof": 1, "drained": 1}


async def test_leaving_the_block_closes_a_connection_with_an_incomplete_header(carrier: Address) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with ExitStack() as opened:
        async with open_server(carrier, options=behind(proxy_timeout=4 * SOON)) as server:
            sock = opened.enter_context(dial(server.addresses[0]))
            await until(lambda: server.stats.active == 1)
            start = time.monotonic()
        assert time.monotonic() - start < SOON
        assert sock.recv(1) == b""

    assert (server.stats.active, server.stats.closed) == (0, {"drained": 1})
    assert len(os.listdir("/proc/self/fd")) == before


async def test_aborting_in_a_proxy_header_closes_at_once(server: Server) -> None:
    with dial(server.addresses[0]):
        await until(lambda: server.stats.active == 1)
        server.abort()
        with fail_after(SOON):
            await server.wait_closed()

    assert server.stats.closed == {"cancelled": 1}


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_client_sends_a_proxy_header(version: str, server: Server) -> None:
    options = ConnectOptions(proxy_header="v1" if version == "v1" else "v2")
    async with await connect(server.addresses[0], options=options) as client:
        await client.exchange(b"hello")
        [peer] = server.peers()
        assert peer.bytes_received == 5
        # v1 cannot express a Unix socket; v2 asserts a client that is bound to no path.
        assert bool(peer.via) is (version == "v2" or not isinstance(server.addresses[0], UnixAddress))


async def test_a_client_gets_an_error_if_its_header_is_rejected(carrier: Address) -> None:
    async with open_server(carrier, options=behind(proxy_protocol="v1")) as server:
        async with await connect(server.addresses[0], options=ConnectOptions(proxy_header="v2")) as client:
            with pytest.raises((EchoTruncated, BrokenResourceError)):
                await client.exchange(b"hello")
        await until(lambda: server.stats.closed == {"proxy": 1})


@pytest.mark.parametrize("how", ["eof", "invalid", "late", "per IP", "aborted"])
async def test_a_connection_closed_before_its_first_echo_leaves_nothing_behind(carrier: Address, how: str) -> None:
    """No connection object, even without the garbage collector, and no registration of its descriptor."""
    options = behind(proxy_timeout=0.1 if how == "late" else 60.0, max_connections_per_ip=1)
    sent = {"invalid": b"nonsense", "per IP": LINE}.get(how, LINE[:20])
    async with open_server(carrier, options=options) as server:
        with dial(server.addresses[0]) as first:
            first.sendall(LINE + b"x")
            assert await to_thread.run_sync(first.recv, 1) == b"x"
            [first_connection] = server._connections
            registered = registered_with(server)
            gc.collect()
            gc.disable()
            try:
                for number in range(3):
                    with dial(server.addresses[0]) as sock:
                        sock.sendall(sent)
                        if how == "aborted":
                            await until(lambda: server.stats.active == 2)
                            (server._connections - {first_connection}).pop().abort()
                        if how != "eof":
                            await until_closed(server, number + 1)
                    await until_closed(server, number + 1)
                await until(lambda: live_connections() == 1)
                assert registered_with(server) == registered
            finally:
                gc.enable()


def registered_with(server: Server) -> set[int]:
    return set(getattr(server._admission._engine.poller, "registered", ()))
