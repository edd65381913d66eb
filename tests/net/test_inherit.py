"""Inherited descriptors: usable sockets are served; for any other descriptor an error says what it is."""

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
from tests.support.machine import LOOPBACK_HOSTS, needs_ipv6

#: The kernel's numbers; Python's socket module has no names for them.
SO_TIMESTAMP, IP_MTU_DISCOVER = 29, 10

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
    """Return why the last descriptor is refused; check that no descriptor is leaked."""
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


async def test_the_callers_descriptor_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        async with inherited(passed.fileno()) as [listener]:
            assert listener.address == TCPAddress(host="127.0.0.1", port=passed.getsockname()[1])

        socket.create_connection(passed.getsockname()).close()
        passed.setblocking(True)
        passed.accept()[0].close()


async def test_the_socket_file_of_an_inherited_socket_is_not_removed(short_path: Path) -> None:
    path = str(short_path / "echo")
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(path)
        passed.listen()
        async with inherited(passed.fileno()) as [listener]:
            assert listener.address == UnixAddress(path=path)

        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


@pytest.mark.parametrize("host", [*LOOPBACK_HOSTS, pytest.param("::", marks=needs_ipv6)])
async def test_a_udp_socket_has_the_address_it_is_bound_to(host: str) -> None:
    with udp(host) as passed:
        async with inherited(passed.fileno()) as [listener]:
            assert listener.address == UDPAddress(host=host, port=passed.getsockname()[1])
            assert listener.sock.type == socket.SOCK_DGRAM


async def test_an_inherited_listener_gets_the_server_options() -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        async with inherited(passed.fileno()) as [listener]:
            assert listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 131072
            assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE) == 1
            assert not listener.sock.getblocking()


@pytest.mark.parametrize("discover", [2, 3], ids=["IP_PMTUDISC_DO", "IP_PMTUDISC_PROBE"])
async def test_an_inherited_udp_socket_gets_the_server_options_and_loses_harmful_ones(discover: int) -> None:
    with udp() as passed:
        passed.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, discover)
        passed.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        passed.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
        async with inherited(passed.fileno()) as [listener]:
            assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 200_000
            assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 0
            assert listener.sock.getsockopt(socket.SOL_SOCKET, SO_TIMESTAMP) == 0
            assert listener.sock.getsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER) == 1
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
        (connected_udp, "is a connected UDP socket, which receives from one peer only"),
        (lambda: unix(socket.SOCK_DGRAM), "is not a TCP, UDP or Unix stream socket"),
        (lambda: unix(socket.SOCK_SEQPACKET), "is not a TCP, UDP or Unix stream socket"),
        (lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), "is not a TCP, UDP or Unix stream socket"),
    ],
)
async def test_a_socket_that_cannot_be_served_is_refused(make: Callable[[], socket.socket], reason: str) -> None:
    with make() as passed:
        assert f"descriptor {passed.fileno()} {reason}" in await refused(passed.fileno())
        assert passed.getblocking()  # the refused socket is unchanged


async def test_a_descriptor_that_is_no_socket_is_refused(tmp_path: Path) -> None:
    descriptors = (os.open(tmp_path / "file", os.O_CREAT), os.open(tmp_path, os.O_PATH), *os.pipe())
    with ExitStack() as opened:
        for each in descriptors:
            opened.callback(os.close, each)
        for each in descriptors:
            assert await refused(each) == f"descriptor {each} is not a socket"


async def test_a_closed_descriptor_is_refused() -> None:
    assert await refused(9999) == "descriptor 9999 is not open"


@pytest.mark.parametrize("make", [udp, lambda: socket.create_server(("127.0.0.1", 0))], ids=["udp", "tcp"])
async def test_two_descriptors_of_one_socket_are_refused(make: Callable[[], socket.socket]) -> None:
    with make() as passed, passed.dup() as same:
        for each in (passed, same):
            reason = "another descriptor here is the same socket"
            assert await refused(passed.fileno(), each.fileno()) == reason


async def test_two_sockets_on_one_port_are_both_served() -> None:
    with ExitStack() as opened:
        first = opened.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
        second = opened.enter_context(socket.create_server(first.getsockname(), reuse_port=True))
        async with inherited(first.fileno(), second.fileno()) as listeners:
            assert len(listeners) == 2


async def test_proxy_headers_are_refused_for_datagrams() -> None:
    with udp() as passed:
        for mode in PROXY_MODES:
            address = FDAddress(fd=passed.fileno(), proxy=mode)
            with pytest.raises(BindError, match=r"^cannot listen on fd://\d+\?proxy=\w+: datagrams have neither "):
                await open_listeners([address], backlog=16, options=SocketOptions())


async def test_an_unresolved_descriptor_name_is_refused() -> None:
    assert await refused("web") == "descriptor names work only in `anyecho serve`; write a number, like fd://3"
