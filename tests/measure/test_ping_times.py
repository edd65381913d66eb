"""When a ping sends its probes, and when it ends; and its invalid options."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from anyecho.errors import UsageError
from anyecho.measure.ping import Ping
from anyecho.measure.ping_options import PingOptions
from anyecho.measure.probes import Event, Lost
from anyecho.server.options import ServeOptions


def in_virtual_time(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


def virtual_ns() -> int:
    return round(trio.current_time() * 1e9)


def test_probes_are_due_at_multiples_of_the_interval_and_lost_after_the_timeout(short_path: Path) -> None:
    """The clock jumps over each wait."""
    due: list[float] = []
    lost: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, Lost):
            lost.append(trio.current_time())

    async def main() -> None:
        async def note_due() -> None:
            due.append(trio.current_time())

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{short_path}/silent")
            listener.listen()
            options = PingOptions(interval=1.7, count=4, timeout=5.0)
            ping = Ping(f"unix:{short_path}/silent", options, report=note, before_probe=note_due, clock=virtual_ns)
            await ping.run()

    in_virtual_time(main)
    assert [at - due[0] for at in due] == [pytest.approx(n * 1.7) for n in range(4)]
    assert [at - due[0] for at in lost] == [pytest.approx(n * 1.7 + 5.0, abs=0.01) for n in range(4)]


def test_missed_probes_are_not_sent_in_a_burst(short_path: Path) -> None:
    """The reader of the events takes 10 s before the third probe."""
    times: list[float] = []

    async def main() -> None:
        async def wait() -> None:
            times.append(trio.current_time())
            if len(times) == 3:
                await trio.sleep(10)

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{short_path}/silent")
            listener.listen()
            options = PingOptions(interval=1.0, count=5, timeout=1.0)
            await Ping(f"unix:{short_path}/silent", options, before_probe=wait, clock=virtual_ns).run()

    in_virtual_time(main)
    assert [at - times[0] for at in times] == [pytest.approx(at) for at in (0, 1, 2, 12, 13)]


@pytest.mark.parametrize(
    ("address", "given", "message"),
    [
        ("localhost:1", {"count": 0}, "count must be 1 or more, not 0"),
        ("localhost:1", {"interval": -1.0}, "interval must be 0 or more and finite, not -1"),
        ("localhost:1", {"interval": float("inf")}, "interval must be 0 or more and finite, not inf"),
        ("localhost:1", {"size": -1}, "size must be 0 to 1073741824, not -1"),
        ("localhost:1", {"size": 0}, "size must be 1 or more: a stream has no empty messages"),
        ("udp://localhost:1", {"size": 65508}, "size must be at most 65507, the largest datagram, not 65508"),
        ("udp://localhost:1", {"connect": True}, "connect has no effect: udp://localhost:1 has no connections"),
        ("localhost:1", {"timeout": 0}, "timeout must be more than 0, not 0"),
        ("fd://3", {}, "cannot connect to fd://3: a descriptor is for servers"),
    ],
)
def test_invalid_options_are_usage_errors(address: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Ping(address, PingOptions(**given))


def test_options_must_be_those_of_a_ping() -> None:
    wrong: Any = ServeOptions()
    with pytest.raises(UsageError, match="options must be PingOptions"):
        Ping("localhost:1", wrong)
