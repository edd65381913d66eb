"""An exchange verifies its echo, or names the first wrong or missing byte."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import chain, repeat

import anyio
import pytest
from anyio import (
    BrokenResourceError,
    ClosedResourceError,
    EndOfStream,
    create_task_group,
    fail_after,
    move_on_after,
)
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

from anyecho.client.client import Client
from anyecho.client.options import ConnectOptions
from anyecho.client.source import Source
from anyecho.echo import echo
from anyecho.errors import EchoMismatch, EchoStalled, EchoTruncated
from anyecho.net.poller import Fallback, Poller
from anyecho.streams import Transcript
from tests.client.liars import Behaviour, corrupting, quitting
from tests.net.pairs import raw_pair, reset, stream_over, stream_pair
from tests.support.peers import SOON, until
from tests.support.tasks import wait_all_tasks_blocked


@asynccontextmanager
async def client_of(
    behaviour: Behaviour, poller: Poller | Fallback, *, timeout: float = 10.0, deadline: float = math.inf
) -> AsyncIterator[Client]:
    """Yield a client. Its peer runs `behaviour` and then closes."""
    ours, theirs = stream_pair("tcp", poller)

    async def run_peer() -> None:
        with suppress(BrokenResourceError, EndOfStream):  # the client may close first
            async with theirs:
                await behaviour(theirs)

    with fail_after(20):
        async with create_task_group() as tasks:
            tasks.start_soon(run_peer)
            async with Client(ours, ConnectOptions(timeout=timeout, deadline=deadline)) as client:
                yield client
            tasks.cancel_scope.cancel()


async def send_all(client: Client, source: Source) -> bytes:
    async with client.send(source) as back:
        return b"".join([chunk async for chunk in back])


@pytest.mark.parametrize("size", [0, 1, 65536, 20 << 20])
async def test_an_exchange_returns_the_payload(size: int, poller: Poller | Fallback) -> None:
    payload = os.urandom(size)
    async with client_of(echo, poller) as client:
        assert await client.exchange(payload) == payload
        assert await client.exchange(payload[:100]) == payload[:100]


async def test_a_payload_is_sent_whole_before_any_echo_returns(poller: Poller | Fallback) -> None:
    """The window is for sources, which may be endless."""
    size = 9 << 20

    async def store_and_forward(stream: ByteStream) -> None:
        stored = bytearray()
        while len(stored) < size:
            stored += await stream.receive()
        await stream.send(bytes(stored))

    async with client_of(store_and_forward, poller) as client:
        assert await client.exchange(bytes(size)) == bytes(size)


async def test_each_item_is_one_write(poller: Poller | Fallback) -> None:
    written: list[bytes] = []

    async def listen(stream: ByteStream) -> None:
        async for chunk in stream:
            written.append(chunk)
            await stream.send(chunk)

    async def one_by_one() -> AsyncIterator[bytes]:
        for number, word in enumerate((b"one", b"two", b"three")):
            await until(partial(lambda count: len(written) == count, number))
            yield word

    async with client_of(listen, poller) as client:
        assert await send_all(client, one_by_one()) == b"onetwothree"

    assert written == [b"one", b"two", b"three"]


@pytest.mark.parametrize("wrong", [0, 1, 70_000, 199_999])
async def test_the_first_wrong_byte_is_named(wrong: int, poller: Poller | Fallback) -> None:
    async with client_of(corrupting(wrong), poller) as client:
        with pytest.raises(EchoMismatch, match=rf"^byte {wrong} is wrong: sent 0x00, got 0xff$") as caught:
            await client.exchange(bytes(200_000))
        assert caught.value.offset == wrong


async def test_correct_bytes_are_returned_before_a_mismatch(poller: Poller | Fallback) -> None:
    async def corrupt(stream: ByteStream) -> None:
        await stream.receive()
        await stream.send(b"abcXef")
        await stream.receive()

    async with client_of(corrupt, poller) as client:
        got = b""
        with pytest.raises(EchoMismatch, match="byte 3 is wrong: sent 0x64, got 0x58"):
            async with client.send([b"abcdef"]) as back:
                async for chunk in back:
                    got += chunk
        assert got == b"abc"


async def test_surplus_bytes_are_a_mismatch(poller: Poller | Fallback) -> None:
    async def add_surplus(stream: ByteStream) -> None:
        await stream.send(await stream.receive() + b"!")
        await stream.receive()

    async with client_of(add_surplus, poller) as client:
        with pytest.raises(EchoMismatch, match="byte 5 was never sent: got 0x21"):
            await send_all(client, [b"hello"])


async def test_late_surplus_bytes_fail_the_next_exchange(poller: Poller | Fallback) -> None:
    done = anyio.Event()

    async def add_surplus(stream: ByteStream) -> None:
        await stream.send(await stream.receive())
        await done.wait()
        await stream.send(b"!")
        await anyio.sleep_forever()

    async with client_of(add_surplus, poller) as client:
        await client.exchange(b"hello")
        done.set()
        with pytest.raises(EchoMismatch, match="byte 0 is wrong: sent 0x68, got 0x21"):
            await client.exchange(b"hello")


@pytest.mark.parametrize("kept", [0, 3])
async def test_an_early_eof_names_the_first_missing_byte(kept: int, poller: Poller | Fallback) -> None:
    async with client_of(quitting(kept), poller) as client:
        with pytest.raises(EchoTruncated, match=f"byte {kept} is missing, 5 were sent") as caught:
            await client.exchange(b"hello")
        assert caught.value.offset == kept


async def test_a_server_that_closes_between_two_items_ends_the_exchange(poller: Poller | Fallback) -> None:
    """Like `send`, waiting for input on a terminal."""

    async def quit_early(stream: ByteStream) -> None:
        await stream.send(await stream.receive())

    async def a_word_then_silence() -> AsyncIterator[bytes]:
        yield b"word"
        await anyio.sleep_forever()

    async with client_of(quit_early, poller) as client:
        with pytest.raises(EchoTruncated, match=r"closed .*: all 4 bytes are back, but the input has not ended"):
            await send_all(client, a_word_then_silence())


class Scripted(ByteStream):
    """Receives the chunks of `script` and then EOF. Sends are slow, and fail if `broken`."""

    def __init__(self, *script: bytes, broken: bool = False) -> None:
        self.script = [*script]
        self.broken = broken
        self.sent = anyio.Event()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await self.sent.wait()
        if self.script:
            return self.script.pop(0)
        raise EndOfStream

    async def send(self, item: bytes) -> None:
        self.sent.set()
        for _ in range(20):  # the peer is faster than this task
            await checkpoint()
        if self.broken:
            raise BrokenResourceError

    async def send_eof(self) -> None:
        await checkpoint()

    async def aclose(self) -> None:
        await checkpoint()


@pytest.mark.parametrize("broken", [False, True])
async def test_a_truncation_after_the_last_item_mentions_no_more_to_send(broken: bool) -> None:
    async with Client(Scripted(b"he", broken=broken)) as client:
        with pytest.raises(EchoTruncated, match=r"connection: byte 2 is missing, 5 were sent$"):
            await client.exchange(b"hello")


async def test_a_truncation_within_an_item_says_that_more_was_to_be_sent() -> None:
    async with Client(Scripted(broken=True)) as client:
        with pytest.raises(EchoTruncated, match=r"byte 0 is missing, 16384 were sent, and more was to be sent$"):
            await client.exchange(bytes(16385))


async def test_an_exchange_is_complete_if_the_peer_echoes_all_and_closes_first() -> None:
    """Echo and EOF arrive before the sender's task runs again."""
    async with Client(Scripted(b"hello")) as client:
        assert await send_all(client, [b"hello"]) == b"hello"

    async def last() -> AsyncIterator[bytes]:
        yield b"hello"

    async with Client(Scripted(b"hello")) as client:
        assert await send_all(client, last()) == b"hello"


