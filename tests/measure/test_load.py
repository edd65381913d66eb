"""A load counts equal echoes, reports wrong ones, and leaves no descriptor open."""

from __future__ import annotations

import socket
import struct
import time
from typing import Any, Literal

import anyio
import pytest
from anyio import (
    BusyResourceError,
    ClosedResourceError,
    create_task_group,
    fail_after,
    move_on_after,
)
from anyio.abc import ByteStream, SocketAttribute

from anyecho.client.client import Client, connect_checked
from anyecho.client.options import ConnectOptions, LoadOptions
from anyecho.errors import ConnectError, EchoError, EchoMismatch, EchoStalled, EchoTruncated, UsageError
from anyecho.measure.load import Load, open_load
from anyecho.measure.load_run import LoadRun
from anyecho.net.poller import Fallback, Poller
from anyecho.net.sockets import SocketOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.client.liars import corrupting, listening, quitting
from tests.support.peers import SOON, until
from tests.support.process import descriptors

MIB = 1 << 20
#: Buffers so small that a MiB is never sent in one piece.
TINY = SocketOptions(sndbuf=8192, rcvbuf=8192)


def options(*, connections: int = 1, size: int = 8) -> LoadOptions:
    return LoadOptions(connections=connections, size=size)


@pytest.mark.parametrize(("connections", "size"), [(1, 1), (50, 64), (3, 100_000), (1, MIB)])
async def test_a_load_counts_echoes_bytes_and_latencies(connections: int, size: int, server: Server) -> None:
    async with open_load(server.addresses[0], options(connections=connections, size=size)) as load:
        result = await load.run(seconds=0.2)

    assert result.echoes == len(result.latencies) >= connections
    assert result.bytes == result.echoes * size
    assert result.seconds >= 0.2
    assert min(result.latencies) > 0
    assert sum(result.latencies) <= connections * result.seconds * 1e9
    await until(lambda: server.stats.bytes_received == server.stats.bytes_sent == result.bytes)


@pytest.mark.parametrize("engine", ["auto", "tasks"])
async def test_messages_larger_than_all_buffers_come_back(engine: Literal["auto", "tasks"]) -> None:
    small = ServeOptions(engine=engine, socket=TINY)
    async with open_server("tcp://127.0.0.1:0", options=small) as server:
        client = ConnectOptions(socket=TINY)
        load_options = LoadOptions(connections=2, size=4 * MIB, connect=client)
        with fail_after(20):
            async with open_load(server.addresses[0], load_options) as load:
                result = await load.run(seconds=0.001)

    assert result.echoes >= 2
    assert max(result.latencies) <= result.seconds * 1e9, "the time includes the last replies"


async def test_a_load_completes_on_a_server_that_reads_a_whole_message_before_echoing() -> None:
    """While the server stores a message, only a writable event can wake the sender, never echo."""

    async def store_and_forward(stream: ByteStream) -> None:
        while True:
            message = bytearray()
            while len(message) < 8 * MIB:
                message += await stream.receive(MIB)
            await stream.send(bytes(message))

    async with listening(store_and_forward) as address, open_load(address, options(size=8 * MIB)) as load:
        for _ in range(2):
            assert (await load.run(seconds=0.01)).echoes >= 1


async def test_results_of_two_runs_are_separate(server: Server) -> None:
    async with open_load(server.addresses[0], options(connections=5)) as load:
        first = await load.run(seconds=0.2)
        echoes = first.echoes
        start = time.monotonic()
        second = await load.run(seconds=0.01)
        assert second.seconds <= time.monotonic() - start

    assert first.echoes == len(first.latencies) == echoes
    assert second.echoes == len(second.latencies)
    await until(lambda: server.stats.bytes_sent == first.bytes + second.bytes)


@pytest.mark.parametrize("wrong", [0, 5, 63, 200_000, MIB - 1])
async def test_the_first_wrong_byte_is_named(wrong: int) -> None:
    async with (
        listening(corrupting(wrong)) as address,
        open_load(address, options(size=64 if wrong < 64 else MIB)) as load,
    ):
        with pytest.raises(
            EchoMismatch, match=rf"^connection 0: byte {wrong} is wrong: sent 0x..?, got 0x..$"
        ) as caught:
            await load.run(seconds=5)
        assert caught.value.offset == wrong


async def test_the_echo_of_another_connection_is_a_mismatch() -> None:
    first: list[bytes] = []

    async def echo_first(stream: ByteStream) -> None:
        async for chunk in stream:
            first.append(chunk)
            await stream.send(first[0])

    async with listening(echo_first) as address, open_load(address, options(connections=2)) as load:
        with pytest.raises(EchoMismatch, match=r"^connection [01]: byte 0 is wrong"):
            await load.run(seconds=5)


