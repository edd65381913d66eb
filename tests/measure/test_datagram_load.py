"""The UDP load tells loss, duplicates, reordering, late and wrong replies apart."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest

from anyecho.address import UDPAddress
from anyecho.client.options import ConnectOptions
from anyecho.errors import ConnectError, UsageError
from anyecho.faults import Corrupt, Duplicate, Fault, Loss
from anyecho.measure.bench import run_bench
from anyecho.measure.datagram_load import DatagramConnection
from anyecho.measure.options import BenchOptions
from anyecho.measure.samples import Samples, evaluate
from anyecho.measure.traffic import Traffic
from anyecho.net.readiness import READ, WRITE
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.measure.simulation import MILLISECOND, SECOND, Clock
from tests.support.machine import needs_ipv6

TIMEOUT = SECOND


class MemorySocket:
    """A datagram socket whose peer is the test."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.received: list[bytes | OSError] = []
        self.is_full = False

    def send(self, data: bytearray) -> int:
        if self.is_full:
            raise BlockingIOError
        self.sent.append(bytes(data))
        return len(data)

    def recv_into(self, buffer: Any) -> int:
        if not self.received:
            raise BlockingIOError
        datagram = self.received.pop(0)
        if isinstance(datagram, OSError):
            raise datagram
        buffer[: len(datagram)] = datagram
        return len(datagram)


class Scene:
    def __init__(self, *, is_open_loop: bool = True, pipeline: int = 1, size: int = 16) -> None:
        self.clock = Clock()
        self.start = self.clock.now
        self.traffic = Traffic(
            size=size, pipeline=pipeline, is_open_loop=is_open_loop, timeout=TIMEOUT, clock=self.clock
        )
        self.sock = MemorySocket()
        self.connection = DatagramConnection(cast("Any", self.sock), 0, self.traffic)
        self.asked: list[int] = []
        self.connection.attach(self.asked.append)

    def take(self, *after: int) -> None:
        for each in after:
            self.clock.now = self.start + each
            self.connection.take(self.clock.now, self.clock.now)

    def deliver(self, *datagrams: bytes | OSError, after: int = 0) -> None:
        self.clock.now += after
        self.sock.received += datagrams
        self.connection.dispatch(READ)

    def samples(self) -> Samples:
        return evaluate([self.connection], start=self.start, now=self.clock.now, timeout=TIMEOUT)


def counts(samples: Samples) -> tuple[int, int, int]:
    return samples.verified, samples.wrong, samples.lost


def test_lost_duplicated_reordered_and_late_datagrams_are_told_apart() -> None:
    scene = Scene()
    scene.take(0, 1, 2, 3, 4)
    first, second, third, _, fifth = scene.sock.sent
    scene.deliver(third, first, first, second, after=MILLISECOND)
    scene.deliver(fifth, after=TIMEOUT)
    samples = scene.samples()
    assert counts(samples) == (3, 0, 2)
    assert samples.late == 1
    assert (scene.connection.duplicates, scene.connection.reordered) == (1, 2)
    assert list(samples.uncorrected) == [MILLISECOND + 4 - number for number in (0, 1, 2)]
    assert min(sorted(samples.corrected)[3:]) >= TIMEOUT


@pytest.mark.parametrize("position", [0, 3, 7, 8, 15])
def test_a_reply_with_a_wrong_byte_anywhere_is_wrong(position: int) -> None:
    scene = Scene()
    scene.take(0, 1)
    first, second = scene.sock.sent
    scene.deliver(first[:position] + bytes([first[position] ^ 1]) + first[position + 1 :], second, after=5)
    assert counts(scene.samples()) == (1, 1, 0)
    assert scene.traffic.first_failure == "connection 0: the reply to datagram 0 is wrong"


@pytest.mark.parametrize("reply", [b"", b"short", bytes(16), bytes(2000)])
def test_a_datagram_that_was_never_sent_is_a_wrong_reply(reply: bytes) -> None:
    scene = Scene()
    scene.take(0)
    scene.deliver(reply, after=5)
    assert counts(scene.samples()) == (0, 1, 0)


def test_a_lost_datagram_makes_room_in_a_closed_loop_when_it_times_out() -> None:
    scene = Scene(is_open_loop=False, pipeline=2)
    scene.connection.start()
    assert len(scene.sock.sent) == 2
    scene.deliver(scene.sock.sent[1], after=5)
    assert len(scene.sock.sent) == 3
    scene.clock.now += TIMEOUT
    scene.connection.tick(scene.clock.now)
    assert len(scene.sock.sent) == 4  # datagram 2 has not timed out
    assert scene.connection.outstanding == 2


def test_a_full_socket_buffer_delays_datagrams_and_loses_none() -> None:
    scene = Scene()
    scene.sock.is_full = True
    scene.take(0, 1)
    assert scene.asked[-1] == READ | WRITE
    assert scene.connection.outstanding == 2
    scene.sock.is_full = False
    scene.clock.now += MILLISECOND
    scene.connection.dispatch(WRITE)
    assert [number - scene.start for number in scene.connection.sent] == [1 + MILLISECOND] * 2
    scene.deliver(*scene.sock.sent)
    assert counts(scene.samples()) == (2, 0, 0)


