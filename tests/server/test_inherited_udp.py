"""UDP sockets that somebody else has bound, for both IPv4 and IPv6 as service managers like it: the guards hold."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from anyio import to_thread

from anyecho.address import FDAddress, UDPAddress
from anyecho.net import mmsg
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.datagrams import caller, forge, forger
from tests.machine import needs_dual_sockets
from tests.peers import until

pytestmark = needs_dual_sockets

#: The kernel's number; Python's socket module has no name for it.
SO_TIMESTAMP = 29


@pytest.fixture(autouse=True)
def engine() -> None:
    """Once is enough: no engine is concerned."""


@pytest.fixture(autouse=True, params=["batched", "singly"])
def system_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "singly":
        monkeypatch.setattr(mmsg, "HAVE_MMSG", False)
    elif not mmsg.HAVE_MMSG:
        pytest.skip("this system has no recvmmsg")


@pytest.fixture
def given() -> Iterator[socket.socket]:
    """What ``ListenDatagram=`` with a port alone makes, and ``Broadcast=`` and ``Timestamping=`` spoil."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
        sock.bind(("::", 0))
        yield sock


@pytest.fixture
async def server(given: socket.socket) -> AsyncIterator[Server]:
    options = ServeOptions(udp_rate=1e-6, udp_burst=2)
    async with open_server(FDAddress(fd=given.fileno()), options=options) as server:
        yield server


def asked(server: Server, host: str) -> UDPAddress:
    [address] = server.addresses
    assert isinstance(address, UDPAddress)
    assert address.host == "::"
    return UDPAddress(host=host, port=address.port)


async def until_received(server: Server, count: int) -> None:
    await until(lambda: server.stats.datagrams.received == count)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
async def test_both_families_are_answered_from_the_address_that_was_asked(host: str, server: Server) -> None:
    with caller(asked(server, host)) as sock:  # which hears nobody else
        for datagram in (b"hello", b""):
            sock.send(datagram)
            assert await to_thread.run_sync(sock.recv, 100) == datagram

    counts = server.stats.datagrams
    assert (counts.echoed, counts.dropped, counts.errors) == (2, {}, {})


async def test_so_is_ipv4_by_a_socket_of_the_other_family() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as given:
        given.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        given.bind(("::ffff:0.0.0.0", 0))
        async with open_server(FDAddress(fd=given.fileno())) as server:
            port = given.getsockname()[1]
            assert server.addresses == (UDPAddress(host="0.0.0.0", port=port),)
            with caller(UDPAddress(host="127.0.0.2", port=port)) as sock:
                sock.send(b"hello")
                assert await to_thread.run_sync(sock.recv, 100) == b"hello"


async def test_an_ipv4_peer_is_judged_and_named_as_one(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), caller(asked(server, "127.0.0.1")) as sock:
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
        target = asked(server, "127.0.0.1")
        host, port = source
        forge(raw, (host, target.port if port < 0 else port), target)
        await until_received(server, 1)

    counts = server.stats.datagrams
    assert (counts.dropped, counts.echoed, counts.errors) == ({reason: 1}, 0, {})
    assert caplog.messages[0].startswith(f"dropping datagrams from {host} port ")


async def test_a_datagram_to_many_is_answered_by_nobody(server: Server) -> None:
    with caller(asked(server, "127.0.0.1"), connected=False) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(b"anybody?", ("127.255.255.255", asked(server, "").port))
        await until_received(server, 1)

    assert server.stats.datagrams.echoed == 0


async def test_the_next_server_has_what_came_after_the_drain(given: socket.socket) -> None:
    address = FDAddress(fd=given.fileno())
    async with open_server(address) as first:
        await first.drain()
        with caller(asked(first, "::1")) as sock:
            sock.send(b"between two")
            async with open_server(address) as second:
                assert await to_thread.run_sync(sock.recv, 100) == b"between two"
                assert second.stats.datagrams.echoed == 1

        assert first.stats.datagrams.received == 0