async def test_a_wrong_reply_is_found_after_many_right_ones() -> None:
    async def corrupt_last(stream: ByteStream) -> None:
        for number in range(1000):
            chunk = await stream.receive()
            await stream.send(chunk if number < 999 else chunk[::-1])

    async with listening(corrupt_last) as address, open_load(address, options(size=64)) as load:
        with pytest.raises(EchoMismatch, match=r"^connection 0: byte 0 is wrong"):
            await load.run(seconds=20)


async def test_surplus_bytes_are_a_mismatch() -> None:
    async def add_surplus(stream: ByteStream) -> None:
        await stream.send(await stream.receive() + b"!")
        await stream.receive()

    async with listening(add_surplus) as address, open_load(address, options()) as load:
        with pytest.raises(EchoMismatch, match=r"^connection 0: byte 8 was never sent: got 0x21$") as caught:
            await load.run(seconds=5)
        assert caught.value.offset == 8


async def test_a_repeated_reply_is_a_mismatch() -> None:
    async def repeat_one(stream: ByteStream) -> None:
        chunk = b""
        for number in range(1000):
            before, chunk = chunk, await stream.receive()
            await stream.send(before if number == 500 else chunk)

    async with listening(repeat_one) as address, open_load(address, options()) as load:
        with pytest.raises(EchoMismatch, match=r"^connection 0: byte 0 is wrong"):
            await load.run(seconds=20)


@pytest.mark.parametrize("surplus", [b"!", b"the last reply"])
async def test_surplus_bytes_between_two_runs_fail_the_next(surplus: bytes) -> None:
    run_is_over, is_sent = anyio.Event(), anyio.Event()

    async def add_surplus(stream: ByteStream) -> None:
        last = b""
        async with create_task_group() as tasks:

            async def repeat() -> None:
                await run_is_over.wait()
                await stream.send(surplus if surplus == b"!" else last)
                is_sent.set()

            tasks.start_soon(repeat)
            async for last in stream:
                await stream.send(last)

    async with listening(add_surplus) as address, open_load(address, options()) as load:
        await load.run(seconds=0.01)
        run_is_over.set()
        await is_sent.wait()
        with fail_after(3), pytest.raises(EchoMismatch, match=r"^connection 0: byte \d (is wrong|was never sent)"):
            await load.run(seconds=5)


async def test_an_echo_of_bytes_not_yet_sent_is_a_mismatch() -> None:
    """Two messages alternate, so a server that has received both can predict the next."""

    async def echo_ahead(stream: ByteStream) -> None:
        received = bytearray()
        while len(received) < 2 * MIB:
            chunk = await stream.receive()
            received += chunk
            await stream.send(chunk)
        await stream.receive(1)
        await stream.send(bytes(received))
        # A close with bytes unread is a reset, which discards the echo that the load has not read.
        await anyio.sleep_forever()

    # Small buffers, so that the third message is never sent whole. Where both windows close on megabytes, the
    # kernel's persist timer decides when they open, in up to 25 s.
    connect = ConnectOptions(socket=SocketOptions(sndbuf=65536))
    load_options = LoadOptions(connections=1, size=MIB, connect=connect)
    async with listening(echo_ahead, rcvbuf=65536) as address, open_load(address, load_options) as load:
        with pytest.raises(EchoMismatch, match=r"^connection 0: byte \d+ was never sent"):
            await load.run(seconds=10)


async def test_eof_between_two_runs_fails_the_next_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """epoll reports EOF for as long as the descriptor is registered."""
    failures: list[EchoError] = []

    def fail(run: LoadRun, failure: EchoError) -> None:
        failures.append(failure)
        real_fail(run, failure)

    async def quit_early(stream: ByteStream) -> None:
        with move_on_after(0.1):
            async for chunk in stream:
                await stream.send(chunk)
        closing.set()

    real_fail = LoadRun.fail
    monkeypatch.setattr(LoadRun, "fail", fail)
    closing = anyio.Event()
    async with listening(quit_early) as address, open_load(address, options()) as load:
        await load.run(seconds=0.01)
        await closing.wait()
        await anyio.sleep(0.05)
        with (
            fail_after(SOON),
            pytest.raises(EchoTruncated, match=r"^connection 0: the "),
        ):
            await load.run(seconds=5)

    assert len(failures) == 1


@pytest.mark.parametrize("kept", [0, 3])
async def test_an_early_end_names_the_first_missing_byte(kept: int) -> None:
    async with listening(quitting(kept)) as address, open_load(address, options()) as load:
        with pytest.raises(
            EchoTruncated, match=rf"^connection 0: the server closed the connection: byte {kept} is missing$"
        ) as caught:
            await load.run(seconds=5)
        assert caught.value.offset == kept


async def test_a_reset_is_a_truncation_error_that_names_the_reset() -> None:
    async def reset(stream: ByteStream) -> None:
        await stream.receive()
        reset_on_close = struct.pack("ii", 1, 0)
        stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_on_close)

    async with listening(reset) as address, open_load(address, options(connections=3)) as load:
        with pytest.raises(EchoTruncated, match=r"^connection \d: .* broke \(Connection reset by peer\): byte"):
            await load.run(seconds=5)


