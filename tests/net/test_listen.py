"""Opening listeners: all addresses are bound or none, no address in use is taken over, no descriptor is leaked."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from anyecho.address import Address, TCPAddress
from anyecho.errors import UsageError
from anyecho.net import bind
from anyecho.net.listen import open_beside
from anyecho.net.resolve import Endpoint
from anyecho.net.sockets import SocketOptions
from anyecho.net.syn_filter import drop_syns
from tests.net.listeners import listening, refused
from tests.support.machine import needs_ipv6
from tests.support.peers import dial


@contextmanager
def port_in_use(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as other:
        yield other.getsockname()[1]


@needs_ipv6
async def test_localhost_is_every_loopback_family_on_one_port() -> None:
    async with listening("tcp://localhost:0") as listeners:
        addresses = [listener.address for listener in listeners]
        port = listeners[0].sock.getsockname()[1]
        assert addresses == [TCPAddress(host="127.0.0.1", port=port), TCPAddress(host="::1", port=port)]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port)).close()


@needs_ipv6
async def test_no_host_is_every_interface_of_both_families() -> None:
    async with listening("tcp://:0") as listeners:
        port = listeners[0].sock.getsockname()[1]
        assert [str(listener.address) for listener in listeners] == [f"tcp://0.0.0.0:{port}", f"tcp://[::]:{port}"]


@needs_ipv6
async def test_a_free_port_in_use_in_the_other_family_is_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bind = socket.socket.bind
    denied: list[int] = []

    def refuse_ipv6_three_times(sock: socket.socket, address: tuple[str, int]) -> None:
        if sock.family == socket.AF_INET6 and len(denied) < 3:
            denied.append(address[1])
            raise OSError(errno.EADDRINUSE, "in use")
        bind(sock, address)

    monkeypatch.setattr(socket.socket, "bind", refuse_ipv6_three_times)
    before = len(os.listdir("/proc/self/fd"))
    async with listening("tcp://localhost:0") as listeners:
        ports = {listener.sock.getsockname()[1] for listener in listeners}
        assert len(listeners) == 2
        assert len(ports) == 1
        assert len(denied) == 3

    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_family_that_the_machine_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = socket.socket.bind

    def without_ipv6(sock: socket.socket, address: tuple[str, int]) -> None:
        if sock.family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "no such address")
        bind(sock, address)

    monkeypatch.setattr(socket.socket, "bind", without_ipv6)
    async with listening("tcp://localhost:0") as listeners:
        assert [listener.sock.family for listener in listeners] == [socket.AF_INET]


def resolve_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let every name resolve to `hosts`."""

    async def resolve(host: str, port: int) -> list[Endpoint]:
        return [
            (socket.AF_INET6, (host, port, 0, 0)) if ":" in host else (socket.AF_INET, (host, port))
            for host in hosts
        ]

    monkeypatch.setattr(bind, "resolve", resolve)


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
@pytest.mark.parametrize(
    "foreign", ["192.0.2.1", pytest.param("2001:db8::1", marks=needs_ipv6)], ids=["IPv4", "IPv6"]
)
async def test_a_name_with_an_address_of_another_machine_is_not_half_bound(
    scheme: str, foreign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "127.0.0.1", foreign)
    before = len(os.listdir("/proc/self/fd"))
    message = await refused(f"{scheme}://two.test:0")
    assert message == f"cannot listen on {scheme}://two.test:0: this machine has no such address ({foreign})"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.fault(row=26, injected="a kernel without IPv6")
@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT], ids=errno.errorcode.get)
@pytest.mark.parametrize("address", ["tcp://localhost:0", "tcp://:0", "udp://localhost:0", "udp://:0"])
async def test_a_kernel_without_a_family_serves_the_other(
    address: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithoutIPv6(socket.socket):
        def __init__(self, family: int = -1, *args: int, **options: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(code, os.strerror(code))
            super().__init__(family, *args, **options)

    monkeypatch.setattr(socket, "socket", WithoutIPv6)
    async with listening(address) as listeners:
        assert [listener.sock.family for listener in listeners] == [socket.AF_INET]
    alone = f"{address[:3]}://[::1]:0"
    assert await refused(alone) == f"cannot listen on {alone}: {os.strerror(code)}"


@pytest.mark.parametrize("scheme", ["tcp", "tls", "udp"])
@pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "::FFFF:7f00:1"])
async def test_a_mapped_address_is_bound_as_ipv4(scheme: str, host: str) -> None:
    async with listening(f"{scheme}://[{host}]:0") as [listener]:
        port = listener.sock.getsockname()[1]
        assert str(listener.address) == f"{scheme}://127.0.0.1:{port}"


async def test_a_port_in_use_is_a_one_line_error_and_leaves_nothing_bound() -> None:
    with port_in_use() as port, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
        probe.close()
        before = len(os.listdir("/proc/self/fd"))
        message = await refused(f"tcp://127.0.0.1:{free}", f"tcp://127.0.0.1:{port}")
        assert message == f"cannot listen on tcp://127.0.0.1:{port}: it is in use already"
        assert len(os.listdir("/proc/self/fd")) == before
        async with listening(f"tcp://127.0.0.1:{free}"):
            pass


