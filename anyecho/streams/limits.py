"""Stream wrappers that limit the bytes received, and so the echo: in total, or per second."""

from __future__ import annotations

__all__ = ("Capped", "LimitReached", "Paced")

from dataclasses import dataclass, field

from anyio import current_time, sleep

from anyecho.streams.passthrough import Passthrough
from anyecho.throttle import TokenBucket

#: Burst of the token bucket, in seconds of its rate. Short enough for an average over 10 s within 5 %, long enough
#: for few sleeps.
_BURST = 0.1


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
