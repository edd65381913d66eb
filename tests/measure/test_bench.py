"""A run on real sockets, on each backend: what is counted, what is lost, and when it ends."""

from __future__ import annotations

from itertools import count
from typing import Any, Literal

import pytest
from anyio import create_task_group, move_on_after, sleep_forever
from anyio.abc import ByteStream

from anyecho.client.client import Client, connect_checked
from anyecho.client.options import ConnectOptions
from anyecho.errors import ConnectError, UsageError
from anyecho.measure import opening
from anyecho.measure.bench import run_bench
from anyecho.measure.control import BenchControl
from anyecho.measure.options import BenchOptions
from anyecho.net.sockets import SocketOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.client.liars import listening
from tests.measure.loading import load
from tests.support.certificates import Files
from tests.support.peers import SOON, until
from tests.support.process import descriptors
from tests.support.tls import TLS
from tests.support.tls import options as tls_options

MIB = 1 << 20
#: Buffers so small that a MiB is never sent in one piece.
TINY = SocketOptions(sndbuf=8192, rcvbuf=8192)


@pytest.mark.parametrize("rate", [None, 2000.0])
@pytest.mark.parametrize(("connections", "size", "pipeline"), [(1, 1, 1), (20, 64, 4), (3, 100_000, 2)])
async def test_a_run_counts_and_verifies_exactly_its_messages(
    rate: float | None, connections: int, size: int, pipeline: int, server: Server
) -> None:
    address = server.addresses[0]
    result = await load(address, rate=rate, requests=200, connections=connections, size=size, pipeline=pipeline)
    counts = result.counts
    assert (counts.sent, counts.verified, counts.wrong, counts.lost, counts.outstanding) == (200, 200, 0, 0, 0)
    assert result.latency.count == result.uncorrected.count == 200
    assert result.lag.count == (0 if rate is None else 200)
    assert sum(each.verified for each in result.per_second) == 200
    assert (result.spread is None) == (connections == 1)
    assert result.error == ""
    await until(lambda: server.stats.bytes_received == server.stats.bytes_sent == 200 * size)
    await until(lambda: server.stats.active == 0)


@pytest.mark.parametrize("rate", [None, 2000.0])
async def test_an_exclusive_load_lets_other_tasks_of_its_loop_run(rate: float | None, server: Server) -> None:
    result = await load(server.addresses[0], rate=rate, requests=100, connections=5, exclusive=True)
    assert result.counts.verified == result.counts.sent == 100
    await until(lambda: server.stats.active == 0)


async def test_a_run_of_a_duration_excludes_the_warm_up(server: Server) -> None:
    result = await load(server.addresses[0], duration=0.2, warmup=0.2, connections=3)
    assert 0.2 <= result.seconds <= SOON
    assert result.counts.sent == result.counts.verified > 0
    await until(lambda: server.stats.bytes_sent > result.counts.sent * 64)


async def test_an_open_loop_of_a_duration_sends_what_is_due_in_it(server: Server) -> None:
    result = await load(server.addresses[0], duration=0.5, warmup=0.1, connections=3, rate=500.0)
    assert result.counts.sent == result.counts.verified == result.lag.count == 250
    exponential = await load(server.addresses[0], duration=0.5, rate=500.0, arrivals="exponential", seed=3)
    assert 150 < exponential.counts.verified == exponential.counts.sent < 350


@pytest.mark.parametrize("engine", ["auto", "tasks"])
async def test_messages_larger_than_all_buffers_come_back(engine: Literal["auto", "tasks"]) -> None:
    small = ServeOptions(engine=engine, socket=TINY)
    async with open_server("tcp://127.0.0.1:0", options=small) as server:
        result = await load(server.addresses[0], connections=2, size=4 * MIB, requests=4, socket=TINY, timeout=30.0)
    assert result.counts.verified == 4


