"""Checks that every byte stream of anyecho must pass, on every carrier.

Each check takes two connected streams and leaves them in any state; the caller closes them. `CHECKS` lists all
checks, to parametrize a test with.
"""

from __future__ import annotations

__all__ = ("CHECKS", "MUCH", "Check", "drain", "expect_error", "fill", "run_check")

import random
from array import array
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from anyio import (
    BrokenResourceError,
    BusyResourceError,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    create_task_group,
    fail_after,
    move_on_after,
)
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

from tests.support.tasks import wait_all_tasks_blocked

Check = Callable[[ByteStream, ByteStream], Awaitable[None]]

#: More bytes than the kernel's buffers of a connection hold.
MUCH = bytes(32 << 20)


async def drain(stream: ByteStream) -> bytes:
    """Return all bytes until EOF."""
    return b"".join([chunk async for chunk in stream])


async def fill(stream: ByteStream) -> None:
    """Send until all buffers on the way are full, then cancel the send."""
    async with create_task_group() as tasks:
        tasks.start_soon(stream.send, MUCH)
        await wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


async def expect_error(call: Callable[[], Awaitable[Any]], error: type[Exception]) -> None:
    """Await `call()`, which has to raise `error`."""
    with pytest.raises(error):
        await call()


async def bytes_arrive_in_order(left: ByteStream, right: ByteStream) -> None:
    payload = random.Random(7).randbytes(1 << 20)
    async with create_task_group() as tasks:
        tasks.start_soon(left.send, payload)
        received = bytearray()
        while len(received) < len(payload):
            received += await right.receive()

    assert received == payload


async def a_view_of_ints_is_sent_as_its_bytes(left: ByteStream, right: ByteStream) -> None:
    ints = array("I", random.Random(7).randbytes(12 << 20))  # more than one send(2) takes

    async def send() -> None:
        view: Any = memoryview(ints)
        await left.send(view)
        await left.send_eof()

    async with create_task_group() as tasks:
        tasks.start_soon(send)
        assert await drain(right) == ints.tobytes()


async def both_directions_at_once_do_not_deadlock(left: ByteStream, right: ByteStream) -> None:
    async def talk(stream: ByteStream) -> None:
        await stream.send(MUCH)
        await stream.send_eof()

    async def listen(stream: ByteStream) -> None:
        assert len(await drain(stream)) == len(MUCH)

    async with create_task_group() as tasks:
        for stream in (left, right):
            tasks.start_soon(talk, stream)
            tasks.start_soon(listen, stream)


async def no_more_than_max_bytes_are_received(left: ByteStream, right: ByteStream) -> None:
    await left.send(b"abcdef")
    assert await right.receive(2) == b"ab"
    assert await right.receive(1) == b"c"
    assert await right.receive() == b"def"


async def a_receive_of_no_bytes_is_refused(left: ByteStream, right: ByteStream) -> None:
    for max_bytes in (0, -1):
        with pytest.raises(ValueError, match="max_bytes"):
            await right.receive(max_bytes)


async def eof_is_raised_by_each_later_receive(left: ByteStream, right: ByteStream) -> None:
    await left.send(b"last")
    await left.send_eof()
    assert await right.receive() == b"last"
    for _ in range(3):
        with pytest.raises(EndOfStream):
            await right.receive()


async def a_half_closed_stream_still_receives(left: ByteStream, right: ByteStream) -> None:
    await left.send_eof()
    await right.send(b"late")
    assert await left.receive() == b"late"


async def a_second_half_close_has_no_effect(left: ByteStream, right: ByteStream) -> None:
    await left.send_eof()
    await left.send_eof()
    assert await drain(right) == b""


async def sending_after_a_half_close_is_refused(left: ByteStream, right: ByteStream) -> None:
    await left.send_eof()
    for item in (b"more", b""):
        with pytest.raises(ClosedResourceError):
            await left.send(item)


async def a_closed_stream_refuses_everything(left: ByteStream, right: ByteStream) -> None:
    await left.aclose()
    await left.aclose()
    for call in (left.receive, left.send_eof, lambda: left.send(b"x"), lambda: left.send(b"")):
        with pytest.raises(ClosedResourceError):
            await call()


async def a_half_close_after_the_close_is_refused(left: ByteStream, right: ByteStream) -> None:
    await left.send_eof()
    await left.aclose()
    with pytest.raises(ClosedResourceError):
        await left.send_eof()


async def closing_in_a_cancelled_scope_still_closes(left: ByteStream, right: ByteStream) -> None:
    with CancelScope() as scope:
        scope.cancel()
        await left.aclose()

    assert await drain(right) == b""
    with pytest.raises(ClosedResourceError):
        await left.receive()


async def closing_wakes_a_waiting_receive(left: ByteStream, right: ByteStream) -> None:
    async with create_task_group() as tasks:
        tasks.start_soon(expect_error, left.receive, ClosedResourceError)
        await wait_all_tasks_blocked()
        await left.aclose()


async def closing_wakes_a_waiting_send(left: ByteStream, right: ByteStream) -> None:
    async with create_task_group() as tasks:
        tasks.start_soon(expect_error, lambda: left.send(MUCH), ClosedResourceError)
        await wait_all_tasks_blocked()
        await left.aclose()


