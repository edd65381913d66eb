"""A stream wrapper that reports each chunk received or sent, and the log of a chunk in a short form."""

from __future__ import annotations

__all__ = ("Transcript", "log_chunk")

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from anyecho.streams.passthrough import Passthrough

#: Bytes of a chunk that a log line shows.
_SHOWN = 64


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
