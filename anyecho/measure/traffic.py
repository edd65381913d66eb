"""What the connections of a run share: a base class, the bytes they send, the buffer, the clock, and the limits."""

from __future__ import annotations

__all__ = ("CHUNK", "EventDriven", "Traffic")

from array import array
from collections.abc import Callable
from math import inf
from operator import methodcaller
from random import Random
from time import perf_counter_ns
from typing import Any

from anyecho.net.readiness import READ

#: Maximum bytes of one write, and of one read: enough to amortise the system call.
CHUNK = 256 * 1024
#: Different messages: at most, and so many bytes of them unless two are larger. A power of 2.
_MESSAGES = 1024
_BYTES = 4 << 20


class Traffic:
    """The messages are slices of one `pattern` that repeats. Times are nanoseconds of `clock`."""

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
        self.timeout = timeout
        self.clock = clock
        number = 1 << (max(min(_BYTES // size, _MESSAGES), 2).bit_length() - 1)
        self.period = number * size
        repeated = Random(seed).randbytes(self.period)
        #: A period, and the begin of the next one: a chunk from anywhere in the period is a slice.
        self.pattern = memoryview((repeated * (CHUNK // self.period + 2))[: self.period + CHUNK])
        #: The messages of a period; number `n` of a connection is at ``n & mask``, its first one anywhere.
        self.messages = [self.pattern[start : start + size] for start in range(0, self.period, size)]
        self.mask = number - 1
        #: The receive buffer of all connections.
        self.buffer = bytearray(CHUNK)
        self.view = memoryview(self.buffer)
        self.begins_with = self.buffer.startswith
        #: A closed loop begins no message at or after `deadline`, and at most `left` more; None is no limit.
        self.deadline: int | None = None
        self.left: int | None = None
        #: How late each message of an open loop was handed over.
        self.lags = array("q")
        #: Whether a message timed out before a busy connection could send it.
        self.is_saturated = False
        #: One line about the first message that was wrong or lost with its connection.
        self.first_failure = ""

    def may_begin(self, now: int) -> bool:
        """Return whether a closed loop may begin one more message, which is counted then."""
        if self.deadline is not None and now >= self.deadline:
            return False
        if self.left is not None:
            if self.left <= 0:
                return False
            self.left -= 1

        return True

    def seconds_left(self, now: int) -> float:
        """Return the seconds until the deadline, at least 0."""
        return inf if self.deadline is None else max(self.deadline - now, 0) / 1e9

    def fail(self, failure: str) -> None:
        """Keep the first failure."""
        self.first_failure = self.first_failure or failure


class EventDriven:
    """Base class of a connection of a load, which asks for the events that its `dispatch` handles."""

    __slots__ = ("_ask", "_defer", "_traffic", "stopped")

    def __init__(self, traffic: Traffic) -> None:
        self.stopped = False
        self._traffic = traffic
        self._ask: Callable[[int], None] = lambda mask: None
        self._defer: Callable[[Any], object] = methodcaller("resume")

    def attach(self, ask: Callable[[int], None], defer: Callable[[Any], object] | None = None) -> None:
        """Call `dispatch` from now on as `ask` was called last: with `READ`, ``READ | WRITE``, or 0 for no more.

        A closed loop that can send calls `defer` with this connection, which is then to `resume`; None is at once.
        """
        self._ask = ask
        if defer is not None and not self._traffic.is_open_loop:
            self._defer = defer
        ask(READ)

    def resume(self) -> None:
        """Send what the pipeline has room for."""
        raise NotImplementedError

    def stop(self) -> None:
        """Send and receive no more. Idempotent."""
        if not self.stopped:
            self.stopped = True
            self._ask(0)

    poller_stopped = stop