async def closing_while_calls_yield_is_reported_as_closed(left: ByteStream, right: ByteStream) -> None:
    """They find the descriptor closed (EBADF) after their checkpoint, which is no failure of the connection."""
    async with create_task_group() as tasks:
        tasks.start_soon(expect_error, left.receive, ClosedResourceError)
        tasks.start_soon(expect_error, lambda: left.send(b"x"), ClosedResourceError)
        tasks.start_soon(left.aclose)


async def a_second_reader_is_refused(left: ByteStream, right: ByteStream) -> None:
    async with create_task_group() as tasks:
        tasks.start_soon(left.receive)
        await wait_all_tasks_blocked()
        with pytest.raises(BusyResourceError):
            await left.receive()
        await right.send(b"for the first")


async def a_second_sender_is_refused(left: ByteStream, right: ByteStream) -> None:
    async with create_task_group() as tasks:
        tasks.start_soon(left.send, MUCH)
        await wait_all_tasks_blocked()
        with pytest.raises(BusyResourceError):
            await left.send(b"x")
        with pytest.raises(BusyResourceError):
            await left.send_eof()
        tasks.cancel_scope.cancel()


async def a_cancelled_call_lets_the_next_call_run(left: ByteStream, right: ByteStream) -> None:
    with move_on_after(0.01):
        await left.receive()
    with move_on_after(0.01):
        await left.send(MUCH)

    await right.send(b"again")
    assert await left.receive() == b"again"
    async with create_task_group() as tasks:
        tasks.start_soon(drain, right)
        await left.send(b"again")
        await left.send_eof()


async def a_cancelled_receive_loses_no_bytes(left: ByteStream, right: ByteStream) -> None:
    received = bytearray()
    payload = random.Random(1).randbytes(3000)

    async def feed() -> None:
        for start in range(0, len(payload), 10):
            await left.send(payload[start : start + 10])
            await checkpoint()

    async with create_task_group() as tasks:
        tasks.start_soon(feed)
        while len(received) < len(payload):
            with CancelScope() as scope:
                tasks.start_soon(_cancel_soon, scope)
                received += await right.receive(7)

    assert received == payload


async def _cancel_soon(scope: CancelScope) -> None:
    await checkpoint()
    scope.cancel()


async def a_call_in_a_cancelled_scope_does_nothing(left: ByteStream, right: ByteStream) -> None:
    await right.send(b"kept")
    with CancelScope() as scope:
        scope.cancel()
        await left.send(b"never sent")
    with CancelScope() as scope:
        scope.cancel()
        await left.receive()

    await left.send(b"sent")
    assert await right.receive() == b"sent"
    assert await left.receive() == b"kept"


async def sending_nothing_sends_nothing(left: ByteStream, right: ByteStream) -> None:
    await left.send(b"")
    await left.send(b"x")
    assert await right.receive() == b"x"


async def sends_to_a_closed_peer_break_the_stream(left: ByteStream, right: ByteStream) -> None:
    await right.aclose()
    with pytest.raises(EndOfStream):
        await left.receive()
    # The first send may succeed and cause the reset.
    with pytest.raises(BrokenResourceError):
        for _ in range(100):
            await left.send(bytes(1000))
    for _ in range(2):
        with pytest.raises(BrokenResourceError):
            await left.send(b"x")
    with pytest.raises(BrokenResourceError):
        await left.receive()


async def a_receiver_that_closes_breaks_a_waiting_send(left: ByteStream, right: ByteStream) -> None:
    async with create_task_group() as tasks:
        tasks.start_soon(expect_error, lambda: left.send(MUCH), BrokenResourceError)
        await wait_all_tasks_blocked()
        await right.aclose()


CHECKS: tuple[Check, ...] = (
    bytes_arrive_in_order,
    a_view_of_ints_is_sent_as_its_bytes,
    both_directions_at_once_do_not_deadlock,
    no_more_than_max_bytes_are_received,
    a_receive_of_no_bytes_is_refused,
    eof_is_raised_by_each_later_receive,
    a_half_closed_stream_still_receives,
    a_second_half_close_has_no_effect,
    sending_after_a_half_close_is_refused,
    a_closed_stream_refuses_everything,
    a_half_close_after_the_close_is_refused,
    closing_in_a_cancelled_scope_still_closes,
    closing_wakes_a_waiting_receive,
    closing_wakes_a_waiting_send,
    closing_while_calls_yield_is_reported_as_closed,
    a_second_reader_is_refused,
    a_second_sender_is_refused,
    a_cancelled_call_lets_the_next_call_run,
    a_cancelled_receive_loses_no_bytes,
    a_call_in_a_cancelled_scope_does_nothing,
    sending_nothing_sends_nothing,
    sends_to_a_closed_peer_break_the_stream,
    a_receiver_that_closes_breaks_a_waiting_send,
)


async def run_check(check: Check, left: ByteStream, right: ByteStream) -> None:
    """Run `check` within a time limit, and close both streams."""
    with fail_after(20):
        try:
            await check(left, right)
        finally:
            with CancelScope(shield=True):
                await left.aclose()
                await right.aclose()
