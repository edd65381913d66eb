"""Compare what comes back with what was sent: the bytes of a stream, and datagrams. Does no I/O, reads no clock.

The payload is the user's, so no sequence number is added: a reply matches the oldest outstanding datagram with
equal bytes.
"""

from __future__ import annotations

__all__ = ("DatagramMatcher", "OutstandingBytes", "RecentDatagrams")

import math
from collections import OrderedDict, deque
from dataclasses import dataclass

from anyecho.errors import EchoMismatch

#: Datagrams remembered after they were answered or expired.
_HISTORY_SIZE = 16384


class OutstandingBytes:
    """Bytes of a stream that were sent and are not back, in their order. True while there are any.

    * `sent`: the bytes sent so far; `returned`: those of them that came back equal.
    """

    def __init__(self) -> None:
        self._writes: deque[bytes] = deque()
        #: How many bytes of the first of `_writes` are back.
        self._position = 0
        self.sent = 0
        self.returned = 0

    def __len__(self) -> int:
        return self.sent - self.returned

    @property
    def next_byte(self) -> int | None:
        """The byte that has to come back next; None if none is outstanding."""
        return self._writes[0][self._position] if self._writes else None

    def expect(self, data: bytes) -> None:
        """Add `data`, which is not empty, as it is sent."""
        self._writes.append(data)
        self.sent += len(data)

    def match(self, chunk: bytes) -> int:
        """Compare `chunk` with the outstanding bytes and remove the equal ones. Return how many are equal."""
        good = 0
        while good < len(chunk) and self._writes:
            expected, start = self._writes[0], self._position
            back = chunk[good : good + len(expected) - start]
            equal = len(back) if expected.startswith(back, start) else _first_difference(back, expected[start:])
            good += equal
            self._position += equal
            if self._position == len(expected):
                self._writes.popleft()
                self._position = 0
            if equal < len(back):
                break

        self.returned += good
        return good


class RecentDatagrams:
    """Hashes of the last 16384 datagrams that were answered or expired, to recognise late and duplicate replies."""

    def __init__(self) -> None:
        self._answered: OrderedDict[int, bool] = OrderedDict()

    def add(self, datagram: bytes, *, answered: bool) -> None:
        key = hash(datagram)
        self._answered[key] = answered
        self._answered.move_to_end(key)
        if len(self._answered) > _HISTORY_SIZE:
            self._answered.popitem(last=False)

    def look_up(self, datagram: bytes) -> bool | None:
        """Return whether `datagram` was answered, false if it expired, None if it is unknown."""
        return self._answered.get(hash(datagram))


@dataclass
class _SentDatagram:
    datagram: bytes
    offset: int
    expires_at: float


class DatagramMatcher:
    """Datagrams sent in one exchange. Adds each to `recent` when it is answered or expires.

    `recent` is shared by all exchanges of a client.
    """

    def __init__(self, recent: RecentDatagrams) -> None:
        self._recent = recent
        #: By number. Expiry times are in the same order.
        self._outstanding: dict[int, _SentDatagram] = {}
        self._numbers: dict[bytes, deque[int]] = {}
        self._bytes_sent = 0
        self._newest = -1
        self.bytes_outstanding = 0
        self.sent = 0
        self.answered = 0
        self.lost = 0
        self._first_lost = 0
        #: Lost datagrams with a reply that came after they expired. They still count in `lost`.
        self.late = 0
        self.duplicates = 0
        #: Replies that came after that of a datagram sent later (RFC 4737).
        self.reordered = 0

    def __len__(self) -> int:
        """The number of outstanding datagrams."""
        return len(self._outstanding)

    @property
    def datagrams(self) -> list[bytes]:
        """The outstanding datagrams, the oldest first."""
        return [entry.datagram for entry in self._outstanding.values()]

    @property
    def next_expiry(self) -> float:
        return next(iter(self._outstanding.values())).expires_at if self._outstanding else math.inf

    @property
    def first_missing(self) -> int:
        """Offset in the bytes sent of the first datagram that is lost or outstanding."""
        if self.lost:
            return self._first_lost

        return next(iter(self._outstanding.values())).offset if self._outstanding else self._bytes_sent

    def expect(self, datagram: bytes, *, expires_at: float = math.inf) -> int:
        """Add `datagram` to the outstanding ones. Return its number."""
        number = self.sent
        self._outstanding[number] = _SentDatagram(datagram, self._bytes_sent, expires_at)
        self._numbers.setdefault(datagram, deque()).append(self.sent)
        self.sent += 1
        self._bytes_sent += len(datagram)
        self.bytes_outstanding += len(datagram)
        return number

    def set_expiry(self, number: int, expires_at: float) -> None:
        """Let datagram `number` expire at `expires_at`. No-op if it is answered already."""
        if number in self._outstanding:
            self._outstanding[number].expires_at = expires_at

    def match(self, reply: bytes) -> bool:
        """Remove the datagram that `reply` answers. Return false if the reply is late or a duplicate.

        Raises `EchoMismatch` if no such datagram was sent.
        """
        if reply in self._numbers:
            number = self._numbers[reply][0]
            self._remove(number, answered=True)
            self.answered += 1
            self.reordered += number < self._newest
            self._newest = max(number, self._newest)
            return True

        answered = self._recent.look_up(reply)
        if answered is None:
            raise self._mismatch(reply)
        if answered:
            self.duplicates += 1
        else:
            self.late += 1
            self._recent.add(reply, answered=True)

        return False

    def expire(self, now: float) -> None:
        """Count as lost each datagram that expires at or before `now`."""
        while self._outstanding and self.next_expiry <= now:
            entry = self._remove(next(iter(self._outstanding)), answered=False)
            if not self.lost:
                self._first_lost = entry.offset
            self.lost += 1

    def _remove(self, number: int, *, answered: bool) -> _SentDatagram:
        entry = self._outstanding.pop(number)
        same = self._numbers[entry.datagram]
        same.popleft()
        if not same:
            del self._numbers[entry.datagram]
        self.bytes_outstanding -= len(entry.datagram)
        self._recent.add(entry.datagram, answered=answered)
        return entry

    def _mismatch(self, reply: bytes) -> EchoMismatch:
        for number, entry in self._outstanding.items():
            # Of equal length: most likely a corrupted echo of this datagram.
            if len(entry.datagram) == len(reply):
                at = _first_difference(reply, entry.datagram)
                wrong = f"sent 0x{entry.datagram[at]:02x}, got 0x{reply[at]:02x}"
                message = f"byte {at} of datagram {number} is wrong: {wrong}"
                return EchoMismatch(message, offset=entry.offset + at)

        return EchoMismatch(f"a datagram of {len(reply)} bytes came that was never sent", offset=self._bytes_sent)

    def __str__(self) -> str:
        """``2 of 100 datagrams were lost, 1 of them only late; 3 came twice, 1 out of order``."""
        text = f"{self.lost} of {self.sent} datagrams were lost"
        if self.late:
            text += f", {self.late} of them only late"
        counts = {"came twice": self.duplicates, "out of order": self.reordered}
        oddities = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return f"{text}; {oddities}" if oddities else text


def _first_difference(back: bytes, expected: bytes) -> int:
    return next(i for i, byte in enumerate(back) if byte != expected[i])
