"""Descriptors that somebody else has opened: what can be served is, and of the rest one line says what it is."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from anyecho.address import FDAddress, ProxyMode, TCPAddress, UDPAddress, UnixAddress
from anyecho.errors import BindError
from anyecho.net.listen import Listener, open_listeners
from anyecho.net.sockets import SocketOptions
from tests.machine import LOOPBACK_HOSTS, needs_ipv6

#: The kernel's number; Python's socket module has no name for it.
SO_TIMESTAMP = 29

PROXY_MODES: tuple[ProxyMode, ...] = ("v1", "v2", "require")


@asynccontextmanager
async def inherited(*descriptors: int | str) -> AsyncIterator[list[Listener]]:
    addresses = [FDAddress(fd=fd) for fd in descriptors]
    listeners = await open_listeners(addresses, backlog=16, options=SocketOptions(rcvbuf=100_000))
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


async def refused(*descriptors: int | str) -> str:
    """Why the last of them was; nothing of ours is left open."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BindError) as caught:
        async with inherited(*descriptors):
            pass

    assert len(os.listdir("/proc/self/fd")) == before
    start, message = f"cannot listen on fd://{descriptors[-1]}: ", str(caught.value)
    assert message.startswith(start)
    assert len(message.splitlines()) == 1
    return message.removeprefix(start)


def udp(host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    return sock


async def test_a_descriptor_stays_its_givers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        async with inherited(given.fileno()) as [listener]:
            assert listener.address == TCPAddress(host="127.0.0.1", port=given.getsockname()[1])

        socket.create_connection(given.getsockname()).close()
        given.setblocking(True)
        given.accept()[0].close()


async def test_a_socket_file_stays_too(short_path: Path) -> None:
    path = str(short_path / "echo")
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(path)
        given.listen()
        async with inherited(given.fileno()) as [listener]:
            assert listener.address == UnixAddress(path=path)

        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


@pytest.mark.parametrize("host", [*LOOPBACK_HOSTS, pytest.param("::", marks=needs_ipv6)])
async def test_a_udp_socket_has_the_address_it_is_bound_to(host: str) -> None:
    with udp(host) as given:
        async with inherited(given.fileno()) as [listener]:
            assert listener.address == UDPAddress(host=host, port=given.getsockname()[1])
            assert listener.sock.type == socket.SOCK_DGRAM


async def test_a_listener_gets_our_options() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        async with inherited(given.fileno()) as [listener]:
            assert listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 131072
            assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE) == 1
            assert not listener.sock.getblocking()


async def test_a_udp_socket_gets_our_options_and_loses_those_that_do_harm() -> None:
    with udp() as given:
        given.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        given.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
        async with inherited(given.fileno()) as [listener]:
            assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 200_000
            assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 0
            assert listener.sock.getsockopt(socket.SOL_SOCKET, SO_TIMESTAMP) == 0
            assert not listener.sock.getblocking()


def connected_udp() -> socket.socket:
    with udp() as peer:
        sock = udp()
        sock.connect(peer.getsockname())
        return sock


def accepted() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        return listener.accept()[0]


def paired() -> socket.socket:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours


def unix(kind: int) -> socket.socket:
    return socket.socket(socket.AF_UNIX, kind)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (socket.socket, "is a socket that does not listen"),
        (
            accepted,
            "is a connected socket, not a listening one (in a systemd socket unit, set Accept=no)",
        ),
        (paired, "is a connected socket, not a listening one"),
        (lambda: socket.socket(type=socket.SOCK_DGRAM), "is a UDP socket that is not bound"),
        (connected_udp, "is a UDP socket that is connected, and hears one peer only"),
        (lambda: unix(socket.SOCK_DGRAM), "is not a TCP, UDP or Unix stream socket"),
        (lambda: unix(socket.SOCK_SEQPACKET), "is not a TCP, UDP or Unix stream socket"),
        (lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), "is not a TCP, UDP or Unix stream socket"),
    ],
)
async def test_a_socket_that_cannot_be_served_is_refused(make: Callable[[], socket.socket], reason: str) -> None:
    with make() as given:
        assert f"descriptor {given.fileno()} {reason}" in await refused(given.fileno())
        assert given.getblocking()  # it was looked at, and left as it was


async def test_a_descriptor_that_is_no_socket_is_refused(tmp_path: Path) -> None:
    descriptors = (os.open(tmp_path / "file", os.O_CREAT), os.open(tmp_path, os.O_PATH), *os.pipe())
    with ExitStack() as opened:
        for each in descriptors:
            opened.callback(os.close, each)
        for each in descriptors:
            assert await refused(each) == f"descriptor {each} is not a socket"


async def test_one_that_is_closed_is_refused() -> None:
    assert await refused(9999) == "descriptor 9999 is not open"


@pytest.mark.parametrize("make", [udp, lambda: socket.create_server(("127.0.0.1", 0))], ids=["udp", "tcp"])
async def test_one_that_is_given_twice_is_refused(make: Callable[[], socket.socket]) -> None:
    with make() as given, given.dup() as same:
        for each in (given, same):
            reason = "another descriptor here is the same socket"
            assert await refused(given.fileno(), each.fileno()) == reason


async def test_two_that_share_a_port_are_not_the_same() -> None:
    with ExitStack() as opened:
        first = opened.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
        second = opened.enter_context(socket.create_server(first.getsockname(), reuse_port=True))
        async with inherited(first.fileno(), second.fileno()) as listeners:
            assert len(listeners) == 2


async def test_what_only_streams_have_is_refused_for_datagrams() -> None:
    with udp() as given:
        for mode in PROXY_MODES:
            address = FDAddress(fd=given.fileno(), proxy=mode)
            with pytest.raises(BindError, match=r"^cannot listen on fd://\d+\?proxy=\w+: datagrams have neither "):
                await open_listeners([address], backlog=16, options=SocketOptions())


async def test_a_name_is_for_whoever_knows_names() -> None:
    assert await refused("web") == "only `anyecho serve` knows names; write its number, like fd://3"
