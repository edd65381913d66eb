"""Socket options set on an inherited UDP socket: those that would change an echo are reset or ignored."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from unittest.mock import Mock

import pytest
from anyio import fail_after, sleep, to_thread

from anyecho.address import FDAddress, UDPAddress
from anyecho.net.error_queue import drain_error_queue
from anyecho.net.udp import mmsg
from anyecho.net.udp.echo import Reflector
from anyecho.server.server import open_server
from tests.support.datagrams import udp_client
from tests.support.machine import LOOPBACK_HOSTS, needs_dual_sockets, needs_linux, skip
from tests.support.peers import SOON, until

pytestmark = needs_linux

SOL, IP, IPV6, UDP = socket.SOL_SOCKET, socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.IPPROTO_UDP
#: SOF_TIMESTAMPING: software timestamps of transmission and reception.
SENT_AND_RECEIVED = 1 << 1 | 1 << 3 | 1 << 4
RECVERR = {socket.AF_INET: (IP, 11, 1), socket.AF_INET6: (IPV6, 25, 1)}
UDP_SEGMENT, UDP_GRO = 103, 104

#: Level, number, value.
ANY = {
    "SO_BROADCAST": (SOL, 6, 1),
    "SO_TIMESTAMP": (SOL, 29, 1),
    "SO_TIMESTAMPNS": (SOL, 35, 1),
    "SO_TIMESTAMPING": (SOL, 37, SENT_AND_RECEIVED),
    "SO_RXQ_OVFL": (SOL, 40, 1),
    "SO_PEEK_OFF": (SOL, 42, 3),
    "SO_RCVMARK": (SOL, 75, 1),
    "SO_RCVPRIORITY": (SOL, 82, 1),
    "SO_RCVLOWAT": (SOL, 18, 1000),
    "UDP_CORK": (UDP, 1, 1),
    "UDP_SEGMENT": (UDP, UDP_SEGMENT, 100),
    "UDP_GRO": (UDP, UDP_GRO, 1),
}
OF_IPV4 = {
    "IP_RECVOPTS": (IP, 6, 1),
    "IP_RETOPTS": (IP, 7, 1),
    "IP_PKTINFO": (IP, 8, 1),
    "IP_MTU_DISCOVER": (IP, 10, 2),
    "IP_RECVERR": (IP, 11, 1),
    "IP_RECVTTL": (IP, 12, 1),
    "IP_RECVTOS": (IP, 13, 1),
    "IP_PASSSEC": (IP, 18, 1),
    "IP_RECVORIGDSTADDR": (IP, 20, 1),
    "IP_CHECKSUM": (IP, 23, 1),
    "IP_RECVFRAGSIZE": (IP, 25, 1),
}
OF_IPV6 = {
    "IPV6_2292PKTINFO": (IPV6, 2, 1),
    "IPV6_2292HOPOPTS": (IPV6, 3, 1),
    "IPV6_2292DSTOPTS": (IPV6, 4, 1),
    "IPV6_2292RTHDR": (IPV6, 5, 1),
    "IPV6_2292HOPLIMIT": (IPV6, 8, 1),
    "IPV6_FLOWINFO": (IPV6, 11, 1),
    "IPV6_MTU_DISCOVER": (IPV6, 23, 2),
    "IPV6_RECVERR": (IPV6, 25, 1),
    "IPV6_RECVPKTINFO": (IPV6, 49, 1),
    "IPV6_RECVHOPLIMIT": (IPV6, 51, 1),
    "IPV6_RECVHOPOPTS": (IPV6, 53, 1),
    "IPV6_RECVRTHDR": (IPV6, 56, 1),
    "IPV6_RECVDSTOPTS": (IPV6, 58, 1),
    "IPV6_RECVPATHMTU": (IPV6, 60, 1),
    "IPV6_DONTFRAG": (IPV6, 62, 1),
    "IPV6_RECVTCLASS": (IPV6, 66, 1),
    "IPV6_RECVORIGDSTADDR": (IPV6, 74, 1),
    "IPV6_RECVFRAGSIZE": (IPV6, 77, 1),
}
#: Options that are not 0 while the socket is served. Those of ANY have no effect on datagrams.
NOT_ZERO = {
    **{name: ANY[name][2] for name in ("SO_PEEK_OFF", "SO_RCVLOWAT")},
    **dict.fromkeys(("IP_PKTINFO", "IPV6_RECVPKTINFO", "IP_MTU_DISCOVER", "IPV6_MTU_DISCOVER"), 1),
}
#: Options set while the socket is served, too late to be reset.
WHILE_SERVED = {
    **{name: ANY[name] for name in ("SO_TIMESTAMP", "SO_TIMESTAMPING", "SO_RXQ_OVFL", "SO_RCVMARK")},
    **{name: OF_IPV4[name] for name in ("IP_RECVTTL", "IP_RECVTOS", "IP_RECVORIGDSTADDR", "IP_RECVERR")},
}
DATAGRAMS = (b"hello", b"", bytes(range(256)) * 4, b"end")


@pytest.fixture(autouse=True)
def engine() -> None:
    """UDP does not use an engine, so each test runs once."""


@pytest.fixture(autouse=True, params=["batched", "single"])
def system_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "single":
        monkeypatch.setattr(mmsg, "HAVE_MMSG", False)
    elif not mmsg.HAVE_MMSG:
        skip("recvmmsg")


def bound(host: str, *, dual: bool = False) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    if dual:
        sock.setsockopt(IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind((host, 0))
    return sock


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def inherited(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with bound(request.param) as sock:
        yield sock


@pytest.fixture(params=["127.0.0.2", "::1"])
def dual_host(request: pytest.FixtureRequest) -> str:
    """Destination address of datagrams to a dual-stack socket."""
    host: str = request.param
    return host


def set_option(sock: socket.socket, level: int, option: int, value: int) -> None:
    try:
        sock.setsockopt(level, option, value)
    except OSError as exc:
        skip(f"a kernel with this option ({exc})")


async def expect_echo(inherited: socket.socket, host: str) -> None:
    with udp_client(
        UDPAddress(host=host, port=inherited.getsockname()[1])
    ) as sock:  # connected: receives from that address only
        for datagram in DATAGRAMS:
            sock.send(datagram)
            with fail_after(SOON):
                assert await to_thread.run_sync(sock.recv, 65536) == datagram


@pytest.mark.parametrize("name", [*ANY, *OF_IPV4])
@pytest.mark.by_turns("anyio_backend")
async def test_an_inherited_ipv4_socket_echoes_with_any_option_set(name: str, inherited: socket.socket) -> None:
    set_option(inherited, *(ANY | OF_IPV4)[name])
    async with open_server(FDAddress(fd=inherited.fileno())) as server:
        await expect_echo(inherited, "127.0.0.1")
        counts = server.stats.datagrams
        assert (counts.echoed, counts.dropped, counts.errors) == (len(DATAGRAMS), {}, {})


@needs_dual_sockets
@pytest.mark.parametrize("name", [*ANY, *OF_IPV4, *OF_IPV6])
@pytest.mark.by_turns("anyio_backend")
async def test_a_dual_stack_socket_echoes_with_any_option_set(name: str, dual_host: str) -> None:
    with bound("::", dual=True) as inherited:
        set_option(inherited, *(ANY | OF_IPV4 | OF_IPV6)[name])
        async with open_server(FDAddress(fd=inherited.fileno())) as server:
            await expect_echo(inherited, dual_host)
            counts = server.stats.datagrams
            assert (counts.echoed, counts.dropped, counts.errors) == (len(DATAGRAMS), {}, {})


@needs_dual_sockets
@pytest.mark.parametrize("name", [*ANY, *OF_IPV4, *OF_IPV6])
@pytest.mark.parametrize("system_calls", ["single"], indirect=True)
@pytest.mark.by_turns("anyio_backend")
async def test_an_option_of_an_inherited_socket_that_changes_an_echo_is_reset(name: str) -> None:
    level, option, value = (ANY | OF_IPV4 | OF_IPV6)[name]
    with bound("::", dual=True) as inherited:
        set_option(inherited, level, option, value)
        assert inherited.getsockopt(level, option) == value
        async with open_server(FDAddress(fd=inherited.fileno())):
            assert inherited.getsockopt(level, option) == NOT_ZERO.get(name, 0)


@pytest.mark.parametrize("name", WHILE_SERVED)
@pytest.mark.by_turns("anyio_backend")
async def test_options_set_while_serving_do_not_prevent_an_echo(name: str, inherited: socket.socket) -> None:
    async with open_server(FDAddress(fd=inherited.fileno())):
        set_option(inherited, *WHILE_SERVED[name])
        await expect_echo(inherited, "127.0.0.1")


@needs_dual_sockets
async def test_many_control_messages_do_not_prevent_an_echo(dual_host: str) -> None:
    with bound("::", dual=True) as inherited:
        async with open_server(FDAddress(fd=inherited.fileno())):
            for options in (ANY, OF_IPV4, OF_IPV6):
                for name, option in options.items():
                    if name not in ("UDP_CORK", "UDP_GRO", "UDP_SEGMENT", "IPV6_RECVPATHMTU"):
                        inherited.setsockopt(*option)
            await expect_echo(inherited, dual_host)


async def test_a_datagram_without_pktinfo_gets_no_reply() -> None:
    with bound("0.0.0.0") as inherited:
        await expect_no_answer_without_pktinfo(inherited)


async def expect_no_answer_without_pktinfo(inherited: socket.socket) -> None:
    async with open_server(FDAddress(fd=inherited.fileno())) as server:
        with udp_client(UDPAddress(host="127.0.0.1", port=inherited.getsockname()[1])) as sock:
            sock.send(b"first")
            assert await to_thread.run_sync(sock.recv, 100) == b"first"
            inherited.setsockopt(IP, 8, 0)
            sock.send(b"hello")
            await until(lambda: server.stats.datagrams.errors == {"ENOMSG": 1})
            inherited.setsockopt(IP, 8, 1)
            sock.send(b"again")
            assert await to_thread.run_sync(sock.recv, 100) == b"again"


async def test_datagrams_are_neither_merged_nor_split(inherited: socket.socket) -> None:
    set_option(inherited, UDP, UDP_GRO, 1)
    set_option(inherited, UDP, UDP_SEGMENT, 50)
    async with open_server(FDAddress(fd=inherited.fileno())):
        with udp_client(UDPAddress(host="127.0.0.1", port=inherited.getsockname()[1])) as sock:
            # The kernel splits this into three datagrams (GSO), and could deliver them merged (GRO).
            set_option(sock, UDP, UDP_SEGMENT, 100)
            sock.send(b"1" * 100 + b"2" * 100 + b"3" * 100)
            with fail_after(SOON):
                for digit in (b"1", b"2", b"3"):
                    assert await to_thread.run_sync(sock.recv, 1000) == digit * 100


@pytest.mark.parametrize("when", ["before", "while served"])
@pytest.mark.parametrize("host", LOOPBACK_HOSTS)
async def test_the_error_queue_does_not_busy_loop(host: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def echo_batch(reflector: Reflector) -> bool:
        nonlocal calls
        calls += 1
        return original(reflector)

    original = Reflector.echo_batch
    monkeypatch.setattr(Reflector, "echo_batch", echo_batch)
    with bound(host) as inherited:
        options = (ANY["SO_TIMESTAMPING"], RECVERR[inherited.family])
        for option in options if when == "before" else ():
            set_option(inherited, *option)
        async with open_server(FDAddress(fd=inherited.fileno())) as server:
            for option in options if when == "while served" else ():
                set_option(inherited, *option)
            for _ in range(3):
                with udp_client(UDPAddress(host=host, port=inherited.getsockname()[1])) as gone:
                    gone.send(b"from a client that is gone")
            await until(lambda: server.stats.datagrams.received == 3)
            before = calls
            await sleep(0.2)
            assert calls - before < 10
            await expect_echo(inherited, host)


def test_an_error_queue_that_fills_as_fast_as_it_is_drained_blocks_nothing() -> None:
    sock = Mock(family=socket.AF_INET)
    drain_error_queue(sock)
    assert 1 < sock.recvmsg.call_count <= 1024
