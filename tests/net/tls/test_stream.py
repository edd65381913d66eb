"""`TLSStream` has the contract of all our streams, and what TLS adds to it."""

from __future__ import annotations

import os
import socket
import ssl
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import nullcontext, suppress
from typing import Any
from unittest.mock import Mock

import pytest
import trio
from anyio import (
    BrokenResourceError,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    create_task_group,
    fail_after,
    move_on_after,
)
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint
from anyio.streams.tls import TLSAttribute
from trio.testing import check_half_closeable_stream, check_two_way_stream

from anyecho.net.poller import Fallback, Poller, open_poller
from anyecho.net.tls import stream as tls_stream
from anyecho.net.tls.stream import TLSStream
from tests.net.pairs import raw_pair, reset
from tests.support.certificates import VERSIONS, client_over, server_over, tls_pair
from tests.support.conformance import CHECKS, MUCH, Check, drain, fill, run_check
from tests.support.peers import SOON
from tests.support.tasks import wait_all_tasks_blocked
from tests.support.trio_stream import TrioStream

#: More than the kernel's buffers hold.
PAYLOAD = os.urandom(8 << 20)


@pytest.fixture(autouse=True)
def short_close_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tests close while the peer does not read, which takes the whole timeout."""
    monkeypatch.setattr(tls_stream, "CLOSE_TIMEOUT", 0.05)


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    version: ssl.TLSVersion = request.param
    return version


@pytest.fixture
async def pair(poller: Poller | Fallback, version: ssl.TLSVersion) -> AsyncIterator[tuple[TLSStream, TLSStream]]:
    left, right = await tls_pair("tcp", poller, version)
    yield left, right
    await left.aclose()
    await right.aclose()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_tls_stream_conforms(check: Check, version: ssl.TLSVersion, poller: Poller | Fallback) -> None:
    await run_check(check, *await tls_pair("tcp", poller, version))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_server_of_a_tls_stream_conforms(check: Check) -> None:
    """The server side, over a Unix socket, without a poller."""
    client, server = await tls_pair("unix", Fallback())
    await run_check(check, server, client)


async def test_the_total_of_a_view_of_ints_is_in_bytes(pair: tuple[TLSStream, TLSStream]) -> None:
    left, right = pair
    view: Any = memoryview(array("I", [1, 2, 3]))
    await left.send(view)
    assert left.bytes_sent == len(await right.receive()) == view.nbytes


@pytest.mark.parametrize("contract", [check_two_way_stream, check_half_closeable_stream])
@pytest.mark.parametrize("polled", [True, False], ids=["poller", "fallback"])
def test_trios_own_checks_pass(
    contract: Callable[..., Awaitable[None]], polled: bool, version: ssl.TLSVersion
) -> None:
    async def main() -> None:
        async with open_poller() as opened:

            async def make() -> tuple[TrioStream, TrioStream]:
                left, right = await tls_pair("tcp", opened if polled else Fallback(), version)
                return TrioStream(left, left._sock), TrioStream(right, right._sock)

            await contract(make, None)

    trio.run(main)


@pytest.mark.parametrize("first", [0, 1], ids=["client", "server"])
async def test_a_stream_receives_everything_after_its_own_close_notify(
    first: int, pair: tuple[TLSStream, TLSStream]
) -> None:
    ended, other = pair[first], pair[1 - first]
    await ended.send_eof()
    with pytest.raises(EndOfStream):
        await other.receive()

    async def send() -> None:
        await other.send(PAYLOAD)
        await other.send_eof()

    async with create_task_group() as tasks:
        tasks.start_soon(send)
        assert await drain(ended) == PAYLOAD


async def test_send_eof_with_unread_records_loses_none_of_them(pair: tuple[TLSStream, TLSStream]) -> None:
    """OpenSSL looks for the peer's close_notify at once, and takes other records for an attack."""
    left, right = pair
    for part in (b"first ", b"second ", b"third "):
        await right.send(part)
    assert await left.receive(1) == b"f"
    await left.send_eof()
    assert await drain(right) == b""
    await right.send(b"last")
    await right.send_eof()
    assert await drain(left) == b"irst second third last"


async def test_a_fin_without_close_notify_is_broken(pair: tuple[TLSStream, TLSStream]) -> None:
    left, right = pair
    await left.send(b"whole")
    left.extra(SocketAttribute.raw_socket).shutdown(socket.SHUT_WR)
    assert await right.receive() == b"whole"
    for _ in range(3):
        with pytest.raises(BrokenResourceError) as caught:
            await right.receive()
        assert isinstance(caught.value.__cause__, ssl.SSLEOFError)


