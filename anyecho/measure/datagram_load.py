"""One UDP socket of a load: each datagram has a number, so that loss, duplicates and reordering are told apart.

A closed loop keeps `pipeline` datagrams outstanding; a lost one makes room when it times out. An open loop sends
each datagram when it is due, however many are outstanding: one that is lost would keep the socket busy.

This module knows no event loop, as `load_connection`.
"""

from __future__ import annotations

__all__ = ("SIZE_MIN", "DatagramConnection")

import struct
from array import array
from random import Random

from anyecho.measure.traffic import EventDriven, Traffic
from anyecho.net.readiness import READ, WRITE
from anyecho.net.sockets import Socket

#: The number, and the number combined with the key of the socket: a damaged header is not another datagram's.
_HEADER = struct.Struct("!II")
SIZE_MIN = _HEADER.size
#: Datagrams read before other sockets have their turn.
_BATCH = 16


class DatagramConnection(EventDriven):
    """Load on one connected, non-blocking `sock`. The caller closes it, after `stop`.

    `due`, `sent` and `received` are stamps by number, as those of a `LoadConnection`; a `received` of 0 is none.
    """

    __slots__ = (
        *("_in_flight", "_key", "_newest", "_oldest", "_payload", "_queued", "_rest", "_sock"),
        *("batch", "dropped", "due", "duplicates", "number", "received", "reordered", "sent", "wrong"),
    )

    batch: int

    def __init__(self, sock: Socket, number: int, traffic: Traffic) -> None:
        super().__init__(traffic)
        self.number = number
        self.sent = array("q")
        self.received = array("q")
        self.due = array("q") if traffic.is_open_loop else self.sent
        self.wrong: list[int] = []
        self.dropped = ""
        self.duplicates = 0
        #: Replies that came after the reply to a later datagram (RFC 4737).
        self.reordered = 0
        self._sock = sock
        self._key = Random(f"{number} {traffic.size}").getrandbits(32)
        self._payload = bytearray(traffic.messages[number & traffic.mask])
        self._rest = bytes(self._payload[SIZE_MIN:])
        #: The oldest datagram that has neither a reply nor timed out, and the newest with a reply.
        self._oldest = 0
        self._newest = -1
        self._in_flight = 0
        #: Datagrams that are due, and that the kernel has not taken.
        self._queued = 0

    @property
    def in_order(self) -> bool:
        return not self.reordered

    @property
    def outstanding(self) -> int:
        return 0 if self.stopped else self._in_flight + self._queued

    def start(self) -> None:
        """Send the first datagrams of a closed loop."""
        self.resume()

    def take(self, due: int, now: int) -> None:
        """Send the datagram of an open loop that was `due`."""
        self.due.append(due)
        self._queued += 1
        if self._queued == 1:
            self._send_queued(now)

    def tick(self, now: int) -> None:
        """Give up datagrams that have timed out."""
        traffic = self._traffic
        while self._oldest < len(self.sent):
            if not self.received[self._oldest]:
                if traffic.timeout is None or now - self.due[self._oldest] <= traffic.timeout:
                    break
                self._in_flight -= 1
            self._oldest += 1
        if not (traffic.is_open_loop or self.stopped):
            self.resume()

    def dispatch(self, mask: int) -> None:
        if mask & WRITE:
            self._ask(READ)
            self._send_queued(self._traffic.clock())
        if mask & ~WRITE:
            for _ in range(_BATCH):
                if self.stopped or not self._read():
                    break
            if not (self._traffic.is_open_loop or self.stopped):
                self._defer(self)

    def resume(self) -> None:
        traffic = self._traffic
        now = traffic.clock()
        while self.outstanding < traffic.pipeline and traffic.may_begin(now):
            self._queued += 1
            if not self._send_queued(now):
                break

    def _send_queued(self, now: int) -> bool:
        """Send what is queued; return false if the kernel does not take all of it now."""
        while self._queued:
            number = len(self.sent)
            _HEADER.pack_into(self._payload, 0, number & 0xFFFFFFFF, (number ^ self._key) & 0xFFFFFFFF)
            try:
                self._sock.send(self._payload)
            except BlockingIOError:
                self._ask(READ | WRITE)
                return False
            except OSError as exc:
                self._fail(exc)  # of an earlier datagram, or this one is lost
            self.sent.append(now)
            self.received.append(0)
            self._queued -= 1
            self._in_flight += 1

        return True

    def _read(self) -> bool:
        """Take one reply; return false if there is none."""
        traffic = self._traffic
        try:
            count = self._sock.recv_into(traffic.view)
        except BlockingIOError:
            return False
        except OSError as exc:
            self._fail(exc)
            return True

        now = traffic.clock()
        number, check = _HEADER.unpack_from(traffic.buffer) if count >= SIZE_MIN else (0, 0)
        is_ours = count >= SIZE_MIN and number ^ check == self._key and number < len(self.sent)
        if is_ours and count == traffic.size and traffic.buffer.startswith(self._rest, SIZE_MIN):
            self._on_reply(number, now)
        else:
            self._on_wrong(number if is_ours else self._oldest, now)
        return True

    def _on_reply(self, number: int, now: int) -> None:
        if self.received[number]:
            self.duplicates += 1
            return

        self.received[number] = now
        self.reordered += number < self._newest
        self._newest = max(number, self._newest)
        if number >= self._oldest:
            self._in_flight -= 1
        if number == self._oldest:
            self._oldest += 1

    def _on_wrong(self, number: int, now: int) -> None:
        """Count the reply as that of datagram `number`, the oldest without one if its own number is damaged."""
        self._traffic.fail(f"connection {self.number}: the reply to datagram {number} is wrong")
        if number < len(self.sent) and not self.received[number]:
            self.wrong.append(number)
            self._on_reply(number, now)

    def _fail(self, exc: OSError) -> None:
        self._traffic.fail(f"connection {self.number}: {exc.strerror}")
