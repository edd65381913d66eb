"""A stream that tells what passes: the conversation of the original example, line by line.

Knows what a line looks like; who logs it, and whether anybody listens, its maker decides.
"""

from __future__ import annotations

__all__ = ("Transcript", "shorten")

from collections.abc import Callable
from dataclasses import dataclass

from anyecho.passthrough import Passthrough

#: As much of a chunk as helps to recognise it.
_SHOWN = 64


def shorten(chunk: bytes) -> str:
    """``b'...'``, escaped, cut after 64 bytes and then with its full size."""
    if len(chunk) <= _SHOWN:
        return repr(bytes(chunk))

    return f"{bytes(chunk[:_SHOWN])!r}... ({len(chunk)} bytes)"


@dataclass(eq=False)
class Transcript(Passthrough):
    """Report each received chunk, and each sent one once it is gone, to `tell(what, chunk)`."""

    tell: Callable[[str, bytes], None]

    async def receive(self, max_bytes: int = 65536) -> bytes:
        chunk = await self.stream.receive(max_bytes)
        self.tell("received", chunk)
        return chunk

    async def send(self, item: bytes) -> None:
        await self.stream.send(item)
        self.tell("sent", item)
