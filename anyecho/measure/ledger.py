"""Which datagrams are owed, and what became of them. Does no I/O and looks at no clock.

A payload is the user's, so nothing is added to it: a reply answers the oldest unanswered datagram that is equal.
"""

from __future__ import annotations

__all__ = ("Ledger", "Settled")

import math
from collections import OrderedDict, deque
from dataclasses import dataclass

from anyecho.errors import EchoMismatch

#: Datagrams remembered after they were answered or given up.
_MEMORY = 16384


class Settled:
    """Remembers the datagrams that nobody waits for any more, by their hashes: the last 16384 of them."""

    def __init__(self) -> None:
        self._answered: OrderedDict[int, bool] = OrderedDict()

    def add(self, datagram: bytes, *, answered: bool) -> None:
        key = hash(datagram)
        self._answered[key] = answered
        self._answered.move_to_end(key)
        if len(self._answered) > _MEMORY:
            self._answered.popitem(last=False)

    def look_up(self, datagram: bytes) -> bool | None:
        """Whether `datagram` was answered; None if nobody knows of it."""
        return self._answered.get(hash(datagram))


@dataclass
class _Debt:
    datagram: bytes
    number: int
    offset: int
    late_at: float


class Ledger:
    """Datagrams sent in one exchange. What was settled in it, `settled` remembers for the next."""

    def __init__(self, settled: Settled) -> None:
        self._settled = settled
        #: By number; whoever was sent later is late later.
        self._owed: dict[int, _Debt] = {}
        self._numbers: dict[bytes, deque[int]] = {}
        self._bytes_sent = 0
        self._newest = -1
        self.bytes_owed = 0
        self.sent = 0
        self.answered = 0
        self.lost = 0
        self._first_lost = 0
        #: Of the lost ones, those that came after all.
        self.late = 0
        self.duplicates = 0
        #: Those overtaken by one that was sent later (RFC 4737).
        self.reordered = 0

    def __len__(self) -> int:
        """How many are owed."""
        return len(self._owed)

    @property
    def datagrams(self) -> list[bytes]:
        """Those that are owed, the oldest first."""
        return [debt.datagram for debt in self._owed.values()]

    @property
    def next_late_at(self) -> float:
        return next(iter(self._owed.values())).late_at if self._owed else math.inf

    @property
    def first_missing(self) -> int:
        """Where the first one began that is lost or owed, counted in bytes sent."""
        if self.lost:
            return self._first_lost

        return next(iter(self._owed.values())).offset if self._owed else self._bytes_sent

    def owe(self, datagram: bytes, *, late_at: float = math.inf) -> int:
        """Wait for the answer to `datagram`; return its number."""
        number = self.sent
        self._owed[number] = _Debt(datagram, number, self._bytes_sent, late_at)
        self._numbers.setdefault(datagram, deque()).append(self.sent)
        self.sent += 1
        self._bytes_sent += len(datagram)
        self.bytes_owed += len(datagram)
        return number

    def set_late_at(self, number: int, late_at: float) -> None:
        """Give up datagram `number` at `late_at`, unless it is answered before."""
        if number in self._owed:
            self._owed[number].late_at = late_at

    def settle(self, reply: bytes) -> bool:
        """Take what `reply` answers off what is owed; return whether there was one.

        Raises `EchoMismatch` if nobody sent it.
        """
        if reply in self._numbers:
            number = self._numbers[reply][0]
            self._take(number, answered=True)
            self.answered += 1
            self.reordered += number < self._newest
            self._newest = max(number, self._newest)
            return True

        answered = self._settled.look_up(reply)
        if answered is None:
            raise self._mismatch(reply)
        if answered:
            self.duplicates += 1
        else:
            self.late += 1
            self._settled.add(reply, answered=True)

        return False

    def give_up(self, now: float) -> None:
        """Lose what is late."""
        while self._owed and self.next_late_at <= now:
            debt = self._take(next(iter(self._owed)), answered=False)
            if not self.lost:
                self._first_lost = debt.offset
            self.lost += 1

    def _take(self, number: int, *, answered: bool) -> _Debt:
        debt = self._owed.pop(number)
        same = self._numbers[debt.datagram]
        same.popleft()
        if not same:
            del self._numbers[debt.datagram]
        self.bytes_owed -= len(debt.datagram)
        self._settled.add(debt.datagram, answered=answered)
        return debt

    def _mismatch(self, reply: bytes) -> EchoMismatch:
        for debt in self._owed.values():
            # As long as the one that went out: then it is most likely that one, spoilt.
            if len(debt.datagram) == len(reply):
                at = next(i for i, byte in enumerate(reply) if byte != debt.datagram[i])
                wrong = f"sent 0x{debt.datagram[at]:02x}, got 0x{reply[at]:02x}"
                message = f"byte {at} of datagram {debt.number} is wrong: {wrong}"
                return EchoMismatch(message, offset=debt.offset + at)

        return EchoMismatch(f"a datagram of {len(reply)} bytes came that was never sent", offset=self._bytes_sent)

    def __str__(self) -> str:
        """``2 of 100 datagrams were lost, 1 of them only late; 3 came twice, 1 out of order``."""
        text = f"{self.lost} of {self.sent} datagrams were lost"
        if self.late:
            text += f", {self.late} of them only late"
        oddities = []
        if self.duplicates:
            oddities.append(f"{self.duplicates} came twice")
        if self.reordered:
            oddities.append(f"{self.reordered} out of order")

        return "; ".join([text, *([", ".join(oddities)] if oddities else [])])
