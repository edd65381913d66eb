"""A stream with a fault that does not act passes the checks of `tests.support.conformance`."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from anyio.abc import ByteStream, SocketAttribute

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
from anyecho.faults.fault import Direction
from anyecho.net.poller import Fallback
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
DIRECTIONS: tuple[Direction, ...] = ("upstream", "downstream")
NEUTRAL = [replace(neutral, stream=each) for _, neutral in FAULTS if neutral for each in DIRECTIONS]


def name(value: object) -> str | None:
    if isinstance(value, StreamFault):
        return f"{value.name}-{value.stream}"

    return getattr(value, "__name__", None)


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
async def test_streams_with_every_fault_at_toxicity_0_conform(check: Check, kind: str) -> None:
    pair = stream_pair(kind, Fallback())
    faults = [replace(fault, toxicity=0.0) for fault, _ in FAULTS]
    left, right = (spoil(stream, *faults) for stream in pair)
    await run_check(check, left, right)


@pytest.mark.parametrize("fault", [neutral for _, neutral in FAULTS if neutral], ids=name)
@pytest.mark.parametrize("check", CHECKS, ids=name)
@pytest.mark.by_turns("anyio_backend")
async def test_a_fault_that_changes_nothing_conforms(check: Check, fault: StreamFault) -> None:
    both = [replace(fault, stream=each) for each in DIRECTIONS]
    left, right = (spoil(stream, *both) for stream in stream_pair("unix", Fallback()))
    await run_check(check, left, right)


@pytest.mark.parametrize("check", CHECKS, ids=name)
@pytest.mark.by_turns("anyio_backend")
async def test_all_faults_that_change_nothing_conform_together(check: Check) -> None:
    left, right = (spoil(stream, *NEUTRAL) for stream in stream_pair("unix", Fallback()))
    await run_check(check, left, right)


@pytest.mark.parametrize("place", range(len(CHECKS)), ids=[check.__name__ for check in CHECKS])
@pytest.mark.by_turns("anyio_backend")
async def test_two_faults_that_change_nothing_conform_in_both_orders(place: int) -> None:
    """Each check has its share of the pairs."""
    pairs = [*permutations((neutral for _, neutral in FAULTS if neutral), 2)]
    for pair in pairs[place :: len(CHECKS)]:
        both = [replace(fault, stream=each) for each in DIRECTIONS for fault in pair]
        left, right = (spoil(stream, *both) for stream in stream_pair("unix", Fallback()))
        await run_check(CHECKS[place], left, right)


async def test_the_attributes_of_the_stream_are_forwarded_through_all_faults() -> None:
    left, right = stream_pair("tcp", Fallback())
    async with spoil(left, *NEUTRAL) as stream, right:
        assert isinstance(stream, ByteStream)
        assert stream.extra(SocketAttribute.raw_socket) is left._sock
        assert stream.extra(SocketAttribute.remote_address) == right.extra(SocketAttribute.local_address)
