"""What passes and what does not: offsets, sizes, probabilities, the seed."""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from anyio import BrokenResourceError, EndOfStream

from anyecho.errors import UsageError
from anyecho.faults import (
    ConnectionEnded,
    Corrupt,
    Cut,
    ExpiredCertificate,
    Fault,
    HalfClose,
    LimitData,
    PacketLoss,
    Slicer,
    Stall,
    StalledHandshake,
    StreamFault,
    Timeout,
    parse_fault,
    spoil,
)
from anyecho.faults.fault import Direction
from anyecho.faults.plan import FaultPlan, named
from tests.faults.line import DIRECTIONS
from tests.support.memory import memory_pair

PAYLOAD = Random(1).randbytes(20_000)


async def through(chunks: Sequence[bytes], *faults: StreamFault, seed: int = 1, number: int = 1) -> list[bytes]:
    """Send `chunks` through `faults`, all of the same direction; return what arrives until the end."""
    near, far = memory_pair()
    spoiled = spoil(far, *faults, seed=seed, number=number)
    upstream = faults[0].stream == "upstream"
    sender, receiver = (near, spoiled) if upstream else (spoiled, near)
    found = []
    async with near, spoiled:
        try:
            for chunk in chunks:
                await sender.send(chunk)
            await sender.send_eof()
        except BrokenResourceError:
            assert not upstream
        try:
            while True:
                found.append(await receiver.receive())
        except (EndOfStream, ConnectionEnded):
            pass

    return found


def in_chunks(payload: bytes, seed: int, largest: int) -> list[bytes]:
    random, chunks = Random(seed), []
    while payload:
        size = random.randint(1, largest)
        chunks.append(payload[:size])
        payload = payload[size:]

    return chunks


@pytest.mark.parametrize("stream", DIRECTIONS)
@pytest.mark.parametrize(
    "fault",
    [
        Corrupt(rate=0.01),
        Corrupt(offset=777, rate=0.001),
        Cut(bytes=1234),
        LimitData(bytes=1234),
        HalfClose(bytes=1234),
        Stall(bytes=1234, seconds=0),
    ],
    ids=lambda fault: fault.name,
)
async def test_the_result_does_not_depend_on_the_chunks(fault: StreamFault, stream: Direction) -> None:
    fault = replace(fault, stream=stream)
    results = {b"".join(await through(in_chunks(PAYLOAD, seed, 3000), fault)) for seed in range(4)}
    assert len(results) == 1
    [result] = results
    assert len(result) == (len(PAYLOAD) if fault.name in ("corrupt", "stall") else 1234)
    assert (result != PAYLOAD[: len(result)]) == (fault.name == "corrupt")


@pytest.mark.parametrize("stream", DIRECTIONS)
async def test_slices_end_at_offsets_that_do_not_depend_on_the_chunks(stream: Direction) -> None:
    fault = Slicer(average_size=100, size_variation=50, stream=stream)
    ends = []
    for chunks in ([PAYLOAD], in_chunks(PAYLOAD, 1, 3000)):
        pieces = await through(chunks, fault)
        assert b"".join(pieces) == PAYLOAD
        found, passed = set(), 0
        for piece in pieces:
            passed += len(piece)
            found.add(passed)
        ends.append(found)

    assert ends[0] <= ends[1]
    sizes = [len(piece) for piece in (await through([PAYLOAD], fault))[:-1]]
    assert 50 <= min(sizes) < 60 < 140 < max(sizes) <= 150
    assert 95 < sum(sizes) / len(sizes) < 105


@pytest.mark.parametrize("stream", DIRECTIONS)
async def test_slices_without_variation_have_one_size(stream: Direction) -> None:
    assert await through([b"abcdefgh"], Slicer(average_size=3, stream=stream)) == [b"abc", b"def", b"gh"]


@pytest.mark.parametrize("stream", DIRECTIONS)
async def test_a_byte_at_an_offset_is_changed_and_logged(
    stream: Direction, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "anyecho")
    result = b"".join(await through([b"abc", b"def"], Corrupt(offset=4, stream=stream)))
    assert (result[:4], result[5:]) == (b"abcd", b"f")
    assert result[4] != ord("e")
    assert caplog.messages == [f"corrupt: byte 4 was 0x65, is 0x{result[4]:02x}"]


