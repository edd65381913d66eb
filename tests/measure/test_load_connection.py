"""A load connection on a wire in memory: what it sends, what it compares, and what it counts."""

from __future__ import annotations

from random import Random

import pytest

from anyecho.measure.load_connection import LoadConnection
from anyecho.measure.samples import Samples, evaluate
from anyecho.measure.traffic import CHUNK, Traffic
from anyecho.net.readiness import READ, WRITE
from tests.measure.simulation import MILLISECOND, SECOND, Clock, MemoryWire

TIMEOUT = 2 * SECOND


class Scene:
    """One connection; what it asks of its driver is in `asked`."""

    def __init__(self, *, size: int = 8, pipeline: int = 1, is_open_loop: bool = False, number: int = 0) -> None:
        self.clock = Clock()
        self.start = self.clock.now
        self.traffic = Traffic(
            size=size, pipeline=pipeline, is_open_loop=is_open_loop, timeout=TIMEOUT, clock=self.clock
        )
        self.wire = MemoryWire()
        self.connection = LoadConnection(self.wire, number, self.traffic)
        self.asked: list[int] = []
        self.connection.attach(self.asked.append)

    def take(self, after: int) -> None:
        """Let a message be due now, `after` nanoseconds after the start."""
        self.clock.now = self.start + after
        self.connection.take(self.clock.now, self.clock.now)

    def deliver(self, data: bytes) -> None:
        self.wire.input += data
        while self.wire.input and not self.connection.stopped:
            self.connection.dispatch(READ)

    def echo(self, count: int) -> None:
        """Echo the next `count` bytes."""
        data = bytes(self.wire.written[:count])
        del self.wire.written[:count]
        self.deliver(data)

    def samples(self, *, interrupted: bool = False) -> Samples:
        return evaluate(
            [self.connection], start=self.start, now=self.clock.now, timeout=TIMEOUT, interrupted=interrupted
        )


def counts(samples: Samples) -> tuple[int, int, int, int]:
    return samples.verified, samples.wrong, samples.lost, samples.outstanding


@pytest.mark.parametrize("size", [1, 8, 65521, 3 * CHUNK + 1])
@pytest.mark.parametrize("pipeline", [1, 5])
def test_replies_and_writes_in_any_pieces_are_verified(size: int, pipeline: int) -> None:
    scene = Scene(size=size, pipeline=pipeline)
    scene.traffic.left = 20
    random = Random(size)
    scene.wire.room = random.randrange(size * pipeline)
    scene.connection.start()
    while scene.connection.outstanding:
        scene.clock.now += 1
        scene.wire.room += random.randrange(1, 2 * size + 1)
        if scene.asked[-1] & WRITE:
            scene.connection.dispatch(WRITE)
        if scene.wire.written:
            scene.echo(random.randrange(1, len(scene.wire.written) + 1))

    assert counts(scene.samples()) == (20, 0, 0, 0)
    assert scene.traffic.first_failure == ""
    assert list(scene.connection.received) == sorted(scene.connection.received)


@pytest.mark.parametrize("size", [8, 64, 65521])  # the last is a period of the pattern
def test_messages_of_a_row_and_of_two_connections_differ(size: int) -> None:
    one, other = Scene(size=size, pipeline=2), Scene(size=size, pipeline=2, number=1)
    for scene in (one, other):
        scene.connection.start()
    sent = bytes(one.wire.written)
    assert sent[:size] != sent[size:]
    assert sent != bytes(other.wire.written)


def test_a_closed_loop_keeps_the_pipeline_full_until_its_deadline() -> None:
    scene = Scene(pipeline=3)
    scene.connection.start()
    assert len(scene.connection.sent) == 3
    scene.echo(16)
    assert len(scene.connection.sent) == 5
    scene.traffic.deadline = scene.clock.now
    scene.echo(24)
    assert len(scene.connection.sent) == 5
    assert scene.connection.outstanding == 0


@pytest.mark.parametrize("pipeline", [1, 3])
@pytest.mark.parametrize("is_open_loop", [False, True])
def test_a_closed_loop_leaves_it_to_its_driver_when_it_sends_the_next_message(
    is_open_loop: bool, pipeline: int
) -> None:
    scene = Scene(pipeline=pipeline, is_open_loop=is_open_loop)
    deferred: list[LoadConnection] = []
    scene.connection.attach(scene.asked.append, deferred.append)
    if is_open_loop:
        for _ in range(pipeline + 1):
            scene.take(0)
    else:
        scene.connection.start()
    scene.echo(8)
    if not is_open_loop:
        assert len(scene.connection.sent) == pipeline
        assert deferred == [scene.connection]
        scene.clock.now += MILLISECOND
        scene.connection.resume()
    assert len(scene.connection.sent) == pipeline + 1
    assert scene.connection.sent[-1] == scene.clock.now
    assert scene.connection.received[0] == scene.start
    scene.connection.stop()
    scene.connection.resume()
    assert len(scene.connection.sent) == pipeline + 1


