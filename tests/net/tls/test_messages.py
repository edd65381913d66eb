"""A `TLSStream` after a part of a TLS 1.3 message that the peer fragments (RFC 8446, section 5.1).

OpenSSL encrypts nothing after it has read only a part of a message.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from anyio import (
    BrokenResourceError,
    BusyResourceError,
    EndOfStream,
    Event,
    create_task_group,
)
from anyio.lowlevel import checkpoint

from anyecho.net.linger import peek
from anyecho.net.poller import Fallback, Poller
from anyecho.net.tls import records as tls_records
from anyecho.net.tls import stream as tls_stream
from anyecho.net.tls.errors import alert_of
from anyecho.net.tls.stream import TLSStream
from tests.net.pairs import raw_pair
from tests.support.certificates import client_over, server_over
from tests.support.conformance import drain
from tests.support.peers import unread, until
from tests.support.tasks import wait_all_tasks_blocked
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

#: More than a stream holds unencrypted.
LARGE = os.urandom(150_000)
BYE = (ALERT, CLOSE_NOTIFY)
#: A fatal alert (RFC 8446, section 6).
INTERNAL_ERROR = (ALERT, b"\x02\x50")
#: Bytes of the message that are read first: its header. With fewer, OpenSSL still encrypts.
_READ = 4


@dataclass
class Ends:
    """Our stream has read the first bytes of the peer's message; `rest` is what follows."""

    ours: TLSStream
    peer: CraftedPeer
    rest: bytes

    def complete(self, *more: tuple[int, bytes]) -> None:
        """Send the rest of the message in some more records, and `more` in the same segment."""
        records = self.peer.seal(HANDSHAKE, self.rest, *(1, 500)[: len(self.rest) - 1])
        if len(self.rest) < len(KEY_UPDATE):
            self.peer.next_keys()
        self.peer.send(records + b"".join(self.peer.seal(kind, content) for kind, content in more))


MESSAGES = {
    "server-key_update": KEY_UPDATE,
    "server-key_update_requested": KEY_UPDATE_REQUESTED,
    "client-key_update": KEY_UPDATE,
    "client-key_update_requested": KEY_UPDATE_REQUESTED,
    "client-ticket": ticket(1200),
}


@pytest.fixture(params=MESSAGES)
async def ends(request: pytest.FixtureRequest, poller: Poller | Fallback) -> AsyncIterator[Ends]:
    message = MESSAGES[request.param]
    left, right = raw_pair("tcp")
    are_server = request.param.startswith("server")
    ours = (server_over if are_server else client_over)(left, poller)
    async with create_task_group() as tasks:
        tasks.start_soon(ours.handshake)
        peer = await (CraftedPeer.client if are_server else CraftedPeer.server)(right)

    peer.send(peer.seal(HANDSHAKE, message[:_READ]))
    async with create_task_group() as tasks:
        tasks.start_soon(ours.receive)
        await until(lambda: unread(left) == 0)
        tasks.cancel_scope.cancel()
    yield Ends(ours, peer, message[_READ:])
    peer.close()
    await ours.aclose()


@pytest.fixture(autouse=True)
def short_close_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_stream, "CLOSE_TIMEOUT", 0.05)


async def test_data_is_held_until_the_peers_message_is_complete(ends: Ends) -> None:
    ours, peer = ends.ours, ends.peer
    for byte in (b"a", b"b"):
        ours.records.send(byte)  # two items: a stream never holds more than one
    await ours.send(b"")
    assert (ours.records.held, ours.bytes_sent) == (b"ab", 0)
    ends.complete((DATA, b"more"))
    assert await ours.receive() == b"more"
    assert await peer.read() == (DATA, b"ab")
    assert (ours.records.held, ours.bytes_sent) == (b"", 2)


