"""Which sources the guard admits, and how many datagrams of each, with a fake clock."""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyecho.errors import UsageError
from anyecho.server import udp_guard
from anyecho.server.options import ServeOptions
from anyecho.server.udp_guard import SourceGuard

OWN = 40_000
CLIENT = ("192.0.2.1", 50_000)
#: Maximum of sources in the table.
TABLE = 16_384


@pytest.fixture(autouse=True)
def engine() -> None:
    """UDP does not use an engine, so each test runs once."""


class ClockedGuard:
    """A guard with a fake clock, `now`, in seconds."""

    def __init__(self, **options: Any) -> None:
        self.now = 1e6
        self.dropped: Counter[str] = Counter()
        self.guard = SourceGuard(ServeOptions(**options), [OWN], self.dropped, clock=lambda: self.now)

    def admits(self, source: tuple[Any, ...] = CLIENT) -> bool:
        self.guard.begin_batch()
        return self.guard.admit(source)

    def admits_of(self, count: int, source: tuple[Any, ...] = CLIENT) -> int:
        return sum(self.admits(source) for _ in range(count))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (("192.0.2.1", 0), "port_0"),
        (("192.0.2.1", 7), "port_below_1024"),
        (("192.0.2.1", 1023), "port_below_1024"),
        (("192.0.2.1", OWN), "own_port"),
        (("224.0.0.1", 5000), "multicast"),
        (("239.255.255.250", 5000), "multicast"),
        (("240.0.0.1", 5000), "multicast"),
        (("255.255.255.255", 5000), "broadcast"),
        (("0.0.0.0", 5000), "unspecified"),
        (("0.1.2.3", 5000), "unspecified"),
        (("2001:db8::1", 0, 0, 0), "port_0"),
        (("2001:db8::1", 7, 0, 0), "port_below_1024"),
        (("::1", OWN, 0, 0), "own_port"),
        (("ff02::1", 5000, 0, 0), "multicast"),
        (("::", 5000, 0, 0), "unspecified"),
        (("64:ff9b::e000:1", 5000, 0, 0), "multicast"),
        (("64:ff9b::ffff:ffff", 5000, 0, 0), "broadcast"),
        (("64:ff9b::", 5000, 0, 0), "unspecified"),
        (("::ffff:224.0.0.1", 5000, 0, 0), "multicast"),
        (("::ffff:255.255.255.255", 5000, 0, 0), "broadcast"),
        (("::ffff:0.1.2.3", 5000, 0, 0), "unspecified"),
    ],
)
@pytest.mark.parametrize("unsafe", [False, True])
def test_an_address_or_port_no_client_has_gets_no_reply(source: tuple[Any, ...], reason: str, unsafe: bool) -> None:
    clocked = ClockedGuard(unsafe_udp=unsafe)
    # --unsafe-udp lifts only the guard against privileged ports.
    lifted = unsafe and reason == "port_below_1024"

    assert [clocked.admits(source), clocked.admits(source)] == [lifted] * 2
    assert clocked.dropped == ({} if lifted else {reason: 2})


@pytest.mark.parametrize(
    "source",
    [
        *(("127.0.0.1", 1024), ("192.0.2.1", 65535), ("223.255.255.255", OWN + 1), ("10.0.0.255", 5000)),
        *(("::1", 1024, 0, 0), ("2001:db8::ff00", 5000, 0, 0), ("fe80::1", 5000, 0, 2)),
    ],
)
def test_clients_are_admitted(source: tuple[Any, ...]) -> None:
    assert ClockedGuard().admits(source)


def test_a_source_gets_exactly_its_burst_and_then_its_rate() -> None:
    clocked = ClockedGuard(udp_rate=10, udp_burst=3)
    assert clocked.admits_of(5) == 3

    clocked.now += 0.0998
    assert clocked.admits_of(2) == 0
    clocked.now += 0.0002
    assert clocked.admits_of(2) == 1
    clocked.now += 0.2
    assert clocked.admits_of(5) == 2
    clocked.now += 3600
    assert clocked.admits_of(5) == 3
    assert clocked.dropped == {"rate": 10}


@given(
    rate=st.integers(1, 1000),
    burst=st.integers(1, 500),
    pauses=st.lists(st.integers(0, 5000), min_size=1, max_size=200),
)
def test_the_guard_admits_exactly_what_a_token_bucket_does(rate: int, burst: int, pauses: list[int]) -> None:
    """Compare with a token bucket of integers: thousandths of a token, milliseconds."""
    clocked = ClockedGuard(udp_rate=rate, udp_burst=burst)
    start, elapsed, tokens = clocked.now, 0, burst * 1000
    for pause in pauses:
        elapsed += pause
        clocked.now = start + elapsed / 1000
        tokens = min(burst * 1000, tokens + pause * rate)
        assert clocked.admits() == (tokens >= 1000)
        tokens -= 1000 * (tokens >= 1000)


