"""The pacer of an open loop: hands each message to its connection at its due time, and records how late it was."""

from __future__ import annotations

__all__ = ("Pacer", "busy_wait_for")

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Protocol

from anyecho.measure.traffic import Traffic

#: Messages handed over before replies are read, after the generator was held up.
_BURST = 32
#: Busy-waiting replaces the scheduler's wake-up, which takes about 50 us. It lasts so many nanoseconds, and at most
#: this share of a gap: a busy-waiting generator reads replies, but its core is not free for anything else.
_BUSY_WAIT = 100_000
_BUSY_SHARE = 0.25


class Taker(Protocol):
    """A connection of an open loop."""

    def take(self, due: int, now: int) -> None: ...


class Pacer:
    """The callback of a timer: calls ``take`` of each of `connections` in turn, at the `times` after `start`."""

    def __init__(self, times: Iterator[int], start: int, connections: Sequence[Taker], traffic: Traffic) -> None:
        self._times = times
        self._start = start
        self._turns = cycle(connections)
        self._traffic = traffic
        #: When the next message is due; None after the last one.
        self.next_due = self._following()
        #: When the last message so far was due.
        self.last_due = start

    def stop(self) -> None:
        """Hand over no more."""
        self.next_due = None

    def __call__(self) -> int | None:
        clock, add_lag = self._traffic.clock, self._traffic.lags.append
        due = self.next_due
        now = clock()
        for _ in range(_BURST):
            if due is None or due > now:
                break

            add_lag(now - due)
            next(self._turns).take(due, now)
            self.last_due = due
            due = self._following()
            now = clock()

        self.next_due = due
        return due

    def _following(self) -> int | None:
        time = next(self._times, None)
        return None if time is None else self._start + time


def busy_wait_for(rate: float, cores: int) -> int:
    """Return the nanoseconds of busy-waiting before each message of `rate` a second; 0 on a single core."""
    return min(_BUSY_WAIT, int(_BUSY_SHARE * 1e9 / rate)) if cores > 1 else 0
