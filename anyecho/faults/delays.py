"""Faults that delay, beside the latency: every byte arrives, late."""

from __future__ import annotations

__all__ = ("Bandwidth", "SlowClose", "Stall")

import math
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import ClassVar

from anyio import EndOfStream, current_time, sleep_forever, sleep_until
from anyio.abc import ByteStream, TaskGroup

from anyecho.clock import due_after
from anyecho.faults.fault import StreamFault
from anyecho.faults.spoiled import Spoiled
from anyecho.options import documented, option
from anyecho.units import Rate, Seconds, Size

#: Seconds of its rate that `Bandwidth` lets pass at a time.
_QUANTUM = 0.1


@documented
@dataclass(frozen=True, kw_only=True)
class Bandwidth(StreamFault):
    """At most `rate` bytes per second pass, in pieces of a tenth of a second."""

    name: ClassVar[str] = "bandwidth"
    needs: ClassVar[tuple[str, ...]] = ("rate",)
    positive: ClassVar[tuple[str, ...]] = (*StreamFault.positive, "rate")

    rate: Rate | None = option(None, "Bytes per second.")

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> _Narrow:
        return _Narrow(stream, self, random)


@dataclass(eq=False)
class _Narrow(Spoiled[Bandwidth]):
    #: When the piece in transit has passed, and its size.
    _due: float = field(init=False, default=-math.inf)
    _piece: int = field(init=False, default=0)

    def _restart(self) -> None:
        self._due, self._piece = -math.inf, 0
        super()._restart()

    async def _admit(self, size: int) -> int:
        rate = self.fault.rate
        if rate is None:
            return size
        if not self._piece:
            self._piece = min(size, max(1, int(rate * _QUANTUM)))
            seconds = self._piece / rate
            self._due = max(self._due + seconds, due_after(seconds))

        if self._due > current_time():  # else no checkpoint: the caller may be cancelled at each, and try again
            await sleep_until(self._due)
        piece, self._piece = self._piece, 0
        return piece


@documented
@dataclass(frozen=True, kw_only=True)
class SlowClose(StreamFault):
    """The end of the data arrives later by `delay`."""

    name: ClassVar[str] = "slow_close"
    needs: ClassVar[tuple[str, ...]] = ("delay",)

    delay: Seconds = option(0.0, "The delay.")

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> _SlowlyClosed:
        return _SlowlyClosed(stream, self, random)


@dataclass(eq=False)
class _SlowlyClosed(Spoiled[SlowClose]):
    #: When the end is due.
    _due: float | None = field(init=False, default=None)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await self.stream.receive(max_bytes)
        except EndOfStream:
            if self.fault.stream == "upstream":
                await self._wait()
            raise

    async def send_eof(self) -> None:
        with self._sending:
            if self.fault.stream == "downstream":
                await self._wait()
            await self.stream.send_eof()

    async def aclose(self) -> None:
        try:
            if self.fault.stream == "downstream":
                await self._wait()
        finally:
            await super().aclose()

    def _restart(self) -> None:
        self._due = None
        super()._restart()

    async def _wait(self) -> None:
        while not self.removed:
            if self._due is None:
                self._due = due_after(self.fault.delay)
            if self._due <= current_time():
                break
            await self._restarted(partial(sleep_until, self._due))


@documented
@dataclass(frozen=True, kw_only=True)
class Stall(StreamFault):
    """After `bytes` have passed, nothing passes for `seconds`."""

    name: ClassVar[str] = "stall"

    bytes: Size = option(0, "Bytes that pass before.")
    seconds: Seconds | None = option(None, "How long; off: for ever.")

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> _Stalled:
        return _Stalled(stream, self, random)


@dataclass(eq=False)
class _Stalled(Spoiled[Stall]):
    #: When the stall ends.
    _until: float | None = field(init=False, default=None)

    def _restart(self) -> None:
        self._until = None
        super()._restart()

    async def _admit(self, size: int) -> int:
        left = self.fault.bytes - self.passed
        if left > 0:
            return left
        if self._until is None:
            self._until = due_after(math.inf if self.fault.seconds is None else self.fault.seconds)
        if math.isinf(self._until):
            await sleep_forever()
        if self._until > current_time():
            await sleep_until(self._until)
        return size
