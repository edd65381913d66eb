"""Delays of the faults, exact on a clock of the event loop's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from anyio import (
    BrokenResourceError,
    EndOfStream,
    create_task_group,
    fail_after,
    move_on_after,
    sleep,
)
from anyio.abc import ByteStream, TaskGroup

from anyecho.faults import (
    Bandwidth,
    ConnectionEnded,
    Cut,
    HalfClose,
    Latency,
    ResetPeer,
    Slicer,
    SlowClose,
    Stall,
    StreamFault,
    Timeout,
    spoil,
)
from anyecho.faults.fault import Direction
from tests.faults.line import Line
from tests.support.virtual_time import virtual_backend

anyio_backend = virtual_backend


def line(tasks: TaskGroup, *faults: StreamFault) -> Line[ByteStream]:
    return Line(faults[0].stream, tasks, lambda stream: spoil(stream, *faults, seed=1, tasks=tasks))


async def three_chunks(stream: ByteStream) -> None:
    for chunk in (b"a", b"b", b"c"):
        await stream.send(chunk)
        await sleep(0.25)


async def test_chunks_are_late_by_the_latency_each_from_its_own_time(
    direction: Direction, tasks: TaskGroup
) -> None:
    arrivals = await line(tasks, Latency(latency=1, stream=direction)).arrivals(three_chunks)
    assert arrivals == [(1.0, b"a"), (1.25, b"b"), (1.5, b"c"), (1.75, b"")]


async def test_without_a_task_group_a_send_waits_for_the_latency(tasks: TaskGroup) -> None:
    arrivals = await Line("downstream", tasks, lambda stream: spoil(stream, Latency(latency=1))).arrivals(
        three_chunks
    )
    assert arrivals == [(1.0, b"a"), (2.25, b"b"), (3.5, b"c"), (3.75, b"")]


async def test_jitter_varies_each_delay_repeats_with_the_seed_and_keeps_the_order(
    direction: Direction, tasks: TaskGroup
) -> None:
    async def send(stream: ByteStream) -> None:
        for number in range(200):
            await stream.send(bytes([number]))
            await sleep(0.3)

    runs = [await line(tasks, Latency(latency=1, jitter=0.5, stream=direction)).arrivals(send) for _ in range(2)]
    assert runs[0] == runs[1]
    assert b"".join(chunk for _, chunk in runs[0]) == bytes(range(200))
    delays = [time - 0.3 * chunk[0] for time, chunk in runs[0] if chunk]
    assert 0.5 <= min(delays) < 1 < max(delays) <= 1.5


async def test_bytes_pass_at_the_bandwidth(direction: Direction, tasks: TaskGroup) -> None:
    async def send(stream: ByteStream) -> None:
        await stream.send(bytes(250))
        await sleep(5)
        await stream.send(bytes(50))

    arrivals = await line(tasks, Bandwidth(rate=1000, stream=direction)).arrivals(send)
    first_send_ends = 0.25 if direction == "downstream" else 0.0
    assert [(time, len(chunk)) for time, chunk in arrivals] == [
        *((0.1, 100), (0.2, 100), (0.25, 50)),
        *((first_send_ends + 5.05, 50), (first_send_ends + 5.05, 0)),
    ]


async def test_the_end_of_the_data_is_late_by_the_delay_of_slow_close(
    direction: Direction, tasks: TaskGroup
) -> None:
    arrivals = await line(tasks, SlowClose(delay=3, stream=direction)).arrivals(three_chunks)
    assert arrivals == [(0.0, b"a"), (0.25, b"b"), (0.5, b"c"), (3.75, b"")]


async def test_nothing_passes_while_a_stall_lasts(direction: Direction, tasks: TaskGroup) -> None:
    async def send(stream: ByteStream) -> None:
        await stream.send(b"abcdef")

    arrivals = await line(tasks, Stall(bytes=2, seconds=3, stream=direction)).arrivals(send)
    assert arrivals == [(0.0, b"ab"), (3.0, b"cdef"), (3.0, b"")]


async def test_slices_follow_each_other_after_the_delay(direction: Direction, tasks: TaskGroup) -> None:
    async def send(stream: ByteStream) -> None:
        await stream.send(b"abcdefgh")

    arrivals = await line(tasks, Slicer(average_size=3, delay=0.5, stream=direction)).arrivals(send)
    assert arrivals == [(0.0, b"abc"), (0.5, b"def"), (1.0, b"gh"), (1.0, b"")]


@pytest.mark.parametrize("fault", [Timeout(timeout=2), Cut(seconds=2)], ids=lambda fault: fault.name)
async def test_a_connection_ends_at_its_time_whether_data_flows_or_not(
    fault: StreamFault, direction: Direction, tasks: TaskGroup
) -> None:
    for flows in (True, False):
        one = line(tasks, replace(fault, stream=direction))

        async def flow(stream: ByteStream = one.spoiled, flows: bool = flows) -> None:
            while flows:
                await stream.send(b"x")
                await sleep(0.3)

        async with create_task_group() as flowing:
            if flows:
                with pytest.raises(ConnectionEnded):
                    await flow()
                assert one.now() == 2.1  # the first send after it
            else:
                with pytest.raises(ConnectionEnded):
                    await one.spoiled.receive()
                assert one.now() == 2.0
            flowing.cancel_scope.cancel()
        for call in (one.spoiled.receive, lambda each=one: each.spoiled.send(b"x")):
            with pytest.raises(BrokenResourceError):
                await call()


async def test_a_reset_comes_after_its_time_from_the_first_byte(direction: Direction, tasks: TaskGroup) -> None:
    one = line(tasks, ResetPeer(timeout=2, stream=direction))
    await sleep(1)
    with pytest.raises(ConnectionEnded):
        if direction == "upstream":
            await one.plain.send(b"x")
            await one.spoiled.receive()
        else:
            await one.spoiled.send(b"x")
    assert one.now() == 3.0
    with pytest.raises(EndOfStream):
        await one.plain.receive()


@pytest.mark.parametrize(
    "fault",
    [
        Latency(latency=1),
        Bandwidth(rate=3),
        Slicer(average_size=2, size_variation=1, delay=0.7),
        Stall(bytes=7, seconds=5),
        HalfClose(bytes=1000),
    ],
    ids=lambda fault: fault.name,
)
@pytest.mark.parametrize("patience", [0.05, 0.3, 0.99])
async def test_a_cancelled_receive_loses_no_byte_and_delays_none(
    fault: StreamFault, patience: float, tasks: TaskGroup
) -> None:
    payload = bytes(range(20))
    ends = []
    for wait in (1000.0, patience):
        one = line(tasks, replace(fault, stream="upstream"))
        for start in range(0, len(payload), 5):
            await one.plain.send(payload[start : start + 5])
        received = bytearray()
        with fail_after(1000):
            while len(received) < len(payload):
                with move_on_after(wait):
                    received += await one.spoiled.receive(3)
        assert received == payload
        ends.append(one.now())

    assert ends[1] == pytest.approx(ends[0], abs=1e-6)


async def test_faults_combine_in_any_order(tasks: TaskGroup) -> None:
    async def send(stream: ByteStream) -> None:
        await stream.send(b"abcdef")

    faults = (Latency(latency=1), Slicer(average_size=3, delay=0.5))
    for each in (faults, faults[::-1]):
        arrivals = await line(tasks, *each).arrivals(send)
        assert arrivals == [(1.0, b"abc"), (1.5, b"def"), (1.5, b"")]
