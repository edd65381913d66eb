"""Faults that end a connection, or one direction of it, too early."""

from __future__ import annotations

__all__ = ("Cut", "HalfClose", "LimitData", "ResetPeer", "Timeout")

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar, NoReturn, TypeVar

from anyio import (
    BrokenResourceError,
    BusyResourceError,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    current_time,
    sleep_until,
)
from anyio.abc import ByteStream, TaskGroup

from anyecho.clock import due_after
from anyecho.faults.fault import StreamFault
from anyecho.faults.spoiled import Spoiled
from anyecho.net.abrupt import cut, reset
from anyecho.options import documented, option
from anyecho.units import Seconds, Size, or_infinite

T = TypeVar("T")


@documented
@dataclass(frozen=True, kw_only=True)
class Timeout(StreamFault):
    """All data of a direction is dropped, and the connection ends after `timeout`."""

    name: ClassVar[str] = "timeout"
    ends_when_removed: ClassVar[bool] = True

    timeout: Seconds | None = option(None, "When the connection ends; off: never, a black hole.")

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> _BlackHole:
        return _BlackHole(stream, self, random)


@dataclass(eq=False)
class _Timed(Spoiled[StreamFault]):
    """Ends at a time, whichever call waits then."""

    _start: float = field(init=False, default_factory=current_time)
    _calls: set[CancelScope] = field(init=False, default_factory=set, repr=False)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._in_time(lambda: super(_Timed, self).receive(max_bytes))

    async def send(self, item: bytes) -> None:
        await self._in_time(lambda: super(_Timed, self).send(item))

    async def _in_time(self, call: Callable[[], Awaitable[T]]) -> T:
        with CancelScope(deadline=self._deadline()) as scope:
            self._calls.add(scope)
            try:
                return await call()
            finally:
                self._calls.discard(scope)

        return await self._close()

    def _restart(self) -> None:
        self._start = current_time()
        for scope in self._calls:
            scope.deadline = self._deadline()
        super()._restart()

    def _deadline(self) -> float:
        return math.inf if self.removed else self._start + or_infinite(self._limit())

    def _limit(self) -> float | None:
        """Return the seconds after which the connection ends."""
        raise NotImplementedError

    async def _close(self) -> NoReturn:
        await _finish(self.stream)
        self._end()


async def _finish(stream: ByteStream) -> None:
    """Send EOF, as a close that loses nothing begins."""
    with suppress(BrokenResourceError, ClosedResourceError, BusyResourceError):
        await stream.send_eof()


@dataclass(eq=False)
class _BlackHole(_Timed):
    fault: Timeout

    def _limit(self) -> float | None:
        return self.fault.timeout

    def _alter(self, piece: bytes) -> bytes:
        return b""


@documented
@dataclass(frozen=True, kw_only=True)
class Cut(StreamFault):
    """The connection ends in the middle: a FIN, and over TLS no close_notify before it."""

    name: ClassVar[str] = "cut"
    needs: ClassVar[tuple[str, ...]] = ("seconds", "bytes")

    seconds: Seconds | None = option(None, "When, counted from accept.")
    bytes: Size | None = option(None, "After how many bytes.")

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> _CutOff:
        return _CutOff(stream, self, random)


@dataclass(eq=False)
class _CutOff(_Timed):
    fault: Cut

    def _limit(self) -> float | None:
        return self.fault.seconds

    async def _close(self) -> NoReturn:
        await self._end_by(cut)

    async def _at_boundary(self) -> None:
        if self.fault.bytes is not None and self.passed >= self.fault.bytes:
            await self.drain()  # the bytes before the cut arrive, however late
            await self._close()

    async def _admit(self, size: int) -> int:
        return size if self.fault.bytes is None else max(self.fault.bytes - self.passed, 1)


@documented
@dataclass(frozen=True, kw_only=True)
class ResetPeer(StreamFault):
    """The first bytes do not pass; after `timeout`, the connection is reset.

    Only TCP has resets. Elsewhere it is a close at once.
    """

    name: ClassVar[str] = "reset_peer"

    timeout: Seconds = option(0.0, "The time from the first byte to the reset.")

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> _Reset:
        return _Reset(stream, self, random)


@dataclass(eq=False)
class _Reset(Spoiled[ResetPeer]):
    _due: float = field(init=False, default=math.inf)

    def _restart(self) -> None:
        self._due = math.inf
        super()._restart()

    async def _admit(self, size: int) -> int:
        self._due = min(self._due, due_after(self.fault.timeout))
        await sleep_until(self._due)
        await self._end_by(reset)


@documented
@dataclass(frozen=True, kw_only=True)
class LimitData(StreamFault):
    """The connection ends once `bytes` have passed."""

    name: ClassVar[str] = "limit_data"

    bytes: Size = option(0, "Bytes that pass.")

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> _Limited:
        return _Limited(stream, self, random)


@dataclass(eq=False)
class _Limited(Spoiled[LimitData]):
    async def _at_boundary(self) -> None:
        if self.passed >= self.fault.bytes:
            await _finish(self.stream)
            self._end()

    async def _admit(self, size: int) -> int:
        return self.fault.bytes - self.passed


@documented
@dataclass(frozen=True, kw_only=True)
class HalfClose(StreamFault):
    """One direction ends once `bytes` have passed, the other continues.

    Downstream: the peer gets EOF, and what is sent later is dropped. Upstream: the server gets EOF, although the
    peer sends on.
    """

    name: ClassVar[str] = "half_close"

    bytes: Size = option(0, "Bytes that pass.")

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> _HalfClosed:
        return _HalfClosed(stream, self, random)


@dataclass(eq=False)
class _HalfClosed(Spoiled[HalfClose]):
    _done: bool = field(init=False, default=False)

    def remove(self) -> None:
        if not self._done:  # else the peer has its EOF, and nothing can be sent any more
            super().remove()

    async def send_eof(self) -> None:
        if not self._done:
            await super().send_eof()

    async def _at_boundary(self) -> None:
        if self.passed < self.fault.bytes:
            return
        if self.fault.stream == "upstream":
            raise EndOfStream
        if not self._done:
            await self.stream.send_eof()
            self._done = True

    async def _admit(self, size: int) -> int:
        return size if self._done else self.fault.bytes - self.passed

    def _alter(self, piece: bytes) -> bytes:
        return b"" if self._done else piece
