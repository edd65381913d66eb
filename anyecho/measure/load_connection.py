"""One connection of a load on a `Wire`: it sends messages, compares every byte of the echo, and records stamps.

A closed loop sends a message when the reply of an earlier one is back, and keeps `pipeline` of them outstanding. In
an open loop the pacer hands over each message at its due time; while `pipeline` messages are outstanding, further
ones wait in the queue of the connection, and their clock runs. Nothing is skipped.

An echo is in order, so the n-th reply belongs to the n-th message: stamps stand in arrays, and a message is no
object. This module knows no event loop: the wire, the clock, and the function that asks for events are arguments.
"""

from __future__ import annotations

__all__ = ("CHUNK", "LoadConnection", "Traffic")

from array import array
from collections.abc import Callable
from random import Random
from time import perf_counter_ns

from anyecho.net.readiness import READ, WRITE
from anyecho.net.wire import Wire

#: Maximum bytes of one write, and of one read: enough to amortise the system call.
CHUNK = 256 * 1024
#: Length of the repeated bytes. A prime, and the size is no multiple of it: so a message differs from the next.
_PERIODS = (65521, 65519)
#: Bytes of the pattern between the first messages of two connections, so that crossed replies are not equal.
_STRIDE = 7919
#: More messages than a run can have.
_UNLIMITED = 1 << 62


class Traffic:
    """What all connections of a run share. Times are nanoseconds of `clock`."""

    def __init__(
        self,
        *,
        size: int,
        pipeline: int = 1,
        is_open_loop: bool = False,
        timeout: int | None = None,
        seed: int = 0,
        clock: Callable[[], int] = perf_counter_ns,
    ) -> None:
        self.size = size
        self.pipeline = pipeline
        self.is_open_loop = is_open_loop
        self.timeout = _UNLIMITED if timeout is None else timeout
        self.clock = clock
        self.period = next(period for period in _PERIODS if size % period)
        period = Random(seed).randbytes(self.period)
        self.pattern = memoryview((period * (CHUNK // self.period + 2))[: self.period + CHUNK])
        #: The receive buffer of all connections.
        self.buffer = bytearray(CHUNK)
        self.view = memoryview(self.buffer)
        #: A closed loop begins no message at or after `deadline`, and at most this many more.
        self.deadline = _UNLIMITED
        self.left = _UNLIMITED
        #: How late each message of an open loop was handed over.
        self.lags = array("q")
        #: Whether a message timed out before a busy connection could send it.
        self.is_saturated = False
        #: One line about the first message that was wrong or lost with its connection.
        self.first_failure = ""

    def fail(self, failure: str) -> None:
        self.first_failure = self.first_failure or failure


class LoadConnection:
    """Load on one connected `wire`. The caller closes its socket, after `stop`.

    `due`, `sent` and `received` are the stamps of the messages in order. In a closed loop `due` is `sent`: a
    message is due when it can be sent. If `sent` are fewer than `due`, the rest is in the queue. If `received` are
    fewer than `sent`, the rest is outstanding, or lost if the connection is `dropped`.
    """

    __slots__ = (
        *("_accepted", "_ask", "_offset", "_read_into", "_returned", "_traffic", "_wanted", "_wire", "_write_wire"),
        *("batch", "dropped", "due", "number", "received", "sent", "stopped", "wrong"),
    )

    batch: int

    def __init__(self, wire: Wire, number: int, traffic: Traffic) -> None:
        self.number = number
        #: Nanoseconds of the clock.
        self.sent = array("q")
        self.received = array("q")
        self.due = array("q") if traffic.is_open_loop else self.sent
        #: Numbers of the messages whose reply had a wrong byte.
        self.wrong: list[int] = []
        #: Why the connection ended, if it did.
        self.dropped = ""
        self.stopped = False
        self._traffic = traffic
        self._wire = wire
        self._read_into = wire.read_into
        self._write_wire = wire.write
        self._ask: Callable[[int], None] = lambda mask: None
        #: Bytes of the messages begun; of those, the wire has accepted, and the peer has returned.
        self._wanted = self._accepted = self._returned = 0
        self._offset = number * _STRIDE

    @property
    def outstanding(self) -> int:
        """Messages whose reply is still to come, those in the queue included."""
        return 0 if self.stopped else len(self.due) - len(self.received)

    def attach(self, ask: Callable[[int], None]) -> None:
        """Call `dispatch` from now on as `ask` was called last: with `READ`, ``READ | WRITE``, or 0 for no more."""
        self._ask = ask
        ask(READ)

    def stop(self) -> None:
        """Send and receive no more. Idempotent."""
        if not self.stopped:
            self.stopped = True
            self._ask(0)

    poller_stopped = stop

    def start(self) -> None:
        """Begin the first messages of a closed loop."""
        self._begin(self._traffic.clock())
        self._write()

    def take(self, due: int, now: int) -> None:
        """Send the message of an open loop that was `due`, or leave it in the queue of this busy connection."""
        traffic = self._traffic
        self.due.append(due)
        if self.stopped:
            return

        sent = len(self.sent)
        if sent - len(self.received) < traffic.pipeline:
            self.sent.append(now)
            self._wanted += traffic.size
            self._write()
        elif now - self.due[sent] > traffic.timeout:
            traffic.is_saturated = True

    def dispatch(self, mask: int) -> None:
        if mask & WRITE:
            self._ask(READ)
            self._write()
        if mask & ~WRITE and not self.stopped:
            self._read()
            while self._wire.has_input and not self.stopped:
                self._read()  # no event reports it; no more can come than is outstanding

    def _read(self) -> None:
        traffic = self._traffic
        try:
            count = self._read_into(traffic.view)
        except BlockingIOError:
            if self._wire.pending:
                self._write()
            return
        except OSError as exc:
            self._drop(f"it broke ({exc.strerror})")
            return

        now = traffic.clock()
        returned = self._returned
        at = (self._offset + returned) % traffic.period
        end = self._returned = returned + count
        is_equal = traffic.buffer.startswith(traffic.pattern[at : at + count])
        if not (is_equal and count and end <= self._accepted) and not self._examine(count, returned):
            return

        received, size = self.received, traffic.size
        if count == size and end % size == 0:
            received.append(now)
            complete = 1
        else:
            complete = end // size - len(received)
            received.extend([now] * complete)
        if complete and len(self.sent) - len(received) < traffic.pipeline:
            self._begin(now)
        if self._wanted > self._accepted or self._wire.pending:
            self._write()

    def _begin(self, now: int) -> None:
        """Begin as many messages as the pipeline has room for: from the queue, or new ones of a closed loop."""
        traffic, sent = self._traffic, self.sent
        room = traffic.pipeline - len(sent) + len(self.received)
        if traffic.is_open_loop:
            room = min(room, len(self.due) - len(sent))
        elif now < traffic.deadline:
            room = min(room, traffic.left)
            traffic.left -= room
        else:
            return

        for _ in range(room):
            sent.append(now)
        self._wanted += room * traffic.size

    def _write(self) -> None:
        """Write what is wanted, as far as the wire accepts it; else ask for events."""
        traffic, accepted, wanted = self._traffic, self._accepted, self._wanted
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
            self._returned = returned
            self._drop("the server closed it")
            return False
        if returned + count > self._accepted:
            self._returned = returned
            surplus = returned + count - self._accepted
            self._drop(f"{surplus} bytes came that were never sent")
            return False

        at = (self._offset + returned) % traffic.period
        expected = traffic.pattern[at : at + count]
        for position, byte in enumerate(expected):
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
