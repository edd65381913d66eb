"""Faults of datagrams, as a plain blocking socket sees them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from anyio import create_task_group, fail_after, to_thread

from anyecho.address import UDPAddress
from anyecho.faults import Corrupt, Duplicate, Fault, Latency, Loss, Reorder, ResetPeer, Truncate
from anyecho.faults.plan import DatagramPlan
from anyecho.net.udp.altered import AlteredEcho
from anyecho.net.udp.counts import DatagramCounts
from anyecho.server.server import Server, open_server
from tests.server.faulty import options
from tests.support.peers import SOON, converse, dial
from tests.support.tasks import wait_all_tasks_blocked

pytestmark = pytest.mark.by_turns("engine")

UDP = "udp://127.0.0.1:0"
DATAGRAMS = [b"%d" % number for number in range(100, 120)]


async def replies(server: Server, *datagrams: bytes, patience: float = 0.25) -> list[bytes]:
    """Send `datagrams`; return the replies in their order, until none comes for `patience` seconds."""
    address = server.address
    assert isinstance(address, UDPAddress)

    def talk() -> list[bytes]:
        found = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((address.host, address.port))
            for each in datagrams:
                sock.send(each)
            sock.settimeout(patience)
            try:
                while True:
                    found.append(sock.recv(65536))
            except TimeoutError:
                return found

    with fail_after(SOON):
        return await to_thread.run_sync(talk)


async def test_lost_datagrams_are_counted_and_repeat_with_the_seed() -> None:
    found = []
    for _ in range(2):
        async with open_server(UDP, options=options(Loss(loss_rate=0.5))) as server:
            found.append(await replies(server, *DATAGRAMS))
            counts = server.stats.datagrams
            assert (counts.received, counts.echoed) == (20, len(found[-1]))
            assert counts.dropped == {"fault": 20 - len(found[-1])}
    assert found[0] == found[1]
    assert 0 < len(found[0]) < 20


async def test_the_first_datagrams_are_lost_and_no_later_one() -> None:
    async with open_server(UDP, options=options(Loss(loss_rate=1, first=2))) as server:
        assert await replies(server, b"a", b"b", b"c", b"d") == [b"c", b"d"]


async def test_a_datagram_arrives_twice() -> None:
    async with open_server(UDP, options=options(Duplicate(on=2))) as server:
        assert await replies(server, b"a", b"", b"c") == [b"a", b"", b"", b"c"]
        assert server.stats.datagrams.echoed == 4


async def test_a_datagram_is_overtaken() -> None:
    async with open_server(UDP, options=options(Reorder(rate=1, delay=0.1, on=1))) as server:
        assert await replies(server, b"a", b"b", b"c") == [b"b", b"c", b"a"]


async def test_replies_are_never_earlier_than_the_latency_and_keep_their_order() -> None:
    async with open_server(UDP, options=options(Latency(latency=0.2, jitter=0.1))) as server:
        start = time.monotonic()
        assert await replies(server, *DATAGRAMS, patience=0.5) == DATAGRAMS
        assert time.monotonic() - start >= 0.1 + 0.5


async def test_a_datagram_is_changed_or_shortened() -> None:
    faults = (Corrupt(offset=2, on=1), Truncate(bytes=3, on=2))
    async with open_server(UDP, options=options(*faults)) as server:
        changed, shortened, intact = await replies(server, b"hello", b"hello", b"hello")
    assert [a == b for a, b in zip(changed, b"hello", strict=True)] == [True, True, False, True, True]
    assert (shortened, intact) == (b"hel", b"hello")


async def test_a_reply_leaves_from_the_address_that_was_asked() -> None:
    async with open_server("udp://0.0.0.0:0", options=options(Reorder(rate=1, delay=0.05))) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(SOON)
            sock.connect(("127.0.0.2", server.port))  # receives from this address only
            sock.send(b"late")
            assert await to_thread.run_sync(sock.recv, 100) == b"late"


async def test_faults_of_datagrams_and_of_streams_act_on_their_own_addresses() -> None:
    faults = (Loss(loss_rate=1), Corrupt(offset=0))
    async with open_server("tcp://127.0.0.1:0", UDP, options=options(*faults)) as server:
        echo = await to_thread.run_sync(converse, dial(server.addresses[0]), b"hello")
        assert echo[:1] != b"h"
        assert echo[1:] == b"ello"


async def test_a_drain_does_not_wait_for_late_replies() -> None:
    async with open_server(UDP, options=options(Latency(latency=60))) as server:
        assert await replies(server, b"a") == []
        with fail_after(SOON):
            await server.drain(0)


@pytest.mark.parametrize(
    ("fault", "shows"),
    [
        (Loss(loss_rate=0.3), lambda replies: not replies),
        (Duplicate(rate=0.3), lambda replies: len(replies) == 2),
        (Reorder(rate=0.3, delay=2.0), lambda replies: replies == [(12.0, b"x")]),
        (Corrupt(rate=0.3), lambda replies: replies[0][1] != b"x"),
        (Truncate(toxicity=0.3), lambda replies: replies == [(10.0, b"")]),
        (Latency(latency=2.0, toxicity=0.3), lambda replies: replies == [(12.0, b"x")]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_fault_of_datagrams_acts_with_its_probability_and_repeats_with_the_seed(
    fault: Fault, shows: Callable[[list[tuple[float, bytes]]], bool]
) -> None:
    runs = []
    for seed in (1, 1, 2):
        plan = DatagramPlan([fault], seed=seed)
        runs.append([plan.replies(10.0, b"x") for _ in range(4000)])
    assert runs[0] == runs[1] != runs[2]
    assert 1100 < sum(map(shows, runs[0])) < 1300  # 1200 are expected, with a standard deviation of 29
    assert sum(replies == [(10.0, b"x")] for replies in runs[0]) == 4000 - sum(map(shows, runs[0]))


@pytest.mark.parametrize(
    ("selection", "expected"),
    [({"first": 2}, {1, 2}), ({"on": 3}, {3}), ({"every": 5}, {5, 10}), ({"every": 5, "first": 7}, {5})],
)
def test_a_fault_acts_on_the_chosen_datagrams(selection: dict[str, Any], expected: set[int]) -> None:
    plan = DatagramPlan([Truncate(**selection)], seed=1)
    assert {number for number in range(1, 13) if plan.replies(0.0, b"x") == [(0.0, b"")]} == expected


def test_the_jitter_of_datagrams_is_within_its_bounds() -> None:
    plan = DatagramPlan([Latency(latency=1.0, jitter=0.5)], seed=1)
    due = [time for number in range(4000) for time, _ in plan.replies(float(number * 2), b"x")]
    delays = [time - number * 2 for number, time in enumerate(due)]
    assert 0.5 <= min(delays) < 0.55
    assert 1.45 < max(delays) <= 1.5
    assert 0.97 < sum(delays) / len(delays) < 1.03  # the standard deviation of the mean is 0.005


def test_the_loss_has_its_rate_and_comes_in_bursts_if_correlated() -> None:
    for correlation in (0.0, 0.8):
        plan = DatagramPlan([Loss(loss_rate=0.2, correlation=correlation)], seed=1)
        lost = [not plan.replies(0.0, b"x") for _ in range(20_000)]
        assert 0.17 < sum(lost) / len(lost) < 0.23
        after = [lost[at + 1] for at in range(len(lost) - 1) if lost[at]]
        expected = 0.2 * (1 - correlation) + correlation
        assert expected - 0.05 < sum(after) / len(after) < expected + 0.05


def test_a_fault_of_streams_changes_no_datagram() -> None:
    plan = DatagramPlan([ResetPeer()], seed=1)
    assert not plan
    assert plan.replies(1.0, b"x") == [(1.0, b"x")]


@pytest.fixture
def bound() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The socket of a server, and a client connected to it."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        client.connect(sock.getsockname())
        client.settimeout(SOON)
        yield sock, client


class Sources:
    """A guard that admits each source, or none."""

    def __init__(self, admits: bool) -> None:
        self.admits = admits

    def admit(self, source: object) -> bool:
        return self.admits

    def refused(self, source: object) -> None: ...


def altered(sock: socket.socket, delay: float, *, admits: bool = True) -> tuple[AlteredEcho, DatagramCounts]:
    counts = DatagramCounts()
    guard: Any = Sources(admits)

    def late(now: float, datagram: bytes) -> list[tuple[float, bytes]]:
        return [(now + delay, datagram)]

    return AlteredEcho(sock, late, guard, counts, reply_from_dst=False), counts


@pytest.mark.parametrize("admits", [True, False])
def test_altered_datagrams_are_taken_in_batches_and_those_of_refused_sources_have_no_reply(
    admits: bool, bound: tuple[socket.socket, socket.socket]
) -> None:
    sock, client = bound
    echo, counts = altered(sock, 0.0, admits=admits)
    for number in range(100):
        client.send(b"%d" % number)
    found = []
    for _ in range(2):
        assert echo.echo_batch(echo._guard, counts)
        found.append((counts.received, counts.echoed))
    assert found == ([(64, 64), (100, 100)] if admits else [(64, 0), (100, 0)])


async def test_late_replies_are_held_up_to_a_number_and_the_others_dropped(
    bound: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyecho.net.udp.altered._HELD", 2)
    sock, client = bound
    echo, counts = altered(sock, 1e-9)
    for number in range(3):
        client.send(b"%d" % number)
    echo.echo_batch(echo._guard, counts)
    assert (counts.echoed, counts.dropped) == (0, {"fault": 1})
    async with create_task_group() as tasks:
        tasks.start_soon(echo.run)  # both are due already
        await wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert [client.recv(10) for _ in range(2)] == [b"0", b"1"]
    assert counts.echoed == 2