@needs_ipv6
async def test_a_port_in_use_in_one_family_is_an_error() -> None:
    with port_in_use("::1") as port:
        assert "in use" in await refused(f"tcp://localhost:{port}")
        with port_in_use("127.0.0.1", port):  # the IPv4 socket was closed
            pass


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://no-such-host.invalid:1", "no such host"),
        ("tcp://192.0.2.1:1", "this machine has no such address"),
        ("unix:/nonexistent/echo", "No such file or directory"),
        ("unix:/dev/null/echo", "Not a directory"),
        ("unix:/dev/null", "it exists and is not a socket"),
        ("unix:/proc/echo", "No such file or directory"),
        ("fd://9999", "descriptor 9999 is not open"),
        ("fd://0", "is not"),
        ("tls+fd://9999", "descriptor 9999 is not open"),
        ("udp://no-such-host.invalid:1", "no such host"),
        ("udp://192.0.2.1:1", "this machine has no such address"),
    ],
)
async def test_an_address_that_cannot_be_bound_is_a_one_line_error(address: str, reason: str) -> None:
    message = await refused(address)
    assert message.startswith(f"cannot listen on {address}: ")
    assert reason in message
    assert "\n" not in message


@pytest.mark.fault(row=24, injected="nothing: the limits of accepted connections by default")
async def test_a_stopped_listener_refuses_connections_and_keeps_the_file_of_its_successor(
    carrier: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A successor may get the same inode."""
    monkeypatch.setattr(os.path, "samestat", lambda *_: True)
    async with listening(str(carrier)) as [listener]:
        number = listener.sock.fileno()
        listener.stop()
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            dial(listener.address)
        assert listener.sock.fileno() == number  # not free for reuse while a task may wait for it
        async with listening(str(listener.address)) as [successor]:
            listener.close()
            dial(successor.address).close()


async def test_the_descriptor_number_of_a_stopped_listener_is_not_reused_until_it_is_closed() -> None:
    """A task may still wait for the number."""
    async with listening("tcp://127.0.0.1:0") as [listener]:
        number = listener.sock.fileno()
        listener.stop()
        with socket.socket() as opened:
            assert opened.fileno() != number
        listener.close()
        with ExitStack() as stack:
            assert number in [stack.enter_context(socket.socket()).fileno() for _ in range(number + 1)]


@pytest.mark.parametrize("scheme", ["tcp", "udp", "unix", "fd"])
async def test_a_listener_beside_another_has_its_address_and_a_socket_of_its_own(
    scheme: str, short_path: Path, opened: ExitStack
) -> None:
    """The path of a Unix socket, and an inherited socket, exist once."""
    passed = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    address = {"unix": f"unix:{short_path}/echo", "fd": f"fd://{passed.fileno()}"}.get(
        scheme, f"{scheme}://127.0.0.1:0"
    )
    async with listening(address) as [first]:
        beside = open_beside(first, backlog=16, options=SocketOptions())
        opened.callback(beside.close)
        assert (beside is first) == (scheme in ("unix", "fd"))
        assert (beside.address, beside.requested) == (first.address, first.requested)
        assert beside.sock.getsockname() == first.sock.getsockname()
        listens = [each.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for each in (first, beside)]
        assert listens == [scheme != "udp"] * 2


async def test_inherited_sockets_without_inode_numbers_are_different_ones(
    monkeypatch: pytest.MonkeyPatch, opened: ExitStack
) -> None:
    """Some systems have no numbers: each is 0."""
    passed = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
    monkeypatch.setattr(os, "fstat", Mock(return_value=Mock(st_ino=0)))
    async with listening(*(f"fd://{each.fileno()}" for each in passed)) as listeners:
        assert len({listener.address for listener in listeners}) == 2


def test_a_system_without_socket_filters_drops_no_syn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "freebsd14")
    sock = Mock()
    assert not drop_syns(sock)
    assert not sock.setsockopt.called


async def test_accepted_sockets_have_the_options_of_the_listener() -> None:
    async with listening("tcp://127.0.0.1:0") as [listener]:
        with socket.create_connection(listener.sock.getsockname()):
            listener.sock.setblocking(True)
            sock, _ = listener.sock.accept()
            with sock:
                tcp = {name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in _TCP}
                assert tcp == _TCP
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE) == 1


_TCP = {
    "TCP_NODELAY": 1,
    "TCP_NOTSENT_LOWAT": 131072,
    "TCP_USER_TIMEOUT": 60_000,
    "TCP_KEEPIDLE": 60,
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 6,
}


@pytest.mark.parametrize("name", ["tcp_notsent_lowat", "sndbuf", "rcvbuf"])
def test_a_buffer_size_out_of_range_is_a_usage_error(name: str) -> None:
    options: dict[str, Any] = {name: 2**31}
    with pytest.raises(UsageError, match=name):
        SocketOptions(**options)


def test_a_user_timeout_below_a_millisecond_is_not_disabled() -> None:
    with socket.socket() as sock:
        SocketOptions(tcp_user_timeout=0.0001).apply(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1
