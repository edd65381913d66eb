"""One connection of a load on a `Wire`: it sends messages, compares every byte of the echo, and records stamps.

A closed loop sends a message when the reply of an earlier one is back, and keeps `pipeline` of them outstanding. In
an open loop the pacer hands over each message at its due time; while `pipeline` messages are outstanding, further
ones wait in the queue of the connection, and their clock runs. Nothing is skipped.

An echo is in order, so the n-th reply belongs to the n-th message: stamps stand in arrays, and a message is no
object. This module knows no event loop: the wire, the clock, and the function that asks for events are arguments.
"""

from __future__ import annotations

__all__ = ("LoadConnection",)

from array import array

from anyecho.measure.traffic import CHUNK, EventDriven, Traffic
from anyecho.net.readiness import READ, WRITE
from anyecho.net.wire import PlainWire, Wire

#: Messages between the first ones of two connections, so that crossed replies are not equal.
_STRIDE = 7


class LoadConnection(EventDriven):
    """Load on one connected `wire`. The caller closes its socket, after `stop`.

    `due`, `sent` and `received` are the stamps of the messages in order. In a closed loop `due` is `sent`: a
    message is due when it can be sent. If `sent` are fewer than `due`, the rest is in the queue. If `received` are
    fewer than `sent`, the rest is outstanding, or lost if the connection is `dropped`.
    """

    __slots__ = (
        *("_accepted", "_expected", "_index", "_is_single", "_offset", "_queued", "_read_into"),
        *("_returned", "_wire", "_write_wire"),
        *("batch", "dropped", "due", "number", "received", "sent", "wrong"),
    )

    batch: int
    in_order = True
    duplicates = reordered = 0

    def __init__(self, wire: Wire, number: int, traffic: Traffic) -> None:
        super().__init__(traffic)
        self.number = number
        #: Nanoseconds of the clock.
        self.sent = array("q")
        self.received = array("q")
        self.due = array("q") if traffic.is_open_loop else self.sent
        #: Numbers of the messages with a wrong byte in the reply.
        self.wrong: list[int] = []
        #: Why the connection ended, if it did.
        self.dropped = ""
        self._wire = wire
        self._read_into = wire.read_into
        self._write_wire = wire.write
        self._offset = number * _STRIDE * traffic.size
        self._index = number * _STRIDE - 1
        #: Whether messages go one by one, by the shortest way: whole, and while none is outstanding.
        self._is_single = traffic.pipeline == 1 and traffic.size <= CHUNK and isinstance(wire, PlainWire)
        #: The outstanding message, while it was accepted whole and no byte of it is back. `_accepted` and
        #: `_returned`, the bytes that the wire has accepted and the peer has returned, are not kept then.
        self._expected: memoryview | None = None
        self._accepted = self._returned = 0
        #: Messages that are due and not sent.
        self._queued = 0

    @property
    def outstanding(self) -> int:
        """Messages without a reply, those in the queue included."""
        return 0 if self.stopped else len(self.due) - len(self.received)

    def start(self) -> None:
        """Begin the first messages of a closed loop."""
        self.resume()

    def take(self, due: int, now: int) -> None:
        """Send the message of an open loop that was `due`, or leave it in the queue of this busy connection."""
        traffic = self._traffic
        self.due.append(due)
        if self.stopped:
            return

        sent = len(self.sent)
        self._queued += 1
        if sent - len(self.received) < traffic.pipeline:
            self.resume()
        elif traffic.timeout is not None and now - self.due[sent] > traffic.timeout:
            traffic.is_saturated = True

    def tick(self, now: int) -> None:
        """Nothing times out before the end of the run: a reply that comes late is still the next one."""

    def dispatch(self, mask: int) -> None:
        expected = self._expected
        if expected is None or mask != READ:
            self._dispatch_any(mask)
            return

        traffic = self._traffic
        try:
            count = self._read_into(traffic.view)
        except BlockingIOError:
            return
        except OSError as exc:
            self._drop(f"it broke ({exc.strerror})")
            return

        now = traffic.clock()
        if count == traffic.size and traffic.begins_with(expected):
            self._expected = None
            self.received.append(now)
            self._defer(self)
        else:
            self._leave_expected()
            self._on_input(count, now)

    def resume(self) -> None:
        """Send what the pipeline has room for: from the queue, or new messages of a closed loop."""
        traffic = self._traffic
        now = traffic.clock()
        if self.stopped:  # dropped after its reply, by a write
            return
        if not self._is_single:
            self._fill_pipeline(now)
            return
        if self._queued:
            self._queued -= 1
        elif traffic.is_open_loop or not traffic.may_begin(now):
            return

        self.sent.append(now)
        self._index = index = (self._index + 1) & traffic.mask
        message = traffic.messages[index]
        try:
            accepted = self._write_wire(message)
        except BlockingIOError:
            accepted = 0
        except OSError as exc:
            self._drop(f"it broke ({exc.strerror})")
            return

        self._expected = message
        if accepted != traffic.size:
            self._leave_expected()
            self._accepted += accepted - traffic.size
            self._write()

    def _leave_expected(self) -> None:
        """Go on with bytes, after a message or its reply was not whole."""
        self._expected = None
        self._accepted = len(self.sent) * self._traffic.size
        self._returned = len(self.received) * self._traffic.size

    def _dispatch_any(self, mask: int) -> None:
        if self._expected is not None:
            self._leave_expected()
        if mask & WRITE:
            self._ask(READ)
            self._write()
        if mask & ~WRITE and not self.stopped:
            self._read()
            while self._wire.has_input and not self.stopped:
                self._read()  # no event reports it; no more can come than is outstanding

    def _read(self) -> None:
        try:
            count = self._read_into(self._traffic.view)
        except BlockingIOError:
            self._write()
        except OSError as exc:
            self._drop(f"it broke ({exc.strerror})")
        else:
            self._on_input(count, self._traffic.clock())

    def _on_input(self, count: int, now: int) -> None:
        """Compare `count` bytes in the buffer, and count the replies that they complete."""
        traffic, returned = self._traffic, self._returned
        at = (self._offset + returned) % traffic.period
        end = returned + count
        is_equal = traffic.begins_with(traffic.pattern[at : at + count])
        if not (is_equal and count and end <= self._accepted) and not self._examine(count, returned):
            return

        self._returned = end
        complete = end // traffic.size - len(self.received)
        self.received.extend([now] * complete)
        if complete:
            self._defer(self)
        if not self.stopped and self._expected is None:
            self._write()

    def _fill_pipeline(self, now: int) -> None:
        traffic, sent = self._traffic, self.sent
        for _ in range(traffic.pipeline - len(sent) + len(self.received)):
            if self._queued:
                self._queued -= 1
            elif traffic.is_open_loop or not traffic.may_begin(now):
                break
            sent.append(now)
        self._write()

    def _write(self) -> None:
        """Write what was begun, as far as the wire accepts it; else ask for events."""
        traffic, accepted = self._traffic, self._accepted
        wanted = len(self.sent) * traffic.size
        try:
            while accepted < wanted:
                at = (self._offset + accepted) % traffic.period
                accepted += self._write_wire(traffic.pattern[at : at + min(wanted - accepted, CHUNK)])
                self._accepted = accepted
            if self._wire.pending and not self._wire.flush():
                self._ask(READ | WRITE)
        except BlockingIOError:
            # Reads go on: a server that stops reading until its echo is read would otherwise deadlock.
            if not self._wire.write_blocked:
                self._ask(READ | WRITE)
        except OSError as exc:
            self._drop(f"it broke ({exc.strerror})")

    def _examine(self, count: int, returned: int) -> bool:
        """Find what is wrong with the `count` bytes after the first `returned`; return whether to go on.

        A wrong byte makes its message wrong. Surplus bytes belong to no message, so the connection is dropped.
        """
        traffic = self._traffic
        if not count:
            self._drop("the server closed it")
            return False
        if returned + count > self._accepted:
            self._drop(f"{returned + count - self._accepted} bytes came that were never sent")
            return False

        at = (self._offset + returned) % traffic.period
        for position, byte in enumerate(traffic.pattern[at : at + count]):
            if traffic.buffer[position] != byte:
                self._count_wrong(returned + position, sent=byte, got=traffic.buffer[position])

        return True

    def _count_wrong(self, position: int, *, sent: int, got: int) -> None:
        message, offset = divmod(position, self._traffic.size)
        if self.wrong[-1:] != [message]:
            self.wrong.append(message)
            what = f"byte {offset}: sent 0x{sent:02x}, got 0x{got:02x}"
            self._traffic.fail(f"message {message} of connection {self.number} is wrong at {what}")

    def _drop(self, why: str) -> None:
        self.dropped = why
        missing = len(self.received)
        lost = f": message {missing} is lost" if len(self.due) > missing else ""
        self._traffic.fail(f"connection {self.number} was dropped: {why}{lost}")
        self.stop()
