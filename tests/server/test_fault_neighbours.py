"""Faults on some connections, or on some datagrams, leave their neighbours untouched."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
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


def seen_by(sock: socket.socket) -> Iterator[bytes]:
    """Yield what comes until the end, and then that it has ended, if it ends soon and without a reset."""
    sock.settimeout(0.05)
    try:
        yield from iter(lambda: sock.recv(100), b"")
        yield b"<end>"
    except (TimeoutError, ConnectionResetError):
        pass


def spread(faults: Sequence[Fault]) -> list[Fault]:
    """Return the faults on the connections 2, 4, 6, ..."""
    return [replace(fault, on=2 * place) for place, fault in enumerate(faults, 1)]


@pytest.mark.parametrize("stream", ["upstream", "downstream"])
@pytest.mark.by_turns("engine")
async def test_connections_beside_those_with_a_fault_have_their_whole_echo(
    stream: Direction, carrier: Address
) -> None:
    faults = spread([replace(fault, stream=stream) for fault in STREAM_FAULTS])
    async with open_server(carrier, options=ServeOptions(**GIVEN, faults=tuple(faults))) as server:

        def script() -> None:
            with ExitStack() as opened:
                socks = [opened.enter_context(dial(server.address)) for _ in range(2 * len(faults) + 1)]
                neighbours = socks[::2]
                for neighbour in neighbours:
                    assert exchange(neighbour, PAYLOAD) == PAYLOAD
                for fault, spoiled in zip(faults, socks[1::2], strict=True):
                    with suppress(OSError):  # some faults end the connection at once
                        spoiled.sendall(PAYLOAD)
                        spoiled.shutdown(socket.SHUT_WR)
                    assert b"".join(seen_by(spoiled)) != PAYLOAD + b"<end>", fault.name
                for neighbour in neighbours:
                    assert exchange(neighbour, PAYLOAD) == PAYLOAD
                    neighbour.shutdown(socket.SHUT_WR)
                    assert receive_all(neighbour) == b""

        with fail_after(SOON):
            await to_thread.run_sync(script)


@pytest.mark.by_turns("engine")
async def test_datagrams_beside_those_with_a_fault_are_echoed_once_and_at_once() -> None:
    faults = spread(DATAGRAM_FAULTS)
    async with open_server("udp://127.0.0.1:0", options=ServeOptions(**GIVEN, faults=tuple(faults))) as server:
        address = server.address
        assert isinstance(address, UDPAddress)
        sent = [b"%d" % number for number in range(10, 11 + 2 * len(faults))]

        def script() -> list[bytes]:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(SOON)
                sock.connect((address.host, address.port))
                for each in sent:
                    sock.send(each)
                found: list[bytes] = []
                while sent[-1] not in found:
                    found.append(sock.recv(100))
            return found

        found = await to_thread.run_sync(script)
        assert [each for each in found if each in sent[::2]] == sent[::2]
        for fault, spoiled in zip(faults, sent[1::2], strict=True):
            assert found.count(spoiled) == (2 if isinstance(fault, Duplicate) else 0), fault.name


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
