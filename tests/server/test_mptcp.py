"""Multipath TCP (RFC 8684), by passed sockets and by mptcpize: its sockets refuse some options of TCP."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from anyio import to_thread

from anyecho.address import FDAddress
from anyecho.client.client import connect
from anyecho.server.server import Server, open_server
from tests.support.machine import skip
from tests.support.peers import exchange, until
from tests.support.process import Processes, round_trip

IPPROTO_MPTCP = 262
PAYLOAD = bytes(range(256)) * 4096

#: What mptcpize(8) does by LD_PRELOAD: every TCP socket becomes one of MPTCP.
MPTCPIZE = """
import socket
make = socket.socket.__init__
def mptcpized(self, family=-1, type=-1, proto=-1, fileno=None):
    is_tcp = fileno is None and family in (2, 10) and type in (-1, 1) and proto in (-1, 0)
    make(self, family, type, 262 if is_tcp else proto, fileno)
socket.socket.__init__ = mptcpized
"""


def mptcp_socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    except OSError as exc:
        skip(f"MPTCP in the kernel ({exc})")


@pytest.fixture
def passed() -> Iterator[socket.socket]:
    with mptcp_socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


def echo_payload(sock: socket.socket, target: tuple[str, int]) -> bytes:
    """Return the echo of `PAYLOAD` on `sock`, sent in slices that fit the kernel's buffers."""
    with sock:
        sock.settimeout(10)
        sock.connect(target)
        slices = range(0, len(PAYLOAD), 16384)
        return b"".join(exchange(sock, PAYLOAD[start : start + 16384]) for start in slices)


@pytest.mark.parametrize("proto", [IPPROTO_MPTCP, socket.IPPROTO_TCP], ids=["mptcp", "tcp"])
async def test_a_passed_mptcp_socket_echoes(proto: int, passed: socket.socket) -> None:
    async with open_server(FDAddress(fd=passed.fileno())):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, proto)
        assert await to_thread.run_sync(echo_payload, sock, passed.getsockname()) == PAYLOAD


async def test_a_plain_tcp_peer_of_an_mptcp_socket_has_the_options_of_tcp(passed: socket.socket) -> None:
    async with open_server(FDAddress(fd=passed.fileno())) as server:
        with socket.create_connection(passed.getsockname()) as peer:
            await until(lambda: server.stats.active == 1)
            sock = accepted_by(server)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 128 * 1024
            peer.send(b"a", socket.MSG_OOB)
            assert await to_thread.run_sync(peer.recv, 1) == b"a"


def accepted_by(server: Server) -> Any:
    [connection] = server._connections
    return connection.sock


async def test_the_client_connects_by_mptcp(passed: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    make: Any = socket.socket.__init__

    def mptcpized(
        sock: socket.socket, family: int = -1, kind: int = -1, proto: int = -1, fileno: Any = None
    ) -> None:
        is_tcp = fileno is None and family in (socket.AF_INET, socket.AF_INET6) and kind == socket.SOCK_STREAM
        make(sock, family, kind, IPPROTO_MPTCP if is_tcp else proto, fileno)

    monkeypatch.setattr(socket.socket, "__init__", mptcpized)
    async with open_server("tcp://127.0.0.1:0") as server, await connect(server.addresses[0]) as client:
        for _ in range(3):
            assert await client.exchange(b"hello") == b"hello"


@pytest.mark.by_turns("backend", "engine")
def test_serve_and_send_run_under_mptcpize(backend: str, processes: Processes) -> None:
    mptcp_socket().close()
    options = ("--backend", backend, "--log-level", "info")
    server = processes.serve("--bind", "127.0.0.1:0", *options, before=MPTCPIZE)
    [address] = server.addresses
    assert round_trip(address, PAYLOAD) == PAYLOAD
    assert processes.run("send", address, "hello", "--backend", backend, before=MPTCPIZE) == (0, b"hello", "")
    server.signal()
    assert server.wait() == 0
    assert "socket options that the kernel refuses (AF_INET, protocol 262): " in server.errors()
