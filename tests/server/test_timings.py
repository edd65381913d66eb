"""Durations in their buckets, on a clock that the test sets."""

from __future__ import annotations

import pytest

from anyecho.server import timings as module
from anyecho.server.phases import CLOSED, CLOSING, HANDSHAKE, OPEN
from anyecho.server.timings import Timings
from anyecho.server.totals import CONNECTION_BOUNDS, HANDSHAKE_BOUNDS, Histogram


@pytest.fixture(autouse=True)
def engine() -> None:
    """No engine is needed."""


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def bucket_of(histogram: Histogram) -> float:
    """Return the upper bound of the only observation."""
    [index] = [index for index, count in enumerate(histogram.counts) for _ in range(count)]
    return (*histogram.bounds, float("inf"))[index]


@pytest.mark.parametrize(
    ("seconds", "bound"),
    [(0.0, 0.001), (0.125, 1.0), (1.0, 1.0), (1.5, 10.0), (86400.0, 86400.0), (86401.0, float("inf"))],
)
def test_a_duration_is_in_the_bucket_up_to_and_including_its_bound(
    seconds: float, bound: float, clock: Clock
) -> None:
    timings = Timings()
    timings.begin("connection")
    clock.now += seconds
    timings.advance("connection", CLOSED)

    histogram = timings.connections.read()
    assert bucket_of(histogram) == bound
    assert histogram.seconds == seconds
    assert histogram.bounds == CONNECTION_BOUNDS


@pytest.mark.parametrize("succeeded", [False, True])
def test_the_duration_of_a_handshake_that_fails_is_not_counted(succeeded: bool, clock: Clock) -> None:
    timings = Timings()
    timings.advance("connection", HANDSHAKE)
    clock.now += 0.25
    timings.advance("connection", OPEN if succeeded else CLOSING)

    histogram = timings.handshakes.read()
    assert histogram.bounds == HANDSHAKE_BOUNDS
    assert (sum(histogram.counts), histogram.seconds) == ((1, 0.25) if succeeded else (0, 0.0))


def test_a_connection_that_began_before_is_not_counted() -> None:
    timings = Timings()
    timings.advance("older", OPEN)
    timings.advance("older", CLOSED)

    assert sum(timings.handshakes.read().counts) == sum(timings.connections.read().counts) == 0


def test_nothing_is_kept_of_a_connection_that_has_ended() -> None:
    timings = Timings()
    timings.begin("connection")
    timings.advance("connection", HANDSHAKE)
    timings.advance("connection", CLOSING)
    timings.advance("connection", CLOSED)

    assert not timings._accepted_at
    assert not timings._handshake_at