def test_a_message_for_a_busy_connection_waits_and_its_clock_runs() -> None:
    scene = Scene(is_open_loop=True)
    scene.take(0)
    scene.take(1 * MILLISECOND)
    assert len(scene.wire.written) == 8
    scene.clock.now = scene.start + 5 * MILLISECOND
    scene.echo(8)
    scene.clock.now += MILLISECOND
    scene.echo(8)
    samples = scene.samples()
    assert list(samples.corrected) == [5 * MILLISECOND, 5 * MILLISECOND]
    assert list(samples.uncorrected) == [5 * MILLISECOND, 1 * MILLISECOND]


def test_a_message_that_times_out_in_the_queue_saturates_the_run() -> None:
    scene = Scene(is_open_loop=True)
    for after in (0, 1, TIMEOUT + 1):
        scene.take(after)
        assert not scene.traffic.is_saturated
    scene.take(TIMEOUT + 2)
    assert scene.traffic.is_saturated


@pytest.mark.parametrize("pipeline", [1, 4])
def test_each_message_with_a_wrong_byte_is_wrong_once_and_the_rest_verified(pipeline: int) -> None:
    scene = Scene(pipeline=pipeline)
    scene.traffic.left = 12
    scene.connection.start()
    echoed = 0
    while scene.wire.written:
        data = bytearray(scene.wire.written)
        scene.wire.written.clear()
        for position in (29, 30, 64):  # two bytes of message 3, one of message 8
            if echoed <= position < echoed + len(data):
                data[position - echoed] ^= 1
        echoed += len(data)
        scene.deliver(bytes(data))

    samples = scene.samples()
    assert counts(samples) == (10, 2, 0, 0)
    assert scene.connection.wrong == [3, 8]
    assert len(samples.corrected) == 12
    assert sorted(samples.corrected)[-2:] == [TIMEOUT, TIMEOUT]
    assert scene.traffic.first_failure.startswith("message 3 of connection 0 is wrong at byte 5: sent 0x")


def test_surplus_bytes_end_the_connection() -> None:
    scene = Scene()
    scene.connection.start()
    scene.deliver(bytes(scene.wire.written) + b"!")
    assert counts(scene.samples()) == (0, 0, 1, 0)
    assert scene.traffic.first_failure == (
        "connection 0 was dropped: 1 bytes came that were never sent: message 0 is lost"
    )


@pytest.mark.parametrize("is_reset", [False, True])
def test_messages_of_a_dropped_connection_are_lost_with_their_timeout_at_least(is_reset: bool) -> None:
    scene = Scene(is_open_loop=True, pipeline=2)
    for after in range(4):
        scene.take(after)
    scene.echo(8)
    if is_reset:
        scene.wire.error = ConnectionResetError(104, "Connection reset by peer")
    else:
        scene.wire.is_eof = True
    scene.connection.dispatch(READ)
    scene.take(4)  # due afterwards
    samples = scene.samples()
    assert counts(samples) == (1, 0, 4, 0)
    assert sorted(samples.corrected)[1:] == [TIMEOUT] * 4
    assert len(samples.uncorrected) == 1
    assert scene.asked[-1] == 0
    why = "it broke (Connection reset by peer)" if is_reset else "the server closed it"
    assert scene.traffic.first_failure == f"connection 0 was dropped: {why}: message 1 is lost"


def test_a_reply_after_its_timeout_is_late_and_its_message_lost_with_its_latency() -> None:
    scene = Scene(is_open_loop=True)
    scene.take(0)
    scene.clock.now += TIMEOUT + 7
    scene.echo(8)
    samples = scene.samples()
    assert counts(samples) == (0, 0, 1, 0)
    assert samples.late == 1
    assert list(samples.corrected) == [TIMEOUT + 7]
    assert samples.first_lost == "message 0 of connection 0"


def test_an_interrupted_run_has_outstanding_messages_which_are_no_samples() -> None:
    scene = Scene(is_open_loop=True, pipeline=4)
    for after in (0, TIMEOUT, TIMEOUT + 1):
        scene.take(after)
    scene.clock.now = scene.start + TIMEOUT + 2
    assert counts(scene.samples(interrupted=True)) == (0, 0, 1, 2)
    assert counts(scene.samples()) == (0, 0, 3, 0)
    assert list(scene.samples(interrupted=True).corrected) == [TIMEOUT + 2]


def test_the_warm_up_is_in_no_figure_and_its_failures_are_counted() -> None:
    scene = Scene(is_open_loop=True, pipeline=4)
    scene.start += 2 * MILLISECOND
    for after in (-2, -1, 1):
        scene.take(after * MILLISECOND)
    echo = bytes(scene.wire.written)
    scene.deliver(echo[:3] + bytes([echo[3] ^ 255]) + echo[4:])
    samples = scene.samples()
    assert counts(samples) == (1, 0, 0, 0)
    assert samples.warm_up_failures == 1


def test_seconds_hold_the_latencies_of_the_replies_that_came_in_them() -> None:
    scene = Scene(is_open_loop=True, pipeline=100)
    for number in range(30):
        scene.take(number * 100 * MILLISECOND)
    for number in range(30):
        scene.clock.now = scene.start + number * 100 * MILLISECOND + SECOND
        scene.echo(8)
    seconds = scene.samples().per_second(8)
    assert [each.verified for each in seconds] == [0, 10, 10, 10]
    assert [sum(each.levels) for each in seconds] == [0, 10, 10, 10]
    assert [each.bytes for each in seconds] == [0, 80, 80, 80]