async def test_a_reset_of_a_tls_connection_is_broken(pair: tuple[TLSStream, TLSStream]) -> None:
    left, right = pair
    reset(left.extra(SocketAttribute.raw_socket))
    for _ in range(2):
        with pytest.raises(BrokenResourceError) as caught:
            await right.receive()
        assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_the_next_send_continues_a_cancelled_one(pair: tuple[TLSStream, TLSStream]) -> None:
    left, right = pair
    async with create_task_group() as tasks:
        tasks.start_soon(left.send, PAYLOAD)
        await wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert left.records.wire_bytes_pending
    queued = left.records.plaintext_queued

    async def send_more() -> None:
        await left.send(b"more")
        await left.send_eof()

    async with create_task_group() as tasks:
        tasks.start_soon(send_more)
        received = await drain(right)

    assert received == PAYLOAD[:queued] + b"more"
    assert left.bytes_sent == right.bytes_received == len(received)


async def test_a_second_stream_of_a_session_counts_the_bytes_that_the_first_has_sent(
    pair: tuple[TLSStream, TLSStream],
) -> None:
    first, _ = pair
    await first.send(b"first")
    second = TLSStream(first._sock, first._registration, first.records)
    assert second.bytes_sent == 5
    await second.send(b", second")
    assert second.bytes_sent == 13


