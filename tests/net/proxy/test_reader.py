"""Reading a PROXY header from a socket in pieces, with EOF, reset and cancellation; and the trusted networks."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Any

import pytest
from anyio import (
    BrokenResourceError,
    ClosedResourceError,
    EndOfStream,
    create_task_group,
    fail_after,
    move_on_after,
)
from anyio.lowlevel import checkpoint

from anyecho.errors import UsageError
from anyecho.net.fallback import Fallback
from anyecho.net.poller import Poller
from anyecho.net.proxy.header import Header, ProxyProtocolError, Versions
from anyecho.net.proxy.reader import HeaderReader
from anyecho.net.proxy.trust import TrustedNetworks
from anyecho.net.stream import PolledStream
from tests.net.pairs import KINDS, raw_pair, reset
from tests.net.proxy.headers import DESTINATION, IPV4, SOURCE, tlv, v2
from tests.support.tasks import wait_all_tasks_blocked

LINE = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"
HEADERS = {
    "v1": (LINE, Header(version=1, length=len(LINE), source=SOURCE, destination=DESTINATION)),
    "v2": (v2(IPV4), Header(version=2, length=28, source=SOURCE, destination=DESTINATION)),
    "unknown": (b"PROXY UNKNOWN\r\n", Header(version=1, length=15)),
    "local": (v2(IPV4, command=0x20), Header(version=2, length=28, command="local")),
}


class CountingSocket(socket.socket):
    """Counts recv(2) calls, and the bytes that were consumed."""

    calls = 0
    taken = 0

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        self.calls += 1
        data = super().recv(bufsize, flags)
        self.taken += 0 if flags & socket.MSG_PEEK else len(data)
        return data


class Pair:
    """A peer, and the other end with a `HeaderReader`."""

    def __init__(self, kind: str, poller: Poller | Fallback, opened: ExitStack) -> None:
        peer, ours = raw_pair(kind)
        self.peer = opened.enter_context(peer)
        self.sock = opened.enter_context(CountingSocket(fileno=ours.detach()))
        self.sock.setblocking(False)
        self.registration = poller.register(self.sock)
        self.reader = HeaderReader(self.sock, self.registration)
        self.headers: list[Header] = []

    async def read(self) -> None:
        with fail_after(5):
            self.headers.append(await self.reader.read())

    async def taken(self, size: int) -> None:
        with fail_after(5):
            while self.sock.taken < size:
                await checkpoint()


@pytest.fixture(params=["poller", "fallback"])
def readiness(request: pytest.FixtureRequest, poller: Poller | Fallback) -> Poller | Fallback:
    """Edge-triggered and level-triggered: an unread byte is reported once, or again at each wait."""
    return poller if request.param == "poller" else Fallback()


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, readiness: Poller | Fallback, opened: ExitStack) -> Pair:
    return Pair(request.param, readiness, opened)


@pytest.fixture
def tcp_pair(readiness: Poller | Fallback, opened: ExitStack) -> Pair:
    return Pair("tcp", readiness, opened)


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.by_turns("anyio_backend")
async def test_a_header_is_taken_and_nothing_behind_it(name: str, pair: Pair) -> None:
    data, header = HEADERS[name]
    pair.peer.send(data + b"\r\n\r\nPROXY")

    assert await pair.reader.read() == header
    assert pair.sock.recv(100) == b"\r\n\r\nPROXY"


async def test_bytes_after_the_header_are_the_first_that_a_stream_receives(pair: Pair) -> None:
    """No further edge reports these bytes."""
    async with create_task_group() as tasks:
        tasks.start_soon(pair.reader.read)
        await wait_all_tasks_blocked()
        pair.peer.send(LINE + b"hello")

    async with PolledStream(pair.sock, pair.registration) as stream:
        with fail_after(5):
            assert await stream.receive() == b"hello"


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.by_turns("anyio_backend")
async def test_a_header_that_arrives_byte_by_byte_is_read_without_spinning(name: str, pair: Pair) -> None:
    data, header = HEADERS[name]
    async with create_task_group() as tasks:
        tasks.start_soon(pair.read)
        for size in range(1, len(data)):
            pair.peer.send(data[size - 1 : size])
            await pair.taken(size)
        pair.peer.send(data[-1:] + b"hello")

    assert pair.headers == [header]
    assert pair.sock.recv(100) == b"hello"
    # For each byte: a peek, a recv(2), and EAGAIN.
    assert pair.sock.calls <= 3 * len(data) + 2


async def test_half_a_header_causes_no_spinning(pair: Pair) -> None:
    pair.peer.send(LINE[:20])
    async with create_task_group() as tasks:
        tasks.start_soon(pair.reader.read)
        await pair.taken(20)
        for _ in range(100):
            await checkpoint()

        assert pair.sock.calls <= 3
        tasks.cancel_scope.cancel()


async def test_the_longest_header_is_read_from_pieces(pair: Pair) -> None:
    data = v2(IPV4 + tlv(0xE0, bytes(range(256)) * 15) + tlv(0xE1, bytes(222)))
    assert len(data) == 4096
    async with create_task_group() as tasks:
        tasks.start_soon(pair.read)
        for size in (1000, 2000, 3000, 4000):
            pair.peer.send(data[size - 1000 : size])
            await pair.taken(size)
        pair.peer.send(data[4000:] + b"hello")

    [header] = pair.headers
    assert header.length == 4096
    assert [len(value) for _, value in header.tlvs] == [3840, 222]
    assert pair.sock.recv(100) == b"hello"


async def test_a_cancelled_read_loses_nothing(pair: Pair) -> None:
    for size in range(0, len(LINE), 10):
        pair.peer.send(LINE[size : size + 10])
        with move_on_after(0.01) as scope:
            header = await pair.reader.read()
        assert scope.cancelled_caught == (size + 10 < len(LINE))

    pair.peer.send(b"hello")
    assert header == HEADERS["v1"][1]
    assert pair.sock.recv(100) == b"hello"


@pytest.mark.parametrize("size", [0, 1, 20, len(LINE) - 1])
@pytest.mark.parametrize("waiting", [True, False])
@pytest.mark.by_turns("anyio_backend")
async def test_an_eof_before_the_header_or_within_it_is_an_error(size: int, waiting: bool, pair: Pair) -> None:
    error = ProxyProtocolError if size else EndOfStream
    async with create_task_group() as tasks:
        if waiting:
            tasks.start_soon(_expect, pair.reader, error)
            await wait_all_tasks_blocked()
        # Without an await between them, one event reports both.
        pair.peer.send(LINE[:size])
        pair.peer.shutdown(socket.SHUT_WR)
        if not waiting:
            tasks.start_soon(_expect, pair.reader, error)


async def test_a_header_followed_by_eof_is_read(pair: Pair) -> None:
    pair.peer.send(LINE)
    pair.peer.close()

    assert await pair.reader.read() == HEADERS["v1"][1]
    assert pair.sock.recv(100) == b""


async def test_a_reset_within_the_header_is_a_broken_resource(tcp_pair: Pair) -> None:
    tcp_pair.peer.send(LINE[:20])
    async with create_task_group() as tasks:
        tasks.start_soon(_expect, tcp_pair.reader, BrokenResourceError)
        await tcp_pair.taken(20)
        reset(tcp_pair.peer)


async def test_closing_the_registration_ends_the_read(pair: Pair) -> None:
    async with create_task_group() as tasks:
        tasks.start_soon(_expect, pair.reader, ClosedResourceError)
        await wait_all_tasks_blocked()
        await pair.registration.aclose()


async def test_an_invalid_byte_is_refused_before_the_header_is_complete(pair: Pair) -> None:
    pair.peer.send(LINE[:20])
    async with create_task_group() as tasks:
        tasks.start_soon(_expect, pair.reader, ProxyProtocolError)
        await pair.taken(20)
        pair.peer.send(b"?")


@pytest.mark.parametrize(("versions", "name"), [("v1", "v2"), ("v2", "v1")])
async def test_a_version_that_is_not_accepted_is_refused(versions: Versions, name: str, pair: Pair) -> None:
    pair.reader.versions = versions
    pair.peer.send(HEADERS[name][0])

    await _expect(pair.reader, ProxyProtocolError)


async def test_an_urgent_byte_does_not_hide_the_rest_of_a_header(tcp_pair: Pair) -> None:
    tcp_pair.peer.send(LINE[:10])
    tcp_pair.peer.send(LINE[10:20], socket.MSG_OOB)
    tcp_pair.peer.send(LINE[20:] + b"hello")
    with fail_after(5):
        assert await tcp_pair.reader.read() == HEADERS["v1"][1]

    assert tcp_pair.sock.recv(100) == b"hello"


async def _expect(reader: HeaderReader, error: type[Exception]) -> None:
    with pytest.raises(error), fail_after(5):
        await reader.read()


TRUSTED = ("127.0.0.0/8", "192.0.2.7", "::1", "2001:db8::/32", "::ffff:10.0.0.0/104", "unix:")


@pytest.mark.parametrize(
    ("sockaddr", "is_trusted"),
    [
        (("127.0.0.1", 1), True),
        (("127.255.255.255", 1), True),
        (("128.0.0.1", 1), False),
        (("192.0.2.7", 1), True),
        (("192.0.2.6", 1), False),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        (("::ffff:128.0.0.1", 1, 0, 0), False),
        (("10.1.2.3", 1), True),
        (("::ffff:10.1.2.3", 1, 0, 0), True),
        (("11.1.2.3", 1), False),
        (("::1", 1, 0, 0), True),
        (("::2", 1, 0, 0), False),
        (("2001:db8:ffff::1", 1, 0, 0), True),
        (("2001:db9::1", 1, 0, 0), False),
        (("fe80::1%eth0", 1, 0, 2), False),
        ("", True),
        (b"", True),
        ("/run/proxy", True),
    ],
)
def test_a_peer_is_trusted_if_its_network_is_listed(sockaddr: Any, is_trusted: bool) -> None:
    assert (sockaddr in TrustedNetworks.parse(TRUSTED)) is is_trusted
    assert sockaddr not in TrustedNetworks()


def test_a_zone_does_not_take_a_peer_out_of_its_network() -> None:
    assert ("fe80::1%eth0", 1, 0, 2) in TrustedNetworks.parse(["fe80::/10"])


@pytest.mark.parametrize("host", ["64:ff9b::a00:1", "64:ff9b:1::a00:1", "64:ff9b::a00:1%eth0"])
def test_an_address_of_nat64_is_not_the_trusted_ipv4_one(host: str) -> None:
    assert (host, 1, 0, 0) not in TrustedNetworks.parse(["10.0.0.0/8", "0.0.0.0/0"])
    assert (host, 1, 0, 0) in TrustedNetworks.parse(["64:ff9b::/32"])


def test_a_peer_on_a_unix_socket_is_in_no_network() -> None:
    trusted = TrustedNetworks.parse(["0.0.0.0/0", "::/0"])

    assert "" not in trusted
    assert ("192.0.2.1", 1) in trusted
    assert ("::ffff:192.0.2.1", 1, 0, 0) in trusted


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "localhost",
            "127.0.0.0/33",
            "127.0.0.0/-1",
            "127.0.0.0/",
            "127.0.0/8",
            "127.0.0.01",
            "1",
            "/8",
            "unix",
        ),
        *(
            "127.0.0.0/255.0.0.0",
            "127.0.0.0/0.255.255.255",
            "::1/129",
            "fe80::1%eth0",
            "::1\n",
            "127.0.0.0/8 ",
            "*",
        ),
    ],
)
def test_an_invalid_network_is_a_one_line_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrustedNetworks.parse(["::1", text])

    assert str(caught.value) == f"bad network {text!r}: write it like 10.0.0.0/8, 2001:db8::/32, ::1 or unix:"


def test_host_bits_after_the_prefix_are_an_error() -> None:
    with pytest.raises(UsageError, match=r"^bad network '10\.1\.2\.3/8': .*; 10\.0\.0\.0/8 has none$"):
        TrustedNetworks.parse(["10.1.2.3/8"])
