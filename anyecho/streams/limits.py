"""Stream wrappers that limit the bytes received, and so the echo: in total, or per second."""

from __future__ import annotations

__all__ = ("Capped", "LimitReached", "Paced")

from dataclasses import dataclass, field

from anyio import current_time, sleep

from anyecho.streams.passthrough import Passthrough

#: Burst of the token bucket, in seconds of its rate. Short enough for an average over 10 s within 5 %, long enough
#: for few sleeps.
_BURST = 0.1


class LimitReached(Exception):
    """The peer has sent more than its limit. The text is the close reason, a key of `Stats.closed`."""


@dataclass(eq=False)
class Capped(Passthrough):
    """Receives `max_bytes` in total; raises `LimitReached` if the peer sends more, and discards it."""

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
    """Receives `rate` bytes per second on average: a token bucket, one token per byte."""

    rate: float
    _tokens: float = field(init=False, default=0.0)
    _filled_at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._tokens = self._size = max(self.rate * _BURST, 1.0)
        self._filled_at = current_time()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        self._fill()
        if self._tokens < 1:
            # Wait for half a bucket, not for one token: 20 wake-ups a second for a fast peer, not one per byte.
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