async def test_a_close_before_the_last_item_is_a_truncation() -> None:
    async with Client(Scripted(b"one")) as client:
        with pytest.raises(EchoTruncated, match="closed the connection: byte 3 is missing, 6 were sent"):
            await send_all(client, [b"one", b"two"])


async def test_a_close_during_a_source_of_empty_items_is_a_truncation() -> None:
    async with Client(Scripted(b"one")) as client:
        with pytest.raises(EchoTruncated, match="all 3 bytes are back, but the input has not ended"):
            await send_all(client, chain([b"one"], repeat(b"")))


async def test_a_reset_is_a_truncation_error_that_names_the_reset(poller: Poller | Fallback) -> None:
    theirs, ours = raw_pair("tcp")
    async with Client(stream_over(ours, poller)) as client, create_task_group() as tasks:

        async def refused() -> None:
            with pytest.raises(EchoTruncated, match=r"the connection broke \(.*reset by peer\): byte 0"):
                await client.exchange(b"hello")

        tasks.start_soon(refused)
        await wait_all_tasks_blocked()
        reset(theirs)


async def test_echo_from_before_a_failed_send_is_returned(poller: Poller | Fallback) -> None:
    """The peer has echoed and closed with bytes unread: sending fails, and its echo can still be read."""

    async def partly(stream: ByteStream) -> None:
        await stream.send(await stream.receive(3))

    async with client_of(partly, poller) as client:
        got = b""
        with pytest.raises(EchoTruncated):
            async with client.send([bytes(100)] * 100_000) as back:
                async for chunk in back:
                    got += chunk
        assert got in (bytes(3), b"")  # the reset may have discarded the echo in the kernel


