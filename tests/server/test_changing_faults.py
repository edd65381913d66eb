"""Faults of a running server that change, as a plain blocking socket that is connected all the time sees them."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from anyio import fail_after, from_thread

from anyecho.address import Address
from anyecho.errors import UsageError
from anyecho.faults import (
    Bandwidth,
    Corrupt,
    Cut,
    Fault,
    HalfClose,
    Latency,
    LimitData,
    Loss,
    NoCloseNotify,
    PacketLoss,
    ResetPeer,
    Slicer,
    SlowClose,
    Stall,
    Timeout,
)
from anyecho.handlers import upper
from anyecho.server.forwarding import forward
from anyecho.server.server import Server, open_server
from tests.server.faulty import TCP, options, run_soon
from tests.support.certificates import Files, client_context
from tests.support.peers import SOON, dial, exchange, receive, receive_all, until_closed
from tests.support.tls import TLS
from tests.support.tls import options as tls_options

pytestmark = pytest.mark.by_turns("engine")

#: Seconds for which a peer waits for bytes that must not come.
SHORT = 0.1


class Peer:
    def __init__(self, server: Server) -> None:
        self.sock = dial(server.address)

    async def exchange(self, payload: bytes) -> bytes:
        echo: bytes = await run_soon(exchange, self.sock, payload)
        return echo

    async def receive(self, count: int) -> bytes:
        received: bytes = await run_soon(receive, self.sock, count)
        return received

    async def gets_nothing(self) -> bool:
        def wait() -> bool:
            self.sock.settimeout(SHORT)
            try:
                return not self.sock.recv(1, socket.MSG_PEEK) and False
            except TimeoutError:
                return True
            finally:
                self.sock.settimeout(SOON)

        nothing: bool = await run_soon(wait)
        return nothing


@pytest.fixture
def peers() -> Iterator[Callable[[Server], Peer]]:
    with ExitStack() as opened:

        def connect(server: Server) -> Peer:
            peer = Peer(server)
            opened.enter_context(peer.sock)
            return peer

        yield connect


Connect = Callable[[Server], Peer]


async def test_a_latency_is_added_changed_and_removed(carrier: Address, peers: Connect) -> None:
    async with open_server(carrier, options=options()) as server:
        server.set_faults()
        peer = peers(server)
        assert await peer.exchange(b"plain") == b"plain"

        server.set_faults(Latency(latency=SHORT))
        start = time.monotonic()
        assert await peer.exchange(b"late") == b"late"
        assert time.monotonic() - start >= SHORT

        server.set_faults(Latency(latency=60))
        peer.sock.sendall(b"held")
        assert await peer.gets_nothing()
        server.set_faults()
        assert await peer.receive(4) == b"held"
        assert await peer.exchange(b"plain") == b"plain"


@pytest.mark.parametrize("stream", ["upstream", "downstream"])
@pytest.mark.parametrize(
    "fault", [Latency(latency=60), Stall(), Bandwidth(rate=0.01), Slicer(delay=60)], ids=lambda fault: fault.name
)
async def test_bytes_that_a_fault_holds_arrive_once_it_is_removed(
    fault: Any, stream: Any, carrier: Address, peers: Connect
) -> None:
    async with open_server(carrier, options=options()) as server:
        server.set_faults()
        peer = peers(server)
        assert await peer.exchange(b"x") == b"x"
        server.set_faults(type(fault)(**{**vars(fault), "stream": stream}))
        peer.sock.sendall(b"hello")
        passed = b"h" if isinstance(fault, Slicer) else b""
        assert await peer.receive(len(passed)) == passed
        assert await peer.gets_nothing()
        server.set_faults()
        peer.sock.sendall(b" world")
        assert await peer.receive(11 - len(passed)) == b"hello world"[len(passed) :]
        peer.sock.shutdown(socket.SHUT_WR)
        assert await run_soon(receive_all, peer.sock) == b""
        await until_closed(server)
        assert server.stats.closed == {"eof": 1}


async def test_a_black_hole_that_is_removed_ends_the_connection(carrier: Address, peers: Connect) -> None:
    async with open_server(carrier, options=options()) as server:
        server.set_faults()
        peer = peers(server)
        assert await peer.exchange(b"x") == b"x"
        server.set_faults(Timeout())
        peer.sock.sendall(b"dropped")
        assert await peer.gets_nothing()
        server.set_faults()
        assert await run_soon(receive_all, peer.sock) == b""
        await until_closed(server)
        assert server.stats.closed == {"fault": 1}


async def test_the_timeout_of_a_black_hole_counts_from_its_change(carrier: Address, peers: Connect) -> None:
    async with open_server(carrier, options=options()) as server:
        server.set_faults(hole=Timeout())
        peer = peers(server)
        assert await peer.gets_nothing()
        server.set_faults(hole=Timeout(timeout=SHORT))
        start = time.monotonic()
        assert await run_soon(receive_all, peer.sock) == b""
        assert time.monotonic() - start >= SHORT - 0.05


@pytest.mark.parametrize("stream", ["upstream", "downstream"])
async def test_a_reset_that_is_added_is_econnreset_for_the_peer(stream: Any, peers: Connect) -> None:
    async with open_server(TCP, options=options()) as server:
        server.set_faults()
        peer = peers(server)
        assert await peer.exchange(b"x") == b"x"
        server.set_faults(ResetPeer(stream=stream))
        peer.sock.sendall(b"hello")
        with pytest.raises(OSError) as caught:
            await peer.receive(5)
        assert caught.value.errno == errno.ECONNRESET
        await until_closed(server)
        assert server.stats.closed == {"fault": 1}


async def test_a_reset_that_is_added_over_tls_is_a_reset_below_it(files: Files, peers: Connect) -> None:
    async with open_server(TLS, options=tls_options(files, engine="auto")) as server:
        server.set_faults()

        def script(sock: socket.socket) -> int | None:
            with (
                client_context().wrap_socket(sock, server_hostname="localhost") as wrapped,
                socket.socket(fileno=os.dup(wrapped.fileno())) as plain,
            ):
                plain.settimeout(SOON)
                wrapped.sendall(b"x")
                assert wrapped.recv(1) == b"x"
                from_thread_set_faults(server, ResetPeer())
                wrapped.sendall(b"y")
                try:
                    receive_all(plain)
                except OSError as exc:
                    return exc.errno
                return None

        peer = peers(server)
        assert await run_soon(script, peer.sock) == errno.ECONNRESET


def from_thread_set_faults(server: Server, *faults: Fault) -> None:
    from_thread.run_sync(server.set_faults, *faults)


async def test_a_limit_that_is_raised_in_time_lets_more_bytes_pass(carrier: Address, peers: Connect) -> None:
    async with open_server(carrier, options=options()) as server:
        server.set_faults(limit=LimitData(bytes=8))
        peer = peers(server)
        assert await peer.exchange(b"hello") == b"hello"
        server.set_faults(limit=LimitData(bytes=12))
        assert await peer.exchange(b"hello") == b"hello"
        peer.sock.sendall(b"hello")
        assert await run_soon(receive_all, peer.sock) == b"he"
        await until_closed(server)
        assert server.stats.closed == {"fault": 1}


@pytest.mark.parametrize(
    ("fault", "echo"),
    [(Corrupt(rate=1), None), (PacketLoss(loss_rate=1), b""), (Cut(bytes=2), b"he"), (HalfClose(bytes=2), b"he")],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_a_fault_that_is_added_acts_from_the_next_byte_on(
    fault: Fault, echo: bytes | None, carrier: Address, peers: Connect
) -> None:
    async with open_server(carrier, options=options()) as server:
        server.set_faults()
        peer = peers(server)
        assert await peer.exchange(b"hello") == b"hello"
        server.set_faults(fault)
        peer.sock.sendall(b"hello")
        if not isinstance(fault, Cut):
            peer.sock.shutdown(socket.SHUT_WR)
        found = await run_soon(receive_all, peer.sock)
        assert found == echo or (echo is None and len(found) == 5 and found != b"hello")


async def test_a_close_that_waits_comes_once_slow_close_is_removed(carrier: Address, peers: Connect) -> None:
    async with open_server(carrier, options=options()) as server:
        server.set_faults()
        peer = peers(server)
        assert await peer.exchange(b"x") == b"x"
        server.set_faults(SlowClose(delay=60))
        peer.sock.shutdown(socket.SHUT_WR)
        assert await peer.gets_nothing()
        server.set_faults()
        assert await run_soon(receive_all, peer.sock) == b""


async def test_only_the_chosen_connection_meets_a_fault_that_is_added(carrier: Address, peers: Connect) -> None:
    async with open_server(carrier, options=options()) as server:
        server.set_faults()
        found = [peers(server) for _ in range(3)]
        for peer in found:
            assert await peer.exchange(b"x") == b"x"
        server.set_faults(LimitData(bytes=2, on=2))
        assert [await peer.exchange(b"hello") for peer in found] == [b"hello", b"he", b"hello"]


async def test_toxicity_is_drawn_once_for_a_connection_whatever_changes(peers: Connect) -> None:
    async with open_server(TCP, options=options(faults=(Corrupt(rate=0),), seed=7)) as server:
        server.set_faults()
        found = [peers(server) for _ in range(12)]
        acting: dict[float, list[bool]] = {}
        for toxicity in (0.3, 0.0, 0.6, 0.3, 1.0):
            server.set_faults(spoil=Corrupt(rate=1, toxicity=toxicity))
            changed = [await peer.exchange(b"x") != b"x" for peer in found]
            assert acting.setdefault(toxicity, changed) == changed
    assert [sum(acting[toxicity]) for toxicity in (0.0, 1.0)] == [0, 12]
    assert 0 < sum(acting[0.3]) < sum(acting[0.6]) < 12
    assert all(later for earlier, later in zip(acting[0.3], acting[0.6], strict=True) if earlier)


async def test_a_connection_from_before_the_first_change_is_left_as_it_is(peers: Connect) -> None:
    async with open_server(TCP, options=options()) as server:
        peer = peers(server)
        assert await peer.exchange(b"x") == b"x"
        server.set_faults(LimitData(bytes=2))
        assert await peer.exchange(b"hello") == b"hello"
        assert await peers(server).exchange(b"hello") == b"he"


async def test_faults_change_on_a_forwarded_connection(carrier: Address, peers: Connect) -> None:
    async with (
        open_server(TCP, options=options(), handler=upper) as upstream,
        open_server(carrier, options=options(), handler=forward(upstream.address)) as server,
    ):
        server.set_faults()
        peer = peers(server)
        assert await peer.exchange(b"plain") == b"PLAIN"
        server.set_faults(Latency(latency=60, stream="upstream"), Latency(latency=60))
        peer.sock.sendall(b"held")
        assert await peer.gets_nothing()
        server.set_faults(Latency(latency=60))
        assert await peer.gets_nothing()
        server.set_faults()
        assert await peer.receive(4) == b"HELD"


async def test_a_drain_ends_connections_whose_faults_have_changed(carrier: Address, peers: Connect) -> None:
    async with open_server(carrier, options=options()) as server:
        server.set_faults()
        peer = peers(server)
        assert await peer.exchange(b"x") == b"x"
        server.set_faults(Latency(latency=60), SlowClose(delay=60))
        peer.sock.sendall(b"hello")
        with fail_after(SOON):
            await server.drain(0)
        assert server.stats.closed == {"drained": 1}
        server.set_faults()


@pytest.mark.parametrize("faults", [(), (NoCloseNotify(),)], ids=["none", "no_close_notify"])
async def test_a_fault_of_tls_acts_on_the_close_of_an_open_connection(
    faults: tuple[Fault, ...], files: Files, peers: Connect
) -> None:
    async with open_server(TLS, options=tls_options(files, engine="auto")) as server:
        server.set_faults()

        def script(sock: socket.socket) -> bytes:
            context = client_context(ssl.TLSVersion.TLSv1_2)  # whose alerts are visible
            with context.wrap_socket(sock, server_hostname="localhost") as wrapped:
                wrapped.sendall(b"x")
                assert wrapped.recv(1) == b"x"
                from_thread_set_faults(server, *faults)
                from_thread.run(server.drain, 0)
                with socket.socket(fileno=os.dup(wrapped.fileno())) as plain:
                    plain.settimeout(SOON)
                    return receive_all(plain)

        peer = peers(server)
        alert = b"\x15\x03\x03"
        assert (await run_soon(script, peer.sock)).startswith(alert) is not bool(faults)


async def test_faults_that_cannot_change_are_a_usage_error() -> None:
    async with open_server(TCP, options=options()) as server:
        for faults, error in (
            ({"loss": Loss()}, r"^loss has no effect: no address is for UDP$"),
            ({"cut": "cut:bytes=1"}, r"^faults must be "),
        ):
            given: Any = faults
            with pytest.raises(UsageError, match=error):
                server.set_faults(**given)
        unnamed: Any = "cut:bytes=1"
        with pytest.raises(UsageError, match=r"^a fault must be a Fault, not 'cut:bytes=1'$"):
            server.set_faults(unnamed)
        with pytest.raises(UsageError, match=r"^two faults are called timeout_downstream$"):
            server.set_faults(Timeout(), timeout_downstream=Timeout())
