"""The fault latency: each chunk arrives later, while the chunks after it are on their way."""

from __future__ import annotations

__all__ = ("Latency",)

import math
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import ClassVar, NamedTuple

from anyio import (
    BrokenResourceError,
    BusyResourceError,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    Event,
    current_time,
    sleep_forever,
    sleep_until,
)
from anyio.abc import ByteStream, TaskGroup
from anyio.lowlevel import checkpoint

from anyecho.clock import due_after
from anyecho.faults.fault import Alter, StreamFault
from anyecho.faults.spoiled import Spoiled
from anyecho.options import documented, option
from anyecho.units import Seconds

#: Bytes that are held at most: 40 MB/s at a latency of 0.1 s.
_WINDOW = 4 << 20


@documented
@dataclass(frozen=True, kw_only=True)
class Latency(StreamFault):
    """Each chunk arrives later by `latency`, plus or minus up to `jitter`. Chunks keep their order.

    Chunks that follow each other are delayed at the same time, as by a long cable.
    """

    name: ClassVar[str] = "latency"

    carriers: ClassVar[tuple[str, ...]] = ("stream", "datagram")
    needs: ClassVar[tuple[str, ...]] = ("latency", "jitter")

    latency: Seconds = option(0.0, "The delay.")
    jitter: Seconds = option(0.0, "The most by which a delay differs, drawn for each chunk.")

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> _Late:
        return _Late(stream, self, random, tasks)

    def alter_datagrams(self, random: Random) -> Alter:
        last_due = -math.inf

        def alter(due: float, datagram: bytes) -> list[tuple[float, bytes]]:
            nonlocal last_due
            last_due = max(last_due, due + self.delay(random))
            return [(last_due, datagram)]

        return alter

    def delay(self, random: Random) -> float:
        """Draw the delay of a chunk."""
        return max(0.0, self.latency + (random.uniform(-self.jitter, self.jitter) if self.jitter else 0.0))


class _Held(NamedTuple):
    """A chunk, or an error that ends the direction: `EndOfStream` is EOF."""

    arrived: float
    due: float
    item: bytes | Exception


@dataclass(eq=False)
class _Late(Spoiled[Latency]):
    tasks: TaskGroup | None = None
    _queue: deque[_Held] = field(init=False, default_factory=deque)
    _queued: int = field(init=False, default=0)
    _last_due: float = field(init=False, default=-math.inf)
    _flushing: bool = field(init=False, default=False)
    _taken: Event = field(init=False, default_factory=Event)
    _failure: Exception | None = field(init=False, default=None)
    #: Whether the end of what is received has passed.
    _at_end: bool = field(init=False, default=False)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if self.fault.stream == "downstream":
            return await self._receive_directly(max_bytes)
        if max_bytes <= 0 or self._at_end:
            return await self.stream.receive(max_bytes)

        self._check()
        with self._receiving:
            if self._is_due():
                await checkpoint()
            while not self._is_due():
                with CancelScope(deadline=self._queue[0].due if self._queue else math.inf):
                    await self._restarted(self._read_ahead)

            first = self._queue[0]
            item = first.item
            if isinstance(item, Exception):
                self._at_end = True
                self._queue.popleft()
                raise type(item)(*item.args) from item.__cause__

            piece, rest = item[:max_bytes], item[max_bytes:]
            self._queued -= len(piece)
            if rest:
                self._queue[0] = first._replace(item=rest)
            else:
                self._queue.popleft()
            return piece

    async def _receive_directly(self, max_bytes: int) -> bytes:
        while True:
            chunk = await self._restarted(partial(self.stream.receive, max_bytes))
            if chunk is not None:  # else a fault behind this one may have ended the connection
                return chunk

    def _is_due(self) -> bool:
        return bool(self._queue) and self._queue[0].due <= current_time()

    @property
    def is_idle(self) -> bool:
        return not self._queue and super().is_idle

    def _restart(self) -> None:
        held, self._last_due = [*self._queue], -math.inf
        self._queue.clear()
        for each in held:
            self._queue.append(each._replace(due=self._due(since=each.arrived)))
        super()._restart()

    async def _read_ahead(self) -> None:
        if self._queued >= _WINDOW or (self._queue and isinstance(self._queue[-1].item, Exception)):
            await sleep_forever()
        try:
            self._put(await self.stream.receive())
        except (EndOfStream, BrokenResourceError) as exc:
            self._put(exc)

    async def send(self, item: bytes) -> None:
        if self.fault.stream == "upstream" or not item:
            await self.stream.send(item)
            return

        self._check()
        with self._sending:
            await checkpoint()
            if self.tasks is None:
                await sleep_until(self._due(since=current_time()))
                await self.stream.send(item)
                return

            while self._queued >= _WINDOW:
                await self._wait_taken()
            self._check_sent()
            self._put(bytes(item))
            self._start_flush(self.tasks)

    async def send_eof(self) -> None:
        if self.fault.stream == "upstream":
            await self.stream.send_eof()
            return

        with self._sending:
            if self.tasks is None:
                await sleep_until(self._last_due)
                await self.stream.send_eof()
                return

            self._put(EndOfStream())
            self._start_flush(self.tasks)
            while self._queue:
                await self._wait_taken()
            self._check_sent()

    async def aclose(self) -> None:
        """Wait until all is sent; at once if cancelled."""
        try:
            while self._flushing and not self._closed:
                await self._wait_taken()
        finally:
            await super().aclose()

    def _start_flush(self, tasks: TaskGroup) -> None:
        if not self._flushing:
            self._flushing = True
            tasks.start_soon(self._flush)

    async def _flush(self) -> None:
        try:
            while self._queue:
                if not self._is_due():
                    await self._restarted(partial(sleep_until, self._queue[0].due))
                    continue
                item = self._queue[0].item
                if isinstance(item, Exception):
                    await self.stream.send_eof()
                else:
                    await self.stream.send(item)
                    self._queued -= len(item)
                self._queue.popleft()
                self._wake()
        except (BrokenResourceError, BusyResourceError, ClosedResourceError) as exc:  # for the next call
            self._failure = exc
            self._queue.clear()
            self._queued = 0
            self._end_waits()
        finally:
            self._flushing = False
            self._wake()

    async def drain(self) -> None:
        while self.fault.stream == "downstream" and self._queue:
            await self._wait_taken()
        await super().drain()

    async def _wait_taken(self) -> None:
        await self._taken.wait()

    def _wake(self) -> None:
        self._taken.set()
        self._taken = Event()

    def _check_sent(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args) from self._failure.__cause__

    def _put(self, item: bytes | Exception) -> None:
        now = current_time()
        self._queue.append(_Held(now, self._due(since=now), item))
        if not isinstance(item, Exception):
            self._queued += len(item)

    def _due(self, *, since: float) -> float:
        delay = 0.0 if self.removed else self.fault.delay(self.random)
        self._last_due = max(self._last_due, due_after(delay - (current_time() - since)))
        return self._last_due