async def test_held_data_is_sent_without_data_from_the_peer(ends: Ends) -> None:
    async with create_task_group() as tasks:
        await ends.ours.send(b"held")
        tasks.start_soon(ends.ours.receive)
        await wait_all_tasks_blocked()
        ends.complete()
        assert await ends.peer.read() == (DATA, b"held")
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("reading", [False, True], ids=["alone", "beside a reader"])
async def test_a_sender_waits_for_the_rest_of_a_message(reading: bool, ends: Ends) -> None:
    """Otherwise the stream would buffer an unlimited amount."""
    ours, peer = ends.ours, ends.peer
    sent = Event()
    echo = b""

    async def send() -> None:
        await ours.send(LARGE)
        sent.set()

    async with create_task_group() as tasks:
        if reading:
            tasks.start_soon(ours.receive)
        tasks.start_soon(send)
        await wait_all_tasks_blocked()
        assert not sent.is_set()
        assert 0 < len(ours.records.held) < len(LARGE)
        ends.complete()
        while len(echo) < len(LARGE):
            record = await peer.read()
            assert record is not None
            echo += record[1]
        await sent.wait()
        tasks.cancel_scope.cancel()

    assert echo == LARGE
    peer.send(peer.seal(DATA, b"and on"))
    assert await ours.receive() == b"and on"


@pytest.mark.by_turns("anyio_backend")
async def test_a_flood_of_messages_without_data_lets_tasks_run(ends: Ends) -> None:
    """640 KeyUpdates are processed 64 at a time."""
    ours, peer = ends.ours, ends.peer
    ends.complete()
    peer.send(b"".join(peer.update_keys() for _ in range(640)) + peer.seal(DATA, b"data"))
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    async with create_task_group() as tasks:
        tasks.start_soon(take_turns)
        assert await ours.receive() == b"data"
        assert turns >= 8
        tasks.cancel_scope.cancel()


@pytest.mark.by_turns("anyio_backend")
async def test_peek_gives_up_after_many_records_without_data(ends: Ends) -> None:
    """It does not yield, and such records could follow for ever."""
    ends.complete()
    ends.peer.send(b"".join(ends.peer.update_keys() for _ in range(64 * 20)))
    assert peek(ends.ours._sock, ends.ours.records) == b"?"


async def test_a_receiver_waits_while_a_sender_reads(ends: Ends) -> None:
    ours, peer = ends.ours, ends.peer
    await ours.send(b"held, ")
    received: list[bytes] = []

    async def receive() -> None:
        received.append(await ours.receive())

    async with create_task_group() as tasks:
        tasks.start_soon(ours.send, b"waits")
        await wait_all_tasks_blocked()
        tasks.start_soon(receive)
        await wait_all_tasks_blocked()
        ends.complete((DATA, b"data"))

    assert received == [b"data"]
    assert await peer.read() == (DATA, b"held, ")
    assert await peer.read() == (DATA, b"waits")


async def test_a_receiver_takes_over_from_a_sender_that_is_cancelled(ends: Ends) -> None:
    ours, peer = ends.ours, ends.peer
    await ours.send(b"held")
    received: list[bytes] = []

    async def receive() -> None:
        received.append(await ours.receive())

    async with create_task_group() as tasks:
        async with create_task_group() as senders:
            senders.start_soon(ours.send, b"cancelled")
            await wait_all_tasks_blocked()
            tasks.start_soon(receive)
            await wait_all_tasks_blocked()
            senders.cancel_scope.cancel()
        ends.complete((DATA, b"data"))

    assert received == [b"data"]
    assert await peer.read() == (DATA, b"held")


async def test_a_second_receiver_or_sender_is_busy(ends: Ends) -> None:
    ours = ends.ours
    await ours.send(b"held")
    async with create_task_group() as tasks:
        tasks.start_soon(ours.receive)
        await wait_all_tasks_blocked()
        tasks.start_soon(ours.send, b"waits")
        await wait_all_tasks_blocked()
        with pytest.raises(BusyResourceError):
            await ours.receive()
        with pytest.raises(BusyResourceError):
            await ours.send(b"x")
        tasks.cancel_scope.cancel()


