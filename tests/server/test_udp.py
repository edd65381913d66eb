"""UDP echo: forged, broadcast and excess datagrams, socket errors and bugs do not stop it."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest
from anyio import fail_after, move_on_after, to_thread

from anyecho.address import TCPAddress, UDPAddress
from anyecho.client.client import connect
from anyecho.errors import BindError
from anyecho.net.sockets import SocketOptions
from anyecho.net.udp import echo as udp_echo
from anyecho.net.udp import mmsg
from anyecho.net.udp.counts import DatagramCounts
from anyecho.net.udp.echo import Reflector
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from anyecho.server.udp_guard import SourceGuard
from tests.server.link import LINK
from tests.support.datagrams import fail, forge, forger, udp_client
from tests.support.machine import LOOPBACK_HOSTS, needs_ipv6, network_namespace, skip
from tests.support.peers import SOON, until

#: Bytes of the receive buffer used by a datagram of at most 64 bytes, on 64-bit Linux.
QUEUED = 832


@pytest.fixture(autouse=True)
def engine() -> None:
    """UDP does not use an engine, so each test runs once."""


@pytest.fixture(autouse=True, params=["batched", "single"])
def system_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with recvmmsg(2) and with recvfrom(2)."""
    if request.param == "single":
        monkeypatch.setattr(mmsg, "HAVE_MMSG", False)
    elif not mmsg.HAVE_MMSG:
        skip("recvmmsg")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with open_server("udp://127.0.0.1:0") as server:
        yield server


async def exchange(sock: socket.socket, datagram: bytes) -> bytes:
    sock.send(datagram)
    return await to_thread.run_sync(sock.recv, 65536)


async def is_alive(server: Server) -> bool:
    """Return whether a client gets its echo, from an address that has not reached its rate limit."""
    with udp_client(server.addresses[0], source="127.7.7.7") as sock:
        return await exchange(sock, b"alive") == b"alive"


async def until_received(server: Server, count: int) -> None:
    await until(lambda: server.stats.datagrams.received == count)


@pytest.mark.fault(row=19, injected="datagrams of 0, 1, 1472, 1473 and 65507 bytes")
@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 65507])
async def test_a_datagram_comes_back(size: int, server: Server) -> None:
    payload = os.urandom(size)
    with udp_client(server.addresses[0]) as sock:
        assert await exchange(sock, payload) == payload

    counts = server.stats.datagrams
    assert (counts.received, counts.echoed, counts.bytes_received, counts.bytes_echoed) == (1, 1, size, size)


@needs_ipv6
async def test_localhost_is_both_loopback_addresses_on_one_port() -> None:
    async with open_server("udp://localhost:0") as server:
        first, second = server.addresses
        assert isinstance(first, UDPAddress)
        assert second == UDPAddress(host="::1", port=first.port)
        for address in server.addresses:
            with udp_client(address) as sock:
                assert await exchange(sock, b"hello") == b"hello"


@pytest.mark.parametrize("host", [*LOOPBACK_HOSTS, "127.0.0.2"])
async def test_a_reply_comes_from_the_destination_address(host: str) -> None:
    async with open_server("udp://:0") as server:
        address = server.addresses[0]
        assert isinstance(address, UDPAddress)
        destination = UDPAddress(host=host, port=address.port)
        with udp_client(destination, connected=False) as sock:
            sock.sendto(b"who", (host, address.port))
            answer, source = await to_thread.run_sync(sock.recvfrom, 100)

        assert (answer, source[:2]) == (b"who", (host, address.port))


