"""Faults that are added, replaced and removed while a stream is used, on a clock of the event loop's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
from anyio import (
    BusyResourceError,
    EndOfStream,
    create_task_group,
    move_on_after,
    sleep,
)
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from anyecho.faults import (
    Bandwidth,
    ConnectionEnded,
    Corrupt,
    Cut,
    Fault,
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
from anyecho.faults.plan import FaultPlan
from tests.faults.line import DIRECTIONS, Line
from tests.support.virtual_time import virtual_backend

anyio_backend = virtual_backend


class ChangingLine(Line[FaultChain]):
    """A line with faults that change. It is used by tasks beside the test."""

    def __init__(self, direction: Direction, tasks: TaskGroup, **faults: Fault) -> None:
        super().__init__(direction, tasks, lambda stream: FaultChain(stream, tasks))
        self.tasks = tasks
        self.change(**faults)

    def change(self, **faults: Fault) -> bool:
        return self.spoiled.change(FaultPlan(faults, seed=1).draw(1))

    def start_listening(self) -> None:
        self.tasks.start_soon(self.listen)

    def start_sending(self, *chunks: bytes, eof: bool = False) -> None:
        self.tasks.start_soon(partial(self.send, *chunks, eof=eof))


async def test_a_latency_that_is_added_delays_what_comes_after_it(direction: Direction, tasks: TaskGroup) -> None:
    line = ChangingLine(direction, tasks)
    line.start_listening()
    line.start_sending(b"before")
    await line.until(1)
    line.change(slow=Latency(latency=2, stream=direction))
    line.start_sending(b"after", eof=True)
    await line.until(10)
    assert line.arrived == [(0.0, b"before"), (3.0, b"after"), (3.0, b"")]


async def test_a_latency_that_is_removed_releases_what_is_held(direction: Direction, tasks: TaskGroup) -> None:
    line = ChangingLine(direction, tasks, slow=Latency(latency=100, stream=direction))
    line.start_listening()
    line.start_sending(b"a", b"b", eof=True)
    await line.until(1)
    line.change()
    await line.until(2)
    assert line.arrived == [(1.0, b"a"), (1.0, b"b"), (1.0, b"")]


@pytest.mark.parametrize(("latency", "time"), [(5.0, 5.0), (1.0, 2.0), (20.0, 20.0)])
async def test_a_latency_that_changes_counts_from_the_arrival_of_each_chunk(
    latency: float, time: float, direction: Direction, tasks: TaskGroup
) -> None:
    line = ChangingLine(direction, tasks, slow=Latency(latency=10, stream=direction))
    line.start_listening()
    line.start_sending(b"held")
    await line.until(2)
    line.change(slow=Latency(latency=latency, stream=direction))
    line.start_sending(b"later")
    await line.until(50)
    assert line.arrived == [(time, b"held"), (max(time, 2 + latency), b"later")]


async def test_two_latencies_are_told_apart_by_name(direction: Direction, tasks: TaskGroup) -> None:
    one, two = Latency(latency=1, stream=direction), Latency(latency=2, stream=direction)
    line = ChangingLine(direction, tasks, one=one, two=two)
    line.start_listening()
    line.start_sending(b"a")
    await line.until(4)
    line.change(two=two)
    line.start_sending(b"b")
    await line.until(10)
    assert line.spoiled.faults == {"two": two}
    assert line.arrived == [(3.0, b"a"), (6.0, b"b")]


@pytest.mark.parametrize(
    ("fault", "first"),
    [
        (Bandwidth(rate=10), [(0.1, b"a"), (0.2, b"b")]),
        (Slicer(average_size=1, delay=0.2), [(0.0, b"a"), (0.2, b"b")]),
        (Stall(bytes=2, seconds=100), [(0.0, b"ab")]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_bytes_that_wait_pass_at_once_when_the_fault_is_removed(
    fault: StreamFault, first: list[tuple[float, bytes]], direction: Direction, tasks: TaskGroup
) -> None:
    fault = replace(fault, stream=direction)
    line = ChangingLine(direction, tasks, fault=fault)
    line.start_listening()
    line.start_sending(b"abcdefgh", b"ij", eof=True)
    await line.until(0.25)
    line.change()
    await line.until(1)
    assert line.arrived == [*first, (0.25, b"cdefgh"), (0.25, b"ij"), (0.25, b"")]


@pytest.mark.parametrize(
    ("before", "after", "arrived"),
    [
        (Bandwidth(rate=1), Bandwidth(rate=10), [(0.6, b"a"), (0.7, b"b"), (0.8, b"c")]),
        (Slicer(delay=9), Slicer(delay=0.1), [(0.0, b"a"), (0.5, b"b"), (0.6, b"c")]),
        (Stall(bytes=1, seconds=9), Stall(bytes=2, seconds=1), [(0.0, b"a"), (0.5, b"b"), (1.5, b"c")]),
        (Stall(bytes=1), Stall(bytes=1, seconds=1), [(0.0, b"a"), (1.5, b"bc")]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_a_fault_that_is_replaced_begins_anew_and_keeps_its_count_of_bytes(
    before: StreamFault,
    after: StreamFault,
    arrived: list[tuple[float, bytes]],
    direction: Direction,
    tasks: TaskGroup,
) -> None:
    before, after = (replace(each, stream=direction) for each in (before, after))
    line = ChangingLine(direction, tasks, fault=before)
    line.start_listening()
    line.start_sending(b"abc")
    await line.until(0.5)
    line.change(fault=after)
    await line.until(20)
    assert line.arrived == arrived


async def test_the_same_faults_again_change_nothing(direction: Direction, tasks: TaskGroup) -> None:
    line = ChangingLine(direction, tasks, fault=Stall(seconds=2, stream=direction))
    line.start_listening()
    line.start_sending(b"a")
    await line.until(1.5)
    line.change(fault=Stall(seconds=2, stream=direction))
    await line.until(5)
    assert line.arrived == [(2.0, b"a")]


async def test_an_end_that_waits_comes_at_once_when_slow_close_is_removed(
    direction: Direction, tasks: TaskGroup
) -> None:
    line = ChangingLine(direction, tasks, fault=SlowClose(delay=100, stream=direction))
    line.start_listening()
    line.start_sending(b"a", eof=True)
    await line.until(1)
    line.change(fault=SlowClose(delay=5, stream=direction))
    await line.until(2)
    line.change()
    await line.until(3)
    assert line.arrived == [(0.0, b"a"), (2.0, b"")]


async def test_a_limit_that_is_raised_before_it_is_reached_lets_more_pass(
    direction: Direction, tasks: TaskGroup
) -> None:
    line = ChangingLine(direction, tasks, fault=LimitData(bytes=4, stream=direction))
    line.start_listening()
    line.start_sending(b"abc")
    await line.until(1)
    line.change(fault=LimitData(bytes=6, stream=direction))
    if direction == "upstream":
        line.start_sending(b"defg")
    else:
        with pytest.raises(ConnectionEnded):
            await line.spoiled.send(b"defg")
    await line.until(2)
    end = b"ended" if direction == "upstream" else b""
    assert line.arrived == [(0.0, b"abc"), (1.0, b"def"), (1.0, end)]


@pytest.mark.parametrize("fault", [LimitData(bytes=9), Cut(bytes=9)], ids=lambda fault: fault.name)
async def test_a_limit_that_is_lowered_below_what_has_passed_ends_the_connection(
    fault: Any, direction: Direction, tasks: TaskGroup
) -> None:
    line = ChangingLine(direction, tasks, fault=replace(fault, stream=direction))
    line.start_sending(b"abc")
    assert await line.receiver.receive() == b"abc"
    line.change(fault=replace(fault, bytes=2, stream=direction))
    with pytest.raises(ConnectionEnded):
        await (line.spoiled.receive() if direction == "upstream" else line.spoiled.send(b"d"))


async def test_a_black_hole_that_is_removed_asks_for_the_end_of_the_connection(
    direction: Direction, tasks: TaskGroup
) -> None:
    line = ChangingLine(direction, tasks)
    line.start_listening()
    line.start_sending(b"a")
    await line.until(1)
    assert line.change(hole=Timeout(stream=direction))
    line.start_sending(b"b")
    await line.until(2)
    assert line.change(hole=Timeout(timeout=60, stream=direction))
    assert not line.change()
    assert line.arrived == [(0.0, b"a")]


async def test_the_time_of_a_timeout_begins_with_its_change(tasks: TaskGroup) -> None:
    line = ChangingLine("upstream", tasks)
    line.start_listening()
    await line.until(1)
    line.change(hole=Timeout(timeout=60))
    await line.until(2)
    line.change(hole=Timeout(timeout=3))
    await line.until(10)
    assert line.arrived == [(5.0, b"ended")]


@pytest.mark.parametrize(
    ("faults", "ends"), [({"cut": Cut(seconds=3)}, [3.5]), ({}, [])], ids=["longer", "removed"]
)
async def test_the_time_of_a_cut_changes_for_a_send_that_waits_too(
    faults: dict[str, Fault], ends: list[float], tasks: TaskGroup
) -> None:
    line = ChangingLine("downstream", tasks, cut=Cut(seconds=1), stall=Stall())
    ended: list[float] = []

    async def send() -> None:
        try:
            with move_on_after(20):
                await line.spoiled.send(b"a")
        except ConnectionEnded:
            ended.append(line.now())

    tasks.start_soon(send)
    await line.until(0.5)
    line.change(stall=Stall(), **faults)
    await line.until(30)
    assert ended == ends


async def test_a_reset_that_is_added_acts_on_the_next_bytes(direction: Direction, tasks: TaskGroup) -> None:
    line = ChangingLine(direction, tasks)
    line.start_sending(b"a")
    assert await line.receiver.receive() == b"a"
    line.change(reset=ResetPeer(timeout=2, stream=direction))
    await line.until(1)
    if direction == "upstream":
        line.start_sending(b"b")
    with pytest.raises(ConnectionEnded):
        await (line.spoiled.receive() if direction == "upstream" else line.spoiled.send(b"b"))
    assert line.now() == 3.0


async def test_offsets_count_from_the_moment_when_the_fault_was_added(
    direction: Direction, tasks: TaskGroup
) -> None:
    line = ChangingLine(direction, tasks)
    line.start_listening()
    line.start_sending(b"abc")
    await line.until(1)
    line.change(fault=Corrupt(offset=1, stream=direction))
    line.start_sending(b"def", b"ghi")
    await line.until(2)
    line.change(fault=Corrupt(rate=1, stream=direction))
    line.start_sending(b"jkl")
    await line.until(3)
    line.change()
    line.start_sending(b"mno")
    await line.until(4)
    plain = [b"abc", b"def", b"ghi", b"jkl", b"mno"]
    changed = [
        [a != b for a, b in zip(sent, got, strict=True)] for sent, (_, got) in zip(plain, line.arrived, strict=True)
    ]
    never, always = [False] * 3, [True] * 3
    assert changed == [never, [False, True, False], never, always, never]


async def test_chunks_are_dropped_only_while_the_fault_acts(direction: Direction, tasks: TaskGroup) -> None:
    line = ChangingLine(direction, tasks)
    line.start_listening()
    for time, faults in enumerate(({}, {"loss": PacketLoss(loss_rate=1, stream=direction)}, {})):
        line.change(**faults)
        line.start_sending(b"%d" % time)
        await line.until(time + 1)
    assert line.arrived == [(0.0, b"0"), (2.0, b"2")]


async def test_a_direction_that_a_fault_has_ended_stays_so_without_it(tasks: TaskGroup) -> None:
    line = ChangingLine("downstream", tasks, fault=HalfClose(bytes=1))
    line.start_listening()
    await line.spoiled.send(b"ab")
    line.change()
    await line.spoiled.send(b"c")
    await line.spoiled.send_eof()
    await line.until(1)
    assert line.arrived == [(0.0, b"a"), (0.0, b"")]


async def test_a_fault_of_the_other_direction_or_kind_with_the_same_name_is_a_new_one(tasks: TaskGroup) -> None:
    line = ChangingLine("downstream", tasks, fault=Latency(latency=1))
    line.start_listening()
    line.change(fault=Latency(latency=50, stream="upstream"))
    line.start_sending(b"a")
    await line.until(1)
    line.change(fault=Bandwidth(rate=10))
    line.start_sending(b"b")
    await line.until(2)
    assert line.arrived == [(0.0, b"a"), (1.1, b"b")]


async def test_a_second_receive_is_refused(tasks: TaskGroup) -> None:
    line = ChangingLine("upstream", tasks)
    line.start_listening()
    await line.until(1)
    with pytest.raises(BusyResourceError):
        await line.spoiled.receive()


DELAYS: tuple[Callable[[Random, Direction], StreamFault], ...] = (
    lambda random, stream: Latency(latency=random.random(), jitter=random.random(), stream=stream),
    lambda random, stream: Bandwidth(rate=random.randint(5, 500), stream=stream),
    lambda random, stream: Slicer(average_size=random.randint(1, 9), delay=random.random() / 9, stream=stream),
    lambda random, stream: Stall(bytes=random.randint(0, 300), seconds=random.random(), stream=stream),
    lambda random, stream: SlowClose(delay=random.random(), stream=stream),
    lambda random, stream: LimitData(bytes=10_000 + random.randint(0, 9), stream=stream),
    lambda random, stream: HalfClose(bytes=10_000 + random.randint(0, 9), stream=stream),
)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.by_turns("anyio_backend")
async def test_no_byte_is_lost_or_overtaken_whatever_changes_when(
    seed: int, direction: Direction, tasks: TaskGroup
) -> None:
    random = Random(seed)
    payload = random.randbytes(600)
    line = ChangingLine(direction, tasks)

    async def send() -> None:
        rest = payload
        while rest:
            size = random.randint(1, 80)
            await line.sender.send(rest[:size])
            rest = rest[size:]
            await (sleep(random.random() / 4) if random.random() < 0.5 else checkpoint())
        await line.sender.send_eof()

    async def change() -> None:
        faults: dict[str, Fault] = {}
        for _ in range(60):
            name = random.choice("abcd")
            if random.random() < 0.4:
                faults.pop(name, None)
            else:
                faults[name] = random.choice(DELAYS)(random, random.choice(DIRECTIONS))
            assert line.change(**faults)
            await (sleep(random.random() / 9) if random.random() < 0.7 else checkpoint())
        line.change()

    received = bytearray()
    async with create_task_group() as running:
        running.start_soon(send)
        running.start_soon(change)
        while True:
            with move_on_after(random.random()):  # a receive that is cancelled loses no byte either
                try:
                    received += await line.receiver.receive(random.choice((1, 7, 65536)))
                except EndOfStream:
                    break

    assert received == payload
    line.change()
    assert not line.spoiled._upstream
    assert not line.spoiled._downstream
