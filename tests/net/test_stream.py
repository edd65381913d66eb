"""`PolledStream` with resets, short reads, urgent data, floods and reused descriptors."""

from __future__ import annotations

import array
import os
import socket
from contextlib import ExitStack

import pytest
from anyio import (
    BrokenResourceError,
    ClosedResourceError,
    EndOfStream,
    Event,
    create_task_group,
    fail_after,
)
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint

from anyecho.net.poller import Fallback, Poller
from anyecho.net.readiness import is_ready
from anyecho.net.stream import PolledStream
from tests.net.pairs import KINDS, raw_pair, reset, stream_over
from tests.support.conformance import MUCH, drain, expect_error
from tests.support.tasks import wait_all_tasks_blocked


async def test_data_and_eof_in_one_event_are_both_received(poller: Poller | Fallback, opened: ExitStack) -> None:
    peer, ours = raw_pair("tcp")
    opened.enter_context(ours)
    stream = stream_over(ours, poller)
    async with create_task_group() as tasks:
        got: list[bytes] = []

        async def read() -> None:
            with fail_after(5):
                got.extend([chunk async for chunk in stream])

        tasks.start_soon(read)
        await wait_all_tasks_blocked()
        # Without an await between them, the Poller gets one event for both.
        peer.send(b"last words")
        peer.close()

    assert got == [b"last words"]


@pytest.mark.parametrize("kind", KINDS)
async def test_bytes_after_a_short_read_arrive(kind: str, poller: Poller | Fallback, opened: ExitStack) -> None:
    peer, ours = (opened.enter_context(sock) for sock in raw_pair(kind))
    stream = stream_over(ours, poller)
    async with create_task_group() as tasks:
        tasks.start_soon(_expect, stream, b"first and second")
        await wait_all_tasks_blocked()
        peer.send(b"first ")
        peer.send(b"and second")


@pytest.mark.parametrize("fallback", [False, True])
async def test_no_read_follows_a_short_read_on_tcp_before_a_wait(
    fallback: bool, poller: Poller | Fallback, opened: ExitStack
) -> None:
    peer, ours = raw_pair("tcp")
    opened.enter_context(peer)
    ours.setblocking(False)
    registration = (Fallback() if fallback else poller).register(ours)
    async with PolledStream(ours, registration) as stream:
        peer.send(b"x")
        assert await stream.receive() == b"x"
        assert not registration.may_read
        peer.send(b"yz")
        peer.shutdown(socket.SHUT_WR)
        assert [await stream.receive(1), await stream.receive()] == [b"y", b"z"]
        with pytest.raises(EndOfStream):
            await stream.receive()


async def test_an_urgent_byte_is_received_in_its_place(poller: Poller | Fallback, opened: ExitStack) -> None:
    peer, ours = (opened.enter_context(sock) for sock in raw_pair("tcp"))
    stream = stream_over(ours, poller)
    async with create_task_group() as tasks:
        tasks.start_soon(_expect, stream, b"ab!cd")
        await wait_all_tasks_blocked()
        # A read ends at the urgent mark, and no new event reports the bytes after it.
        peer.send(b"ab")
        peer.send(b"!", socket.MSG_OOB)
        peer.send(b"cd")