async def test_a_seed_gives_the_same_bytes_on_every_backend() -> None:
    faults = (Corrupt(rate=0.01), PacketLoss(loss_rate=0.3), LimitData(bytes=5000))
    result = b"".join(await through([PAYLOAD[at : at + 100] for at in range(0, 9000, 100)], *faults, seed=7))
    assert (len(result), zlib.crc32(result)) == (5000, 2957830570)


@pytest.mark.by_turns("anyio_backend")
async def test_bytes_are_changed_at_the_rate() -> None:
    changed = Counter[bool]()
    for seed in range(20):
        result = b"".join(await through([PAYLOAD], Corrupt(rate=0.01), seed=seed))
        changed.update(a != b for a, b in zip(PAYLOAD, result, strict=True))
    assert 3600 < changed[True] < 4400  # 4000 are expected, with a standard deviation of 63


@pytest.mark.parametrize("correlation", [0.0, 0.7])
@pytest.mark.by_turns("anyio_backend")
async def test_chunks_are_dropped_at_the_loss_rate_and_in_bursts_if_correlated(correlation: float) -> None:
    chunks = [number.to_bytes(2, "big") for number in range(20_000)]
    passed = set(await through(chunks, PacketLoss(loss_rate=0.2, correlation=correlation)))
    lost = [chunk not in passed for chunk in chunks]
    assert 0.17 < sum(lost) / len(lost) < 0.23
    after_a_loss = [lost[at + 1] for at in range(len(lost) - 1) if lost[at]]
    expected = 0.2 * (1 - correlation) + correlation
    assert expected - 0.05 < sum(after_a_loss) / len(after_a_loss) < expected + 0.05


@pytest.mark.parametrize("stream", DIRECTIONS)
async def test_a_black_hole_lets_nothing_pass_but_the_end(stream: Direction) -> None:
    assert await through([b"abc", b"def"], Timeout(stream=stream)) == []


@pytest.mark.parametrize(
    "fault", [LimitData(bytes=4), Cut(bytes=4), HalfClose(bytes=4)], ids=lambda fault: fault.name
)
@pytest.mark.parametrize("stream", DIRECTIONS)
async def test_exactly_the_bytes_of_a_limit_pass(fault: StreamFault, stream: Direction) -> None:
    for size in (0, 1, 4):
        limited: Any = replace(fault, stream=stream, **{"bytes": size})
        assert b"".join(await through([b"abc", b"def"], limited)) == b"abcdef"[:size]


@pytest.mark.parametrize("fault", [LimitData(bytes=4), Cut(bytes=4)], ids=lambda fault: fault.name)
async def test_a_send_over_the_limit_delivers_its_first_part_and_raises(fault: StreamFault) -> None:
    near, far = memory_pair()
    spoiled = spoil(far, fault)
    async with near, spoiled:
        with pytest.raises(ConnectionEnded, match=f"^ended by the fault {fault.name}$"):
            await spoiled.send(b"abcdef")
        assert await near.receive() == b"abcd"
        with pytest.raises(EndOfStream):
            await near.receive()


async def test_a_direction_that_ended_leaves_the_other_one_open() -> None:
    near, far = memory_pair()
    async with near, spoil(far, HalfClose(bytes=2)) as spoiled:
        await spoiled.send(b"abc")
        await spoiled.send(b"dropped")
        assert await near.receive() == b"ab"
        with pytest.raises(EndOfStream):
            await near.receive()
        await near.send(b"still open")
        assert await spoiled.receive() == b"still open"
        await spoiled.send_eof()


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}),
        ({"first": 2}, {1, 2}),
        ({"on": 3}, {3}),
        ({"every": 5}, {5, 10}),
        ({"every": 5, "first": 7}, {5}),
        ({"toxicity": 0.0}, set()),
    ],
)
def test_a_fault_acts_on_the_chosen_connections(selection: dict[str, Any], expected: set[int]) -> None:
    plan = FaultPlan(named([Timeout(**selection)]), seed=1)
    assert {number for number in range(1, 13) if plan.draw(number)} == expected


@pytest.mark.parametrize(
    "fault",
    [Timeout(toxicity=0.3), Corrupt(toxicity=0.3), StalledHandshake(toxicity=0.3)],
    ids=lambda each: each.name,
)
def test_a_fault_acts_with_the_probability_of_its_toxicity_and_repeats_with_the_seed(fault: Fault) -> None:
    runs = []
    for seed in (1, 1, 2):
        plan = FaultPlan(named([fault]), seed=seed)
        runs.append([bool(plan.draw(number)) for number in range(4000)])
    assert runs[0] == runs[1] != runs[2]
    assert 1100 < sum(runs[0]) < 1300  # 1200 are expected, with a standard deviation of 29


