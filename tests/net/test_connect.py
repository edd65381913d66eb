"""Connecting: the first endpoint to accept is used, a failure is one line, no socket connects to itself."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, Literal

import pytest
from anyio import (
    BrokenResourceError,
    CancelScope,
    Event,
    create_task_group,
    fail_after,
    move_on_after,
)
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint

from anyecho.address import Address, FDAddress, TCPAddress, UnixAddress, parse_address
from anyecho.errors import ConnectError
from anyecho.net import connect
from anyecho.net.connect import connect_stream
from anyecho.net.poller import Fallback, Poller
from anyecho.net.proxy.header import parse_header
from anyecho.net.sockets import SocketOptions
from anyecho.net.stream import PolledStream
from tests.support.machine import LOOPBACK_HOSTS, needs_ipv6
from tests.support.peers import SOON, fill_backlog
from tests.support.tasks import wait_all_tasks_blocked

OPTIONS = SocketOptions()


async def refused(address: Address, family: Literal[4, 6] | None = None) -> str:
    with fail_after(5), pytest.raises(ConnectError) as caught:
        await connect_stream(address, family=family, options=OPTIONS)

    return str(caught.value)


@pytest.mark.parametrize("polled", [True, False], ids=["poller", "fallback"])
async def test_a_stream_is_connected(polled: bool, poller: Poller | Fallback, opened: ExitStack) -> None:
    listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    address = TCPAddress(host="127.0.0.1", port=listener.getsockname()[1])
    async with await connect_stream(address, options=OPTIONS, poller=poller if polled else None) as stream:
        peer = opened.enter_context(listener.accept()[0])
        peer.send(b"hello")
        assert await stream.receive() == b"hello"


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("host", LOOPBACK_HOSTS)
async def test_a_proxy_header_with_the_socket_addresses_is_sent_first(
    host: str, version: Literal["v1", "v2"], opened: ExitStack
) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = opened.enter_context(socket.create_server((host, 0), family=family))
    address = TCPAddress(host=host, port=listener.getsockname()[1])
    async with await connect_stream(address, options=OPTIONS, proxy_header=version) as stream:
        await stream.send(b"hello")
        peer, caller = listener.accept()
        received = opened.enter_context(peer).recv(1000)
        header = parse_header(received, version)
        assert header is not None
        assert (header.source, header.destination) == (caller[:2], (host, address.port))
        assert received[header.length :] == b"hello"


@pytest.mark.parametrize("cancelled", [False, True], ids=["closed", "cancelled"])
async def test_a_connection_that_fails_while_its_proxy_header_is_sent_is_closed(
    cancelled: bool, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    address = TCPAddress(host="127.0.0.1", port=listener.getsockname()[1])
    before = len(os.listdir("/proc/self/fd"))
    error = nullcontext() if cancelled else pytest.raises(ConnectError, match="it was closed on the PROXY header")
    with CancelScope() as scope, error:

        async def fail(*_: object) -> None:
            if cancelled:
                scope.cancel()
                await checkpoint()
            raise BrokenResourceError

        monkeypatch.setattr(PolledStream, "send", fail)
        await connect_stream(address, options=OPTIONS, proxy_header="v1")
    assert len(os.listdir("/proc/self/fd")) == before


@needs_ipv6
async def test_localhost_finds_a_server_on_either_family(opened: ExitStack) -> None:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        listener = opened.enter_context(socket.create_server((host, 0), family=family))
        address = TCPAddress(host="localhost", port=listener.getsockname()[1])
        async with await connect_stream(address, options=OPTIONS) as stream:
            assert stream.extra(SocketAttribute.remote_address)[0] == host


@needs_ipv6
async def test_only_the_requested_family_is_tried(opened: ExitStack) -> None:
    listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    address = TCPAddress(host="localhost", port=listener.getsockname()[1])
    async with await connect_stream(address, family=4, options=OPTIONS):
        pass

    assert "Connection refused" in await refused(address, family=6)


async def test_a_refused_attempt_is_not_registered_any_more(poller: Poller | Fallback) -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        address = TCPAddress(host="127.0.0.1", port=dead.getsockname()[1])
    with pytest.raises(ConnectError):
        await connect_stream(address, options=OPTIONS, poller=poller)
    assert isinstance(poller, Fallback) or not poller.registered


async def test_without_ipv6_a_dead_port_of_localhost_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first error, EADDRNOTAVAIL for ::1, says nothing about the server."""
    with socket.create_server(("127.0.0.1", 0)) as dead:
        port = dead.getsockname()[1]
    connect_ex = socket.socket.connect_ex

    def without_ipv6(sock: socket.socket, address: Any) -> int:
        return errno.EADDRNOTAVAIL if sock.family == socket.AF_INET6 else connect_ex(sock, address)

    monkeypatch.setattr(socket.socket, "connect_ex", without_ipv6)
    message = await refused(TCPAddress(host="localhost", port=port))
    assert message == f"cannot connect to tcp://localhost:{port}: Connection refused"


async def test_a_mapped_address_is_connected_to_as_ipv4(opened: ExitStack) -> None:
    listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    address = TCPAddress(host="::ffff:127.0.0.1", port=listener.getsockname()[1])
    async with await connect_stream(address, family=4, options=OPTIONS) as stream:
        assert stream.extra(SocketAttribute.remote_address) == listener.getsockname()
    assert "no such host" in await refused(address, family=6)


