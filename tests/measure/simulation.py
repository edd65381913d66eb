"""A load on wires in memory, in simulated time: the clock stands still while the load acts.

So every stamp is known exactly, and the expected latencies are arithmetic.
"""

from __future__ import annotations

__all__ = ("MILLISECOND", "SECOND", "Clock", "MemoryWire", "Simulation")

import heapq
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from anyecho.measure.load_connection import LoadConnection
from anyecho.measure.outcome import Measured, result_of
from anyecho.measure.pacer import Pacer
from anyecho.measure.result import Load, RunResult
from anyecho.measure.schedule import due_times
from anyecho.measure.traffic import Traffic
from anyecho.net.readiness import READ
from anyecho.net.wire import PlainWire

MILLISECOND = 1_000_000
SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now


class MemoryWire(PlainWire):
    """A wire whose peer is the test: it sees what is `written`, and what it `deliver`s is read."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.input = bytearray()
        self.is_eof = False
        self.error: OSError | None = None
        #: Bytes that writes accept from now on.
        self.room = 1 << 62
        self.on_write: Callable[[bytes], None] = lambda data: None

    def read_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        if self.error is not None:
            raise self.error
        if not self.input and not self.is_eof:
            raise BlockingIOError

        data = self.input[: len(buffer)]
        del self.input[: len(data)]
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any, flags: int = 0, /) -> int:
        accepted = bytes(data[: self.room])
        if not accepted:
            raise BlockingIOError

        self.room -= len(accepted)
        self.written += accepted
        self.on_write(accepted)
        return len(accepted)


class Simulation:
    """An open loop of `rate` messages a second for `seconds`, by turns on `connections`; None is a closed loop.

    The server answers the n-th message of a connection, arrived at a time after the start, at ``answer(n, time)``.
    Nothing runs between the times of `starved`: neither the pacer nor the reading of replies.
    """

    def __init__(
        self,
        answer: Callable[[int, int], int],
        *,
        rate: float | None,
        seconds: float,
        connections: int = 1,
        pipeline: int = 1,
        size: int = 64,
        timeout: int | None = 10 * SECOND,
        starved: tuple[int, int] = (0, 0),
        warm_up: int = 0,
    ) -> None:
        self.clock = Clock()
        self.start = self.clock.now + warm_up
        self.answer = answer
        self.starved = (self.start + starved[0], self.start + starved[1])
        self.load = Load(
            address="memory", transport="tcp", connections=connections, size=size, rate=rate, duration=seconds
        )
        self.timeout = timeout
        self.traffic = Traffic(
            size=size, pipeline=pipeline, is_open_loop=rate is not None, timeout=timeout, clock=self.clock
        )
        self.wires = [MemoryWire() for _ in range(connections)]
        self.connections = [LoadConnection(wire, n, self.traffic) for n, wire in enumerate(self.wires)]
        self.traffic.deadline = self.start + int(seconds * SECOND)
        times = due_times(rate, "fixed", seconds=seconds, messages=None, seed=0) if rate is not None else iter(())
        self.pacer = Pacer(times, self.start, self.connections, self.traffic)
        self._replies: list[tuple[int, int, int, bytes]] = []
        self._numbers = count()
        for number, wire in enumerate(self.wires):
            wire.on_write = self._server(number)

    def _server(self, connection: int) -> Callable[[bytes], None]:
        messages: Iterator[int] = count()

        def on_write(data: bytes) -> None:
            assert len(data) == self.load.size
            now = self.clock.now
            at = self.start + self.answer(next(messages), now - self.start)
            assert at >= now
            heapq.heappush(self._replies, (at, next(self._numbers), connection, data))

        return on_write

    def run(self) -> RunResult:
        """Run until the last reply has come; return the result."""
        if self.load.rate is None:
            for each in self.connections:
                each.start()
        while self.pacer.next_due is not None or self._replies:
            due = self.pacer.next_due
            reply = self._replies[0][0] if self._replies else None
            self._go_to(min(time for time in (due, reply) if time is not None))
            if due is not None and due <= self.clock.now:
                self.pacer()
            while self._replies and self._replies[0][0] <= self.clock.now:
                _, _, connection, data = heapq.heappop(self._replies)
                self.wires[connection].input += data
                self.connections[connection].dispatch(READ)

        return self.result()

    def _go_to(self, time: int) -> None:
        begin, end = self.starved
        self.clock.now = max(self.clock.now, end if begin <= time < end else time)

    def result(self) -> RunResult:
        assert self.load.duration is not None
        return result_of(
            Measured(
                records=self.connections,
                start=self.start,
                end=self.start + int(self.load.duration * SECOND),
                now=self.clock.now,
                started_at=0.0,
                timeout=self.timeout,
                lags=self.traffic.lags,
                cpu_share=0.5,
                is_pinned=False,
                backend="asyncio",
                failure=self.traffic.first_failure,
            ),
            self.load,
        )