async def test_close_notify_follows_held_data_once_the_message_is_complete(ends: Ends) -> None:
    ours, peer = ends.ours, ends.peer
    await ours.send(b"held")
    await ours.send_eof()
    ends.complete((DATA, b"a"), (DATA, b"b"), BYE)
    assert await drain(ours) == b"ab"
    assert await peer.read() == (DATA, b"held")
    assert await peer.read() == BYE


async def test_close_notify_without_data_is_sent_once_the_message_is_complete(ends: Ends) -> None:
    ours, peer = ends.ours, ends.peer
    await ours.send_eof()
    ends.complete()
    async with create_task_group() as tasks:
        tasks.start_soon(ours.receive)
        assert await peer.read() == BYE
        peer.send(peer.seal(DATA, b"data"))

    peer.send(peer.seal(*BYE))
    with pytest.raises(EndOfStream):
        await ours.receive()


async def expect_internal_error(ours: TLSStream) -> None:
    with pytest.raises(BrokenResourceError) as caught:
        await ours.receive()
    assert caught.value.__cause__ is not None
    assert alert_of(caught.value.__cause__) == "internal_error"


async def test_after_a_half_close_data_before_a_fatal_alert_is_not_lost(ends: Ends) -> None:
    await ends.ours.send_eof()
    ends.complete((DATA, b"data"), INTERNAL_ERROR)
    assert await ends.ours.receive() == b"data"
    await expect_internal_error(ends.ours)


async def test_after_a_half_close_a_fatal_alert_is_raised_before_more_is_read(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The FIN after the alert would be an error of its own."""
    monkeypatch.setattr(tls_records, "_RECORDS_PER_FEED", 1)  # the close_notify reads the alert, not `receive`
    await ends.ours.send_eof()
    ends.complete(INTERNAL_ERROR)
    ends.peer.sock.shutdown(socket.SHUT_WR)
    await expect_internal_error(ends.ours)


async def test_a_close_waits_for_the_rest_of_a_message(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_stream, "CLOSE_TIMEOUT", 60)
    async with create_task_group() as tasks:
        await ends.ours.send(b"held")
        tasks.start_soon(ends.ours.aclose)
        await wait_all_tasks_blocked()
        ends.complete()
        assert await ends.peer.read_all() == [(DATA, b"held"), BYE]


async def test_a_close_waits_at_most_close_timeout_for_the_rest_of_a_message(ends: Ends) -> None:
    await ends.ours.send(b"held")
    start = time.monotonic()
    await ends.ours.aclose()
    assert 0.04 < time.monotonic() - start < 3.0
    assert await ends.peer.read_all() == []


@pytest.mark.parametrize("call", ["receive", "send"])
async def test_close_notify_inside_a_message_is_broken(call: str, ends: Ends) -> None:
    ours, peer = ends.ours, ends.peer
    await ours.send(b"held")
    peer.send(peer.seal(*BYE))
    with pytest.raises(BrokenResourceError) as caught:
        await (ours.receive() if call == "receive" else ours.send(b"x"))
    assert "the peer ended in the middle of a handshake message" in str(caught.value.__cause__)


@pytest.mark.parametrize("call", ["receive", "send"])
async def test_a_fin_inside_a_message_is_broken(call: str, ends: Ends) -> None:
    ours, peer = ends.ours, ends.peer
    await ours.send(b"held")
    peer.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenResourceError) as caught:
        await (ours.receive() if call == "receive" else ours.send(b"x"))
    assert isinstance(caught.value.__cause__, ssl.SSLEOFError)


@pytest.mark.parametrize("call", ["receive", "send"])
async def test_data_inside_a_message_is_answered_by_an_alert(call: str, ends: Ends) -> None:
    """No other record may come inside a fragmented message (RFC 8446, section 5.1)."""
    ours, peer = ends.ours, ends.peer
    await ours.send(b"held")
    peer.send(peer.seal(DATA, b"data"))
    with pytest.raises(BrokenResourceError) as caught:
        await (ours.receive() if call == "receive" else ours.send(b"x"))
    assert "unexpected" in str(caught.value.__cause__)
    assert await peer.read() == (ALERT, b"\x02\x0a")  # fatal, unexpected_message
