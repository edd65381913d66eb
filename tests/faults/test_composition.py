"""Faults in pairs, in both orders, and calls that are cancelled in their middle, on a clock of the loop's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, product
from random import Random
from typing import Any

import pytest
from anyio import (
    BrokenResourceError,
    CancelScope,
    EndOfStream,
    create_task_group,
    current_time,
    fail_after,
    move_on_after,
    sleep,
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
from tests.support.memory import memory_pair
from tests.support.virtual_time import VIRTUAL_BACKENDS

pytestmark = pytest.mark.by_turns("anyio_backend")

DIRECTIONS: tuple[Direction, ...] = ("upstream", "downstream")
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


@pytest.fixture(params=list(VIRTUAL_BACKENDS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return VIRTUAL_BACKENDS[request.param]()


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    async with create_task_group() as tasks:
        yield tasks
        tasks.cancel_scope.cancel()


@pytest.fixture(params=DIRECTIONS)
def direction(request: pytest.FixtureRequest) -> Direction:
    found: Direction = request.param
    return found


@pytest.fixture(params=["fixed", "changing"])
def join(request: pytest.FixtureRequest) -> Callable[[ByteStream, Sequence[Drawn], TaskGroup], ByteStream]:
    """Put faults on a stream, for its whole life or so that they may change."""

    def chain(stream: ByteStream, drawn: Sequence[Drawn], tasks: TaskGroup) -> ByteStream:
        chain = FaultChain(stream, tasks)
        chain.change(drawn)
        return chain

    return wrap_all if request.param == "fixed" else chain


Join = Callable[[ByteStream, Sequence[Drawn], TaskGroup], ByteStream]


def drawn(*faults: StreamFault) -> list[Drawn]:
    return [Drawn(fault.name + str(place), fault, Random(place)) for place, fault in enumerate(faults)]


class Line:
    """A sender and a receiver, with faults between them."""

    def __init__(
        self, faults: Sequence[Drawn], tasks: TaskGroup, join: Join, direction: Direction | None = None
    ) -> None:
        """The `direction` is by default that of the first fault."""
        self.plain, far = memory_pair()
        self.spoiled = join(far, faults, tasks)
        upstream = (direction or getattr(faults[0].fault, "stream", None)) == "upstream"
        self.sender: ByteStream = self.plain if upstream else self.spoiled
        self.receiver: ByteStream = self.spoiled if upstream else self.plain

    async def send(self, chunks: Sequence[bytes]) -> None:
        try:
            for chunk in chunks:
                await self.sender.send(chunk)
            await self.sender.send_eof()
        except BrokenResourceError:
            pass

    async def receive(self, patience: Iterator[float] | None = None, max_bytes: int = 65536) -> list[bytes]:
        """Receive until the end. A call is cancelled when its `patience` is over, and made again."""
        chunks = []
        try:
            while True:
                with move_on_after(next(patience) if patience else None):
                    chunks.append(await self.receiver.receive(max_bytes))
        except (EndOfStream, ConnectionEnded):
            return chunks

    async def close(self) -> None:
        await self.plain.aclose()
        await self.spoiled.aclose()


async def through(
    chunks: Sequence[bytes],
    faults: Sequence[Drawn],
    tasks: TaskGroup,
    join: Join,
    patience: Iterator[float] | None = None,
    max_bytes: int = 65536,
    direction: Direction | None = None,
) -> list[bytes]:
    line = Line(faults, tasks, join, direction)
    with fail_after(1000):
        async with create_task_group() as sending:
            sending.start_soon(line.send, chunks)
            received = await line.receive(patience, max_bytes)
            sending.cancel_scope.cancel()
    await line.close()
    return received


@pytest.mark.parametrize("first", FAULTS, ids=lambda fault: fault.name)
async def test_two_faults_do_what_one_does_after_the_other(
    first: StreamFault, direction: Direction, join: Join, tasks: TaskGroup
) -> None:
    for second in FAULTS:
        both = [replace(each, stream=direction) for each in (first, second)]
        between = await through(CHUNKS, drawn(*both)[:1], tasks, join)
        expected = await through(between, drawn(*both)[1:], tasks, join)
        found = await through(CHUNKS, drawn(*both), tasks, join)
        assert b"".join(found) == b"".join(expected), second.name


@pytest.mark.parametrize("first", FAULTS, ids=lambda fault: fault.name)
async def test_faults_of_the_two_directions_do_not_mix(
    first: StreamFault, direction: Direction, join: Join, tasks: TaskGroup
) -> None:
    first = replace(first, stream=direction)
    other: Direction = "upstream" if direction == "downstream" else "downstream"
    expected = b"".join(await through(CHUNKS, drawn(first), tasks, join))
    for second, order in product(FAULTS, (1, -1)):
        if second.name != "timeout":  # its end is that of both directions
            both = drawn(first, replace(second, stream=other))[::order]
            found = await through(CHUNKS, both, tasks, join, direction=direction)
            assert b"".join(found) == expected, (second.name, order)


@pytest.mark.parametrize("first", FAULTS, ids=lambda fault: fault.name)
async def test_receives_that_are_cancelled_again_and_again_lose_no_byte_of_two_faults(
    first: StreamFault, join: Join, tasks: TaskGroup
) -> None:
    for second in FAULTS:
        both = [replace(each, stream="upstream") for each in (first, second)]
        if any(isinstance(each, Timeout) for each in both):
            continue  # delivers nothing
        expected = b"".join(await through(CHUNKS, drawn(*both), tasks, join))
        for patience, max_bytes in zip(((0.03,), (0, 0.1, 0, 1)), (65536, 3), strict=True):
            found = await through(CHUNKS, drawn(*both), tasks, join, cycle(patience), max_bytes)
            assert b"".join(found) == expected, (second.name, patience, max_bytes)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_receive_that_is_cancelled_at_any_point_loses_no_byte(
    fault: StreamFault, join: Join, tasks: TaskGroup
) -> None:
    """Each point is a time and the number of passes of the event loop after it."""
    faults = [replace(fault, stream="upstream")]
    expected = b"".join(await through(CHUNKS, drawn(*faults), tasks, join))
    for time, passes in product((0, 0.05, 0.3, 1, 1.5, 2), range(6)):
        line = Line(drawn(*faults), tasks, join)
        start = current_time()
        scopes: list[CancelScope] = []

        async def cancel_once(start: float, time: float, passes: int, scopes: list[CancelScope]) -> None:
            await sleep(start + time - current_time())
            for _ in range(passes):
                await checkpoint()
            if scopes:
                scopes[-1].cancel()

        received = bytearray()
        async with create_task_group() as running:
            running.start_soon(line.send, CHUNKS)
            running.start_soon(cancel_once, start, time, passes, scopes)
            try:
                while True:
                    with CancelScope() as scope:
                        scopes.append(scope)
                        received += await line.receiver.receive(4)
            except (EndOfStream, ConnectionEnded):
                running.cancel_scope.cancel()
        await line.close()
        assert received == expected, (time, passes)


@pytest.mark.parametrize("first", LOSSLESS, ids=lambda fault: fault.name)
async def test_a_send_that_is_cancelled_at_any_point_takes_no_byte_from_the_sends_around_it(
    first: StreamFault, join: Join, tasks: TaskGroup
) -> None:
    before, cancelled, after = CHUNKS[1], CHUNKS[4], CHUNKS[3]
    for second, time, passes in product(LOSSLESS, (0, 0.3, 1.2), range(3)):
        line = Line(drawn(first, second), tasks, join)
        received: list[bytes] = []

        async def receive(line: Line, received: list[bytes]) -> None:
            received += await line.receive()

        async with create_task_group() as receiving:
            receiving.start_soon(receive, line, received)
            await line.sender.send(before)
            for call in (partial(line.sender.send, cancelled), None, line.sender.send_eof, line.sender.send_eof):
                if call is None:
                    await line.sender.send(after)
                    continue
                with CancelScope(deadline=current_time() + time) as scope:
                    if not time:
                        receiving.start_soon(cancel_after, passes, scope)
                    await call()
            await line.sender.send_eof()
        await line.close()
        found = b"".join(received)
        middle = found.removeprefix(before).removesuffix(after)
        assert found == before + middle + after, (second.name, time, passes)
        assert cancelled.startswith(middle), (second.name, time, passes)


async def cancel_after(passes: int, scope: CancelScope) -> None:
    for _ in range(passes):
        await checkpoint()
    scope.cancel()


@pytest.mark.parametrize("end", [LimitData(bytes=5), Cut(bytes=5), ResetPeer()], ids=lambda fault: fault.name)
async def test_a_receive_that_waits_is_told_of_an_end_behind_a_latency(
    end: StreamFault, join: Join, tasks: TaskGroup
) -> None:
    line = Line(drawn(Latency(latency=1), end), tasks, join)
    await line.spoiled.send(b"hello, world")
    with pytest.raises(ConnectionEnded), fail_after(1000):
        await line.spoiled.receive()
    await line.close()
