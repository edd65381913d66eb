"""Faults in pairs, in both orders, and calls that are cancelled in their middle, on a clock of the loop's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import cycle, product
from random import Random

import pytest
from anyio import (
    BrokenResourceError,
    CancelScope,
    create_task_group,
    current_time,
    fail_after,
)
from anyio.abc import ByteStream, TaskGroup
from anyio.lowlevel import checkpoint

from anyecho.faults import (
    Bandwidth,
    ConnectionEnded,
    Corrupt,
    Cut,
    HalfClose,
    Latency,
    LimitData,
    PacketLoss,
    ResetPeer,
    Slicer,
    SlowClose,
    Stall,
    StreamFault,
    Timeout,
)
from anyecho.faults.chain import FaultChain
from anyecho.faults.fault import Direction
from anyecho.faults.plan import Drawn, wrap_all
from tests.faults.line import Line
from tests.support.virtual_time import virtual_backend

pytestmark = pytest.mark.by_turns("anyio_backend")

anyio_backend = virtual_backend

#: Each delivers all bytes.
LOSSLESS: tuple[StreamFault, ...] = (
    Latency(latency=1, jitter=0.5),
    Bandwidth(rate=100),
    SlowClose(delay=1),
    Slicer(average_size=5, size_variation=4, delay=0.05),
    Stall(bytes=20, seconds=1),
)
FAULTS: tuple[StreamFault, ...] = (
    *LOSSLESS,
    Timeout(timeout=3),
    ResetPeer(timeout=1),
    LimitData(bytes=37),
    PacketLoss(loss_rate=0.4),
    Corrupt(rate=0.1, offset=17),
    Cut(bytes=41),
    HalfClose(bytes=29),
)
CHUNKS = [Random(1).randbytes(size) for size in (3, 20, 1, 9, 30)]


Make = Callable[..., Line[ByteStream]]


@pytest.fixture(params=["fixed", "changing"])
def make(request: pytest.FixtureRequest, tasks: TaskGroup) -> Make:
    """Makes a line with faults, for its whole life or so that they may change."""

    def spoiled(stream: ByteStream, faults: Sequence[Drawn]) -> ByteStream:
        if request.param == "fixed":
            return wrap_all(stream, faults, tasks)

        chain = FaultChain(stream, tasks)
        chain.change(faults)
        return chain

    def make(*faults: StreamFault, direction: Direction | None = None) -> Line[ByteStream]:
        """Each kind of fault has its seed. The `direction` is by default that of the first fault."""
        drawn = [Drawn(f"{fault.name}{place}", fault, Random(fault.name)) for place, fault in enumerate(faults)]
        return Line(direction or faults[0].stream, tasks, lambda stream: spoiled(stream, drawn))

    return make


async def send_all(line: Line[ByteStream], chunks: Sequence[bytes]) -> None:
    with suppress(BrokenResourceError):
        await line.send(*chunks, eof=True)


async def through(
    chunks: Sequence[bytes], line: Line[ByteStream], patience: Iterator[float] | None = None, max_bytes: int = 65536
) -> bytes:
    """Return what arrives if `chunks` are sent."""
    with fail_after(1000):
        async with create_task_group() as sending:
            sending.start_soon(send_all, line, chunks)
            await line.listen(patience, max_bytes)
            sending.cancel_scope.cancel()

    return line.received


@pytest.mark.parametrize("first", FAULTS, ids=lambda fault: fault.name)
async def test_two_faults_do_what_one_does_after_the_other(
    first: StreamFault, direction: Direction, make: Make
) -> None:
    for second in FAULTS:
        one, other = (replace(each, stream=direction) for each in (first, second))
        between = make(one)
        await through(CHUNKS, between)
        expected = await through([chunk for _, chunk in between.arrived[:-1]], make(other))
        assert await through(CHUNKS, make(one, other)) == expected, second.name


@pytest.mark.parametrize("first", FAULTS, ids=lambda fault: fault.name)
async def test_faults_of_the_two_directions_do_not_mix(
    first: StreamFault, direction: Direction, make: Make
) -> None:
    first = replace(first, stream=direction)
    other: Direction = "upstream" if direction == "downstream" else "downstream"
    expected = await through(CHUNKS, make(first))
    for second in FAULTS:
        if second.name != "timeout":  # its end is that of both directions
            both = (first, replace(second, stream=other))
            for faults in (both, both[::-1]):
                assert await through(CHUNKS, make(*faults, direction=direction)) == expected, faults


@pytest.mark.parametrize("first", FAULTS, ids=lambda fault: fault.name)
async def test_receives_that_are_cancelled_again_and_again_lose_no_byte_of_two_faults(
    first: StreamFault, make: Make
) -> None:
    for second in FAULTS:
        both = [replace(each, stream="upstream") for each in (first, second)]
        if any(isinstance(each, Timeout) for each in both):
            continue  # delivers nothing
        expected = await through(CHUNKS, make(*both))
        for patience, max_bytes in zip(((0.03,), (0, 0.1, 0, 1)), (65536, 3), strict=True):
            found = await through(CHUNKS, make(*both), cycle(patience), max_bytes)
            assert found == expected, (second.name, patience, max_bytes)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_receive_that_is_cancelled_at_any_point_loses_no_byte(fault: StreamFault, make: Make) -> None:
    """Each point is a time and the number of passes of the event loop after it."""
    fault = replace(fault, stream="upstream")
    expected = await through(CHUNKS, make(fault))
    for time, passes in product((0, 0.05, 0.3, 1, 1.5, 2), range(6)):
        line = make(fault)
        async with create_task_group() as running:
            running.start_soon(send_all, line, CHUNKS)
            running.start_soon(cancel_receive, line, time, passes)
            await line.listen(max_bytes=4)
            running.cancel_scope.cancel()
        assert line.received == expected, (time, passes)


async def cancel_receive(line: Line[ByteStream], time: float, passes: int) -> None:
    await line.until(time)
    for _ in range(passes):
        await checkpoint()
    line.receiving.cancel()


@pytest.mark.parametrize("first", LOSSLESS, ids=lambda fault: fault.name)
async def test_a_send_that_is_cancelled_at_any_point_takes_no_byte_from_the_sends_around_it(
    first: StreamFault, make: Make
) -> None:
    before, cancelled, after = CHUNKS[1], CHUNKS[4], CHUNKS[3]
    for second, time, passes in product(LOSSLESS, (0, 0.3, 1.2), range(3)):
        line = make(first, second)
        async with create_task_group() as receiving:
            receiving.start_soon(line.listen)
            await line.send(before)
            for call in (partial(line.send, cancelled), None, line.sender.send_eof, line.sender.send_eof):
                if call is None:
                    await line.send(after)
                    continue
                with CancelScope(deadline=current_time() + time) as scope:
                    if not time:
                        receiving.start_soon(cancel_after, passes, scope)
                    await call()
            await line.sender.send_eof()
        middle = line.received.removeprefix(before).removesuffix(after)
        assert line.received == before + middle + after, (second.name, time, passes)
        assert cancelled.startswith(middle), (second.name, time, passes)


async def cancel_after(passes: int, scope: CancelScope) -> None:
    for _ in range(passes):
        await checkpoint()
    scope.cancel()


@pytest.mark.parametrize("end", [LimitData(bytes=5), Cut(bytes=5), ResetPeer()], ids=lambda fault: fault.name)
async def test_a_receive_that_waits_is_told_of_an_end_behind_a_latency(end: StreamFault, make: Make) -> None:
    line = make(Latency(latency=1), end)
    await line.spoiled.send(b"hello, world")
    with pytest.raises(ConnectionEnded), fail_after(1000):
        await line.spoiled.receive()