def test_a_closed_loop_with_a_full_socket_buffer_begins_no_more_than_it_can_send() -> None:
    scene = Scene(is_open_loop=False, pipeline=5)
    scene.sock.is_full = True
    scene.connection.start()
    assert scene.connection.outstanding == 1
    scene.sock.is_full = False
    scene.connection.dispatch(WRITE)
    scene.deliver(*scene.sock.sent)
    assert len(scene.sock.sent) == 1 + 5


def test_a_flood_of_replies_is_taken_in_batches() -> None:
    scene = Scene()
    scene.take(*range(100))
    scene.deliver(*scene.sock.sent)
    assert 0 < len(scene.sock.received) < 100
    while scene.sock.received:
        scene.connection.dispatch(READ)
    assert counts(scene.samples()) == (100, 0, 0)


def test_a_late_reply_makes_no_room_in_a_closed_loop_again() -> None:
    scene = Scene(is_open_loop=False)
    scene.connection.start()
    scene.clock.now += TIMEOUT + 1
    scene.connection.tick(scene.clock.now)
    assert len(scene.sock.sent) == 2
    scene.deliver(scene.sock.sent[0])
    assert (len(scene.sock.sent), scene.connection.outstanding) == (2, 1)


def test_a_wrong_reply_after_the_right_ones_is_a_failure_of_no_datagram() -> None:
    scene = Scene()
    scene.take(0)
    [sent] = scene.sock.sent
    scene.deliver(sent, b"stray", sent[:-1] + b"?")
    assert counts(scene.samples()) == (1, 0, 0)
    assert scene.connection.duplicates == 0
    assert scene.traffic.first_failure == "connection 0: the reply to datagram 1 is wrong"


def test_an_error_of_the_network_is_named_and_the_load_goes_on() -> None:
    scene = Scene()
    scene.take(0, 1)
    scene.deliver(ConnectionRefusedError(111, "Connection refused"), scene.sock.sent[1], after=1)
    assert scene.traffic.first_failure == "connection 0: Connection refused"
    scene.clock.now += TIMEOUT
    assert counts(scene.samples()) == (1, 0, 1)


@pytest.mark.parametrize("rate", [None, 1000.0])
async def test_a_load_over_udp_verifies_all_replies(rate: float | None) -> None:
    options = BenchOptions(requests=200, connections=3, rate=rate, warmup=0.0)
    async with open_server("udp://127.0.0.1:0", options=ServeOptions(udp_rate=None, unsafe_udp=True)) as server:
        result = await run_bench(server.addresses[0], options)
    assert result.load.transport == "udp"
    assert result.counts.verified == result.counts.sent == 200
    assert result.error == ""


async def test_loss_over_udp_is_counted_and_a_limited_server_is_named_as_its_cause() -> None:
    options = BenchOptions(requests=50, rate=5000.0, warmup=0.0, connect=ConnectOptions(timeout=0.3))
    async with open_server(
        "udp://127.0.0.1:0", options=ServeOptions(udp_rate=1.0, udp_burst=20, unsafe_udp=True)
    ) as server:
        result = await run_bench(server.addresses[0], options)
    assert result.counts.sent == 50
    assert 25 <= result.counts.lost <= 31
    assert any("--udp-rate" in note for note in result.notes)


async def test_duplicates_of_the_datagram_before_the_load_are_neither_wrong_nor_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = BenchOptions(requests=100, connections=1, warmup=0.0)
    served = ServeOptions(udp_rate=None, unsafe_udp=True, faults=(Duplicate(),))
    async with open_server("udp://127.0.0.1:0", options=served) as server:
        for _ in range(5):
            result = await run_bench(server.addresses[0], options)
            assert (result.counts.verified, result.counts.wrong, result.error) == (100, 0, "")
    assert "twice" not in caplog.text


@needs_ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_each_connection_of_a_load_over_udp_goes_to_the_address_that_replies(host: str) -> None:
    options = BenchOptions(requests=30, connections=3, rate=1000.0, warmup=0.0)
    async with open_server(f"udp://{host}:0", options=ServeOptions(udp_rate=None, unsafe_udp=True)) as server:
        [address] = server.addresses
        assert isinstance(address, UDPAddress)
        result = await run_bench(f"udp://localhost:{address.port}", options)
    assert (result.counts.verified, result.error) == (30, "")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Loss(loss_rate=1.0), "no reply to a first datagram within 100ms"),
        (Corrupt(offset=0), "the reply to a first datagram is wrong"),
    ],
)
async def test_a_server_that_does_not_echo_a_first_datagram_is_one_plain_reason(fault: Fault, reason: str) -> None:
    options = BenchOptions(requests=1, connect=ConnectOptions(timeout=0.1))
    async with open_server("udp://127.0.0.1:0", options=ServeOptions(unsafe_udp=True, faults=(fault,))) as server:
        with pytest.raises(ConnectError) as caught:
            await run_bench(server.addresses[0], options)
        assert str(caught.value) == f"cannot reach {server.addresses[0]}: {reason}"


async def test_without_a_server_a_load_over_udp_is_a_connect_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ConnectError):
        await run_bench(f"udp://127.0.0.1:{port}", BenchOptions(requests=1))


@pytest.mark.parametrize("size", [7, 65508])
async def test_a_size_that_no_datagram_has_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=rf"^size must be 8 to 65507 bytes over UDP, not {size}$"):
        await run_bench("udp://127.0.0.1:9", BenchOptions(size=size))
