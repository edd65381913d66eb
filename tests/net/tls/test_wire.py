"""`TLSWire`, on both sides: a `Wire` whose bytes are encrypted. No event loop drives it."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import TypeAlias

import pytest
from anyio import EndOfStream, create_task_group
from anyio.abc import SocketAttribute

from anyecho.net.poller import Fallback
from anyecho.net.tls import wire as tls_wire
from anyecho.net.tls.errors import TLSError, TLSTruncated
from anyecho.net.tls.records import Records
from anyecho.net.tls.wire import TLSWire
from tests.net.pairs import raw_pair, reset
from tests.support.certificates import client_context, client_over, server_context, server_over, tls_pair
from tests.support.peers import unread
from tests.support.tls13 import (
    ALERT,
    CLOSE_NOTIFY,
    DATA,
    HANDSHAKE,
    KEY_UPDATE,
    KEY_UPDATE_REQUESTED,
    CraftedPeer,
    ticket,
)

#: More than the kernel's buffers hold.
PAYLOAD = os.urandom(12 << 20)
SIZES = (1, 64, 16384, 16385, 200_000, len(PAYLOAD))
BUFFER = memoryview(bytearray(256 << 10))

Sockets: TypeAlias = tuple[socket.socket, socket.socket]
Wires: TypeAlias = tuple[TLSWire, TLSWire]


def wires(left: socket.socket, right: socket.socket, context: ssl.SSLContext | None = None) -> Wires:
    """A client and a server, before the handshake."""
    for sock in (left, right):
        sock.setblocking(False)
    client = Records(context or client_context(), server_side=False, server_hostname="localhost")
    return TLSWire(left, client), TLSWire(right, Records(server_context(), server_side=True))


def shake_hands(client: TLSWire, server: TLSWire) -> None:
    for _ in range(1000):
        if client.handshake() & server.handshake():
            return

    raise AssertionError("the handshake does not end")


@pytest.fixture
def opened_pair() -> Iterator[Sockets]:
    left, right = raw_pair("tcp")
    with left, right:
        yield left, right


@pytest.fixture(params=["tcp-TLSv1_2", "tcp-TLSv1_3", "unix-TLSv1_3"])
def unused(request: pytest.FixtureRequest) -> Iterator[Wires]:
    kind, _, version = request.param.partition("-")
    left, right = raw_pair(kind)
    with left, right:
        yield wires(left, right, client_context(ssl.TLSVersion[version]))


@pytest.fixture
def pair(unused: Wires) -> Wires:
    shake_hands(*unused)
    return unused


def read_available(wire: TLSWire) -> bytearray:
    """All input until none is left, or until EOF."""
    data = bytearray()
    while True:
        try:
            count = wire.read_into(BUFFER)
        except BlockingIOError:
            if wire.has_input:
                continue
            return data

        data += BUFFER[:count]
        if not count:
            return data


def write_available(wire: TLSWire, data: memoryview) -> int:
    """Write until the wire accepts no more."""
    sent = 0
    while sent < len(data):
        try:
            sent += wire.write(data[sent:])
        except BlockingIOError:
            break

    return sent


def expect_no_data(wire: TLSWire) -> None:
    with pytest.raises(BlockingIOError):
        wire.read_into(BUFFER)


def transfer(source: TLSWire, target: TLSWire, payload: bytes) -> bytes:
    """Write `payload` at one end while reading at the other."""
    rest, received = memoryview(payload), bytearray()
    while rest or source.pending:
        rest = rest[write_available(source, rest) :]
        source.flush()
        received += read_available(target)

    return bytes(received)


@pytest.mark.parametrize("size", SIZES)
def test_a_payload_is_echoed(pair: Wires, size: int) -> None:
    client, server = pair
    payload = PAYLOAD[:size]
    assert transfer(client, server, payload) == payload
    assert transfer(server, client, payload) == payload


def test_a_step_of_the_handshake_without_input_changes_nothing(unused: Wires) -> None:
    client, server = unused
    assert not server.handshake()
    assert not client.handshake()
    assert not client.handshake()
    assert (client.established, server.established) == (False, False)
    shake_hands(client, server)
    assert (client.established, server.established) == (True, True)
    assert client.handshake()


def test_without_input_a_read_blocks(pair: Wires) -> None:
    for wire in pair:
        read_available(wire)  # tickets
        with pytest.raises(BlockingIOError):
            wire.read_into(BUFFER)
        assert not wire.has_input


def test_a_small_buffer_is_filled_and_has_input_says_that_there_is_more(pair: Wires) -> None:
    client, server = pair
    client.write(b"0123456789")
    assert server.read_into(BUFFER[:4]) == 4
    assert server.has_input
    assert server.read_into(BUFFER[:4]) == 4
    assert server.read_into(BUFFER[:4]) == 2
    assert bytes(BUFFER[:2]) == b"89"
    assert not server.has_input


@pytest.mark.parametrize("unused", ["unix-TLSv1_3"], indirect=True)  # the window of TCP is small at first
def test_a_full_read_of_the_socket_announces_more_input(pair: Wires) -> None:
    client, server = pair
    written = write_available(client, memoryview(PAYLOAD))
    count = server.read_into(BUFFER)
    assert 0 < count < min(written, len(BUFFER))
    assert server.has_input


def test_an_empty_socket_has_no_input_after_a_full_read(pair: Wires, monkeypatch: pytest.MonkeyPatch) -> None:
    client, server = pair
    client.write(b"data")
    monkeypatch.setattr(tls_wire, "WIRE_CHUNK", unread(server.sock))
    assert server.read_into(BUFFER) == 4
    before = server.has_input
    expect_no_data(server)
    assert (before, server.has_input) == (True, False)


@pytest.mark.parametrize("writer", [0, 1], ids=["client", "server"])
def test_bytes_pending_are_bounded_while_the_peer_does_not_read(pair: Wires, writer: int) -> None:
    wire, peer = pair[writer], pair[1 - writer]
    accepted = write_available(wire, memoryview(PAYLOAD))
    assert accepted < len(PAYLOAD)
    assert 0 < wire.records.wire_bytes_pending < 70_000
    assert (wire.pending, wire.write_blocked) == (True, False)
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            wire.write(b"more")
        assert not wire.flush()

    received = read_available(peer)
    while wire.pending:
        wire.flush()
        received += read_available(peer)
    assert received == PAYLOAD[:accepted]
    assert wire.flush()


def test_a_write_sends_pending_bytes_first(pair: Wires) -> None:
    client, server = pair
    accepted = write_available(client, memoryview(PAYLOAD))
    received = bytearray()
    while not write_available(client, memoryview(b"more")):
        received += read_available(server)
    while len(received) < accepted + 4:
        client.flush()
        received += read_available(server)
    assert received == PAYLOAD[:accepted] + b"more"


def test_data_that_arrives_with_close_notify_is_read_before_eof(pair: Wires) -> None:
    client, server = pair
    client.write(b"last")
    client.shutdown()
    assert server.read_into(BUFFER) == 4
    assert server.has_input
    assert server.read_into(BUFFER) == 0


def test_a_half_closed_wire_still_reads(pair: Wires) -> None:
    client, server = pair
    client.shutdown()
    assert read_available(server) == b""
    server.write(b"late")
    server.shutdown()
    assert read_available(client) == b"late"


def test_close_notify_follows_pending_bytes(pair: Wires) -> None:
    client, server = pair
    accepted = write_available(client, memoryview(PAYLOAD))
    client.shutdown()
    received = bytearray()
    while client.pending:
        client.flush()
        received += read_available(server)
    assert received == PAYLOAD[:accepted]
    assert server.read_into(BUFFER) == 0


def test_a_fin_without_close_notify_is_a_truncation_after_the_data(pair: Wires) -> None:
    client, server = pair
    client.write(b"cut")
    client.sock.shutdown(socket.SHUT_WR)
    assert server.read_into(BUFFER) == 3
    with pytest.raises(TLSTruncated):
        server.read_into(BUFFER)


def test_a_fin_during_the_handshake_is_a_truncation(unused: Wires) -> None:
    client, server = unused
    client.handshake()
    client.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(TLSTruncated):
        server.handshake()


def test_a_reset_is_an_error(opened_pair: Sockets) -> None:
    client, server = wires(*opened_pair)
    shake_hands(client, server)
    reset(client.sock)
    with pytest.raises(ConnectionResetError):
        server.read_into(BUFFER)


def test_a_peer_that_fails_the_handshake_has_sent_its_alert(opened_pair: Sockets) -> None:
    client, server = wires(*opened_pair, ssl.create_default_context())  # trusts the system's CAs only
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client, server)
    with pytest.raises(TLSError, match="ALERT"):
        server.handshake()


def test_a_damaged_record_is_answered_by_an_alert(pair: Wires) -> None:
    client, server = pair
    client.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(TLSError):
        server.read_into(BUFFER)
    with pytest.raises(TLSError, match="ALERT"):
        read_available(client)


def test_input_that_is_not_tls_is_an_error(opened_pair: Sockets) -> None:
    client, server = wires(*opened_pair)
    client.sock.send(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(TLSError):
        server.handshake()


@pytest.mark.by_turns
async def test_a_wire_reads_the_input_that_a_stream_has_left_in_the_session() -> None:
    left, right = await tls_pair("tcp", Fallback())
    await left.send(b"123456")
    assert await right.receive(2) == b"12"
    wire = TLSWire(right.extra(SocketAttribute.raw_socket), right.records)
    assert wire.read_into(BUFFER) == 4
    assert bytes(BUFFER[:4]) == b"3456"
    assert wire.write(b"back") == 4
    assert await left.receive() == b"back"
    await right.aclose()
    with pytest.raises(EndOfStream):
        await left.receive()
    await left.aclose()


@pytest.fixture(params=["server", "client"])
async def crafted(request: pytest.FixtureRequest) -> AsyncIterator[tuple[TLSWire, CraftedPeer]]:
    """Our wire of either side, and a peer that makes its own records."""
    are_server = request.param == "server"
    left, right = raw_pair("unix")
    stream = (server_over if are_server else client_over)(left, Fallback())
    async with create_task_group() as tasks:
        tasks.start_soon(stream.handshake)
        peer = await (CraftedPeer.client if are_server else CraftedPeer.server)(right)

    yield TLSWire(left, stream.records), peer
    peer.close()
    await stream.aclose()


Crafted: TypeAlias = tuple[TLSWire, CraftedPeer]


@pytest.mark.by_turns
async def test_a_requested_key_update_is_answered_by_the_read(crafted: Crafted) -> None:
    wire, peer = crafted
    peer.send(peer.update_keys(requested=True) + peer.seal(DATA, b"data"))
    assert wire.read_into(BUFFER) == 4
    assert not wire.pending
    wire.write(b"echo")
    assert await peer.read() == (DATA, b"echo")
    assert peer.messages[-1:] == [KEY_UPDATE]


@pytest.mark.by_turns
async def test_data_is_read_although_held_bytes_cannot_be_sent(crafted: Crafted) -> None:
    wire, peer = crafted
    peer.send(peer.seal(HANDSHAKE, KEY_UPDATE[:4]))
    expect_no_data(wire)
    wire.write(b"held")
    peer.send(peer.seal(HANDSHAKE, KEY_UPDATE[4:]))
    peer.next_keys()
    peer.send(peer.seal(DATA, b"data"))
    peer.sock.close()  # from now on a send fails
    assert wire.read_into(BUFFER) == 4


@pytest.mark.by_turns
async def test_nothing_is_written_before_the_rest_of_a_fragmented_key_update(crafted: Crafted) -> None:
    wire, peer = crafted
    peer.send(peer.seal(HANDSHAKE, KEY_UPDATE_REQUESTED[:4]))
    expect_no_data(wire)
    assert wire.write(b"held") == 4
    assert (wire.write_blocked, wire.pending) == (True, False)  # an event of the socket would not help
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            wire.write(b"next")

    peer.send(peer.seal(HANDSHAKE, KEY_UPDATE_REQUESTED[4:]))
    peer.next_keys()
    expect_no_data(wire)
    assert not wire.write_blocked
    assert wire.write(b"next") == 4
    assert [await peer.read(), await peer.read()] == [(DATA, b"held"), (DATA, b"next")]


@pytest.mark.by_turns
async def test_a_shutdown_during_a_fragmented_message_follows_its_rest(crafted: Crafted) -> None:
    wire, peer = crafted
    peer.send(peer.seal(HANDSHAKE, KEY_UPDATE[:4]))
    expect_no_data(wire)
    wire.write(b"held")
    wire.shutdown()
    peer.send(peer.seal(HANDSHAKE, KEY_UPDATE[4:]))
    peer.next_keys()
    peer.send(peer.seal(DATA, b"late"))
    assert wire.read_into(BUFFER) == 4
    assert [await peer.read(), await peer.read()] == [(DATA, b"held"), (ALERT, CLOSE_NOTIFY)]


@pytest.mark.by_turns
@pytest.mark.parametrize("crafted", ["client"], indirect=True)
async def test_a_ticket_in_several_records_is_no_data(crafted: Crafted) -> None:
    wire, peer = crafted
    peer.send(peer.seal(HANDSHAKE, ticket(1200), 4, 500) + peer.seal(DATA, b"data"))
    assert wire.read_into(BUFFER) == 4
    assert wire.write(b"echo") == 4
    assert await peer.read() == (DATA, b"echo")


@pytest.mark.by_turns
async def test_input_after_many_records_without_data_is_announced(crafted: Crafted) -> None:
    """One read passes a limited number of records to OpenSSL: a flood of them delays no other connection."""
    wire, peer = crafted
    peer.send(b"".join(peer.update_keys() for _ in range(100)) + peer.seal(DATA, b"data"))
    expect_no_data(wire)
    assert wire.has_input
    assert wire.read_into(BUFFER) == 4


@pytest.mark.by_turns
async def test_a_peer_that_reads_no_answers_is_cut_off(crafted: Crafted) -> None:
    wire, peer = crafted
    write_available(wire, memoryview(PAYLOAD))
    with pytest.raises(TLSError, match="does not read"):
        for _ in range(100):
            peer.send(b"".join(peer.update_keys(requested=True) for _ in range(100)))
            read_available(wire)
    assert wire.records.wire_bytes_pending < 300_000
