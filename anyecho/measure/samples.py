"""What the stamps of a run say: what became of each message, and its latencies, per second and per connection.

A message is lost if its reply is missing, or came more than the timeout after the due time. A lost or wrong message
stands in the corrected latencies with its timeout at least, so that a server cannot gain by losing messages.
"""

from __future__ import annotations

__all__ = ("Record", "Samples", "evaluate")

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from anyecho.measure.quantiles import quantile, resolved_quantile
from anyecho.measure.result import LEVEL_EDGES, Second

_SECOND = 1_000_000_000


class Record(Protocol):
    """The stamps of one connection, in nanoseconds. Message n was due at ``due[n]``, in ascending order.

    `sent` and `received` may be shorter. A `received` of 0 is none.
    """

    number: int

    @property
    def due(self) -> Sequence[int]: ...
    @property
    def sent(self) -> Sequence[int]: ...
    @property
    def received(self) -> Sequence[int]: ...
    @property
    def wrong(self) -> Collection[int]: ...
    @property
    def dropped(self) -> str: ...
    @property
    def in_order(self) -> bool: ...
    @property
    def duplicates(self) -> int: ...
    @property
    def reordered(self) -> int: ...


@dataclass(kw_only=True)
class Samples:
    """The messages that were due at or after the `start` of the measurement. Durations are nanoseconds."""

    start: int
    sent: int = 0
    verified: int = 0
    wrong: int = 0
    lost: int = 0
    outstanding: int = 0
    late: int = 0
    #: From the due time to the reply, at least the timeout of lost and wrong messages.
    corrected: array[int] = field(default_factory=lambda: array("q"))
    #: From the actual send to the reply; verified messages only.
    uncorrected: array[int] = field(default_factory=lambda: array("q"))
    #: By connection: verified messages, and their median latency if there are any.
    messages: list[int] = field(default_factory=list)
    medians: list[int] = field(default_factory=list)
    #: By second of arrival: the latencies of verified messages.
    seconds: list[array[int]] = field(default_factory=list)
    last_sent: int = 0
    last_received: int = 0
    #: From the start to each reply after it to a message of the warm-up.
    overlaps: array[int] = field(default_factory=lambda: array("q"))
    #: Messages of the warm-up that were wrong or lost.
    warm_up_failures: int = 0
    #: One line about the first lost message.
    first_lost: str = ""
    _first_lost_due: int = 0

    def per_second(self, size: int) -> tuple[Second, ...]:
        """Return the seconds of the measurement, for messages of `size` bytes."""
        return tuple(_second(number, sorted(latencies), size) for number, latencies in enumerate(self.seconds))

    def note_lost(self, due: int, text: str) -> None:
        if not self.first_lost or due < self._first_lost_due:
            self.first_lost, self._first_lost_due = text, due


def evaluate(
    records: Sequence[Record], *, start: int, now: int, timeout: int | None, interrupted: bool = False
) -> Samples:
    """Return the samples of `records` at the time `now`, the end of the run.

    If it was `interrupted`, a message without a reply that has not timed out is outstanding. Without a `timeout`, a
    lost message has the latency that it has reached.
    """
    samples = Samples(start=start)
    for record in records:
        _Evaluation(record, samples, now, timeout, interrupted).add()

    return samples


class _Evaluation:
    """Adds the messages of one connection to `samples`."""

    def __init__(self, record: Record, samples: Samples, now: int, timeout: int | None, interrupted: bool) -> None:
        self._record = record
        self._samples = samples
        self._now = now
        self._timeout = timeout
        self._interrupted = interrupted

    def add(self) -> None:
        record, samples = self._record, self._samples
        first = bisect_left(record.due, samples.start)
        samples.warm_up_failures += sum(number < first for number in record.wrong)
        samples.overlaps.extend(
            [reply - samples.start for reply in record.received[:first] if reply > samples.start]
        )
        if not self._interrupted or record.dropped:
            missing = max(first - len(record.received), 0)  # over UDP, a missing reply is a stamp of 0
            samples.warm_up_failures += missing + record.received[:first].count(0)
        if record.sent:
            samples.last_sent = max(samples.last_sent, record.sent[-1])

        due, received = record.due[first:], record.received[first:]
        samples.sent += len(due)
        corrected = [reply - when for when, reply in zip(due, received, strict=False)]
        limit = self._timeout
        is_clean = len(received) == len(due) and not record.wrong and record.in_order and 0 not in received
        if is_clean and (limit is None or max(corrected, default=0) <= limit):
            samples.uncorrected.extend(
                [reply - when for when, reply in zip(record.sent[first:], received, strict=True)]
            )
            samples.corrected.extend(corrected)
            self._add_verified(received, corrected)
        else:
            self._add_one_by_one(first)

    def _add_one_by_one(self, first: int) -> None:
        """Add the messages from number `first` on, of which some are wrong, lost or outstanding."""
        record, samples = self._record, self._samples
        wrong = frozenset(record.wrong)
        verified: list[tuple[int, int]] = []
        for number in range(first, len(record.due)):
            due, reply = record.due[number], self._reply(number)
            elapsed = (reply or self._now) - due
            is_timed_out = self._timeout is not None and elapsed > self._timeout
            if number in wrong:
                samples.wrong += 1
            elif reply and not is_timed_out:
                verified.append((reply, elapsed))
                samples.uncorrected.append(reply - record.sent[number])
                samples.corrected.append(elapsed)
                continue
            elif self._interrupted and not record.dropped and not is_timed_out:
                samples.outstanding += 1
                continue
            else:
                samples.lost += 1
                samples.late += bool(reply)
                samples.note_lost(due, f"message {number} of connection {record.number}")
            samples.corrected.append(max(elapsed, self._timeout or 0))

        verified.sort()
        self._add_verified([reply for reply, _ in verified], [elapsed for _, elapsed in verified])

    def _reply(self, number: int) -> int:
        received = self._record.received
        return received[number] if number < len(received) else 0

    def _add_verified(self, received: Sequence[int], latencies: list[int]) -> None:
        """Add verified messages, in the order of their replies."""
        samples = self._samples
        samples.verified += len(received)
        samples.messages.append(len(received))
        if not received:
            return

        samples.medians.append(quantile(sorted(latencies), 0.5))
        samples.last_received = max(samples.last_received, received[-1])
        begin = 0
        while begin < len(received):
            second = max(received[begin] - samples.start, 0) // _SECOND
            end = bisect_left(received, samples.start + (second + 1) * _SECOND, begin)
            while len(samples.seconds) <= second:
                samples.seconds.append(array("q"))
            samples.seconds[second].extend(latencies[begin:end])
            begin = end


def _second(number: int, ranked: list[int], size: int) -> Second:
    """Return second `number` from its latencies, `ranked` in ascending order."""
    below = [0, *(bisect_right(ranked, edge) for edge in LEVEL_EDGES), len(ranked)]
    p50, p99 = (resolved_quantile(ranked, q) for q in (0.5, 0.99))
    return Second(
        start=float(number),
        verified=len(ranked),
        bytes=len(ranked) * size,
        p50=None if p50 is None else p50 / 1e9,
        p99=None if p99 is None else p99 / 1e9,
        levels=tuple(high - low for low, high in pairwise(below)),
    )