async def test_a_silent_server_is_a_stall_after_the_timeout() -> None:
    async def stop_at_last(stream: ByteStream) -> None:
        with move_on_after(0.1):
            async for chunk in stream:
                await stream.send(chunk)
        await anyio.sleep_forever()

    load_options = LoadOptions(connections=2, size=8, connect=ConnectOptions(timeout=0.2))
    async with listening(stop_at_last) as address, open_load(address, load_options) as load:
        with (
            fail_after(SOON),
            pytest.raises(
                EchoStalled,
                match=r"^connection [01]: byte 0 is missing 200ms after the last message could be sent$",
            ),
        ):
            await load.run(seconds=0.2)


async def test_a_refused_connection_is_a_connect_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    before = descriptors()
    with pytest.raises(ConnectError, match=rf"^cannot connect to tcp://127.0.0.1:{port}: Connection refused$"):
        async with open_load(f"127.0.0.1:{port}", options(connections=20)):
            pass
    assert descriptors() == before


async def test_connections_are_closed_if_another_cannot_be_made(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect_a_few(*args: Any, **kwargs: Any) -> Client:
        if server.stats.accepted > 5:
            raise ConnectError("enough")
        return await connect_checked(*args, **kwargs)

    monkeypatch.setattr("anyecho.measure.load.connect_checked", connect_a_few)
    with pytest.raises(ConnectError, match=r"^enough$"):
        async with open_load(server.addresses[0], options(connections=1000)):
            pass
    await until(lambda: server.stats.active == 0)


async def test_a_cancelled_run_closes_everything(server: Server) -> None:
    async with open_load(server.addresses[0], options(connections=10, size=MIB)) as load:
        with move_on_after(0.1) as scope:
            await load.run(seconds=20)
        assert scope.cancelled_caught
        await until(lambda: server.stats.active == 0)
        with pytest.raises(ClosedResourceError):
            await load.run(seconds=1)


async def test_a_failed_run_closes_everything() -> None:
    ended = 0

    async def swallow_one(stream: ByteStream) -> None:
        nonlocal ended
        try:
            async for chunk in stream:
                await stream.send(chunk[1:])
        finally:
            ended += 1

    async with listening(swallow_one) as address, open_load(address, options(connections=4)) as load:
        with pytest.raises(EchoMismatch):
            await load.run(seconds=20)
        await until(lambda: ended == 4)
        with pytest.raises(ClosedResourceError):
            await load.run(seconds=1)


@pytest.mark.parametrize("size", [8, MIB])
async def test_no_descriptor_is_left_open(size: int, server: Server) -> None:
    counts: list[int] = []
    for _ in range(2):  # the server opens a descriptor with its first connection
        async with open_load(server.addresses[0], options(connections=20, size=size)) as load:
            await load.run(seconds=0.05)
            assert descriptors() >= 40
        await until(lambda: server.stats.active == 0)
        counts.append(descriptors())

    assert counts[0] == counts[1]


async def test_concurrent_loads_share_one_poller(server: Server, poller: Poller | Fallback) -> None:
    results: list[int] = []

    async def run(load: Load) -> None:
        results.append((await load.run(seconds=0.1)).echoes)

    large, small = options(size=MIB), options(connections=10)
    async with (
        open_load(server.addresses[0], large, poller=poller) as one,
        open_load(server.addresses[0], small, poller=poller) as other,
        create_task_group() as tasks,
    ):
        tasks.start_soon(run, one)
        tasks.start_soon(run, other)

    assert min(results) >= 1


def test_the_first_failure_of_a_run_is_kept() -> None:
    failures = [EchoError("first", offset=0), EchoError("second", offset=0)]
    run = LoadRun()
    for failure in failures:
        run.fail(failure)
    assert run.failure is failures[0]


async def test_a_concurrent_second_run_is_refused_and_the_first_completes(server: Server) -> None:
    async with open_load(server.addresses[0], options()) as load, create_task_group() as tasks:

        async def refused() -> None:
            with pytest.raises(BusyResourceError):
                await load.run(seconds=1)

        tasks.start_soon(refused)
        assert (await load.run(seconds=0.1)).echoes >= 1


async def test_a_load_of_datagrams_is_refused() -> None:
    with pytest.raises(UsageError, match=r"needs a stream: udp://127\.0\.0\.1:7000 is none"):
        async with open_load("udp://127.0.0.1:7000"):
            pass


@pytest.mark.parametrize("wrong", [{"connections": 0}, {"size": 0}, {"connections": -1}])
async def test_a_load_without_connections_or_bytes_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"must be 1 or more, not"):
        options(**wrong)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
async def test_a_run_with_invalid_seconds_is_refused(seconds: float, server: Server) -> None:
    async with open_load(server.addresses[0], options()) as load:
        with pytest.raises(UsageError, match=r"seconds must be more than 0, not"):
            await load.run(seconds=seconds)
        assert (await load.run(seconds=0.01)).echoes >= 1