@pytest.mark.parametrize("host", LOOPBACK_HOSTS)
async def test_a_reply_is_not_bound_to_an_interface(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its route may be through another interface than the one by which the datagram arrived."""
    infos: list[bytes] = []
    sendmsg, sendmmsg = socket.socket.sendmsg, mmsg._sendmmsg

    def send_one(sock: socket.socket, buffers: Any, control: Any, *rest: Any) -> int:
        infos.extend(info for _, _, info in control)
        return sendmsg(sock, buffers, control, *rest)

    def send_batch(descriptor: int, at: int, *rest: int) -> Any:
        _, _, _, _, control, size, *_ = mmsg._MESSAGE.unpack(ctypes.string_at(at, mmsg._MESSAGE.size))
        infos.append(ctypes.string_at(control, size)[mmsg._HEADER.size :])
        return sendmmsg(descriptor, at, *rest)

    monkeypatch.setattr(socket.socket, "sendmsg", send_one)
    monkeypatch.setattr(mmsg, "_sendmmsg", send_batch)
    async with open_server("udp://:0") as server:
        with udp_client(UDPAddress(host=host, port=port_of(server))) as sock:
            assert await exchange(sock, b"hello") == b"hello"

    [info] = infos
    assert (info[16:20] if ":" in host else info[:4]) == bytes(4)  # ipi6_ifindex, ipi_ifindex


async def test_tcp_and_udp_may_share_a_port() -> None:
    async with open_server("tcp://127.0.0.1:0") as server:
        [address] = server.addresses
        assert isinstance(address, TCPAddress)
        async with open_server(UDPAddress(host="127.0.0.1", port=address.port)) as other:
            assert await is_alive(other)


async def test_binding_a_udp_port_in_use_fails(server: Server) -> None:
    with pytest.raises(BindError, match="it is in use already"):
        async with open_server(server.addresses[0]):
            pytest.fail("it opened")


@pytest.mark.fault(row=19, injected="1000 datagrams at once")
async def test_a_thousand_queued_datagrams_are_all_echoed() -> None:
    async with open_server("udp://127.0.0.1:0", options=ServeOptions(udp_burst=1000)) as server:
        with udp_client(server.addresses[0]) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // QUEUED
            if room < 1000:
                skip(f"room for 1000 datagrams (net.core.rmem_max allows {room})")
            # Nothing is awaited between the sends, so that all are queued before the server reads.
            sent = [b"%d" % number for number in range(1000)]
            for datagram in sent:
                sock.send(datagram)
            came = await to_thread.run_sync(lambda: [sock.recv(100) for _ in sent])

        assert came == sent
        assert server.stats.datagrams.errors == {}


async def test_a_receive_buffer_that_was_asked_for_is_not_enlarged() -> None:
    small = ServeOptions(udp_burst=1000, socket=SocketOptions(rcvbuf=16 << 10))
    async with open_server("udp://127.0.0.1:0", options=small) as server:
        with udp_client(server.addresses[0]) as sock:
            for _ in range(500):
                sock.send(b"x")
            server.close()  # after it has answered all that arrived

        assert 1 <= server.stats.datagrams.received < 100


async def test_admitted_datagrams_between_dropped_datagrams_are_echoed_in_order() -> None:
    async with open_server("udp://127.0.0.1:0", options=ServeOptions(udp_rate=1e-6, udp_burst=20)) as server:
        address = server.addresses[0]
        with udp_client(address) as greedy, udp_client(address, source="127.0.0.2") as modest:
            sent = [bytes(size) for size in range(20)]
            for _ in range(20):
                greedy.send(b"me")
            for number, datagram in enumerate(sent):
                for _ in range(number % 3):
                    greedy.send(b"and me")
                modest.send(datagram)
            assert await to_thread.run_sync(lambda: [modest.recv(100) for _ in sent]) == sent

        counts = server.stats.datagrams
        assert (counts.echoed, counts.dropped, counts.bytes_echoed) == (40, {"rate": 19}, 40 + sum(range(20)))


def test_a_link_local_neighbour_gets_a_reply_and_a_multicast_group_does_not(
    backend: str,
) -> None:
    """In a network namespace, isolated from the traffic of real interfaces."""
    way = "batched" if mmsg.HAVE_MMSG else "single"
    command = [*network_namespace(LINK), sys.executable, "-m", "tests.server.link", backend, way]
    ended = subprocess.run(command, stdout=subprocess.PIPE, timeout=20, check=True, text=True)

    assert ended.stdout == "b'neighbour' fe80::1 {'broadcast': 2}\n"


async def test_a_flood_is_echoed_in_batches_of_64() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        counts = DatagramCounts()
        reflector = Reflector(sock, SourceGuard(ServeOptions(), [], Counter()), counts)
        with udp_client(UDPAddress(host="127.0.0.1", port=sock.getsockname()[1])) as client:
            for _ in range(100):
                client.send(b"flood")
            reflector.echo_batch()
            assert counts.received == 64
            reflector.echo_batch()
            assert counts.received == 100


async def test_a_burst_is_echoed_by_one_event_until_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        counts = DatagramCounts()
        reflector = Reflector(sock, SourceGuard(ServeOptions(), [], Counter()), counts)
        with udp_client(UDPAddress(host="127.0.0.1", port=sock.getsockname()[1])) as client:
            monkeypatch.setattr(udp_echo, "monotonic", lambda: 0.0)
            for _ in range(100):
                client.send(b"burst")
            assert reflector.echo_burst()
            assert counts.received == 100

            monkeypatch.setattr(udp_echo, "monotonic", count(0.0, 1.0).__next__)
            for _ in range(100):
                client.send(b"burst")
            assert reflector.echo_burst()
            assert counts.received == 164


@pytest.mark.fault(row=17, injected="raw datagrams from ports 0 and 7, the own port, two broadcasts, a group")
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (("127.0.0.1", 0), "port_0"),
        (("127.0.0.1", 7), "port_below_1024"),
        (("127.0.0.1", -1), "own_port"),
        (("127.0.0.2", -1), "own_port"),
        (("255.255.255.255", 5000), "broadcast"),
        (("127.255.255.255", 5000), "broadcast"),
        (("224.0.0.1", 5000), "multicast"),
    ],
)
@pytest.mark.parametrize("bind", ["udp://127.0.0.1:0", "udp://:0"])
@pytest.mark.by_turns("anyio_backend")
async def test_a_forged_source_is_dropped_and_counted(source: tuple[str, int], reason: str, bind: str) -> None:
    with forger() as raw:
        async with open_server(bind) as server:
            [address, *_] = server.addresses
            assert isinstance(address, UDPAddress)
            target = UDPAddress(host="127.0.0.1", port=address.port)
            host, port = source
            forge(raw, (host, address.port if port < 0 else port), target)
            await until_received(server, 1)
            assert await is_alive(server)
            counts = server.stats.datagrams
            assert (counts.dropped, counts.echoed, counts.errors) == ({reason: 1}, 1, {})


@pytest.mark.fault(row=17, injected="a datagram to a broadcast address")
async def test_a_broadcast_datagram_gets_no_reply() -> None:
    async with open_server("udp://:0") as server:
        address = server.addresses[0]
        assert isinstance(address, UDPAddress)
        with udp_client(address, connected=False) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.sendto(b"anybody?", ("127.255.255.255", address.port))
            await until_received(server, 1)

        assert server.stats.datagrams.dropped == {"broadcast": 1}
        assert await is_alive(server)


@pytest.mark.fault(row=18, injected="a raw datagram to a server with the source of another on the same port number")
async def test_two_servers_on_one_port_number_drop_the_first_datagram_of_a_loop() -> None:
    with forger() as raw:
        async with open_server("udp://127.0.0.1:0") as one:
            address = one.addresses[0]
            assert isinstance(address, UDPAddress)
            async with open_server(UDPAddress(host="127.0.0.2", port=address.port)) as other:
                forge(raw, ("127.0.0.2", address.port), address)
                await until_received(one, 1)
                assert one.stats.datagrams.dropped == {"own_port": 1}
                assert await is_alive(other)
                assert other.stats.datagrams.received == 1


@pytest.mark.fault(row=18, injected="a raw datagram to a server with the source of another server")
async def test_a_loop_between_two_servers_ends_when_a_token_bucket_is_empty() -> None:
    with forger() as raw:
        async with open_server("udp://127.0.0.1:0") as one, open_server("udp://127.0.0.2:0") as other:
            first, second = one.stats.datagrams, other.stats.datagrams
            address = other.addresses[0]
            assert isinstance(address, UDPAddress)
            forge(raw, (address.host, address.port), one.addresses[0])
            await until(lambda: first.dropped["rate"] + second.dropped["rate"] == 1)
            before = first.received + second.received
            assert before < 2 * (200 + 100 * SOON)
            with move_on_after(0.3) as quiet:
                await until(lambda: first.received + second.received > before)

            assert quiet.cancelled_caught
            assert await is_alive(one)
            assert await is_alive(other)


async def test_a_source_above_its_rate_affects_no_other(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    counts = server.stats.datagrams
    with udp_client(server.addresses[0]) as sock:
        for number in range(600):
            sock.send(b"%d" % number)
            if number % 50 == 49:
                await until_received(server, number + 1)

    lasted = time.monotonic() - began
    assert 200 <= counts.echoed <= 200 + 100 * lasted + 1
    assert counts.dropped == {"rate": 600 - counts.echoed}
    assert await is_alive(server)
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "--udp-rate" in line


@pytest.mark.fault(row=19, injected="5 datagrams from clients that have closed")
async def test_a_source_gets_replies_again_as_its_bucket_fills() -> None:
    async with open_server("udp://127.0.0.1:0", options=ServeOptions(udp_rate=100.0, udp_burst=1)) as server:
        with udp_client(server.addresses[0]) as sock:

            def send_on() -> bool:
                sock.send(b"x")
                return server.stats.datagrams.echoed == 3

            await until(send_on)


async def test_a_closed_client_socket_does_not_stop_the_server(server: Server) -> None:
    for _ in range(5):
        with udp_client(server.addresses[0]) as sock:
            sock.send(b"and gone")
    await until_received(server, 5)

    assert await is_alive(server)


ERRORS = ("EAGAIN", "ECONNREFUSED", "EHOSTUNREACH", "EINVAL", "EMSGSIZE", "ENETUNREACH", "ENOBUFS", "EPERM")


@pytest.mark.fault(row=19, injected="sending fails with 8 errors, EMSGSIZE and ENETUNREACH among them")
@pytest.mark.parametrize("bind", ["udp://127.0.0.1:0", "udp://:0"])
async def test_a_reply_that_cannot_be_sent_is_counted(
    bind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All datagrams are one batch. Of it, the first sendmmsg(2) sends only one reply."""
    fail(monkeypatch, "send", "", *ERRORS, "EACCES")
    async with open_server(bind) as server:
        [address, *_] = server.addresses
        with udp_client(address) as sock, udp_client(address, source="127.0.0.2") as other:
            for datagram in (b"first", *[b"lost"] * len(ERRORS)):
                sock.send(datagram)
            other.send(b"refused")
            assert await exchange(sock, b"kept") == b"first"
            assert await to_thread.run_sync(sock.recv, 100) == b"kept"

        counts = server.stats.datagrams
        assert counts.errors == dict.fromkeys(ERRORS, 1)
        assert (counts.received, counts.echoed, counts.bytes_echoed) == (len(ERRORS) + 3, 2, 9)
        assert counts.dropped == {"broadcast": 1}
        assert "dropping datagrams from 127.0.0.2 port" in caplog.text


@pytest.mark.fault(row=19, injected="receiving fails with 7 errors")
@pytest.mark.parametrize("bind", ["udp://127.0.0.1:0", "udp://:0"])
async def test_an_error_in_place_of_a_datagram_is_counted(bind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, "recv", *ERRORS[1:])
    async with open_server(bind) as server:
        with udp_client(server.addresses[0]) as sock:
            assert await exchange(sock, b"kept") == b"kept"

        assert server.stats.datagrams.errors == dict.fromkeys(ERRORS[1:], 1)


async def test_a_persistent_receive_error_does_not_busy_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail(monkeypatch, "recv", *["ENOMEM"] * 100_000)
    async with open_server("udp://127.0.0.1:0") as server:
        with udp_client(server.addresses[0]) as sock:
            sock.send(b"x")
            with move_on_after(0.35):
                await until(lambda: server.stats.datagrams.errors["ENOMEM"] > 64 * 5)

        assert 64 <= server.stats.datagrams.errors["ENOMEM"] <= 64 * 5


async def test_an_exception_drops_its_datagram_and_is_logged(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judge = SourceGuard.admit
    with monkeypatch.context() as patch:
        patch.setattr(SourceGuard, "admit", lambda *_: 1 / 0)
        with udp_client(server.addresses[0]) as sock:
            sock.send(b"bug")
            await until_received(server, 1)

    assert SourceGuard.admit is judge
    assert await is_alive(server)
    assert "error while echoing datagrams" in caplog.text


async def test_a_drain_echoes_queued_datagrams_and_frees_the_port() -> None:
    async with open_server("udp://127.0.0.1:0", options=ServeOptions(udp_rate=math.inf)) as server:
        with udp_client(server.addresses[0]) as sock:
            sent = [b"%d" % number for number in range(150)]
            for datagram in sent:
                sock.send(datagram)
            with fail_after(1):
                await server.drain(10)
            assert await to_thread.run_sync(lambda: [sock.recv(100) for _ in sent]) == sent

        async with open_server(server.addresses[0]) as successor:
            assert await is_alive(successor)


async def test_a_server_leaves_no_descriptor_or_task_behind() -> None:
    with ExitStack() as opened:
        opened.enter_context(socket.socket())  # the event loop opens some at first
        async with open_server("udp://:0"):
            pass
        before = len(os.listdir("/proc/self/fd"))
        async with open_server("udp://:0") as server, await connect(f"udp://127.0.0.1:{port_of(server)}") as client:
            await client.exchange(b"x")
        assert len(os.listdir("/proc/self/fd")) == before


def port_of(server: Server) -> int:
    [address, *_] = server.addresses
    assert isinstance(address, UDPAddress)
    return address.port


def test_datagrams_are_batched_on_64_bit_linux_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("platform", "freebsd14"), ("maxsize", 2**31 - 1)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, name, value)
            assert not mmsg._is_usable()
