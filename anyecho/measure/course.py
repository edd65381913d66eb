"""What the connections of a load share during a run: when to stop, and what came of it."""

from __future__ import annotations

__all__ = ("Course",)

from array import array

from anyio import Event

from anyecho.errors import EchoError

#: What one turn may take in: as much as amortises the system call.
_BUFFER_SIZE = 256 * 1024


class Course:
    """Begun anew for each run. Times are nanoseconds, of `perf_counter_ns`."""

    def __init__(self) -> None:
        #: Everybody receives into this one.
        self.buffer = bytearray(_BUFFER_SIZE)
        self.failure: EchoError | None = None
        self.begin(0, deadline=0)

    def begin(self, owing: int, *, deadline: int) -> array[int]:
        """Begin anew; return where the latencies will be."""
        latencies = array("q")
        self.keep = latencies.append
        #: How many wait for a reply. Whoever gets it at `deadline` or later waits for no other.
        self.owing = owing
        self.deadline = deadline
        #: Set when the last reply is there, or once something failed.
        self.over = Event()
        self.over_at = 0
        return latencies

    def arrive(self, now: int) -> None:
        """One has its last reply."""
        self.owing -= 1
        if not self.owing:
            self.over_at = now
            self.over.set()

    def fail(self, failure: EchoError) -> None:
        """One got what is no echo. The first to say so is believed."""
        self.failure = self.failure or failure
        self.over.set()
