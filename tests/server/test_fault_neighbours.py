"""A fault on one connection, or on one datagram, leaves its neighbours untouched."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import pytest
from anyio import fail_after, to_thread

from anyecho.address import Address, UDPAddress
from anyecho.faults import (
    Bandwidth,
    Corrupt,
    Cut,
    Duplicate,
    Fault,
    HalfClose,
    Latency,
    LimitData,
    Loss,
    PacketLoss,
    Reorder,
    ResetPeer,
    Slicer,
    SlowClose,
    Stall,
    StalledHandshake,
    StreamFault,
    Timeout,
    Truncate,
)
from anyecho.faults.fault import Direction
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.support.certificates import Files, client_context
from tests.support.peers import SOON, dial, exchange, receive_all
from tests.support.tls import TLS
from tests.support.tls import options as tls_options

#: Seconds that are longer than any test.
FOR_EVER = 60.0
PAYLOAD = b"hello"
GIVEN: Any = {"engine": "auto", "seed": 1, "linger": 0.05}
#: Each fault of streams, so that its peer does not see the whole echo and an end.
STREAM_FAULTS: list[StreamFault] = [
    Latency(latency=FOR_EVER),
    Bandwidth(rate=1 / FOR_EVER),
    SlowClose(delay=FOR_EVER),
    Timeout(),
    ResetPeer(),
    Slicer(average_size=1, delay=FOR_EVER),
    LimitData(),
    PacketLoss(loss_rate=1),
    Corrupt(rate=1),
    Cut(bytes=0),
    Stall(),
    HalfClose(),
]
DATAGRAM_FAULTS: list[Fault] = [
    Latency(latency=FOR_EVER),
    Corrupt(offset=0),
    Loss(loss_rate=1),
    Duplicate(),
    Reorder(rate=1, delay=FOR_EVER),
    Truncate(),
]


def name(fault: Fault) -> str:
    return fault.name


def seen_by(sock: socket.socket) -> Iterator[bytes]:
    """Yield what comes until the end, and then that it has ended, if it ends soon and without a reset."""
    sock.settimeout(0.05)
    try:
        yield from iter(lambda: sock.recv(100), b"")
        yield b"<end>"
    except (TimeoutError, ConnectionResetError):
        pass


@pytest.mark.parametrize("fault", STREAM_FAULTS, ids=name)
@pytest.mark.parametrize("stream", ["upstream", "downstream"])
@pytest.mark.by_turns("engine")
async def test_connections_beside_one_with_a_fault_have_their_whole_echo(
    fault: StreamFault, stream: Direction, carrier: Address
) -> None:
    faults = (replace(fault, stream=stream, on=2),)
    async with open_server(carrier, options=ServeOptions(**GIVEN, faults=faults)) as server:

        def script() -> bytes:
            with ExitStack() as opened:
                before, spoiled, after = (opened.enter_context(dial(server.address)) for _ in range(3))
                for neighbour in (before, after):
                    assert exchange(neighbour, PAYLOAD) == PAYLOAD
                with suppress(OSError):  # some faults end the connection at once
                    spoiled.sendall(PAYLOAD)
                    spoiled.shutdown(socket.SHUT_WR)
                seen = b"".join(seen_by(spoiled))
                for neighbour in (before, after):
                    assert exchange(neighbour, PAYLOAD) == PAYLOAD
                    neighbour.shutdown(socket.SHUT_WR)
                    assert receive_all(neighbour) == b""
            return seen

        with fail_after(SOON):
            assert await to_thread.run_sync(script) != PAYLOAD + b"<end>"


@pytest.mark.parametrize("fault", DATAGRAM_FAULTS, ids=name)
@pytest.mark.by_turns("engine")
async def test_datagrams_beside_one_with_a_fault_are_echoed_once_and_at_once(fault: Fault) -> None:
    faults = (replace(fault, on=2),)
    async with open_server("udp://127.0.0.1:0", options=ServeOptions(**GIVEN, faults=faults)) as server:
        address = server.address
        assert isinstance(address, UDPAddress)

        def script() -> list[bytes]:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(SOON)
                sock.connect((address.host, address.port))
                for each in (b"first", b"second", b"third"):
                    sock.send(each)
                found = []
                while b"third" not in found:
                    found.append(sock.recv(100))
            return found

        found = await to_thread.run_sync(script)
        assert (found[0], found[-1]) == (b"first", b"third")
        assert found[1:-1] != [b"second"]


async def test_a_handshake_completes_beside_a_stalled_one(engine: str, files: Files) -> None:
    kind = engine.replace("events", "auto")
    stalled = tls_options(files, engine=kind, faults=(StalledHandshake(on=1),), handshake_timeout=FOR_EVER)
    async with open_server(TLS, options=stalled) as server:

        def script() -> bytes:
            with dial(server.address) as silent, dial(server.address) as sock:
                silent.sendall(b"\x16\x03\x01")  # the begin of a ClientHello
                with client_context().wrap_socket(sock, server_hostname="localhost") as over_tls:
                    over_tls.sendall(PAYLOAD)
                    echo = over_tls.recv(100)
                silent.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    silent.recv(1)
            return echo

        with fail_after(SOON):
            assert await to_thread.run_sync(script) == PAYLOAD
