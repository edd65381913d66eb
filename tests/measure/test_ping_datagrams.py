"""A ping over UDP tells apart lost, late, duplicate, reordered and changed datagrams."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import anyio
import pytest
from anyio import BrokenResourceError, create_task_group
from anyio.abc import SocketAttribute

from anyecho.address import UDPAddress
from anyecho.measure.ping_datagrams import DatagramPing
from anyecho.measure.probes import Connected, Event, Failed, Probes, Reply, Wrong
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.measure.pings import Scene, failures, numbers
from tests.support.machine import needs_ipv6

UDP = "udp://127.0.0.1:0"


@asynccontextmanager
async def datagrams(answer: Callable[[bytes], Sequence[bytes]]) -> AsyncIterator[str]:
    """Yield the address of a UDP server that sends `answer(datagram)` for each."""
    async with (
        await anyio.create_udp_socket(local_host="127.0.0.1") as sock,
        create_task_group() as tasks,
    ):

        async def serve() -> None:
            async for datagram, peer in sock:
                for reply in answer(datagram):
                    await sock.sendto(reply, *peer)

        tasks.start_soon(serve)
        yield f"udp://127.0.0.1:{sock.extra(SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("size", [0, 1, 8, 65507])
async def test_each_probe_over_udp_is_answered(size: int) -> None:
    async with open_server(UDP, options=ServeOptions(udp_rate=None)) as server:
        scene = Scene(server.addresses[0], count=300 if size == 1 else 5, size=size)
        await scene.run()

    assert scene.counts == {"transmitted": scene.ping.options.count, "received": scene.ping.options.count}


async def test_duplicates_of_datagrams_are_counted_and_not_received_twice() -> None:
    async with datagrams(lambda datagram: [datagram] * 3) as address:
        scene = Scene(address, count=3, interval=0.05)
        events = await scene.run()

    assert scene.counts["received"] == 3
    assert 4 <= scene.counts["duplicates"] <= 6, "the run ends with the first reply to the last probe"
    assert numbers(events, Reply, duplicate=True)[:4] == [1, 1, 2, 2]


async def test_datagrams_out_of_order_are_received_and_marked() -> None:
    held: list[bytes] = []

    def in_pairs(datagram: bytes) -> list[bytes]:
        held.append(datagram)
        return [held.pop(), held.pop()] if len(held) == 2 else []

    async with datagrams(in_pairs) as address:
        scene = Scene(address, count=4, interval=0.001)
        events = await scene.run()

    assert scene.counts == {"transmitted": 4, "received": 4, "reordered": 2}
    assert numbers(events, Reply) == [2, 1, 4, 3]
    assert numbers(events, Reply, reordered=True) == [1, 3]


async def test_a_lost_datagram_and_its_late_reply_are_told_apart() -> None:
    held: list[bytes] = []

    def hold_the_first(datagram: bytes) -> list[bytes]:
        held.append(datagram)
        return [] if len(held) == 1 else [*held[:1], datagram] if len(held) == 2 else [datagram]

    async with datagrams(hold_the_first) as address:
        scene = Scene(address, count=3, timeout=0.4)
        events = await scene.run()

    assert scene.counts == {"transmitted": 3, "received": 2, "lost": 1, "late": 1}
    assert numbers(events, Reply, late=True) == [1]


async def test_a_changed_datagram_is_wrong_and_another_size_is_stray() -> None:
    def change(datagram: bytes) -> list[bytes]:
        return [bytes([*datagram[:20], datagram[20] ^ 1, *datagram[21:]]), b"surplus"]

    async with datagrams(change) as address:
        scene = Scene(address, count=2, interval=0.05)
        events = await scene.run()

    assert scene.counts["wrong"] == 2
    assert scene.counts["stray"] >= 1
    assert numbers(events, Wrong)[:2] == [1, None]
    [reason, *_] = [event.reason for event in events if isinstance(event, Wrong)]
    assert reason.startswith("byte 20 is wrong: sent 0x")
    assert scene.ping.exit_status == 1


async def test_refused_datagrams_are_errors_and_status_2() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{unused.getsockname()[1]}"
    scene = Scene(address, count=3)
    events = await scene.run()

    assert scene.counts == {"transmitted": 3, "lost": 3, "errors": 3}
    assert failures(events) == [((n,), "Connection refused") for n in (1, 2, 3)]
    assert scene.ping.exit_status == 2


@needs_ipv6
async def test_a_server_on_the_second_address_of_a_name_answers_every_datagram() -> None:
    async with open_server("udp://[::1]:0") as server:
        scene = Scene(f"udp://localhost:{server.port}", count=3)
        events = await scene.run()

    assert scene.counts == {"transmitted": 3, "received": 3, "reconnects": 1}
    assert [event.peer for event in events if isinstance(event, Connected)][1] == f"udp://[::1]:{server.port}"


async def test_a_probe_that_could_not_be_sent_again_keeps_the_time_of_its_first_send() -> None:
    now = 10
    events: list[Event] = []
    probes = Probes(8, 1000, events.append, clock=lambda: now)
    first, second = probes.begin(), probes.begin()
    stream: Any = SimpleNamespace(reconnect=AsyncMock(return_value=False))
    async with create_task_group() as tasks:
        ping = DatagramPing(UDPAddress(host="127.0.0.1", port=9), AsyncMock(), probes, tasks)
        probes.sent(first)
        now = 20
        probes.sent(second)
        now = 500
        assert not await ping._fail(stream, BrokenResourceError())

    probes.reply(second, 700)
    assert [event.numbers for event in events if isinstance(event, Failed)] == [(1,)]
    assert [event.latency for event in events if isinstance(event, Reply)] == [680]