CALLS: dict[str, Callable[[TLSStream], Coroutine[Any, Any, Any]]] = {
    "receive": lambda stream: stream.receive(),
    "send": lambda stream: stream.send(b""),
    "send_eof": lambda stream: stream.send_eof(),
    "aclose": lambda stream: stream.aclose(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_any_call_sends_the_rest_of_a_cancelled_send(call: str, pair: tuple[TLSStream, TLSStream]) -> None:
    left, right = pair
    async with create_task_group() as tasks:
        tasks.start_soon(left.send, PAYLOAD)
        await wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    queued = left.records.plaintext_queued
    received = bytearray()
    while right.bytes_received < left.bytes_sent // 2:
        received += await right.receive()
    async with create_task_group() as tasks:
        tasks.start_soon(CALLS[call], left)
        while len(received) < queued:
            received += await right.receive()
        tasks.cancel_scope.cancel()

    assert received == PAYLOAD[:queued]


async def test_a_peer_that_reads_nothing_delays_a_close_by_close_timeout(
    pair: tuple[TLSStream, TLSStream],
) -> None:
    left, _ = pair
    for _ in range(3):
        # The kernel reports a socket as writable only if a third of its buffer is free; a close needs less.
        left._registration.may_write = True
        await fill(left)
    start = time.monotonic()
    with fail_after(SOON):
        await left.aclose()
    assert time.monotonic() - start > 0.04


async def test_a_cancelled_close_does_not_wait(
    pair: tuple[TLSStream, TLSStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_stream, "CLOSE_TIMEOUT", 60)
    left, _ = pair
    await fill(left)
    with CancelScope() as scope, fail_after(5):
        scope.cancel()
        await left.aclose()

    assert left.extra(SocketAttribute.raw_socket).fileno() == -1


async def test_a_close_with_unread_input_destroys_no_sent_bytes(
    pair: tuple[TLSStream, TLSStream],
) -> None:
    """Unread input such as the server's tickets makes close(2) send a reset."""
    left, right = pair
    await right.send(b"never read")
    await left.send(bytes(100_000))
    await left.aclose()
    assert await drain(right) == bytes(100_000)


async def test_a_tampered_record_is_broken_and_answered_by_an_alert(
    pair: tuple[TLSStream, TLSStream],
) -> None:
    left, right = pair
    await left.send(b"good")
    left.records.send(b"bad")
    record = bytearray(left.records.take())
    record[-1] ^= 1
    left.extra(SocketAttribute.raw_socket).send(record)
    assert await right.receive(2) == b"go"
    assert await right.receive() == b"od"
    for _ in range(2):
        with pytest.raises(BrokenResourceError):
            await right.receive()
    with pytest.raises(BrokenResourceError):
        await right.send(b"x")
    with pytest.raises(BrokenResourceError) as caught:
        await left.receive()
    assert "alert bad record mac" in str(caught.value.__cause__)


async def test_data_before_a_bad_record_is_received(pair: tuple[TLSStream, TLSStream]) -> None:
    left, right = pair
    left.records.send(b"good")
    left.extra(SocketAttribute.raw_socket).send(left.records.take() + b"no record at all")
    assert await right.receive() == b"good"
    with pytest.raises(BrokenResourceError):
        await right.receive()


async def test_garbage_instead_of_a_handshake_is_answered_by_an_alert(poller: Poller | Fallback) -> None:
    peer, ours = raw_pair("tcp")
    with peer:
        async with server_over(ours, poller) as stream:
            peer.send(b"\x16\x03\x01\x00\x04nonsense")
            for call in (stream.handshake, stream.receive, stream.handshake):
                with pytest.raises(BrokenResourceError):
                    await call()

        # A record of type alert (21).
        assert peer.recv(100)[0] == 21


@pytest.mark.parametrize("polled", [True, False], ids=["poller", "fallback"])
@pytest.mark.parametrize("call", ["receive", "aclose"])
async def test_alerts_and_close_notify_are_sent_though_the_last_write_was_refused(
    call: str, polled: bool, poller: Poller | Fallback
) -> None:
    """The send buffer has room again, but no task has waited for it. A cancelled close cannot wait."""
    left, right = await tls_pair("unix", poller if polled else Fallback())
    await fill(left)
    wire = read_now(right._sock)
    if call == "receive":
        right.records.send(b"bad")
        record = bytearray(right.records.take())
        record[-1] ^= 1
        right._sock.send(record)
        with pytest.raises(BrokenResourceError):
            await left.receive()
    else:
        with CancelScope() as scope:
            scope.cancel()
            await left.aclose()

    right.records.feed(wire + read_now(right._sock))
    with pytest.raises(ssl.SSLError, match="alert bad record mac") if call == "receive" else nullcontext():
        while (data := right.records.receive(1 << 20)) != b"":  # empty at the close_notify
            assert data is not None or right.records.process_more(), "neither alert nor close_notify"
    await left.aclose()
    await right.aclose()


def read_now(sock: socket.socket) -> bytes:
    """Read all that has arrived."""
    data = bytearray()
    with suppress(BlockingIOError):
        while chunk := sock.recv(1 << 20):
            data += chunk
    return bytes(data)


async def test_a_client_that_does_not_trust_the_server_sends_an_alert(poller: Poller | Fallback) -> None:
    left, right = raw_pair("tcp")
    client, server = client_over(left, poller, name="example.org"), server_over(right, poller)
    async with create_task_group() as tasks:
        tasks.start_soon(_refused, client, "Hostname mismatch")
        await _refused(server, "alert bad certificate")

    await client.aclose()
    await server.aclose()


async def _refused(stream: TLSStream, why: str) -> None:
    with fail_after(5), pytest.raises(BrokenResourceError) as caught:
        await stream.handshake()
    assert why in str(caught.value.__cause__)


async def test_eof_during_a_handshake_is_broken(poller: Poller | Fallback) -> None:
    peer, ours = raw_pair("tcp")
    async with server_over(ours, poller) as stream:
        peer.send(b"\x16\x03\x01\x02\x00\x01")
        peer.close()
        with fail_after(5), pytest.raises(BrokenResourceError):
            await stream.handshake()


async def test_a_cancelled_handshake_can_be_closed(poller: Poller | Fallback) -> None:
    peer, ours = raw_pair("tcp")
    with peer:
        stream = server_over(ours, poller)
        with move_on_after(0.01):
            await stream.handshake()
        await stream.aclose()
        assert peer.recv(1) == b""
        with pytest.raises(ClosedResourceError):
            await stream.receive()


async def test_small_records_are_received_together(pair: tuple[TLSStream, TLSStream]) -> None:
    left, right = pair
    for _ in range(10):
        left.records.send(b"0123456789")
    left.extra(SocketAttribute.raw_socket).send(left.records.take())
    await wait_all_tasks_blocked()
    assert await right.receive(25) == (b"0123456789" * 10)[:25]
    assert await right.receive() == (b"0123456789" * 10)[25:]


@pytest.mark.parametrize("slices", [1, 3, 29, 1000, 1 << 20])
async def test_at_most_64_small_records_are_processed_at_once(
    pair: tuple[TLSStream, TLSStream], slices: int
) -> None:
    """However TCP segments them: each may cost as much as one of 16 KiB, or far more."""
    left, right = pair
    said = os.urandom(300) + os.urandom(20_000)
    for number in range(300):
        left.records.send(said[number : number + 1])
    left.records.send(said[300:])
    records, wire = right.records, left.records.take()
    assert records.receive(1) is None
    back = b""
    for start in range(0, len(wire), slices):
        records.feed(wire[start : start + slices])
        while not records.wants_more:
            heard = records.receive(65536) or b""
            assert len(heard) <= 64 or len(back) > 300 - 64
            back += heard
            records.process_more()

    assert back == said


async def test_plaintext_sent_never_decreases(pair: tuple[TLSStream, TLSStream]) -> None:
    """The headers of pending records do not reduce it."""
    records = pair[0].records
    records.send(bytes(200_000))
    assert records.flush(len)
    for _ in range(3000):
        records.send(b"x")
    assert 200_000 <= records.plaintext_sent <= 203_000
    assert records.take()
    assert records.plaintext_sent == 203_000


async def test_unread_answers_of_openssl_are_limited(pair: tuple[TLSStream, TLSStream]) -> None:
    """For example refusals to renegotiate, which the peer requests and does not read."""
    left, _ = pair
    with move_on_after(0.01):
        await left.send(MUCH)
    left.records.send(bytes(32 << 20))  # more than the free space of both kernel buffers
    with pytest.raises(BrokenResourceError), fail_after(5):
        await left.receive()


async def test_a_large_transfer_over_tls_yields_after_each_mebibyte(
    poller: Poller | Fallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes and gives all without a wait. A step of 64 KiB on the wire may exceed each mebibyte."""
    left, right = await tls_pair("unix", poller)
    left.budget = right.budget = 10_000
    wire, yields = bytearray(), 0

    def send(_: socket.socket, data: bytes) -> int:
        wire.extend(data)
        return len(data)

    def recv(_: socket.socket, size: int) -> bytes:
        data = bytes(wire[:size])
        del wire[:size]
        return data

    async def counted() -> None:
        nonlocal yields
        yields += 1
        await checkpoint()

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "send", send)
        patch.setattr(socket.socket, "recv", recv)
        patch.setattr("anyecho.net.stream.checkpoint", counted)
        await left.send(bytes(8 << 20))
        assert 7 <= yields <= 9
        right._registration.may_read, right._registration.short_read_drains = True, False
        received, yields = 0, 0
        while received < 8 << 20:
            received += len(await right.receive(1 << 20))
        assert 7 <= yields <= 9
    left._sock.close()
    right._sock.close()


async def test_a_close_discards_a_limited_amount_of_unread_input(
    pair: tuple[TLSStream, TLSStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0

    def recv(_: socket.socket, size: int) -> bytes:
        nonlocal reads
        reads += 1
        assert reads <= 16, "more than 1 MiB"
        return bytes(size)

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "recv", recv)
        await pair[0].aclose()
    assert reads == 16


async def test_an_alert_is_the_cause_though_a_send_failed_before(
    pair: tuple[TLSStream, TLSStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer sent the alert and closed, which made the send fail."""
    left, right = pair
    right.records.feed(b"\x17\x03\x03\x00\x11" + bytes(17))
    with pytest.raises(ssl.SSLError):
        right.records.receive(1)
    right._sock.send(right.records.take())
    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "send", Mock(side_effect=BrokenPipeError))
        with pytest.raises(BrokenResourceError):
            await left.send(b"x")
    with pytest.raises(BrokenResourceError) as caught:
        await left.receive()
    assert "alert bad record mac" in str(caught.value.__cause__)


async def test_extra_attributes_describe_the_tls_session(
    pair: tuple[TLSStream, TLSStream], version: ssl.TLSVersion
) -> None:
    client, server = pair
    for stream in pair:
        assert stream.extra(TLSAttribute.tls_version) == version.name.replace("_", ".")
        assert stream.extra(TLSAttribute.server_side) is (stream is server)
        assert stream.extra(TLSAttribute.ssl_object) is stream.records.tls
        assert stream.extra(TLSAttribute.alpn_protocol) is None
        assert stream.extra(TLSAttribute.standard_compatible)
        assert stream.extra(SocketAttribute.family) == socket.AF_INET
    assert client.extra(TLSAttribute.peer_certificate) == client.records.tls.getpeercert()
    assert client.extra(TLSAttribute.peer_certificate_binary)
    assert client.extra(TLSAttribute.cipher) in (server.extra(TLSAttribute.shared_ciphers) or [])
