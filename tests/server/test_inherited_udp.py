"""Inherited dual-stack UDP sockets, as service managers bind them: the guards work for IPv4-mapped sources."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from anyio import to_thread

from anyecho.address import FDAddress, UDPAddress
from anyecho.net.udp import mmsg
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.support.datagrams import forge, forger, udp_client
from tests.support.machine import needs_dual_sockets, skip
from tests.support.peers import until

pytestmark = needs_dual_sockets

#: The kernel's number; Python's socket module has no name for it.
SO_TIMESTAMP = 29


@pytest.fixture(autouse=True)
def engine() -> None:
    """UDP does not use an engine, so each test runs once."""


@pytest.fixture(autouse=True, params=["batched", "single"])
def system_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "single":
        monkeypatch.setattr(mmsg, "HAVE_MMSG", False)
    elif not mmsg.HAVE_MMSG:
        skip("recvmmsg")


@pytest.fixture
def inherited() -> Iterator[socket.socket]:
    """A socket as systemd makes it: ``ListenDatagram=`` with a port only, ``Broadcast=`` and ``Timestamping=``."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
        sock.bind(("::", 0))
        yield sock


@pytest.fixture
async def server(inherited: socket.socket) -> AsyncIterator[Server]:
    options = ServeOptions(udp_rate=1e-6, udp_burst=2)
    async with open_server(FDAddress(fd=inherited.fileno()), options=options) as server:
        yield server


def address_at(server: Server, host: str) -> UDPAddress:
    [address] = server.addresses
    assert isinstance(address, UDPAddress)
    assert address.host == "::"
    return UDPAddress(host=host, port=address.port)


async def until_received(server: Server, count: int) -> None:
    await until(lambda: server.stats.datagrams.received == count)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
async def test_a_dual_stack_socket_replies_from_the_destination_address(host: str, server: Server) -> None:
    with udp_client(address_at(server, host)) as sock:  # connected: receives from that address only
        for datagram in (b"hello", b""):
            sock.send(datagram)
            assert await to_thread.run_sync(sock.recv, 100) == datagram

    counts = server.stats.datagrams
    assert (counts.echoed, counts.dropped, counts.errors) == (2, {}, {})


async def test_an_ipv6_socket_bound_to_ipv4_replies_from_the_destination_address() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as inherited:
        inherited.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        inherited.bind(("::ffff:0.0.0.0", 0))
        async with open_server(FDAddress(fd=inherited.fileno())) as server:
            port = inherited.getsockname()[1]
            assert server.addresses == (UDPAddress(host="0.0.0.0", port=port),)
            with udp_client(UDPAddress(host="127.0.0.2", port=port)) as sock:
                sock.send(b"hello")
                assert await to_thread.run_sync(sock.recv, 100) == b"hello"


async def test_an_ipv4_mapped_source_is_treated_as_ipv4(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), udp_client(address_at(server, "127.0.0.1")) as sock:
        for _ in range(3):
            sock.send(b"more than two")
        await until_received(server, 3)
        port = sock.getsockname()[1]

    assert server.stats.datagrams.dropped == {"rate": 1}
    assert caplog.messages[0].startswith(f"dropping datagrams from 127.0.0.1 port {port}: it sends more than ")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (("127.0.0.1", 7), "port_below_1024"),
        (("127.0.0.1", -1), "own_port"),
        (("255.255.255.255", 5000), "broadcast"),
        (("127.255.255.255", 5000), "broadcast"),
        (("224.0.0.1", 5000), "multicast"),
    ],
)
@pytest.mark.by_turns("anyio_backend")
async def test_a_forged_source_is_dropped_and_counted(
    source: tuple[str, int], reason: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with forger() as raw:
        target = address_at(server, "127.0.0.1")
        host, port = source
        forge(raw, (host, target.port if port < 0 else port), target)
        await until_received(server, 1)

    counts = server.stats.datagrams
    assert (counts.dropped, counts.echoed, counts.errors) == ({reason: 1}, 0, {})
    assert caplog.messages[0].startswith(f"dropping datagrams from {host} port ")


async def test_a_broadcast_datagram_gets_no_reply(server: Server) -> None:
    with udp_client(address_at(server, "127.0.0.1"), connected=False) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(b"anybody?", ("127.255.255.255", address_at(server, "").port))
        await until_received(server, 1)

    assert server.stats.datagrams.echoed == 0


async def test_datagrams_after_a_drain_are_echoed_by_the_next_server(inherited: socket.socket) -> None:
    address = FDAddress(fd=inherited.fileno())
    async with open_server(address) as first:
        await first.drain()
        with udp_client(address_at(first, "::1")) as sock:
            sock.send(b"between two")
            async with open_server(address) as second:
                assert await to_thread.run_sync(sock.recv, 100) == b"between two"
                assert second.stats.datagrams.echoed == 1

        assert first.stats.datagrams.received == 0