async def test_an_unresponsive_address_does_not_delay_the_next(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accept backlog of the first address is full. The next address is tried 250 ms later."""
    silent = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    fill_backlog(silent, opened)
    good = opened.enter_context(socket.create_server(("127.0.0.1", 0)))

    async def both(host: str, port: int, *, version: int | None) -> list[Any]:
        return [(socket.AF_INET, silent.getsockname()), (socket.AF_INET, good.getsockname())]

    monkeypatch.setattr(connect, "resolve", both)
    before = len(os.listdir("/proc/self/fd"))
    with fail_after(SOON):
        async with await connect_stream(TCPAddress(host="two", port=1), options=OPTIONS) as stream:
            assert stream.extra(SocketAttribute.remote_address) == good.getsockname()

    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("cancelled", [False, True], ids=["", "cancelled"])
async def test_attempts_that_succeed_in_one_turn_are_closed_except_for_the_winner(
    count: int, cancelled: bool, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, if that turn also cancels the caller."""
    listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    made, connected, all_connected = connect._connect, list[PolledStream](), Event()

    async def some(host: str, port: int, *, version: int | None) -> list[Any]:
        return [(socket.AF_INET, listener.getsockname())] * count

    async def together(*args: Any) -> PolledStream:
        stream = await made(*args)
        connected.append(stream)
        if len(connected) == count:
            all_connected.set()
        with CancelScope(shield=True):
            await all_connected.wait()
        if cancelled:
            scope.cancel()
        return stream

    monkeypatch.setattr(connect, "resolve", some)
    monkeypatch.setattr(connect, "_connect", together)
    before = len(os.listdir("/proc/self/fd"))
    with fail_after(SOON) as scope:
        stream = await connect_stream(TCPAddress(host="two", port=1), options=OPTIONS)
        await stream.aclose()

    assert (len(connected), scope.cancelled_caught) == (count, cancelled)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_failed_address_is_followed_by_the_next_at_once(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    with socket.create_server(("127.0.0.1", 0)) as dead:
        dead_address = dead.getsockname()

    async def dead_ones_first(host: str, port: int, *, version: int | None) -> list[Any]:
        return [(socket.AF_INET, dead_address)] * 80 + [(socket.AF_INET, good.getsockname())]

    monkeypatch.setattr(connect, "resolve", dead_ones_first)
    with fail_after(SOON):  # 80 delays would be 20 s
        async with await connect_stream(TCPAddress(host="many", port=1), options=OPTIONS):
            pass


def test_address_families_alternate_beginning_with_the_first() -> None:
    four, six = socket.AF_INET, socket.AF_INET6
    found: list[Any] = [(six, 1), (six, 2), (six, 3), (four, 4)]
    assert connect._interleave(found) == [(six, 1), (four, 4), (six, 2), (six, 3)]
    assert connect._interleave(found[:1]) == [(six, 1)]
    assert connect._interleave(found[3:] + found[:3]) == [(four, 4), (six, 1), (six, 2), (six, 3)]


@pytest.mark.fault(row=25, injected="the kernel assigns a client the port that it connects to")
async def test_a_connection_to_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP self-connect: for a dead ephemeral port, the kernel chooses the same source port once in 28,000 times."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        dead = probe.getsockname()
    connect_ex = socket.socket.connect_ex

    def self_connect(sock: socket.socket, address: Any) -> int:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(dead)
        return connect_ex(sock, address)

    monkeypatch.setattr(socket.socket, "connect_ex", self_connect)
    message = await refused(TCPAddress(host="127.0.0.1", port=dead[1]))
    assert message == f"cannot connect to tcp://127.0.0.1:{dead[1]}: Connection refused"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://no-such-host.invalid:1", "no such host"),
        ("unix:/nonexistent/echo", "No such file or directory"),
        ("fd://3", "a descriptor is for servers"),
        ("tls://no-such-host.invalid:1", "no such host"),
        ("tls+fd://3", "a descriptor is for servers"),
        ("udp://localhost:1", "there is no stream of datagrams"),
    ],
)
async def test_a_failure_to_connect_is_a_one_line_error(address: str, reason: str) -> None:
    message = await refused(parse_address(address))
    assert message.startswith(f"cannot connect to {address}: ")
    assert reason in message


async def test_cancelling_an_attempt_leaves_nothing_open(opened: ExitStack) -> None:
    silent = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    fill_backlog(silent, opened)
    address = TCPAddress(host="127.0.0.1", port=silent.getsockname()[1])
    before = len(os.listdir("/proc/self/fd"))
    with move_on_after(0.05) as scope:
        await connect_stream(address, options=OPTIONS)

    assert scope.cancelled_caught
    assert len(os.listdir("/proc/self/fd")) == before


async def test_connecting_waits_for_room_in_a_unix_backlog(short_path: Path, opened: ExitStack) -> None:
    path = str(short_path / "echo")
    listener = opened.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(path)
    listener.listen(0)
    first = opened.enter_context(socket.socket(socket.AF_UNIX))
    first.connect(path)
    probe = opened.enter_context(socket.socket(socket.AF_UNIX))
    probe.setblocking(False)
    assert probe.connect_ex(path) == errno.EAGAIN
    async with create_task_group() as tasks:

        async def connected() -> None:
            with fail_after(5):
                async with await connect_stream(UnixAddress(path=path), options=OPTIONS):
                    pass

        tasks.start_soon(connected)
        await wait_all_tasks_blocked()
        opened.enter_context(listener.accept()[0])


async def test_eagain_for_a_tcp_socket_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for a Unix socket it means a full backlog (connect(2))."""
    monkeypatch.setattr(socket.socket, "connect_ex", lambda *_: errno.EAGAIN)
    assert os.strerror(errno.EAGAIN) in await refused(TCPAddress(host="127.0.0.1", port=1))


async def test_a_descriptor_address_is_refused() -> None:
    assert "for servers" in await refused(FDAddress(fd=0))
