"""A run on real sockets, on each backend, against servers that are slow, wrong, silent, or drop connections."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from time import perf_counter_ns
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream

from anyecho.client.client import Client, connect_checked
from anyecho.errors import ConnectError
from anyecho.measure import bench, opening
from anyecho.measure.checks import failures
from anyecho.measure.control import BenchControl
from anyecho.measure.outcome import Measured, result_of
from anyecho.measure.result import RunResult
from tests.client.liars import listening
from tests.measure.loading import load


def per_connection(behaviour: Callable[[ByteStream, int], Any]) -> Callable[[ByteStream], Any]:
    """Pass to `behaviour` the number of its connection."""
    numbers = count()

    async def behave(stream: ByteStream) -> None:
        await behaviour(stream, next(numbers))

    return behave


@pytest.fixture
def stamps(monkeypatch: pytest.MonkeyPatch) -> list[Measured]:
    """The stamps of each run."""
    seen: list[Measured] = []

    def remember(measured: Measured, load: Any) -> RunResult:
        seen.append(measured)
        return result_of(measured, load)

    monkeypatch.setattr(bench, "result_of", remember)
    return seen


@pytest.mark.parametrize("rate", [None, 300.0])
async def test_no_latency_is_below_the_delay_that_the_server_recorded(
    rate: float | None, stamps: list[Measured]
) -> None:
    delays: list[int] = []

    async def delay(stream: ByteStream) -> None:
        async for chunk in stream:
            arrived = perf_counter_ns()
            await anyio.sleep(len(delays) % 3 / 1000)
            delays.append(perf_counter_ns() - arrived)
            await stream.send(chunk)

    async with listening(delay) as address:
        result = await load(address, connections=1, requests=150, rate=rate, timeout=30.0)

    [record] = stamps[0].records
    latencies = [reply - due for due, reply in zip(record.due, record.received, strict=True)]
    assert len(delays) == result.counts.verified == 150
    assert [pair for pair in zip(latencies, delays, strict=True) if pair[0] < pair[1]] == []
    assert result.latency.min == min(latencies) >= min(delays)
    assert result.latency.max == max(latencies) >= max(delays)


async def test_no_message_of_a_closed_loop_waits_while_the_cpu_time_of_the_server_is_read(
    stamps: list[Measured],
) -> None:
    readings: list[int] = []

    def read() -> int:
        readings.append(perf_counter_ns())
        return len(readings)

    async def echo(stream: ByteStream) -> None:
        async for chunk in stream:
            await stream.send(chunk)

    control = BenchControl()
    control.server_cpu = read
    async with listening(echo) as address:
        result = await load(address, connections=2, requests=20, control=control)
    assert result.counts.verified == 20
    assert readings[0] < min(record.sent[0] for record in stamps[0].records)
    assert readings[-1] > max(record.received[-1] for record in stamps[0].records)


async def test_a_corrupted_byte_in_10000_echoes_is_one_wrong_message() -> None:
    async def corrupt(stream: ByteStream, number: int) -> None:
        offset = 0
        async for chunk in stream:
            if number == 2 and offset <= 64_007 < offset + len(chunk):
                chunk = chunk[: 64_007 - offset] + b"?" + chunk[64_008 - offset :]
            offset += len(chunk)
            await stream.send(chunk)

    async with listening(per_connection(corrupt)) as address:
        result = await load(address, connections=4, requests=10_000, pipeline=50)

    assert (result.counts.verified, result.counts.wrong, result.counts.lost) == (9999, 1, 0)
    assert result.latency.count == 10_000
    assert result.latency.max >= 5_000_000_000
    assert result.uncorrected.count == 9999
    assert result.error.startswith("message 1000 of connection")
    assert "is wrong at byte 7: sent 0x" in result.error


@pytest.mark.parametrize("rate", [None, 1000.0])
async def test_messages_of_a_dropped_connection_are_lost_and_the_others_go_on(rate: float | None) -> None:
    async def quit_early(stream: ByteStream, number: int) -> None:
        received = 0
        async for chunk in stream:
            received += len(chunk)
            if number == 1 and received >= 640:
                return
            await stream.send(chunk)

    async with listening(per_connection(quit_early)) as address:
        result = await load(address, connections=4, requests=400, pipeline=2, rate=rate)

    counts = result.counts
    assert counts.sent == 400
    assert counts.lost + counts.verified == 400
    # A closed loop loses what was outstanding; an open loop also what was due on that connection.
    assert 1 <= counts.lost <= 2 if rate is None else 90 <= counts.lost <= 92
    assert result.latency.count == 400
    assert result.latency.max >= 5_000_000_000
    assert result.uncorrected.max < 5_000_000_000
    assert "was dropped: " in result.error
    assert not result.ended_early


@pytest.mark.parametrize(("rate", "polled"), [(None, True), (500.0, True), (None, False)])
async def test_a_run_whose_connections_are_all_dropped_is_marked_as_ended_early(
    rate: float | None, polled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not polled:
        monkeypatch.setattr("anyecho.net.poller.has_epoll", lambda: False)

    async def quit_early(stream: ByteStream) -> None:
        for _ in range(20):
            await stream.send(await stream.receive())

    async with listening(quit_early) as address:
        result = await load(address, connections=2, duration=30.0, rate=rate)

    assert result.ended_early
    assert result.counts.verified == 40
    assert result.seconds < 30
    assert failures(result)[-1] == "every connection was dropped before the end"


async def test_a_refused_connection_hides_no_lost_message(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = count()

    async def refuse_second(*args: Any, **kwargs: Any) -> Client:
        if next(attempts) == 1:
            raise ConnectError("enough")
        return await connect_checked(*args, **kwargs)

    async def swallow(stream: ByteStream) -> None:
        async for _ in stream:
            pass

    monkeypatch.setattr(opening, "connect_checked", refuse_second)
    async with listening(swallow) as address:
        result = await load(address, connections=2, requests=1, timeout=0.1)
    assert (result.counts.lost, result.counts.connect_failed) == (1, 1)
    assert result.error == "message 0 of connection 0 had no reply within 0.1 s; enough"


@pytest.mark.parametrize("rate", [None, 100.0])
async def test_a_silent_server_ends_a_run_after_the_timeout_with_all_messages_lost(rate: float | None) -> None:
    async def swallow(stream: ByteStream) -> None:
        async for _ in stream:
            pass

    async with listening(swallow) as address:
        result = await load(address, connections=2, requests=5, rate=rate, timeout=0.2)

    counts = result.counts
    assert counts.lost == counts.sent == (2 if rate is None else 5)
    assert result.latency.min >= 200_000_000
    assert result.uncorrected.count == 0
    assert result.error == "message 0 of connection 0 had no reply within 0.2 s"


async def test_a_server_too_slow_for_the_rate_saturates_the_run() -> None:
    async def crawl(stream: ByteStream) -> None:
        async for chunk in stream:
            await anyio.sleep(0.1)
            await stream.send(chunk)

    async with listening(crawl) as address:
        result = await load(address, connections=1, duration=60.0, rate=200.0, timeout=0.3)
    assert result.saturated
    assert result.counts.lost > 0
    assert result.seconds < 30