def test_a_further_fault_changes_nothing_about_the_first_one() -> None:
    lone, both = (
        FaultPlan(named([Corrupt(toxicity=0.5)]), 1),
        FaultPlan(named([Timeout(toxicity=0.5), Corrupt(toxicity=0.5)]), 1),
    )
    for number in range(100):
        [first] = lone.draw(number) or [None]
        of_both = [each for each in both.draw(number) if isinstance(each.fault, Corrupt)]
        assert [each.random.random() for each in of_both] == ([first.random.random()] if first else [])


def test_the_faults_of_later_connections_may_change() -> None:
    plan = FaultPlan({}, seed=1)
    assert plan.draw(plan.next_number()) == ()
    plan.faults = {"hole": Timeout()}
    assert [(each.name, each.fault) for each in plan.draw(plan.next_number())] == [("hole", Timeout())]


def test_a_higher_toxicity_adds_connections_to_those_before() -> None:
    acting = []
    for toxicity in (0.3, 0.6):
        plan = FaultPlan({"hole": Timeout(toxicity=toxicity)}, seed=1)
        acting.append({number for number in range(1000) if plan.draw(number)})
    assert acting[0] < acting[1]


def test_faults_without_a_name_are_named_by_kind_and_direction() -> None:
    faults = (Timeout(), Timeout(stream="upstream"), Timeout(timeout=1), ExpiredCertificate())
    names = ["timeout_downstream", "timeout_upstream", "timeout_downstream_2", "expired_certificate"]
    assert named(faults) == dict(zip(names, faults, strict=True))


def test_a_name_that_is_given_twice_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"^two faults are called timeout_downstream$"):
        named([Timeout()], {"timeout_downstream": Timeout()})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("timeout", Timeout()),
        ("timeout:timeout=100ms", Timeout(timeout=0.1)),
        ("timeout:timeout=off", Timeout()),
        (
            "cut:bytes=1KiB,stream=upstream,toxicity=0.5,on=3",
            Cut(bytes=1024, stream="upstream", toxicity=0.5, on=3),
        ),
        ("corrupt:rate=1e-6", Corrupt(rate=1e-6)),
        (
            "slicer:average_size=10,size_variation=2,delay=5us",
            Slicer(average_size=10, size_variation=2, delay=5e-6),
        ),
    ],
)
def test_a_specification_is_parsed(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("latncy", r"^no fault 'latncy' \(did you mean latency\?\); there are latency, bandwidth, "),
        ("", r"^no fault ''; there are "),
        ("latency:latncy=1ms", r"^latency: no key 'latncy' \(did you mean latency\?\); there are toxicity, "),
        ("latency:latency=100", r"^latency: latency: '100' has no unit: write 100ms or 100s$"),
        ("latency:latency=0", r"^latency: latency: '0' has no unit"),
        ("latency:latency=1.5e3", r"has no unit"),
        ("latency:latency=soon", r"^latency: latency: 'soon' is not a duration"),
        ("latency:latency", r"^latency: 'latency' is not key=value$"),
        ("latency:latency=1s,latency=2s", r"^latency: latency is given twice$"),
        ("latency:latency=off", r"^latency: latency must be 0 or more, not inf$"),
        ("latency", r"^latency: give latency or jitter$"),
        ("bandwidth:stream=upstream", r"^bandwidth: give rate$"),
        ("bandwidth:rate=0", r"^bandwidth: rate must be more than 0, not 0\.0$"),
        ("cut:bytes=1,on=x", r"^cut: on: 'x' is not a whole number$"),
        ("cut:bytes=1,toxicity=x", r"^cut: toxicity: 'x' is not a number$"),
        ("cut:bytes=1,toxicity=nan", r"^cut|^toxicity"),
        ("cut:bytes=1,toxicity=1.5", r"^cut: toxicity must be from 0 to 1, not 1\.5$"),
        ("cut:bytes=1,stream=up", r"^cut: stream: it is upstream or downstream, not 'up'$"),
        ("slicer:size_variation=1", r"^slicer: size_variation must be less than average_size, 1, not 1$"),
    ],
)
def test_a_wrong_specification_is_one_line(text: str, error: str) -> None:
    with pytest.raises(UsageError, match=error) as caught:
        parse_fault(text)
    assert "\n" not in str(caught.value)
