"""Streams that hand out only so much: so many bytes, or so many a second.

Each limits what is received, and so what is echoed; none of them knows what carries the bytes.
"""

from __future__ import annotations

__all__ = ("Capped", "LimitReached", "Paced")

from dataclasses import dataclass, field

from anyio import current_time, sleep

from anyecho.passthrough import Passthrough

#: Seconds' worth of bytes that may come at once: as little as keeps an average over 10 s within 5 %, as much as
#: keeps the sleeps few.
_BURST = 0.1


class LimitReached(Exception):
    """The peer has sent all that it may. Its text is the reason, as `Stats.closed` counts it."""


@dataclass(eq=False)
class Capped(Passthrough):
    """Hands out `max_bytes` in all; raises `LimitReached` if the peer has more to say, which is lost."""

    max_bytes: int
    _received: int = field(init=False, default=0)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        left = self.max_bytes - self._received
        item = await self.stream.receive(min(max_bytes, left) or 1)
        if not left:
            raise LimitReached("bytes")

        self._received += len(item)
        return item


@dataclass(eq=False)
class Paced(Passthrough):
    """Hands out `rate` bytes a second, on average: a token bucket, and a byte is a token."""

    rate: float
    _tokens: float = field(init=False, default=0.0)
    _filled_at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._tokens = self._size = max(self.rate * _BURST, 1.0)
        self._filled_at = current_time()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        self._fill()
        if self._tokens < 1:
            # For half of it, not for one: a peer in haste then costs 20 turns a second, not one for each byte.
            await self._wait_for(max(self._size / 2, 1.0))

        item = await self.stream.receive(min(max_bytes, int(self._tokens)))
        self._tokens -= len(item)
        return item

    async def _wait_for(self, tokens: float) -> None:
        while self._tokens < tokens:
            await sleep((tokens - self._tokens) / self.rate)
            self._fill()

    def _fill(self) -> None:
        now = current_time()
        self._tokens = min(self._tokens + (now - self._filled_at) * self.rate, self._size)
        self._filled_at = now
