"""The probes of a ping: which are outstanding, answered, wrong or lost, and the events that this makes.

Does no I/O; the clock is an argument. Times are integer nanoseconds of that clock. Each latency is kept: 8 bytes.
"""

from __future__ import annotations

__all__ = ("Connected", "Event", "Failed", "Lost", "Probe", "ProbeCounts", "Probes", "Reply", "Wrong")

import os
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import TypeAlias

#: Bytes of the sequence number at the start of a payload; a shorter payload has its last bytes only.
_NUMBER_SIZE = 8
#: Weight of a new latency in the moving average, as in ping(8) and RFC 6298.
_EWMA_WEIGHT = 1 / 8


@dataclass(eq=False)
class Probe:
    """A message with its number, counted from 1. It is `outstanding` until it is answered, wrong or lost."""

    number: int
    payload: bytes
    #: The time before its send(2); 0 until `is_sent`.
    sent_at: int = 0
    is_sent: bool = False
    outstanding: bool = True
    answered: bool = False


@dataclass(frozen=True, kw_only=True)
class Connected:
    """A connection was opened; `again` if it replaces a broken one."""

    peer: str
    again: bool


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An equal echo. A `late` or `duplicate` one does not change the result of its probe."""

    number: int
    #: From before send(2) until after the comparison, in nanoseconds.
    latency: int
    late: bool = False
    duplicate: bool = False
    reordered: bool = False
    #: The parts of `latency` for a connection of its own: dns, connect, tls, echo.
    steps: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Lost:
    """No reply came within the timeout."""

    number: int


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A reply differs from the probe. `number` is None if it belongs to none."""

    number: int | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The connection broke or could not be opened; the probes `numbers`, if any, are lost."""

    numbers: tuple[int, ...]
    reason: str


Event: TypeAlias = Connected | Reply | Lost | Wrong | Failed


@dataclass
class ProbeCounts:
    """Counts of probes: ``transmitted == received + wrong + lost + outstanding``.

    The rest stands beside this sum. `errors` are those of `lost` that could not be sent or were refused; `late` are
    those of `lost` with a reply after the timeout.
    """

    transmitted: int = 0
    received: int = 0
    wrong: int = 0
    lost: int = 0
    outstanding: int = 0
    errors: int = 0
    late: int = 0
    duplicates: int = 0
    reordered: int = 0
    #: Wrong replies that belong to no probe.
    stray: int = 0
    reconnects: int = 0


class Probes:
    """Probes of `size` bytes, each lost after `timeout` nanoseconds. `report` gets each event after its count."""

    def __init__(
        self,
        size: int,
        timeout: float,
        report: Callable[[Event], None],
        *,
        clock: Callable[[], int] = perf_counter_ns,
    ) -> None:
        self._fill = os.urandom(max(size - _NUMBER_SIZE, 0))
        self._size = size
        self.timeout = timeout
        self._report = report
        self.clock = clock
        self.counts = ProbeCounts()
        self.outstanding: dict[int, Probe] = {}
        #: Of the replies that count as received, in order of arrival; and the same for each step.
        self.latencies = array("q")
        self.steps: dict[str, array[int]] = {}
        #: Exponentially weighted moving average of the latencies.
        self.ewma = 0.0
        self._newest = 0
        self._began_at: int | None = None
        self._changed_at = 0

    def begin(self) -> Probe:
        """Return the next probe. It counts as transmitted; its timeout begins with `sent`."""
        self.counts.transmitted += 1
        number = self.counts.transmitted
        head = (number % (1 << 8 * _NUMBER_SIZE)).to_bytes(_NUMBER_SIZE, "big")
        probe = Probe(number, head[max(_NUMBER_SIZE - self._size, 0) :] + self._fill)
        self.outstanding[number] = probe
        self.counts.outstanding += 1
        self._changed_at = self.clock()
        if self._began_at is None:
            self._began_at = self._changed_at
        return probe

    def sent(self, probe: Probe) -> None:
        """Take the time; call it directly before send(2)."""
        probe.is_sent = True
        probe.sent_at = self.clock()

    def reply(self, probe: Probe, now: int, steps: Mapping[str, int] | None = None) -> None:
        """Count the equal echo of `probe`, compared at `now`.

        `steps` are those of a connection of its own; the replies of several connections have no order.
        """
        self.expire(now)
        latency = now - probe.sent_at
        if probe.outstanding:
            self._end(probe)
            probe.answered = True
            reordered = steps is None and probe.number < self._newest
            self._newest = max(probe.number, self._newest)
            self.counts.received += 1
            self.counts.reordered += reordered
            self.ewma += (latency - self.ewma) * (_EWMA_WEIGHT if self.latencies else 1)
            self.latencies.append(latency)
            for step, duration in (steps or {}).items():
                self.steps.setdefault(step, array("q")).append(duration)
            self._emit(Reply(number=probe.number, latency=latency, reordered=reordered, steps=steps or {}))
        elif probe.answered:
            self.counts.duplicates += 1
            self._emit(Reply(number=probe.number, latency=latency, duplicate=True))
        else:
            # Lost it stays: the figures would hide the worst replies otherwise, or the loss.
            probe.answered = True
            self.counts.late += 1
            self._emit(Reply(number=probe.number, latency=latency, late=True))

    def wrong(self, probe: Probe | None, reason: str) -> None:
        """Count a reply that differs from `probe`, or belongs to no probe."""
        if probe is not None and probe.outstanding:
            self._end(probe)
            self.counts.wrong += 1
        else:
            self.counts.stray += 1
        self._emit(Wrong(number=None if probe is None else probe.number, reason=reason))

    def fail(self, probes: Iterable[Probe], reason: str, *, error: bool = False) -> None:
        """Count those of `probes` that are outstanding as lost; as errors too, if they were refused."""
        lost = [probe for probe in probes if probe.outstanding]
        for probe in lost:
            self._end(probe)
        self.counts.lost += len(lost)
        self.counts.errors += len(lost) * error
        self._emit(Failed(numbers=tuple(probe.number for probe in lost), reason=reason))

    def connected(self, peer: str, *, again: bool) -> None:
        self.counts.reconnects += again
        self._emit(Connected(peer=peer, again=again))

    @property
    def next_expiry(self) -> float | None:
        """When the oldest outstanding probe is lost; None if none was sent. Probes are sent in order."""
        oldest = next(iter(self.outstanding.values()), None)
        return oldest.sent_at + self.timeout if oldest is not None and oldest.is_sent else None

    def expire(self, now: int) -> None:
        """Count as lost each probe with a timeout that ended before `now`."""
        while (expiry := self.next_expiry) is not None and expiry < now:
            probe = next(iter(self.outstanding.values()))
            self._end(probe)
            self.counts.lost += 1
            self._emit(Lost(number=probe.number))

    @property
    def duration(self) -> int:
        """Nanoseconds from the first probe to the last event."""
        return 0 if self._began_at is None else self._changed_at - self._began_at

    def _end(self, probe: Probe) -> None:
        del self.outstanding[probe.number]
        self.counts.outstanding -= 1
        probe.outstanding = False

    def _emit(self, event: Event) -> None:
        self._changed_at = self.clock()
        self._report(event)
