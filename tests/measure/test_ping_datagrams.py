"""A ping over UDP tells apart lost, late, duplicate, reordered and changed datagrams."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import anyio
import pytest
from anyio import BrokenResourceError, create_task_group
from anyio.abc import SocketAttribute

from anyecho.address import UDPAddress
from anyecho.errors import ConnectError
from anyecho.measure import ping_datagrams
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


async def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(ConnectError, match="no such host"):
        await Scene("udp://no-such-host.invalid:7").run()


class Line:
    """A ping whose socket is the test's: `answers` are those of its sends."""

    def __init__(self, *answers: Any, size: int = 8, reconnects: bool = False) -> None:
        self.events: list[Event] = []
        self.now = 10
        self.probes = Probes(size, 1000, self.events.append, clock=lambda: self.now)
        self.sent = Mock(side_effect=answers or None)
        self.waited = AsyncMock()
        stream: Any = SimpleNamespace(
            send_nowait=self.sent,
            send=self.waited,
            reconnect=AsyncMock(return_value=reconnects),
            extra=lambda *_: ("127.0.0.1", 9),
        )
        self.stream = stream
        tasks: Any = None
        self.ping = DatagramPing(UDPAddress(host="127.0.0.1", port=9), AsyncMock(), self.probes, tasks)
        self.ping._stream = self.stream

    @property
    def counts(self) -> dict[str, int]:
        return {name: value for name, value in vars(self.probes.counts).items() if value}


REFUSED = BrokenResourceError()


@pytest.mark.parametrize(
    ("answers", "reconnects", "waits", "counts"),
    [
        ([True, False], False, True, {"outstanding": 2}),
        ([True, REFUSED, True], False, False, {"outstanding": 1, "lost": 1, "errors": 1}),
        ([True, REFUSED, REFUSED], False, False, {"lost": 2, "errors": 2}),
        ([True, REFUSED], True, False, {"outstanding": 2, "reconnects": 1}),
    ],
    ids=["full buffer", "refused", "refused again", "another address"],
)
async def test_a_probe_is_sent_once_although_a_refusal_of_the_one_before_is_reported_first(
    answers: list[Any], reconnects: bool, waits: bool, counts: dict[str, int]
) -> None:
    line = Line(*answers, reconnects=reconnects)
    for _ in range(2):
        await line.ping.send(line.probes.begin())
    assert line.counts == {"transmitted": 2} | counts
    assert line.sent.call_count == len(answers)
    assert line.waited.called == waits


async def test_probes_without_room_for_a_number_are_answered_one_by_one() -> None:
    line = Line(size=0)
    for _ in range(2):
        await line.ping.send(line.probes.begin())
    line.ping._match(b"")
    assert line.counts == {"transmitted": 2, "received": 1, "outstanding": 1}
    line.ping._match(b"")
    assert line.counts == {"transmitted": 2, "received": 2}


async def test_a_reply_to_a_probe_that_is_long_settled_is_stray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ping_datagrams, "_HISTORY_SIZE", 2)
    line = Line()
    answered, lost, third, fourth = (line.probes.begin() for _ in range(4))
    for probe in (answered, lost):
        await line.ping.send(probe)
    line.ping._match(answered.payload)
    line.probes.fail([lost], "timeout")
    for probe in (third, fourth):
        await line.ping.send(probe)
        line.ping._match(probe.payload)
    for probe in (answered, lost, third, fourth):
        line.ping._match(probe.payload)
    assert line.counts == {"transmitted": 4, "received": 3, "lost": 1, "stray": 2, "duplicates": 2}


async def test_a_probe_that_could_not_be_sent_again_keeps_the_time_of_its_first_send() -> None:
    line = Line()
    first, second = line.probes.begin(), line.probes.begin()
    line.probes.sent(first)
    line.now = 20
    line.probes.sent(second)
    line.now = 500
    assert not await line.ping._fail(line.stream, REFUSED)
    line.probes.reply(second, 700)
    assert [event.numbers for event in line.events if isinstance(event, Failed)] == [(1,)]
    assert [event.latency for event in line.events if isinstance(event, Reply)] == [680]
