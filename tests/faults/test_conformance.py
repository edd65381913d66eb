"""A stream with a fault that does not act passes the checks of `tests.support.conformance`."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from anyio.abc import SocketAttribute, TaskGroup

from anyecho.faults import (
    Bandwidth,
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
    spoil,
)
from anyecho.faults.chain import FaultChain
from anyecho.faults.plan import FaultPlan, named
from anyecho.net.poller import Fallback
from tests.faults.line import DIRECTIONS
from tests.net.pairs import KINDS, stream_pair
from tests.support.conformance import CHECKS, Check, run_check
from tests.support.memory import memory_pair

FAR = 1 << 40
#: Each fault with values that would be noticed, and, if there are any, with values that change nothing.
FAULTS: list[tuple[StreamFault, StreamFault | None]] = [
    (Latency(latency=9), Latency()),
    (Bandwidth(rate=1), Bandwidth(rate=1e12)),
    (SlowClose(delay=9), SlowClose()),
    (Timeout(timeout=0), None),
    (ResetPeer(), None),
    (Slicer(), Slicer(average_size=FAR)),
    (LimitData(), LimitData(bytes=FAR)),
    (PacketLoss(loss_rate=1), PacketLoss(loss_rate=0)),
    (Corrupt(rate=1), Corrupt(offset=FAR)),
    (Cut(bytes=0), Cut(bytes=FAR, seconds=1000)),
    (Stall(), Stall(bytes=FAR)),
    (HalfClose(), HalfClose(bytes=FAR)),
]
NEUTRAL = [neutral for _, neutral in FAULTS if neutral]


def name(value: object) -> str:
    return value.name if isinstance(value, StreamFault) else getattr(value, "__name__", "")


@pytest.mark.parametrize("fault", [fault for fault, _ in FAULTS], ids=name)
async def test_a_fault_of_toxicity_0_leaves_each_stream_as_it_is(fault: StreamFault) -> None:
    stream, other = memory_pair()
    async with stream, other:
        for number in range(1, 100):
            assert spoil(stream, replace(fault, toxicity=0.0), number=number) is stream
            assert spoil(stream, fault, number=number) is not stream


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", CHECKS, ids=name)
@pytest.mark.by_turns("kind")
async def test_streams_with_every_fault_at_toxicity_0_conform(check: Check, kind: str, tasks: TaskGroup) -> None:
    """On one side they are for the whole life of the stream, on the other they may change."""
    faults = [replace(fault, toxicity=0.0) for fault, _ in FAULTS]
    left, right = stream_pair(kind, Fallback())
    changing = FaultChain(right, tasks)
    changing.change(FaultPlan(named(faults), seed=1).draw(1))
    await run_check(check, spoil(left, *faults), changing)


@pytest.mark.parametrize("share", range(3))
@pytest.mark.parametrize("place", range(len(CHECKS)), ids=[check.__name__ for check in CHECKS])
@pytest.mark.by_turns("anyio_backend")
async def test_faults_that_change_nothing_conform(place: int, share: int) -> None:
    """Alone, all together, and in pairs, of which each check has a part."""
    sets = [*((fault,) for fault in NEUTRAL), (*NEUTRAL,), *[*permutations(NEUTRAL, 2)][place :: len(CHECKS)]]
    for faults in sets[share::3]:
        both = [replace(fault, stream=each) for each in DIRECTIONS for fault in faults]
        left, right = (spoil(stream, *both) for stream in stream_pair("unix", Fallback()))
        try:
            await run_check(CHECKS[place], left, right)
        except BaseException as exc:
            exc.add_note(f"with {', '.join(map(name, faults))}")
            raise


async def test_the_attributes_of_the_stream_are_forwarded_through_all_faults(tasks: TaskGroup) -> None:
    faults = [replace(fault, stream=each) for fault in NEUTRAL for each in DIRECTIONS]
    left, right = stream_pair("tcp", Fallback())
    async with FaultChain(spoil(left, *faults), tasks) as stream, right:
        stream.change(FaultPlan(named(faults), seed=1).draw(1))
        assert stream.extra(SocketAttribute.raw_socket) is left._sock
        assert stream.extra(SocketAttribute.remote_address) == right.extra(SocketAttribute.local_address)
