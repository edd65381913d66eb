"""Byte streams that wrap a byte stream: a base class, a transcript, and limits of the bytes received."""

from __future__ import annotations

__all__ = ("Capped", "LimitReached", "Paced", "Passthrough", "Transcript", "log_chunk")

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from anyio import current_time, sleep
from anyio.abc import ByteStream

from anyecho.throttle import TokenBucket

#: Bytes of a chunk that a log line shows.
_SHOWN = 64
#: Burst of the token bucket, in seconds of its rate. Short enough for an average over 10 s within 5 %, long enough
#: for few sleeps.
_BURST = 0.1


@dataclass(eq=False)
class Passthrough(ByteStream):
    """Forwards every call to `stream`; owns and closes it. A subclass overrides the methods that it changes."""

    stream: ByteStream

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self.stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self.stream.send(item)

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self.stream.extra_attributes


def log_chunk(logger: logging.Logger, what: str, chunk: bytes, *, extra: Mapping[str, str] | None = None) -> None:
    """Log the repr of `chunk` at level DEBUG, cut after 64 bytes and then followed by its full size."""
    if logger.isEnabledFor(logging.DEBUG):
        more = f"... ({len(chunk)} bytes)" if len(chunk) > _SHOWN else ""
        logger.debug("%s %r%s", what, bytes(chunk[:_SHOWN]), more, extra=extra)


@dataclass(eq=False)
class Transcript(Passthrough):
    """Calls `report("received" or "sent", chunk)` after each receive and each send."""

    report: Callable[[str, bytes], None]

    async def receive(self, max_bytes: int = 65536) -> bytes:
        chunk = await self.stream.receive(max_bytes)
        self.report("received", chunk)
        return chunk

    async def send(self, item: bytes) -> None:
        await self.stream.send(item)
        self.report("sent", item)


class LimitReached(Exception):
    """The peer has sent more than its limit."""


@dataclass(eq=False)
class Capped(Passthrough):
    """Receives `max_bytes` in total; raises `LimitReached` if the peer sends more, and discards it."""

    max_bytes: int
    _received: int = field(init=False, default=0)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        left = self.max_bytes - self._received
        item = await self.stream.receive(min(max_bytes, left) or 1)
        if not left:
            raise LimitReached

        self._received += len(item)
        return item


@dataclass(eq=False)
class Paced(Passthrough):
    """Receives `rate` bytes per second on average: a token bucket, one token per byte."""

    rate: float

    def __post_init__(self) -> None:
        self._bucket = TokenBucket(self.rate, max(self.rate * _BURST, 1.0))
        # Half a bucket, not one token: 20 wake-ups a second for a fast peer, not one per byte.
        self._refill = max(self._bucket.tokens / 2, 1.0)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        bucket = self._bucket
        bucket.refill(current_time())
        if bucket.tokens < 1:
            while bucket.tokens < self._refill:
                await sleep((self._refill - bucket.tokens) / self.rate)
                bucket.refill(current_time())

        item = await self.stream.receive(min(max_bytes, int(bucket.tokens)))
        bucket.tokens -= len(item)
        return item