async def test_bytes_after_passed_descriptors_are_received(poller: Poller | Fallback, opened: ExitStack) -> None:
    peer, ours = (opened.enter_context(sock) for sock in raw_pair("unix"))
    stream = stream_over(ours, poller)
    before = len(os.listdir("/proc/self/fd"))
    async with create_task_group() as tasks:
        tasks.start_soon(_expect, stream, b"one two three")
        await wait_all_tasks_blocked()
        # A segment with descriptors ends a read, although more bytes are queued.
        for part in (b"one ", b"two "):
            peer.sendmsg([part], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
        peer.send(b"three")

    assert len(os.listdir("/proc/self/fd")) == before


async def _expect(stream: PolledStream, expected: bytes) -> None:
    received = b""
    with fail_after(5):
        while len(received) < len(expected):
            received += await stream.receive()

    assert received == expected


async def test_a_reset_is_never_reported_as_eof(poller: Poller | Fallback, opened: ExitStack) -> None:
    peer, ours = raw_pair("tcp")
    opened.enter_context(ours)
    stream = stream_over(ours, poller)
    reset(peer)
    # The kernel reports the reset once, and then EOF.
    for _ in range(3):
        with pytest.raises(BrokenResourceError) as caught:
            await stream.receive()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
    with pytest.raises(BrokenResourceError):
        await stream.send(b"x")
    with pytest.raises(BrokenResourceError):
        await stream.send_eof()


async def test_half_closing_a_reset_stream_raises(poller: Poller | Fallback, opened: ExitStack) -> None:
    peer, ours = raw_pair("tcp")
    opened.enter_context(ours)
    stream = stream_over(ours, poller)
    reset(peer)
    with pytest.raises(BrokenResourceError):
        await stream.send_eof()


async def test_bytes_that_arrived_before_a_failed_send_are_received(
    poller: Poller | Fallback, opened: ExitStack
) -> None:
    peer, ours = raw_pair("tcp")
    opened.enter_context(ours)
    stream = stream_over(ours, poller)
    peer.send(b"before")
    reset(peer)
    with pytest.raises(BrokenResourceError):
        for _ in range(100):
            await stream.send(b"x")

    assert await stream.receive() == b"before"
    with pytest.raises(BrokenResourceError):
        await stream.receive()


async def test_receive_raises_the_error_of_a_failed_send(
    poller: Poller | Fallback, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, ours = (opened.enter_context(sock) for sock in raw_pair("unix"))
    stream = stream_over(ours, poller)
    peer.shutdown(socket.SHUT_RDWR)
    with pytest.raises(BrokenResourceError):
        await stream.send(b"x")
    with pytest.raises(BrokenResourceError) as caught:
        await stream.receive()
    assert isinstance(caught.value.__cause__, BrokenPipeError)


async def test_a_waiting_send_is_broken_by_a_peer_that_shuts_down_and_reads_nothing(
    poller: Poller | Fallback, opened: ExitStack
) -> None:
    """The send buffer stays full, so the kernel reports a hang-up only (EPOLLHUP without EPOLLOUT)."""
    peer, ours = (opened.enter_context(sock) for sock in raw_pair("unix"))
    stream = stream_over(ours, poller)
    with fail_after(5):
        async with create_task_group() as tasks:
            tasks.start_soon(expect_error, lambda: stream.send(MUCH), BrokenResourceError)
            await wait_all_tasks_blocked()
            peer.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("budget", [1, 4])
async def test_a_flooding_peer_lets_tasks_run(budget: int, poller: Poller | Fallback, opened: ExitStack) -> None:
    """No call has to wait, but every `budget` calls another task runs."""
    peer, ours = (opened.enter_context(sock) for sock in raw_pair("unix"))
    stream = stream_over(ours, poller, budget=budget)
    peer.send(bytes(4000))
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    async with create_task_group() as tasks:
        tasks.start_soon(take_turns)
        await checkpoint()
        turns = 0
        for _ in range(200):
            await stream.receive(10)
            await stream.send(b"x")

        assert turns >= 400 // budget - 1
        tasks.cancel_scope.cancel()


async def test_a_stream_yields_after_each_mebibyte_however_few_the_calls(
    poller: Poller | Fallback, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, ours = (opened.enter_context(sock) for sock in raw_pair("unix"))
    stream = stream_over(ours, poller, budget=10_000)
    yields = 0

    async def counted() -> None:
        nonlocal yields
        yields += 1
        await checkpoint()

    monkeypatch.setattr("anyecho.net.stream.checkpoint", counted)
    for _ in range(40):
        peer.send(bytes(65536))
        await stream.receive()

    assert 2 <= yields <= 3

    # A reader so fast that the kernel takes all of one large send without a wait.
    monkeypatch.setattr(socket.socket, "send", lambda _, data: min(len(data), 65536))
    await stream.send(bytes(40 * 65536))
    assert 4 <= yields <= 6


async def test_totals_count_bytes_received_and_sent(poller: Poller | Fallback, opened: ExitStack) -> None:
    peer, ours = (opened.enter_context(sock) for sock in raw_pair("tcp"))
    stream = stream_over(ours, poller)
    peer.send(b"12345")
    await stream.receive()
    await stream.send(b"123")
    assert (stream.bytes_received, stream.bytes_sent) == (5, 3)


async def test_a_stream_has_its_addresses_as_attributes(poller: Poller | Fallback, opened: ExitStack) -> None:
    peer, ours = raw_pair("tcp")
    opened.enter_context(peer)
    async with stream_over(ours, poller) as stream:
        assert stream.extra(SocketAttribute.family) == socket.AF_INET
        assert stream.extra(SocketAttribute.raw_socket) is ours
        assert stream.extra(SocketAttribute.local_address) == ours.getsockname()
        assert stream.extra(SocketAttribute.local_port) == ours.getsockname()[1]
        assert stream.extra(SocketAttribute.remote_address) == peer.getsockname()
        assert stream.extra(SocketAttribute.remote_port) == peer.getsockname()[1]

    assert stream.extra(SocketAttribute.local_address, None) is None


async def test_a_unix_stream_has_no_ports(poller: Poller | Fallback, opened: ExitStack) -> None:
    peer, ours = raw_pair("unix")
    opened.enter_context(peer)
    async with stream_over(ours, poller) as stream:
        assert stream.extra(SocketAttribute.local_port, None) is None
        assert stream.extra(SocketAttribute.remote_address) == ""


@pytest.mark.fault(
    row=28, injected="a socket is closed while a task waits for it, and its number is reused at once"
)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_waiter_of_a_reused_descriptor_is_woken(
    kind: str, poller: Poller | Fallback, opened: ExitStack
) -> None:
    """If a number is reused before its old waiter has ended, asyncio removes the new waiter."""
    peer, ours = raw_pair(kind)
    opened.enter_context(peer)
    stream = stream_over(ours, poller)
    number = ours.fileno()
    go = Event()
    peers: list[socket.socket] = []

    async def new_waiter() -> None:
        await go.wait()
        sockets = [opened.enter_context(sock) for sock in raw_pair(kind)]
        # First the socket with the old number, if that is free already. No checkpoint before the wait.
        sockets.sort(key=lambda sock: sock.fileno() != number)
        peers.append(sockets[1])
        await _expect(stream_over(sockets[0], poller, budget=100), b"for the new one")

    async with create_task_group() as tasks:
        tasks.start_soon(_until_closed, stream)
        tasks.start_soon(new_waiter)
        await wait_all_tasks_blocked()
        go.set()
        await stream.aclose()
        await wait_all_tasks_blocked()
        peers[0].send(b"for the new one")


async def _until_closed(stream: PolledStream) -> None:
    with pytest.raises(ClosedResourceError):
        await stream.receive()


async def test_eof_before_the_wait_is_not_missed(poller: Poller | Fallback, opened: ExitStack) -> None:
    peer, ours = raw_pair("tcp")
    opened.enter_context(ours)
    stream = stream_over(ours, poller)
    peer.close()
    await wait_all_tasks_blocked()
    with fail_after(5), pytest.raises(EndOfStream):
        await stream.receive()


async def test_a_waiting_send_continues_when_the_peer_reads(poller: Poller | Fallback, opened: ExitStack) -> None:
    for kind in KINDS:
        peer, ours = (opened.enter_context(sock) for sock in raw_pair(kind))
        stream = stream_over(ours, poller)
        other = stream_over(peer, poller)
        async with create_task_group() as tasks:
            payload = os.urandom(8 << 20)

            async def send(stream: PolledStream = stream, payload: bytes = payload) -> None:
                await stream.send(payload)
                await stream.send_eof()

            tasks.start_soon(send)
            await wait_all_tasks_blocked()
            with fail_after(20):
                assert await drain(other) == payload


def test_a_socket_is_ready_if_a_call_would_not_block() -> None:
    peer, ours = raw_pair("unix")
    with peer, ours:
        assert (is_ready(ours), is_ready(ours, to_write=True)) == (False, True)
        peer.send(b"x")
        assert is_ready(ours)
    assert not is_ready(ours)