def test_the_smallest_udp_rate_still_limits() -> None:
    assert ClockedGuard(udp_rate=5e-324, udp_burst=2).admits_of(5) == 2


def test_the_rate_limit_of_a_source_does_not_affect_its_neighbour() -> None:
    clocked = ClockedGuard(udp_rate=1, udp_burst=2)
    assert clocked.admits_of(10) == 2
    assert clocked.admits_of(10, ("192.0.2.2", 50_000)) == 2
    # A source is an address, whatever the port.
    assert not clocked.admits((CLIENT[0], CLIENT[1] + 1))


def test_all_sources_together_get_a_hundred_times_the_rate_of_one() -> None:
    clocked = ClockedGuard(udp_rate=1, udp_burst=2)
    assert sum(clocked.admits_of(2, (f"10.0.0.{host}", 5000)) for host in range(256)) == 200
    assert clocked.dropped == {"total_rate": 312}

    clocked.now += 1
    assert sum(clocked.admits_of(2, (f"10.1.0.{host}", 5000)) for host in range(256)) == 100


def test_unsafe_udp_lifts_the_total_rate_and_keeps_the_rate_per_source() -> None:
    clocked = ClockedGuard(udp_rate=1, udp_burst=2, unsafe_udp=True)
    assert sum(clocked.admits_of(3, (f"10.0.0.{host}", 5000)) for host in range(256)) == 512
    assert clocked.dropped == {"rate": 256}


@pytest.mark.parametrize("unsafe", [False, True])
def test_udp_rate_off_limits_no_source(unsafe: bool) -> None:
    clocked = ClockedGuard(udp_rate=math.inf, udp_burst=1, unsafe_udp=unsafe)
    assert clocked.admits_of(1000) == 1000


def test_the_table_of_sources_is_bounded() -> None:
    clocked = ClockedGuard(udp_rate=1e9)
    for number in range(3 * TABLE):
        clocked.now += 1
        assert clocked.admits((f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 5000))

    guard = clocked.guard
    assert TABLE // 2 <= len(guard._newer) + len(guard._older) <= TABLE


def test_other_sources_do_not_evict_an_active_source() -> None:
    clocked = ClockedGuard(udp_rate=1e-6, udp_burst=2 * TABLE, unsafe_udp=True)
    admitted = 0
    for number in range(3 * TABLE):
        clocked.admits((f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 5000))
        admitted += clocked.admits()

    assert admitted == 2 * TABLE


def test_the_table_of_logged_sources_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_guard, "_TABLE_SIZE", 10)
    clocked = ClockedGuard()
    for number in range(256):
        clocked.admits((f"10.0.0.{number}", 7))
        assert len(clocked.guard._logged) <= 10


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("source", "count", "line"),
    [
        (CLIENT, 3, "192.0.2.1 port 50000: it sends more than 5/s (--udp-rate, --udp-burst)"),
        (("192.0.2.1", 53), 1, "192.0.2.1 port 53: no client's port is below 1024 (--unsafe-udp answers it)"),
        (("192.0.2.1", 0), 1, "192.0.2.1 port 0: no reply can be sent to it"),
        (("::ffff:192.0.2.1", 0, 0, 0), 1, "192.0.2.1 port 0: no reply can be sent to it"),
    ],
)
def test_the_first_drop_of_a_source_is_one_line_that_names_the_flag(
    source: tuple[Any, ...], count: int, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    clocked = ClockedGuard(udp_rate=5, udp_burst=2)
    clocked.admits_of(count, source)
    assert logged(caplog) == [f"dropping datagrams from {line}"]

    clocked.admits_of(100, source)
    assert len(logged(caplog)) == 1


def test_forged_sources_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    clocked = ClockedGuard()
    for number in range(200):
        clocked.admits((f"10.0.0.{number}", 7))
    assert len(logged(caplog)) == 10

    for number in range(2):
        clocked.now += 10
        clocked.admits((f"10.0.1.{number}", 7))
    assert [line.partition("; ")[2] for line in logged(caplog)[10:]] == [
        "also from 190 other sources, not logged",
        "",
    ]


@pytest.mark.parametrize(("name", "value"), [("udp_rate", 0), ("udp_rate", math.nan), ("udp_burst", 0)])
def test_a_udp_rate_or_burst_that_admits_nothing_is_a_usage_error(name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(UsageError, match=name):
        ServeOptions(**options)
