"""Row 20: invalid PROXY headers, and headers of untrusted peers."""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress

from anyio import to_thread

from anyecho.address import Address
from anyecho.client.options import ConnectOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.faults.scene import TCP, good_client, logged, time_limit, unix
from tests.faults.table import Observed, Scene, injects
from tests.net.proxy.headers import IPV4, IPV6, tlv, v2
from tests.support.peers import dial, receive_all, until

#: The source in every header here; it must not appear in logs or limits.
SOURCE = "192.0.2.1"
LINE = f"PROXY TCP4 {SOURCE} 192.0.2.2 56324 443\r\n".encode()

#: Each was accepted by at least one library, or by an older nginx, haproxy or Apache.
MALFORMED = {
    "no header": b"GET / HTTP/1.0\r\n\r\n",
    "v1, port with a leading zero": LINE.replace(b"443", b"0443"),
    "v1, port with a sign": LINE.replace(b"443", b"+443"),
    "v1, port with an underscore": LINE.replace(b"443", b"4_43"),
    "v1, port of 65536": LINE.replace(b"443", b"65536"),
    "v1, two spaces": LINE.replace(b"TCP4 ", b"TCP4  "),
    "v1, LF alone": LINE.replace(b"\r", b""),
    "v1, an address missing": b"PROXY TCP4 192.0.2.1\r\n",
    "v1, IPv6 zone": f"PROXY TCP6 fe80::1%{SOURCE} ::1 1 2\r\n".encode(),
    "v1, IPv4 said to be IPv6": LINE.replace(b"TCP4", b"TCP6"),
    "v1, not ASCII": LINE.replace(b"443", "\uff14\uff14\uff13".encode()),
    "v1, unknown of 5000 bytes": b"PROXY UNKNOWN " + b"x" * 5000 + b"\r\n",
    "v1, 108 bytes and no end": b"PROXY TCP4 " + b"1" * 97,
    "v2, version 1": v2(IPV4, command=0x11),
    "v2, command 2": v2(IPV4, command=0x22),
    "v2, family 4": v2(IPV4, kind=0x41),
    "v2, protocol 3": v2(IPV4, kind=0x13),
    "v2, length 0 of IPv4": v2(),
    "v2, length of IPv4 said to be IPv6": v2(IPV4, kind=0x21),
    "v2, TLV beyond the end": v2(IPV4 + tlv(1, b"h2", size=99)),
    "v2, TLV cut off": v2(IPV4 + b"\1"),
    "v2, wrong checksum": v2(IPV4 + tlv(3, bytes(4))),
    "v2, 64 KiB": v2(IPV6, kind=0x21, size=65535) + bytes(1000),
    "v2, control characters": v2(b"\x1b[31m"),
    "a signature alone, then something else": v2()[:12] + struct.pack("!BBH", 0, 0, 0),
}


def echo_of(address: Address, said: bytes) -> bytes:
    """Send `said` and more; return what comes back, which should be nothing."""
    with dial(address) as sock, suppress(ConnectionError):  # a reset, if not all of it was read
        sock.sendall(said)
        sock.sendall(b"echo me")
        return receive_all(sock)

    return b""


def _lacks_source(lines: Sequence[logging.LogRecord]) -> bool:
    return not any(SOURCE in f"{record.getMessage()} {vars(record)}" for record in lines)


@injects(20, f"{len(MALFORMED)} malformed headers, in v1 and v2, over TCP and over a Unix socket")
async def malformed(scene: Scene) -> Observed:
    options = ServeOptions(
        proxy_protocol="require",
        proxy_trusted=("127.0.0.1", "unix:"),
        proxy_timeout=10,
        max_connections_per_ip=1,
    )
    with logged(logging.INFO) as lines:
        async with (
            open_server(TCP, unix(scene), options=options) as server,
            good_client(server.addresses[0], ConnectOptions(proxy_header="v2")),
        ):
            for address in server.addresses:
                for name, said in MALFORMED.items():
                    assert await to_thread.run_sync(echo_of, address, said) == b"", name
            await until(lambda: server.stats.closed == {"proxy": 2 * len(MALFORMED)})
            closed = dict(server.stats.closed)

    turned_away = [record for record in lines if record.levelno >= logging.WARNING]
    assert len(turned_away) == 1
    assert _lacks_source(lines)
    return {"echoed": "0 bytes", "closed": closed, "log lines": len(turned_away)}


@injects(20, "20 peers outside the trusted networks send a valid header; over TCP and over a Unix socket")
async def untrusted(scene: Scene) -> Observed:
    options = ServeOptions(proxy_protocol="require", proxy_trusted=("198.51.100.0/24",), max_connections_per_ip=1)
    with logged(logging.INFO) as lines:
        async with open_server(TCP, unix(scene), options=options) as server:
            for _ in range(10):
                for address in server.addresses:
                    assert await to_thread.run_sync(echo_of, address, LINE) == b""
            await until(lambda: server.stats.closed == {"untrusted": 20})
            assert server.peers() == []

    assert len(lines) == 1
    assert _lacks_source(lines)
    return {"echoed": "0 bytes", "closed": dict(server.stats.closed), "log lines": len(lines)}


@injects(
    20, "one peer sends half a header and waits, one sends nothing, one sends half and closes; proxy_timeout=0.2 s"
)
async def partial(_: Scene) -> Observed:
    options = ServeOptions(proxy_protocol="require", proxy_trusted=("127.0.0.1",), proxy_timeout=0.2)
    async with open_server(TCP, options=options) as server:
        [address] = server.addresses
        async with good_client(address, ConnectOptions(proxy_header="v1")):
            start = time.monotonic()
            with dial(address) as half, dial(address) as silent, dial(address) as gone:
                half.sendall(LINE[:20])
                gone.sendall(v2(IPV4)[:20])
                gone.shutdown(socket.SHUT_WR)
                for sock in (half, silent, gone):
                    assert await to_thread.run_sync(receive_all, sock) == b""
            took = time.monotonic() - start
            await until(lambda: server.stats.closed == {"proxy_timeout": 2, "proxy": 1})
            closed = dict(server.stats.closed)

    assert 0.19 <= took < time_limit(0.2)
    return {"closed": closed, "after": f"{took:.2f} s"}


@injects(20, "a header is sent where none is expected")
async def unexpected_header(_: Scene) -> Observed:
    async with open_server(TCP, options=ServeOptions(max_connections_per_ip=1)) as server:
        with dial(server.addresses[0]) as sock:
            sock.sendall(LINE)
            assert await to_thread.run_sync(sock.recv, 1000) == LINE
            [peer] = server.peers()
            assert peer.address == sock.getsockname()

    return {"it": "is echoed as data; the peer is that of the socket"}