async def test_a_failed_send_takes_no_more_of_the_source() -> None:
    taken: list[bytes] = []

    def recorded() -> Iterator[bytes]:
        for item in (b"one", b"two"):
            taken.append(item)
            yield item

    async with Client(Scripted(broken=True)) as client:
        with pytest.raises(EchoTruncated):
            async with client.send(recorded()) as back:
                await wait_all_tasks_blocked()
                assert taken == [b"one"]
                await anext(back)


async def test_a_silent_server_is_a_stall_after_the_timeout(poller: Poller | Fallback) -> None:
    async def silent(stream: ByteStream) -> None:
        await anyio.sleep_forever()

    async with client_of(silent, poller, timeout=0.2) as client:
        start = time.monotonic()
        with (
            fail_after(SOON),
            pytest.raises(EchoStalled, match="no byte has moved for 200ms: byte 0 is missing, 5 were sent"),
        ):
            await client.exchange(b"hello")
        assert time.monotonic() - start >= 0.19


async def test_a_server_that_does_not_close_stalls_the_exchange(poller: Poller | Fallback) -> None:
    async def never_close(stream: ByteStream) -> None:
        await echo(stream)
        await anyio.sleep_forever()

    async with client_of(never_close, poller, timeout=0.2) as client:
        with pytest.raises(EchoStalled):
            await send_all(client, [b"hello"])


async def test_slow_progress_is_progress(poller: Poller | Fallback) -> None:
    async def slow(stream: ByteStream) -> None:
        for byte in await stream.receive():
            await anyio.sleep(0.2)
            await stream.send(bytes([byte]))
        await stream.receive()

    async with client_of(slow, poller, timeout=0.8) as client:
        assert await client.exchange(b"five!") == b"five!"


async def test_the_deadline_is_for_the_whole_exchange(poller: Poller | Fallback) -> None:
    async def slow(stream: ByteStream) -> None:
        for byte in await stream.receive():
            await anyio.sleep(0.1)
            await stream.send(bytes([byte]))

    async with client_of(slow, poller, deadline=0.25) as client:
        with pytest.raises(EchoStalled, match="the deadline is over"):
            await client.exchange(bytes(100))


async def test_a_slow_source_is_not_a_stall(poller: Poller | Fallback) -> None:
    async def slow_source() -> AsyncIterator[bytes]:
        for _ in range(3):
            await anyio.sleep(0.4)
            yield b"x"

    async with client_of(echo, poller, timeout=0.3) as client:
        assert await send_all(client, slow_source()) == b"xxx"


async def test_a_slow_reader_of_the_echo_is_not_a_stall(poller: Poller | Fallback) -> None:
    async with client_of(echo, poller, timeout=0.1) as client, client.send([bytes(1000)]) as back:
        await anyio.sleep(0.3)
        assert b"".join([chunk async for chunk in back]) == bytes(1000)


async def test_a_slow_reader_of_the_echo_limits_the_buffered_bytes(poller: Poller | Fallback) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 65536
            yield bytes(65536)

    async with client_of(echo, poller) as client:
        with move_on_after(1):
            async with client.send(endless()) as back:
                await anext(back)
                await anyio.sleep_forever()

    assert taken <= (8 << 20) + 4 * 65536


async def test_an_exception_of_the_source_is_raised_unchanged(poller: Poller | Fallback) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    async with client_of(echo, poller) as client:
        with pytest.raises(ZeroDivisionError):
            await send_all(client, broken())


