"""State that all connections of a load share during a run."""

from __future__ import annotations

__all__ = ("LoadRun",)

from array import array

from anyio import Event

from anyecho.errors import EchoError

#: Bytes received by one recv(2): enough to amortise the system call.
_BUFFER_SIZE = 256 * 1024


class LoadRun:
    """Deadline, latencies and failure of a run; reset by `begin`. Times are `perf_counter_ns`, in nanoseconds."""

    def __init__(self) -> None:
        #: The receive buffer of all connections.
        self.buffer = bytearray(_BUFFER_SIZE)
        self.failure: EchoError | None = None
        self.begin(0, deadline=0)

    def begin(self, outstanding: int, *, deadline: int) -> array[int]:
        """Reset for a run of `outstanding` connections. Return the array to which latencies will be added."""
        latencies = array("q")
        self.add_latency = latencies.append
        #: Connections that have not finished. A connection finishes with its first reply at or after `deadline`.
        self.outstanding = outstanding
        self.deadline = deadline
        #: Set when the last connection has finished, or at the first failure.
        self.finished = Event()
        self.finished_at = 0
        return latencies

    def finish(self, now: int) -> None:
        """Count a connection as finished at time `now`."""
        self.outstanding -= 1
        if not self.outstanding:
            self.finished_at = now
            self.finished.set()

    def fail(self, failure: EchoError) -> None:
        """End the run because of a connection's failure. The first failure is kept."""
        self.failure = self.failure or failure
        self.finished.set()
