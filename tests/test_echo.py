"""`echo` on memory object streams."""

from __future__ import annotations

import pytest
from anyio import (
    BrokenResourceError,
    CancelScope,
    EndOfStream,
    WouldBlock,
    create_memory_object_stream,
    create_task_group,
)
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from anyio.streams.stapled import StapledObjectStream

from anyecho.echo import echo
from tests.support.tasks import wait_all_tasks_blocked


class Pair:
    """A stream to echo, `far`, and the two ends of its peer, which buffer `room` items."""

    def __init__(self, room: float = 0) -> None:
        self.send: MemoryObjectSendStream[object]
        self.receive: MemoryObjectReceiveStream[object]
        self.send, far_receive = create_memory_object_stream[object](room)
        far_send, self.receive = create_memory_object_stream[object](room)
        self.far = StapledObjectStream(far_send, far_receive)

    async def __aenter__(self) -> Pair:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.send.close()
        self.receive.close()
        await self.far.aclose()


async def test_every_item_comes_back_in_order() -> None:
    async with Pair() as pair, create_task_group() as tasks:
        tasks.start_soon(echo, pair.far)
        for item in (b"one", b"two", b"", b"three"):
            await pair.send.send(item)
            assert await pair.receive.receive() == item

        pair.send.close()


async def test_items_sent_ahead_come_back_in_order() -> None:
    async with Pair(room=100) as pair:
        for item in range(100):
            pair.send.send_nowait(item)
        pair.send.close()
        await echo(pair.far)

        assert [pair.receive.receive_nowait() for _ in range(100)] == list(range(100))


async def test_an_item_comes_back_as_the_same_object() -> None:
    items = [b"bytes", ("a datagram", ("::1", 7)), None]
    async with Pair(room=len(items)) as pair:
        for item in items:
            pair.send.send_nowait(item)
        pair.send.close()
        await echo(pair.far)

        assert all(pair.receive.receive_nowait() is item for item in items)


async def test_eof_without_items_sends_nothing() -> None:
    async with Pair(room=1) as pair:
        pair.send.close()
        await echo(pair.far)

        with pytest.raises(WouldBlock):
            pair.receive.receive_nowait()


async def test_an_echo_runs_until_eof() -> None:
    async with Pair(room=1) as pair, create_task_group() as tasks:
        ended = False

        async def run() -> None:
            nonlocal ended
            await echo(pair.far)
            ended = True

        tasks.start_soon(run)
        await pair.send.send(b"x")
        await wait_all_tasks_blocked()
        assert not ended

        pair.send.close()
        await wait_all_tasks_blocked()
        assert ended


async def test_echo_leaves_the_stream_open() -> None:
    async with Pair(room=1) as pair:
        pair.send.close()
        await echo(pair.far)

        await pair.far.send(b"still open")
        assert await pair.receive.receive() == b"still open"
        # A closed stream would raise ClosedResourceError.
        with pytest.raises(EndOfStream):
            await pair.far.receive()


async def test_a_cancelled_echo_leaves_the_stream_open() -> None:
    async with Pair(room=1) as pair:
        with CancelScope() as scope:
            async with create_task_group() as tasks:
                tasks.start_soon(echo, pair.far)
                await wait_all_tasks_blocked()
                scope.cancel()

        await pair.far.send(b"still open")
        assert await pair.receive.receive() == b"still open"


async def test_echo_reads_no_more_while_the_peer_does_not_receive() -> None:
    async with Pair() as pair, create_task_group() as tasks:
        tasks.start_soon(echo, pair.far)
        await pair.send.send(b"one")
        await wait_all_tasks_blocked()
        with pytest.raises(WouldBlock):
            pair.send.send_nowait(b"two")

        assert await pair.receive.receive() == b"one"
        await pair.send.send(b"two")
        assert await pair.receive.receive() == b"two"
        pair.send.close()


async def test_a_peer_that_closes_before_its_echo_is_an_error() -> None:
    async with Pair(room=1) as pair:
        pair.send.send_nowait(b"x")
        pair.receive.close()

        with pytest.raises(BrokenResourceError):
            await echo(pair.far)