async def test_an_exception_of_the_reader_is_raised_unchanged(poller: Poller | Fallback) -> None:
    async with client_of(echo, poller) as client:
        with pytest.raises(ZeroDivisionError):
            async with client.send([b"x"]) as back:
                async for _ in back:
                    raise ZeroDivisionError


async def test_a_source_of_empty_items_does_not_starve_other_tasks(poller: Poller | Fallback) -> None:
    def nothing() -> Iterator[bytes]:
        while True:
            yield b""

    async with client_of(echo, poller, deadline=0.2) as client:
        with pytest.raises(EchoStalled, match="the deadline is over"):
            await send_all(client, nothing())


async def test_a_broken_resource_error_of_the_source_is_raised_unchanged(poller: Poller | Fallback) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise BrokenResourceError("the source's")

    async with client_of(echo, poller) as client:
        with pytest.raises(BrokenResourceError, match="the source's"):
            await send_all(client, broken())


async def test_closing_the_client_ends_its_exchange_with_closed_resource_error(poller: Poller | Fallback) -> None:
    async def silent(stream: ByteStream) -> None:
        await anyio.sleep_forever()

    async with client_of(silent, poller) as client, create_task_group() as tasks:

        async def refused() -> None:
            with pytest.raises(ClosedResourceError):
                await client.exchange(bytes(32 << 20))

        tasks.start_soon(refused)
        await wait_all_tasks_blocked()
        await client.aclose()


async def test_an_exception_after_the_half_close_leaves_the_client_unusable(poller: Poller | Fallback) -> None:
    async with client_of(echo, poller) as client:
        with pytest.raises(ZeroDivisionError):
            async with client.send([b"x"]) as back:
                assert [chunk async for chunk in back] == [b"x"]
                raise ZeroDivisionError
        with pytest.raises(BrokenResourceError, match="connect anew"):
            await client.exchange(b"y")


async def test_an_exception_group_raised_in_the_block_is_not_unwrapped(poller: Poller | Fallback) -> None:
    async with client_of(echo, poller) as client:
        with pytest.raises(ExceptionGroup, match="mine"):
            async with client.send([b"x"]):
                raise ExceptionGroup("mine", [ZeroDivisionError()])


class SlowStream(Transcript):
    """Sends 1 MiB a second, like to a slow reader."""

    async def send(self, item: bytes) -> None:
        await anyio.sleep(len(item) / (1 << 20))
        await super().send(item)


async def test_slow_sending_is_progress_also_while_no_echo_returns(poller: Poller | Fallback) -> None:
    """The peer echoes at the end: bytes move all the time, though none returns."""

    async def store_and_forward(stream: ByteStream) -> None:
        await stream.send(b"".join([chunk async for chunk in stream]))

    async with client_of(store_and_forward, poller, timeout=0.2) as client:
        assert isinstance(client.stream, ByteStream)
        client.stream = SlowStream(client.stream, lambda what, chunk: None)
        assert len(await send_all(client, [bytes(1 << 19)])) == 1 << 19


class StuckStream(Transcript):
    """Never sends, though its socket is writable."""

    async def send(self, item: bytes) -> None:
        await anyio.sleep_forever()


async def test_a_send_that_takes_no_byte_is_a_stall(poller: Poller | Fallback) -> None:
    async with client_of(echo, poller, timeout=0.2) as client:
        assert isinstance(client.stream, ByteStream)
        client.stream = StuckStream(client.stream, lambda what, chunk: None)
        with fail_after(SOON), pytest.raises(EchoStalled, match="no byte has moved for 200ms"):
            await client.exchange(b"hello")


async def test_a_stall_with_a_full_window_says_so(poller: Poller | Fallback) -> None:
    async def read_only(stream: ByteStream) -> None:
        async for _ in stream:
            pass

    async with client_of(read_only, poller, timeout=0.3) as client:
        with pytest.raises(EchoStalled, match="and more was to be sent once some of these 8MiB are back"):
            await send_all(client, [bytes(9 << 20)])


async def test_closing_a_client_twice_is_allowed_and_later_calls_fail(poller: Poller | Fallback) -> None:
    async with client_of(echo, poller) as client:
        await client.aclose()
        await client.aclose()
        with pytest.raises(ClosedResourceError):
            await client.exchange(b"x")