@pytest.mark.parametrize("polled", [True, False], ids=["poller", "fallback"])
async def test_a_load_completes_on_a_server_that_reads_a_whole_message_before_echoing(
    polled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server stores a message, only a writable event can wake the sender, never echo."""
    if not polled:
        monkeypatch.setattr("anyecho.net.poller.has_epoll", lambda: False)

    async def store_and_forward(stream: ByteStream) -> None:
        while True:
            message = bytearray()
            while len(message) < 8 * MIB:
                message += await stream.receive(MIB)
            await stream.send(bytes(message))

    async with listening(store_and_forward) as address:
        result = await load(address, connections=1, size=8 * MIB, requests=3, timeout=30.0)
    assert result.counts.verified == 3


async def test_an_interrupted_run_has_the_figures_so_far(server: Server) -> None:
    control = BenchControl(on_progress=lambda progress: control.interrupt() if progress().replies > 50 else None)
    result = await load(server.addresses[0], connections=2, duration=60.0, rate=500.0, control=control)
    assert result.interrupted
    assert result.counts.verified > 50
    assert result.counts.lost == result.counts.wrong == 0
    assert result.seconds < 30


async def test_an_interruption_while_connecting_has_no_figures(server: Server) -> None:
    control = BenchControl()
    async with create_task_group() as tasks:

        async def interrupt() -> None:
            await until(lambda: server.stats.accepted > 3)
            control.interrupt()

        tasks.start_soon(interrupt)
        result = await load(server.addresses[0], connections=1000, connect_rate=20.0, control=control)
    assert result.interrupted
    assert result.counts.sent == 0
    await until(lambda: server.stats.active == 0)


@pytest.mark.parametrize("rate", [None, 200.0])
async def test_an_interrupted_warm_up_has_no_figures_and_no_failures(rate: float | None) -> None:
    control = BenchControl()

    async def interrupt(stream: ByteStream) -> None:
        await stream.receive()
        control.interrupt()
        await sleep_forever()

    async with listening(interrupt) as address:
        result = await load(address, warmup=30.0, rate=rate, control=control)
    assert result.interrupted
    assert (result.counts.sent, result.notes, result.error) == (0, (), "")
    assert result.generator.cpu_share == 0


async def test_a_cancelled_run_closes_everything(server: Server) -> None:
    with move_on_after(0.3) as scope:
        await load(server.addresses[0], connections=10, size=MIB, duration=60.0)
    assert scope.cancelled_caught
    await until(lambda: server.stats.active == 0)


async def test_without_a_server_the_first_connection_is_the_error() -> None:
    before = descriptors()
    with pytest.raises(ConnectError, match=r"^cannot connect to unix:/absent"):
        await load("unix:/absent", connections=20)
    assert descriptors() == before


async def test_refused_connections_are_counted_and_the_load_goes_on_with_the_others(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = count(1)

    async def connect_some(*args: Any, **kwargs: Any) -> Client:
        if next(attempts) % 3 == 0:
            raise ConnectError("enough")
        return await connect_checked(*args, **kwargs)

    monkeypatch.setattr(opening, "connect_checked", connect_some)
    result = await load(server.addresses[0], connections=9, requests=90)
    assert result.counts.connect_failed == 3
    assert result.error == "enough"
    assert result.load.connections == 6
    assert result.counts.verified == 90


@pytest.mark.parametrize("rate", [None, 2000.0])
@pytest.mark.parametrize(("size", "pipeline"), [(64, 1), (100_000, 3)])
async def test_a_load_over_tls_is_verified(
    rate: float | None, size: int, pipeline: int, files: Files, ca_options: ConnectOptions
) -> None:
    async with open_server(TLS, options=tls_options(files)) as server:
        address, connect = server.addresses[0], ca_options
        result = await load(address, requests=60, size=size, pipeline=pipeline, rate=rate, connect=connect)
    assert result.load.transport == "tls"
    assert result.counts.verified == result.counts.sent == 60
    assert result.error == ""


async def test_no_descriptor_is_left_open(server: Server) -> None:
    counts: list[int] = []
    for _ in range(2):  # the server opens a descriptor with its first connection
        await load(server.addresses[0], connections=20, requests=20, rate=1e5)
        await until(lambda: server.stats.active == 0)
        counts.append(descriptors())

    assert counts[0] == counts[1]


async def test_shards_together_send_the_whole_schedule(server: Server) -> None:
    options = BenchOptions(requests=100, rate=1000.0, warmup=0.0, arrivals="exponential")
    results = [await run_bench(server.addresses[0], options, shard=(index, 3)) for index in range(3)]
    assert [each.counts.verified for each in results] == [34, 33, 33]
    assert results[0].generator.asked_rate == pytest.approx(1000 / 3)


@pytest.mark.parametrize("cores", ["", "x", "1-", "4096"])
async def test_cores_that_do_not_exist_are_refused(cores: str, server: Server) -> None:
    with pytest.raises(UsageError, match=r"^cpu "):
        await load(server.addresses[0], cpu=cores)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"rate": 0.0}, "rate must be more than 0, not 0.0 (no limit: off, in Python None)"),
        ({"connections": 0}, "connections must be 1 or more, not 0"),
        ({"requests": 0}, "requests must be 1 or more, not 0"),
        ({"percentiles": (101.0,)}, "percentiles must be above 0 and below 100, not 101"),
        ({"connect": ConnectOptions(timeout=7200.0)}, "timeout must be at most 1h, not 2h"),
        ({"warmup": -1.0}, "warmup must be 0 or more seconds, not -1.0"),
        ({"duration": None}, "duration is off: give a number of requests"),
    ],
)
def test_a_load_that_cannot_be_run_is_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        BenchOptions(**wrong)
    assert str(caught.value) == text
